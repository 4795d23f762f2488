"""The contract of every family: each of its checks on each case."""

import dataclasses
import itertools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, MOVED

import jaxmdn
from jaxmdn.components import Density, Laplace, Logistic, StudentT

# Their mixtures and samples: each needs a program that takes half a minute to compile. Those of
# the negative binomial and of the other hurdles run every time.
NIGHTLY = ("poisson", "zero-inflated", "hurdle", "hurdle-gamma")


def pair(case, part, dtype):
    marks = []
    if case.name in NIGHTLY and part in contract.MIXING:
        marks.append(pytest.mark.nightly)
    name = f"{case.name}-{part.__name__[6:]}-{dtype.__name__}"
    return pytest.param(case, part, dtype, id=name, marks=marks)


PAIRS = [pair(case, *check) for case in CASES for check in contract.CHECKS]


@pytest.mark.parametrize(("case", "part", "dtype"), PAIRS)
def test_contract(case, part, dtype):
    part(case, dtype)


@pytest.mark.parametrize("case", MOVED, ids=lambda case: case.name)
def test_other_bounds(case):
    for part in contract.ELEMENTWISE:
        part(case, np.float64)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_quantiles_of_random_mixtures(case):
    for seed in range(20, 45):
        contract.check_mixed_quantiles(case, seed=seed)


@pytest.mark.optimised
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_users_compile(case):
    """The float32 program of every family; with JAXMDN_TEST_OPTIMIZED=1, optimised."""
    for part in contract.ELEMENTWISE:
        part(case, np.float32)


def test_no_two_families_have_equal_structures():
    """Else a function compiled for one of them may be run for another (see ``register``)."""
    families, todo = set(), [Density]
    while todo:
        family = todo.pop()
        todo += family.__subclasses__()
        if dataclasses.is_dataclass(family) and family.__module__.startswith("jaxmdn."):
            families.add(family)
    assert {Laplace, Logistic, StudentT, jaxmdn.Mixture} <= families
    structures = {}
    for family in families:
        empty = object.__new__(family)  # fields are not checked, and not needed
        for field in dataclasses.fields(family):
            object.__setattr__(empty, field.name, 0)
        structures[family] = jax.tree.structure(empty)
    for first, second in itertools.combinations(families, 2):
        assert structures[first] != structures[second], (first, second)


def test_registered_families_are_pytrees():
    family = StudentT(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)), df=jnp.full((2, 1), 3.0))
    leaves, structure = jax.tree.flatten(family)
    assert [leaf[0, 0] for leaf in leaves] == [0.0, 1.0, 3.0]
    assert jax.tree.unflatten(structure, leaves).df is family.df
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(family)]
    assert names == [".loc", ".scale", ".df"]
