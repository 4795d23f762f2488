"""What the documents show is run: README blocks, doctests, notebooks."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import jaxmdn

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(jaxmdn.__path__, "jaxmdn.")
    if module.name != "jaxmdn.__main__"
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


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    monkeypatch.delenv("JAXMDN_CHECK_TYPES")
    monkeypatch.delenv("JAXMDN_DATA", raising=False)  # the bundled data will do, and are quicker
    notebook = nbformat.read(path, as_version=4)
    pictures = _pictures(notebook)
    assert pictures > 0, "commit the notebook with its pictures: make notebooks"
    folder = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=300, resources=folder).execute()
    assert _pictures(notebook) == pictures


def _pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)
