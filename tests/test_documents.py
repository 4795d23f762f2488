"""What the documents show is run: README blocks and tables, doctests."""

import doctest
import importlib.util
import operator
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import jaxmdn

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxmdn.__path__, "jaxmdn.")
    if module.name not in ("jaxmdn.__main__", "jaxmdn.estimator.probabilistic")  # skpro runs those
    and ">>> " in Path(importlib.util.find_spec(module.name).origin).read_text()
)


@pytest.mark.usefixtures("as_users_run")
def test_readme_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["lp"].shape == (5,)
    assert jax.numpy.isfinite(names["metrics"].loss)


TABLES = re.search(
    r"## Every kind of target\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL
).group(1)
LINES = re.findall(r"`((?:[A-Z]\w+Head|[\w.]*AutoregressiveMDN)\(.*?\))`", TABLES)
BEFORE = re.search(r"The lines run after\s`(.*?)`", TABLES).group(1)
TABLE = re.search(
    r"## What it does\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL
).group(1)
# Options, not names of the package.
OPTIONS = {"min_scale", "min_weight", "reparameterize", "scale_link"}


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_tables_is_a_density(line):
    names = {}
    exec(BEFORE, names)
    built = eval(line, names)
    density = built(jax.numpy.zeros(getattr(built, "num_outputs", 4)))
    y = jaxmdn.sample(jax.random.key(0), density, 3)
    value = jaxmdn.log_prob(density, y)
    assert value.shape == (3,)
    assert jax.numpy.isfinite(value).all()


def test_every_name_in_the_table_of_names_is_there():
    """As it is written, or in the package that the row names."""
    found = 0
    for row in re.findall(r"^\|(.*)\|$", TABLE, re.MULTILINE)[2:]:
        named = re.findall(r"jaxmdn\.(\w+)`", row)
        modules = [jaxmdn, *(getattr(jaxmdn, name) for name in named)]
        modules += [jaxmdn.train] if "jaxmdn.train" in row else []
        for name in re.findall(r"`([\w.]+)", row):
            own = name.removeprefix("jaxmdn.")
            if own not in OPTIONS and own != "mixture":
                assert any(_has(module, own) for module in modules), name
                found += 1
    assert found > 70


def _has(module, name):
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def test_the_tables_name_every_family():
    named = set(re.findall(r'"(\w+)"', " ".join(LINES))) | {"normal"}
    own = {
        name
        for name in jaxmdn.heads.family_names()
        if jaxmdn.heads.Family(name).component.__module__.startswith("jaxmdn.")
    }
    assert own <= named


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_functions_with_examples_are_many():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [
        test
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(examples) >= 20
