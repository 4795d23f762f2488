"""The report of dead components and floored scales, for every head that has components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import questions

import jaxmdn
from jaxmdn.train.report import combine, component_statistics

HEADS = questions.heads()
HEADS["zeros-or-scaled"] = jaxmdn.FactorizedHead(jaxmdn.Family("hurdle", base="lognormal"), 3)
WITHOUT = {"bernoulli", "beta", "gamma", "negative_binomial", "poisson", "von_mises"}
WITHOUT |= {"hurdle", "zero-inflated"}  # over a gamma, over Poisson
ROWS = 4


@jax.jit
def reports():
    """For raw outputs far below zero, where every scale is at its floor; the last row is padding.

    The first component has all the weight.
    """
    found = {}
    for name, head in HEADS.items():
        raw = jnp.full((ROWS, head.num_outputs), -60.0)
        raw = raw.at[:, 0].set(60.0)
        found[name] = component_statistics(head, head(raw), jnp.array([1.0, 1.0, 1.0, 0.0]))
    return found


def test_dead_components_and_floored_scales_are_found():
    for name, statistics in reports().items():
        if name == "categorical":
            assert statistics is None
            continue
        report = combine(jax.tree.map(lambda x: x[None], statistics))
        shape = {"independent": (6,), "classes": (2, 3)}.get(name, (3,))
        assert report.mean_weight.shape == report.floor_share.shape == shape, name
        np.testing.assert_allclose(report.floor_share, 0.0 if name in WITHOUT else 1.0)
        lines = " ".join(report.messages(HEADS[name]))
        assert ("sit at the scale's floor" in lines) == (name not in WITHOUT), name
        if len(shape) == 1 and name != "independent":
            np.testing.assert_allclose(report.mean_weight, [1, 0, 0], atol=1e-6)
            assert "components 1, 2 died" in lines
        np.testing.assert_allclose(report.mean_weight.sum(-1), {"independent": 2.0}.get(name, 1.0))


@pytest.mark.parametrize("name", ["gamma", "independent"])
def test_no_message_where_all_is_well(name):
    head = HEADS[name]
    raw = jnp.zeros((ROWS, head.num_outputs))
    statistics = component_statistics(head, head(raw), jnp.ones(ROWS))
    assert combine(jax.tree.map(lambda x: x[None], statistics)).messages(head) == []
