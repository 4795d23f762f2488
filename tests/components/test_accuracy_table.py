"""The table of accuracy on the site says what is measured."""

import importlib.util
from pathlib import Path

import contract
import numpy as np
import pytest
from cases import CASES

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("measure_accuracy", DOCS / "measure_accuracy.py")
measure_accuracy = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measure_accuracy)


def table():
    """Family -> cells ``[columns, 2]``: in float64, in float32."""
    lines = [line.strip("| ") for line in measure_accuracy.TABLE.read_text().splitlines()[2:]]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {name: [[float(x) for x in cell.split("/")] for cell in cells] for name, *cells in rows}


def test_it_has_every_family():
    assert list(table()) == [case.name for case in CASES]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_promises_no_more_than_is_measured(case):
    """Within twice what it says: other processors round sums otherwise."""
    stated = np.array(table()[case.name])
    for column, dtype in enumerate((np.float64, np.float32)):
        found = measure_accuracy.units(contract, case, dtype)
        assert (np.array(list(found.values())) <= 2 * stated[:, column]).all(), found
