"""What the documents show is run: README blocks and tables, doctests."""

import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path

import jax
import pytest
from flax import nnx

import jaxmdn

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxmdn.__path__, "jaxmdn.")
    if module.name != "jaxmdn.__main__"
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
LINES = re.findall(r"`((?:[A-Z]\w+Head|AutoregressiveMDN)\(.*?\))`", TABLES)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_tables_is_a_density(line):
    names = {**vars(jaxmdn.heads), "AutoregressiveMDN": jaxmdn.nn.AutoregressiveMDN, "nnx": nnx}
    built = eval(line, names)
    density = built(jax.numpy.zeros(getattr(built, "num_outputs", 4)))
    y = jaxmdn.sample(jax.random.key(0), density, 3)
    value = jaxmdn.log_prob(density, y)
    assert value.shape == (3,)
    assert jax.numpy.isfinite(value).all()


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
