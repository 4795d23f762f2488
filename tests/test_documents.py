"""What the documents show is run: blocks and tables, doctests; their links lead somewhere."""

import doctest
import importlib.util
import operator
import pkgutil
import re
from pathlib import Path

import jax
import pytest
from questions import FAMILIES
from test_reference import reference

import jaxmdn

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxmdn.__path__, "jaxmdn.")
    if module.name not in ("jaxmdn.__main__", "jaxmdn.estimator.probabilistic")  # skpro runs those
    and ">>> " in Path(importlib.util.find_spec(module.name).origin).read_text()
)


DOCS = ROOT / "docs"
MADE = ("_build", "reference")  # not written by hand
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted(DOCS.rglob("*.md")),
    )
    if path.relative_to(DOCS if DOCS in path.parents else ROOT).parts[0] not in MADE
}
# A line "% needs: NAME" before a block: it runs where that package is installed.
BLOCK = re.compile(r"(?:% needs: (\w+)\n\n)?```python\n(.*?)```", re.DOTALL)
#: Pages whose code runs at every push; that of the others nightly.
SHORT = {"README.md", "docs/index.md", "docs/howto/weights_and_gaps.md", "docs/howto/debugging.md"}
WITH_CODE = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.nightly)
    for name, text in PAGES.items()
    if BLOCK.search(text)
]


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    """From the top of a page to its end, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for package, block in BLOCK.findall(PAGES[page]):
        if not package or importlib.util.find_spec(package):
            exec(compile(block, page, "exec"), names)


def _anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    bare = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#{1,3} (.*)$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the generated pages of the site: the reference, the notebooks."""
    folder = tmp_path_factory.mktemp("site")
    reference.write(folder / "reference")
    (folder / "tutorials").symlink_to(ROOT / "notebooks")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page, made):
    text = re.sub(r"```(?!{).*?```", "", PAGES[page], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"^```{(?:figure|image|include)} (\S+)", text, re.MULTILINE)
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if not path.exists() and DOCS in path.parents:
            path = made / path.relative_to(DOCS)
        assert path.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in _anchors(path.read_text()), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_described_in_words(page):
    """For those who cannot see them; small drawings of families in one word."""
    text = re.sub(r"```(?!{).*?```", "", PAGES[page], flags=re.DOTALL)
    assert all(re.findall(r"!\[(.*?)\]\(", text)), page
    for block in re.findall(r"^```{(?:figure|image)}.*?^```", text, re.MULTILINE | re.DOTALL):
        assert re.search(r"^:alt: .{40}", block, re.MULTILINE), f"{page}: {block}"


def test_every_name_that_a_page_mentions_is_there():
    """``jaxmdn.NAME`` in code between backticks, and in the blocks."""
    found = 0
    for page, text in PAGES.items():
        for name in re.findall(r"(?<![\w./-])jaxmdn\.([a-z_A-Z][\w.]*)", text):
            if page != "CONTRIBUTING.md" and not name.endswith(".py"):
                assert _is_there(name.rstrip(".")), f"{page}: jaxmdn.{name}"
                found += 1
    assert found > 150


def _is_there(name):
    """A name of the package, or a module that is not loaded with it."""
    try:
        operator.attrgetter(name)(jaxmdn)
    except AttributeError:
        return importlib.util.find_spec(f"jaxmdn.{name}") is not None
    return True


HEADS = PAGES["docs/start/which_head.md"]
LINES = re.findall(r"`((?:[A-Z]\w+Head|[\w.]*AutoregressiveMDN)\(.*?\))`", HEADS)
BEFORE = re.search(r"The lines run after\s`(.*?)`", HEADS).group(1)


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


def test_the_tables_name_every_family():
    named = set(re.findall(r'"(\w+)"', " ".join(LINES))) | {"normal"}
    assert set(FAMILIES) <= named
    drawn = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    assert set(FAMILIES) <= drawn, "run docs/draw.py"


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
