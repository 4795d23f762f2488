"""Every notebook runs anywhere, on data made by formula, and is committed with its pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.nightly
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    monkeypatch.delenv("JAXMDN_CHECK_TYPES")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # compiled as users compile
    monkeypatch.delenv("JAXMDN_DATA", raising=False)  # the bundled data will do, and are quicker
    notebook = nbformat.read(path, as_version=4)
    pictures = _pictures(notebook)
    assert pictures > 0, "commit the notebook with its pictures: make notebooks"
    folder = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=600, resources=folder).execute()
    assert _pictures(notebook) == pictures


def _pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_are_described_in_words(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.get("outputs")]
    for cell in cells:
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) > 40
