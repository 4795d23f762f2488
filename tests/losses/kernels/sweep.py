"""What the tests of the fused likelihoods share: references, and one case held to them.

The reference is either 80-digit arithmetic or float64 autodiff of each row's plain likelihood; what
weights, masks, reductions and the output layer make of the rows is redone here in NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import jaxmdn
from jaxmdn import NormalHead

FUSED, PLAIN = "xla_chunked", "xla"
H = 3  # hidden features

# Gradients are compared in units of their largest entry, since entries are sums that may cancel.
# float64: chains of some tens of roundings, times the condition of a row of O(1) numbers.
# float32: the same, 1e-16 -> 6e-8. bfloat16: inputs are exact, and the gradient is rounded once to
# 8 bits (4e-3); linear_nll rounds the factor of two products as well.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}


def close(actual, expected, dtype, name=""):
    """Compare in units of the largest expected entry."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    atol = TOLERANCE[jnp.dtype(dtype).name] * max(np.max(np.abs(expected), initial=0.0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


@partial(jax.jit, static_argnums=0)
def plain_rows(head, raw, y):
    """NLL of each row and its gradients, by autodiff of the plain composition."""
    value, pull = jax.vjp(
        lambda raw, y: jaxmdn.nll(head, raw, y, reduction="none", implementation=PLAIN), raw, y
    )
    return value, *pull(jnp.ones_like(value))


def exact_rows(head, raw, y):
    """The same in 80 digits."""
    rows = list(zip(np.asarray(raw), np.asarray(y), strict=True))
    value = [-float(oracles.exact_log_prob(head, *row)) for row in rows]
    slopes = [oracles.exact_gradient(head, *row) for row in rows]
    return np.array(value), *(-np.array(slope) for slope in zip(*slopes, strict=True))


def reduced(rows, weights, mask, reduction, cotangent):
    """Loss and gradients of raw, y and weights from each row's own (flat, float64 NumPy).

    A row that does not count leaves its value out, in the gradient of its weight too.
    """
    value, raw_slope, y_slope = rows
    count = np.where(mask, weights, 0.0)
    mass = np.sum(count) if reduction == "mean" else 1.0
    outer = cotangent if reduction == "none" else np.ones_like(count)
    factor = outer * count / mass if mass else np.zeros_like(count)
    loss = np.sum(factor * value)
    weight_slope = np.where(count != 0, outer * value, 0.0)
    if reduction == "mean":
        weight_slope = (weight_slope - loss) / mass if mass else np.zeros_like(count)
    return {
        "loss": loss,
        "raw": factor[:, None] * raw_slope,
        "y": factor[:, None] * y_slope,
        "weights": np.where(mask, weight_slope, 0.0),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """One head, one shape of the batch, one way to reduce it; everything compiles once."""

    head: NormalHead
    batch: tuple[int, ...] = (5,)
    chunk_size: int = 2
    reduction: str = "mean"
    weighted: bool = False
    masked: bool = False
    dtype: Any = jnp.float64
    linear: bool = False

    def __str__(self):
        head, batch = self.head, "x".join(map(str, self.batch)) or "one"
        kind = f"{head.covariance}{'-tied' * head.tied}-{head.num_components}-{head.event_dim}"
        name = f"{'linear-' * self.linear}{kind}-{batch}-by-{self.chunk_size}-{self.reduction}"
        return f"{name}-{jnp.dtype(self.dtype).name}"


@partial(jax.jit, static_argnums=0)
def fused(case, arguments, cotangent, mask):
    """Loss and gradients; the arguments are the network's, then targets and weights."""

    def loss(*arguments):
        *network, y, weights = arguments
        values = (jaxmdn.linear_nll if case.linear else jaxmdn.nll)(
            case.head,
            *network,
            y,
            weights=weights if case.weighted else None,
            mask=mask if case.masked else None,
            reduction=case.reduction,
            implementation=FUSED,
            chunk_size=case.chunk_size,
        )
        return jnp.vdot(cotangent, values) if case.reduction == "none" else values

    return jax.value_and_grad(loss, tuple(range(len(arguments))))(*arguments)


def check(case, rows=plain_rows, seed=0):
    """Hold a fused likelihood to the reference; rows left out hold NaN."""
    rng, head, batch, dtype = np.random.default_rng(seed), case.head, case.batch, case.dtype
    compute = jnp.float64 if dtype == jnp.float64 else jnp.float32
    N, P, D = math.prod(batch), head.num_outputs, head.event_dim

    def draw(*shape, dtype=dtype):  # numbers that the dtype holds exactly
        return rng.normal(size=shape).astype(dtype)

    y, cotangent = draw(*batch, D, dtype=compute), draw(*batch, dtype=compute)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size=batch).astype(compute)
    mask = np.asarray(rng.random(batch) < 0.7)
    counts = mask if case.masked else np.ones(batch, bool)
    size = weights.astype(np.float64) if case.weighted else np.ones(batch)
    kept = (counts & (size != 0)).reshape(N)

    def left_out(array, kept):
        return np.where(kept.reshape(*batch, 1), array, np.asarray(np.nan, array.dtype))

    def wide(array, *trailing):
        return array.astype(np.float64).reshape(N, *trailing)

    # A weight of zero silences what the network gave; the mask, the target as well.
    if case.linear:
        hidden, kernel, bias = draw(*batch, H), draw(H, P) / 2, draw(P) / 2
        network = {"hidden": left_out(hidden, kept), "kernel": kernel, "bias": bias}
        wide_hidden = np.where(kept[:, None], wide(hidden, H), 0.0)
        wide_kernel = kernel.astype(np.float64)
        raw = wide_hidden @ wide_kernel + bias.astype(np.float64)
    else:
        own_raw = draw(*batch, P)
        network, raw = {"raw": left_out(own_raw, kept)}, wide(own_raw, P)

    arguments = (*network.values(), left_out(y, counts), weights)
    loss, gradients = fused(case, *jax.tree.map(jnp.asarray, (arguments, cotangent, mask)))
    parts = [np.asarray(part) for part in rows(head, raw, wide(y, D))]
    expected = reduced(parts, wide(size), counts.reshape(N), case.reduction, wide(cotangent))
    if case.linear:
        outer = expected["raw"]
        expected |= {"hidden": outer @ wide_kernel.T, "kernel": wide_hidden.T @ outer}
        expected |= {"bias": np.sum(outer, axis=0)}
    if not case.weighted:
        expected["weights"] = np.zeros(N)

    assert loss.dtype == compute
    close(loss, expected["loss"], compute, "loss")
    for name, gradient in zip((*network, "y", "weights"), gradients, strict=True):
        own = compute if name in ("y", "weights") else dtype
        assert gradient.dtype == own, name
        close(np.reshape(gradient, expected[name].shape), expected[name], own, name)


def normal(covariance, K, D, rank=1, **options):
    return NormalHead(K, D, covariance=covariance, rank=rank, **options)
