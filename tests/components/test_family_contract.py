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

# What push leaves to nightly: families whose compiled program, or oracle, takes 4 to 30 s.
DEAR = dict.fromkeys(contract.ELEMENTWISE, ("hurdle", "hurdle-gamma"))
DEAR[contract.check_slopes] += ("von-mises", "truncated-normal")
DEAR |= dict.fromkeys(
    set(contract.MIXING) - {contract.check_types},
    (
        "student-t", "beta", "truncated-normal", "poisson", "negative-binomial", "zero-inflated",
        "hurdle", "hurdle-gamma", "hurdle-normal",
    ),
)  # fmt: skip
CHEAP = ("unit-logit-normal",)  # of the families with other bounds


def pair(case, part, dtype):
    # float32 has its turn where it says more, with the compiler's optimisations.
    nightly = dtype == np.float32 or case.name in DEAR.get(part, ())
    name = f"{case.name}-{part.__name__[6:]}-{dtype.__name__}"
    return pytest.param(case, part, dtype, id=name, marks=[pytest.mark.nightly] * nightly)


PAIRS = [pair(case, *check) for case in CASES for check in contract.CHECKS]


@pytest.mark.parametrize(("case", "part", "dtype"), PAIRS)
def test_contract(case, part, dtype):
    part(case, dtype)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.nightly] * (case.name not in CHEAP))
        for case in MOVED
    ],
)
def test_other_bounds(case):
    for part in contract.ELEMENTWISE:
        part(case, np.float64)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_quantiles_of_random_mixtures(case):
    contract.check_random_quantiles(case)


@pytest.mark.nightly
@pytest.mark.optimised
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_users_compile(case):
    """The float32 program of every family, with the compiler's optimisations."""
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
