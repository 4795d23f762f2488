"""A row that is left out leaves no trace, whatever it holds: every head, family, implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from questions import FAMILIES

import jaxmdn
from jaxmdn import CategoricalHead, ClassConditionalHead, FactorizedHead, NormalHead
from jaxmdn.heads import Family, IndependentHead

# One head of every family: its gradients are those of each alone.
EVERY = (
    *FAMILIES,
    Family("hurdle", base="poisson"),
    Family("truncated_normal", lower=-1.0, upper=1.0),
)
HEADS = {
    "families": FactorizedHead(EVERY, 2),
    "diagonal": NormalHead(3, 2),
    "full": NormalHead(2, 3, covariance="full"),
    "low rank": NormalHead(2, 3, covariance="low_rank", rank=1),
    "classes": CategoricalHead(3),
    "class-conditional": ClassConditionalHead(2, FactorizedHead("gamma", 2)),
    "independent": IndependentHead((FactorizedHead("beta", 2), CategoricalHead(3))),
}
# What a row that is left out may hold: outside supports, on their edges, no number at all.
BAD = (np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 1e30, 0.5)
KEPT, HIDDEN = 3, 4


@functools.partial(jax.jit, static_argnums=(0, 1))
def unfused(head, implementation, raw, y, weights, mask):
    def loss(raw, y, weights):
        options = {"weights": weights, "mask": mask, "implementation": implementation}
        return jaxmdn.nll(head, raw, y, **options)

    places = (0, 1, 2) if jnp.issubdtype(y.dtype, jnp.floating) else (0, 2)
    return jax.value_and_grad(loss, places)(raw, y, weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def fused(head, implementation, layer, y, weights, mask):
    def loss(layer, weights):
        options = {"weights": weights, "mask": mask, "implementation": implementation}
        return jaxmdn.linear_nll(head, *layer, y, **options)

    return jax.value_and_grad(loss, (0, 1))(layer, weights)


def rows(head, rng):
    """Kept rows, rows of :data:`BAD`, and which count: by mask, by weight, by both."""
    raw = rng.normal(size=(KEPT + len(BAD), head.num_outputs))
    density = head(jnp.asarray(raw[:KEPT]))
    y = np.asarray(jaxmdn.sample(jax.random.key(0), density), float)
    bad = np.stack([np.full(y.shape[1], value) for value in BAD])
    raw[KEPT:] = np.array([np.nan, np.inf, 0.0, 1.0, -1e30, 50.0, -50.0, 0.0])[:, None]
    weights = rng.uniform(0.5, 2, size=KEPT + len(BAD))
    mask = np.arange(len(weights)) < KEPT
    by = rng.integers(3, size=len(BAD))
    weights[KEPT:][by != 0] = 0
    mask[KEPT:][by == 1] = True
    return raw, np.concatenate([y, bad]), weights, mask


@pytest.mark.parametrize("implementation", ["xla", "xla_chunked"])
@pytest.mark.parametrize("name", HEADS)
def test_rows_that_are_left_out_leave_no_trace(name, implementation):
    head = HEADS[name]
    raw, y, weights, mask = rows(head, np.random.default_rng(len(name)))
    if name == "classes":  # an integer array: anything that is no class
        y = np.where(np.isfinite(y) & (np.abs(y) < 1e9), y, -7).astype(np.int32)
    value, (draw, *dy, dweights) = unfused(head, implementation, raw, y, weights, mask)
    # The same rows with harmless contents, which count as little.
    calm = np.arange(len(raw)) % KEPT
    whole = unfused(head, implementation, raw[calm], y[calm], weights, mask)
    np.testing.assert_allclose(value, whole[0], rtol=1e-12)
    assert not np.any(draw[KEPT:])
    np.testing.assert_allclose(draw[:KEPT], whole[1][0][:KEPT], rtol=1e-10, atol=1e-13)
    for gradient in dy:
        assert not np.any(gradient[KEPT:])
        np.testing.assert_allclose(gradient[:KEPT], whole[1][1][:KEPT], rtol=1e-10, atol=1e-13)
    assert np.all(np.isfinite(dweights[:KEPT]))


@pytest.mark.parametrize("implementation", ["xla", "xla_chunked"])
@pytest.mark.parametrize("name", ["families", "full", "independent"])
def test_the_output_layer_does_not_see_them_either(name, implementation):
    head = HEADS[name]
    rng = np.random.default_rng(7)
    _, y, weights, mask = rows(head, rng)
    hidden = rng.normal(size=(len(y), HIDDEN))
    kernel, bias = 0.3 * rng.normal(size=(HIDDEN, head.num_outputs)), np.zeros(head.num_outputs)
    calm = np.arange(len(y)) % KEPT
    target = y[calm]
    whole = fused(head, implementation, (hidden[calm], kernel, bias), target, weights, mask)
    hidden[KEPT:] = np.array([np.nan, np.inf, 0.0, 1.0, -1e30, 50.0, -50.0, 0.0])[:, None]
    value, (layer, _) = fused(head, implementation, (hidden, kernel, bias), y, weights, mask)
    np.testing.assert_allclose(value, whole[0], rtol=1e-12)
    assert not np.any(layer[0][KEPT:])
    for found, expected in zip(layer[1:], whole[1][0][1:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
