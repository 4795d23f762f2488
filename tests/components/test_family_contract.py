"""The contract of every family: each of its checks on each case."""

import contract
import numpy as np
import pytest
from cases import CASES, MOVED

PAIRS = [
    pytest.param(case, part, dtype, id=f"{case.name}-{part.__name__[6:]}-{dtype.__name__}")
    for case in CASES
    for part, dtype in contract.CHECKS
]


@pytest.mark.parametrize(("case", "part", "dtype"), PAIRS)
def test_contract(case, part, dtype):
    part(case, dtype)


@pytest.mark.parametrize("case", MOVED, ids=lambda case: case.name)
def test_other_bounds(case):
    for part in contract.ELEMENTWISE:
        part(case, np.float64)
