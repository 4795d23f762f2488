"""The fused likelihoods: the same numbers as the plain composition, in bounded memory.

The reference is either 80-digit arithmetic or float64 autodiff of each row's plain likelihood; what
weights, masks, reductions and the output layer make of the rows is redone here in NumPy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
import textwrap
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxmdn
from jaxmdn import ClassConditionalHead, NormalHead
from jaxmdn.heads import links
from jaxmdn.losses.kernels import chunked, dispatch

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


# ------------------------------------------------------------------------------------ reference


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


# ----------------------------------------------------------------------------------- the sweep


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
        return jnp.asarray(rng.normal(size=shape), dtype)

    y, cotangent = draw(*batch, D, dtype=compute), draw(*batch, dtype=compute)
    weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0, 3.0], size=batch), compute)
    mask = jnp.asarray(rng.random(batch) < 0.7)
    counts = np.asarray(mask) if case.masked else np.ones(batch, bool)
    size = np.asarray(weights, np.float64) if case.weighted else np.ones(batch)
    kept = (counts & (size != 0)).reshape(N)

    def left_out(array, kept):
        kept = kept.reshape(*batch, 1)
        return jnp.where(kept, array, jnp.full_like(array, jnp.nan))

    def wide(array, *trailing):
        return np.asarray(array, np.float64).reshape(N, *trailing)

    # A weight of zero silences what the network gave; the mask, the target as well.
    if case.linear:
        hidden, kernel, bias = draw(*batch, H), 0.5 * draw(H, P), 0.5 * draw(P)
        network = {"hidden": left_out(hidden, kept), "kernel": kernel, "bias": bias}
        wide_hidden = np.where(kept[:, None], wide(hidden, H), 0.0)
        wide_kernel = np.asarray(kernel, np.float64)
        raw = wide_hidden @ wide_kernel + np.asarray(bias, np.float64)
    else:
        own_raw = draw(*batch, P)
        network, raw = {"raw": left_out(own_raw, kept)}, wide(own_raw, P)

    arguments = (*network.values(), left_out(y, counts), weights)
    loss, gradients = fused(case, arguments, cotangent, mask)
    parts = [np.asarray(part) for part in rows(head, jnp.asarray(raw), jnp.asarray(wide(y, D)))]
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


EXACT = [
    Case(normal("isotropic", 2, 3, scale_link="exp", min_scale=0.0)),
    Case(
        normal("diagonal", 3, 2, min_weight=0.05, scale_link=links.Softplus(floor=0.2)),
        reduction="none",
        weighted=True,
        masked=True,
        linear=True,
    ),
    Case(normal("full", 2, 3), weighted=True, linear=True),
    Case(
        normal("low_rank", 2, 3, 2, min_weight=0.1, scale_link="damped_exp"),
        reduction="sum",
        masked=True,
    ),
]
SWEEP = [
    Case(normal("isotropic", 1, 1), batch=(), chunk_size=4),
    Case(normal("isotropic", 3, 2, tied=True, min_scale=0.0), (2, 3), 4, "none", masked=True),
    Case(
        normal("isotropic", 33, 3, scale_link="damped_exp", min_weight=0.01),
        (7,),
        3,
        "sum",
        weighted=True,
        masked=True,
        dtype=jnp.float32,
        linear=True,
    ),
    Case(normal("diagonal", 5, 1), (7,), 3, weighted=True, masked=True),
    Case(normal("diagonal", 2, 2, scale_link="exp"), (7,), 3, dtype=jnp.bfloat16, linear=True),
    Case(normal("full", 3, 4, min_scale=0.0, min_weight=0.05), (7,), 3, weighted=True, masked=True),
    Case(normal("full", 2, 3, tied=True, scale_link="sigmoid"), (2, 3), 2, "sum", linear=True),
    Case(normal("full", 2, 1), (3,), 8, dtype=jnp.bfloat16),
    Case(normal("low_rank", 2, 4, 1, scale_link="exp"), (7,), 3, "none", weighted=True),
    Case(normal("low_rank", 3, 3, 3, tied=True, min_scale=0.0), (5,), 2, masked=True, linear=True),
]
MORE = [
    Case(
        normal("diagonal", 3, 6, tied=True, scale_link=links.Bounded(0.1, 4.0)),
        (4,),
        4,
        "none",
        weighted=True,
        linear=True,
    ),
    Case(normal("low_rank", 1, 6, 2), (6,), 3, weighted=True, dtype=jnp.float32),
]


@pytest.mark.version
@pytest.mark.optimised
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_value_and_gradients_against_80_digits(case):
    check(case, exact_rows)


@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_value_and_gradients_against_autodiff(case):
    check(case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", MORE, ids=str)
def test_value_and_gradients_of_more_cases(case):
    check(case)


def random_case(rng):
    covariance = rng.choice(oracles.COVARIANCES)
    K, D = int(rng.choice([1, 2, 3, 8, 33])), int(rng.integers(1, 7))
    by_link = [
        "softplus",
        "exp",
        "damped_exp",
        "sigmoid",
        links.Softplus(0.3),
        links.Bounded(0.0, 5.0),
    ]
    head = normal(
        str(covariance),
        K,
        D,
        int(rng.integers(1, D + 1)),
        tied=bool(rng.integers(2)),
        scale_link=by_link[rng.integers(len(by_link))],
        min_scale=float(rng.choice([0.0, 1e-3, 0.5])),
        min_weight=float(rng.choice([0.0, 0.5 / K])),
    )
    batches = [(), (1,), (0,), (5,), (12,), (13,), (2, 3), (3, 0), (2, 1, 4)]
    return Case(
        head,
        batches[rng.integers(len(batches))],
        int(rng.choice([1, 2, 4, 5, 64])),
        str(rng.choice(["mean", "sum", "none"])),
        weighted=bool(rng.integers(2)),
        masked=bool(rng.integers(2)),
        dtype=[jnp.float64, jnp.float64, jnp.float32, jnp.bfloat16][rng.integers(4)],
        linear=bool(rng.integers(2)),
    )


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(60))
def test_value_and_gradients_of_random_cases(seed):
    check(random_case(np.random.default_rng(seed)), seed=seed)


@pytest.mark.parametrize(("batch", "reduction"), [((5,), "mean"), ((0,), "mean"), ((2, 0), "none")])
def test_no_rows_that_count(batch, reduction):
    head = NormalHead(3, 2)

    @partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(hidden, kernel, bias, y, mask):
        options = {"mask": mask, "chunk_size": 2, "reduction": reduction, "implementation": FUSED}
        return jnp.sum(jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options))

    hidden, y = jnp.full((*batch, H), jnp.nan), jnp.full((*batch, 2), jnp.nan)
    layer = (hidden, jnp.ones((H, head.num_outputs)), jnp.ones(head.num_outputs))
    value, gradients = jax.jit(loss)(*layer, y, jnp.zeros(batch, bool))
    assert value == 0
    for gradient, parameter in zip(gradients, layer, strict=True):
        assert gradient.shape == parameter.shape
        assert not np.any(gradient)


def test_raw_and_target_broadcast():
    head, rng = NormalHead(2, 3, covariance="full"), np.random.default_rng(0)
    raw, y = oracles.random_raw(rng, head, (2, 1)), oracles.random_target(rng, head, (3,))

    @jax.jit
    def loss_and_gradients(raw, y):
        return jax.value_and_grad(
            lambda raw, y: jaxmdn.nll(head, raw, y, chunk_size=4, implementation=FUSED), (0, 1)
        )(raw, y)

    loss, (raw_gradient, y_gradient) = loss_and_gradients(raw, y)
    every_raw = jnp.broadcast_to(raw, (2, 3, head.num_outputs)).reshape(6, -1)
    every_y = jnp.broadcast_to(y, (2, 3, 3)).reshape(6, 3)
    values, raw_slope, y_slope = map(np.asarray, plain_rows(head, every_raw, every_y))
    close(loss, np.mean(values), jnp.float64)
    close(raw_gradient, raw_slope.reshape(2, 3, -1).sum(1, keepdims=True) / 6, jnp.float64)
    close(y_gradient, y_slope.reshape(2, 3, 3).sum(0) / 6, jnp.float64)


@pytest.mark.parametrize(
    "head",
    [
        normal("diagonal", 3, 1),
        normal("isotropic", 3, 2, tied=True, min_weight=0.05),
        normal("full", 2, 3),
        normal("low_rank", 2, 3, 2, scale_link="exp"),
    ],
    ids=lambda head: head.covariance,
)
def test_value_alone(head):
    """Without a gradient another program runs, by blocks as well."""
    rng = np.random.default_rng(0)
    y, mask = jnp.asarray(rng.normal(size=(5, head.event_dim))), jnp.arange(5) != 2
    hidden, kernel, bias = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((5, H), (H, head.num_outputs), (1,))
    )
    bias = jnp.broadcast_to(bias, head.num_outputs)
    raw = hidden @ kernel + bias

    @jax.jit
    def values(raw, hidden, y):
        options = {"mask": mask, "implementation": FUSED, "chunk_size": 2}
        return (
            jaxmdn.nll(head, raw, y, reduction="none", **options),
            jaxmdn.nll(head, raw, y, **options),
            jaxmdn.linear_nll(head, hidden, kernel, bias, y, reduction="none", **options),
            jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options),
        )

    expected = np.where(mask, plain_rows(head, raw, y)[0], 0.0)
    dirty = (jnp.where(mask[:, None], x, jnp.nan) for x in (raw, hidden, y))
    each, mean, linear_each, linear_mean = values(*dirty)
    for actual in (each, linear_each):
        close(actual, expected, jnp.float64)
    for actual in (mean, linear_mean):
        close(actual, np.sum(expected) / 4, jnp.float64)


def test_gradient_of_wide_features_under_a_narrow_kernel():
    # Only what is stored in bfloat16 may be rounded to it: the gradient of hidden is not.
    head, rng = NormalHead(3, 2), np.random.default_rng(0)
    hidden, y = (jnp.asarray(rng.normal(size=(5, n)), jnp.float32) for n in (H, 2))
    kernel = jnp.asarray(rng.normal(size=(H, head.num_outputs)), jnp.bfloat16)
    bias = jnp.zeros(head.num_outputs, jnp.bfloat16)

    def loss(hidden, kernel):
        options = {"implementation": FUSED, "chunk_size": 2, "reduction": "sum"}
        return jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options)

    hidden_gradient, kernel_gradient = jax.jit(jax.grad(loss, (0, 1)))(hidden, kernel)
    wide_hidden, wide_kernel = (np.asarray(x, np.float64) for x in (hidden, kernel))
    raw = jnp.asarray(wide_hidden @ wide_kernel)
    slope = np.asarray(plain_rows(head, raw, y.astype(jnp.float64))[1])
    close(hidden_gradient, slope @ wide_kernel.T, jnp.float32)
    close(kernel_gradient, wide_hidden.T @ slope, jnp.bfloat16)


# ---------------------------------------------------------------------------------------- edges

EDGES = {
    "ordinary": {},
    "far target": {"y": 1e6},
    "every component underflows": {"y": 1e25},
    "one component underflows": {"loc": 1e25},
    "one weight zero": {"logits": [-np.inf, 0.5, 0.25]},
    "one weight alone": {"logits": [-np.inf, 0.5, -np.inf]},
    "every weight zero": {"logits": [-np.inf] * 3},
    "zero weight where the target is": {"logits": [-np.inf, 0.0, 0.0], "loc": 1e25},
    "lopsided": {"logits": [1e4, -1e4, 0.5]},
    "a constant added to the logits": {"logits": [1e6, 1e6 + 0.5, 1e6 - 0.25]},
    "tiny scale of a far component": {"scale": -50.0},
    "huge scale": {"scale": 30.0},
    "NaN logit": {"logits": [np.nan, 0.0, 0.0]},
    "NaN location": {"loc": np.nan},
    "NaN scale": {"scale": np.nan},
    "NaN target": {"y": np.nan},
}


def edge_rows(head):
    """A row per edge, in float32; ``loc`` and ``scale`` are those of the first component."""
    rng, where = np.random.default_rng(0), oracles.layout(head)
    raw = 0.5 * rng.normal(size=(len(EDGES), head.num_outputs))
    y = rng.normal(size=(len(EDGES), head.event_dim))
    for i, changes in enumerate(EDGES.values()):
        for name, value in changes.items():
            if name == "y":
                y[i] = value
            elif name == "logits":
                raw[i, where["logits"]] = value
            else:  # a tied scale has one component, of D numbers
                raw[i, where[name][: head.event_dim if head.covariance != "isotropic" else 1]] = (
                    value
                )
    return jnp.asarray(raw, jnp.float32), jnp.asarray(y, jnp.float32)


EDGE_HEADS = {
    "diagonal": normal("diagonal", 3, 2, scale_link="exp", min_scale=0.0),
    "diagonal-floored": normal("diagonal", 3, 2, scale_link="exp", min_scale=0.0, min_weight=0.1),
    "full": normal("full", 3, 2, scale_link="exp", min_scale=0.0),
    "low-rank": normal("low_rank", 3, 2, 1, scale_link="exp", min_scale=0.0),
}


@pytest.mark.parametrize("name", EDGE_HEADS)
def test_edges(name):
    head = EDGE_HEADS[name]
    raw, y = edge_rows(head)

    @partial(jax.jit, static_argnums=0)
    def rows(name, raw, y):
        options = {"implementation": name, "chunk_size": 3, "reduction": "none"}
        value, pull = jax.vjp(lambda *x: jaxmdn.nll(head, *x, **options), raw, y)
        return value, *pull(jnp.ones_like(value))

    # Two float32 routes to the same number: some tens of roundings of 6e-8 each, more where the
    # scale divides twice.
    fused, plain = (jax.tree.map(np.asarray, rows(name, raw, y)) for name in (FUSED, PLAIN))
    for i, edge in enumerate(EDGES):
        for actual, expected in zip(fused, plain, strict=True):
            actual, expected = actual[i], expected[i]
            np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=edge)
            finite = np.where(np.isfinite(expected), expected, 0.0)
            size = np.max(np.abs(finite), initial=1e-30)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5 * size, err_msg=edge)
    value = fused[0]
    index = {edge: i for i, edge in enumerate(EDGES)}
    # What the comparison above is about is really there.
    assert value[index["every component underflows"]] == np.inf
    assert np.isinf(value[index["every weight zero"]]) == (head.min_weight == 0)
    assert all(np.isnan(value[i]) == edge.startswith("NaN") for edge, i in index.items())


def test_a_constant_added_to_the_logits_costs_no_accuracy():
    # 1e6 + 0.5 is exact in float32: the same numbers must come out to the last few bits.
    head, raw = NormalHead(3, 1), jnp.full((1, 9), 0.25, jnp.float32)
    near = raw.at[0, :3].set(jnp.asarray([0.0, 0.5, -0.25], jnp.float32))
    far = near.at[0, :3].add(1e6)
    both = jax.jit(jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, raw[:, 3:4])))
    for a, b in zip(jax.tree.leaves(both(far)), jax.tree.leaves(both(near)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_linear_with_weights_of_zero():
    # The bias of a component that is switched off: its row of the kernel has no gradient.
    head = NormalHead(3, 2)
    rng = np.random.default_rng(0)
    hidden, y = jnp.asarray(rng.normal(size=(5, H))), jnp.asarray(rng.normal(size=(5, 2)))
    kernel = jnp.asarray(rng.normal(size=(H, head.num_outputs)))
    bias = jnp.zeros(head.num_outputs).at[1].set(-jnp.inf)

    @partial(jax.jit, static_argnums=0)
    def both(name, *layer):
        options = {"implementation": name, "chunk_size": 2}
        return jax.value_and_grad(
            lambda *layer: jaxmdn.linear_nll(head, *layer, y, **options), (0, 1, 2)
        )(*layer)

    actual, expected = (both(name, hidden, kernel, bias) for name in (FUSED, PLAIN))
    jax.tree.map(partial(close, dtype=jnp.float64), actual, expected)
    assert np.all(np.isfinite(actual[1][1]))
    assert not np.any(np.asarray(actual[1][1])[:, 1])


# --------------------------------------------------------------------------------- transformations

# Five rows in blocks of two: a loop, and a rest.
HEAD, N = NormalHead(3, 2), 5
RNG = np.random.default_rng(0)
RAW = oracles.random_raw(RNG, HEAD, (N,)).at[0].set(0.0)  # ties, and the middle of every link
Y = oracles.random_target(RNG, HEAD, (N,))
WEIGHTS = jnp.asarray([1.0, 2.0, 0.5, 0.0, 3.0])
HIDDEN = jnp.asarray(RNG.normal(size=(N, H)))
KERNEL = jnp.asarray(RNG.normal(size=(H, HEAD.num_outputs)))
BIAS = jnp.asarray(RNG.normal(size=HEAD.num_outputs))
LAYER = (HIDDEN, KERNEL, BIAS, Y, WEIGHTS)


def from_raw(raw, y, weights, **options):
    options = {"implementation": FUSED, "chunk_size": 2} | options
    return jaxmdn.nll(HEAD, raw, y, weights=weights, **options)


def from_hidden(hidden, kernel, bias, y, weights, **options):
    options = {"implementation": FUSED, "chunk_size": 2} | options
    return jaxmdn.linear_nll(HEAD, hidden, kernel, bias, y, weights=weights, **options)


@functools.cache
def expected_gradients():
    """What the two functions above should give, by name, in NumPy; without and with a layer."""

    def reference(raw):
        rows = [np.asarray(part) for part in plain_rows(HEAD, jnp.asarray(raw), Y)]
        return reduced(rows, np.asarray(WEIGHTS), np.ones(N, bool), "mean", None)

    from_raw = reference(RAW)
    from_hidden = reference(HIDDEN @ KERNEL + BIAS)
    outer = from_hidden["raw"]
    layer = {"hidden": outer @ np.asarray(KERNEL).T, "kernel": np.asarray(HIDDEN).T @ outer}
    layer["bias"] = np.sum(outer, axis=0)
    return [
        (from_raw["loss"], [from_raw[name] for name in ("raw", "y", "weights")]),
        (from_hidden["loss"], [*layer.values(), from_hidden["y"], from_hidden["weights"]]),
    ]


BOTH = pytest.mark.parametrize("linear", [False, True], ids=["nll", "linear_nll"])
CALLS = [(from_raw, (RAW, Y, WEIGHTS)), (from_hidden, LAYER)]


def test_second_derivative_where_softplus_s_arms_meet():
    head, y = NormalHead(1, 1), jnp.asarray([[0.7], [0.3]])

    def hessian(**options):
        return jax.hessian(lambda raw: jaxmdn.nll(head, raw, y, reduction="sum", **options))

    at_zero = jnp.zeros((2, 3))
    found = hessian(implementation=FUSED, chunk_size=1)(at_zero)
    np.testing.assert_allclose(found, hessian(implementation=PLAIN)(at_zero), atol=1e-12)
    np.testing.assert_allclose(found[0, 2, 0, 2], 1.0579, atol=1e-4)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_second_derivatives_in_all_arguments_at_once(covariance):
    """Along one line through raw, y and weights: mixed second derivatives count, too."""
    head, rng = NormalHead(3, 2, covariance=covariance), np.random.default_rng(1)
    raw, y = (jnp.asarray(rng.normal(size=(7, n))) for n in (head.num_outputs, 2))
    start = (raw, y, jnp.asarray(rng.uniform(0.5, 1.5, 7)))
    direction = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in start)

    def second(implementation):
        def loss(t):
            raw, y, weights = (x + t * v for x, v in zip(start, direction, strict=True))
            options = {"weights": weights, "implementation": implementation, "chunk_size": 3}
            return jaxmdn.nll(head, raw, y, **options)

        @jax.jit
        def both(t):
            return jax.jvp(jax.grad(loss), (t,), (jnp.ones(()),))[1], jax.grad(jax.grad(loss))(t)

        return both(jnp.zeros(()))

    np.testing.assert_allclose(second(FUSED), second("xla"), rtol=1e-10)


@BOTH
def test_members_by_vmap_and_by_loop(linear):
    function, arguments = CALLS[linear]
    members = 3
    # The network's own arguments differ between members, the data are shared.
    stacked = [jnp.stack([x * (1 + 0.1 * i) for i in range(members)]) for x in arguments[:-2]]
    data, which = arguments[-2:], tuple(range(len(arguments) - 2))
    both = jax.value_and_grad(lambda *x: function(*x, *data), which)
    mapped = jax.jit(jax.vmap(both))(*stacked)
    single = jax.jit(both)
    loop = [single(*(x[i] for x in stacked)) for i in range(members)]
    loop = jax.tree.map(lambda *x: jnp.stack(x), *loop)
    jax.tree.map(partial(close, dtype=jnp.float64), mapped, loop)


@BOTH
def test_without_jit(linear):
    function, arguments = CALLS[linear]
    with jax.disable_jit():
        eager = jax.value_and_grad(function, tuple(range(len(arguments))))(*arguments)
    eager = (eager[0], list(eager[1]))
    jax.tree.map(partial(close, dtype=jnp.float64), eager, expected_gradients()[linear])


@BOTH
def test_gradient_of_each_argument_alone(linear):
    """What is asked for does not depend on what else is."""
    function, arguments = CALLS[linear]

    @jax.jit
    def gradients(*x):
        return [jax.grad(function, i)(*x) for i in range(len(x))]

    expected = expected_gradients()[linear][1]
    jax.tree.map(partial(close, dtype=jnp.float64), gradients(*arguments), expected)


def shapes(jaxpr):
    """Shapes of everything that a jaxpr computes, in its loops as well."""
    for equation in jaxpr.eqns:
        yield from (tuple(variable.aval.shape) for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_has_equations):
            if _has_equations(inner):
                yield from shapes(getattr(inner, "jaxpr", inner))


def _has_equations(value):
    return hasattr(value, "eqns")


def test_linear_never_makes_what_was_not_asked_for():
    P = HEAD.num_outputs

    def computed(wrt, reduction="mean"):
        def loss(*x):
            return jnp.sum(from_hidden(*x, reduction=reduction))

        return set(shapes(jax.make_jaxpr(jax.grad(loss, wrt))(*LAYER).jaxpr))

    every = computed((0, 1, 2))
    assert (N, P) not in every | computed((0, 1, 2), "none")  # raw outputs, a block at a time
    assert {(2, P), (N, H), (H, P)} <= every  # the helper sees into loops
    assert (N, H) not in computed((1, 2))
    assert (H, P) not in computed(0) - {KERNEL.T.shape}
    assert (N, 2) not in computed((0, 1, 2))  # the gradient of y


@pytest.mark.version
@pytest.mark.parametrize(
    ("linear", "reduction"),
    [(False, "mean"), (False, "none"), (True, "mean")],
    ids=["nll", "nll-none", "linear_nll"],
)
def test_shard_map_over_one_device(linear, reduction):
    function, arguments = CALLS[linear]
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    by_rows, whole = PartitionSpec("rows"), PartitionSpec()
    specs = tuple(by_rows if x.shape[0] == N else whole for x in arguments)
    which = tuple(range(len(arguments)))

    def loss(*x):
        result = function(*x, reduction=reduction)
        return jnp.sum(result) / jnp.sum(x[-1]) if reduction == "none" else result

    def local(*x):
        value, gradients = jax.value_and_grad(loss, which)(*x)
        return jax.lax.psum(value, "rows"), list(gradients)

    spread = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(whole, list(specs)))
    jax.tree.map(
        partial(close, dtype=jnp.float64),
        jax.jit(spread)(*arguments),
        expected_gradients()[linear],
    )


@pytest.mark.version
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda a: a.name)
def test_default_takes_rows_that_carry_a_mesh_of_one_device(axis_type):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(axis_type,))
    raw, y = (jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows"))) for x in (RAW, Y))
    loss, gradient = jax.jit(jax.value_and_grad(lambda raw: jaxmdn.nll(HEAD, raw, y)))(raw)
    value, slope, _ = plain_rows(HEAD, RAW, Y)
    close(loss, np.mean(value), jnp.float64)
    close(gradient, np.asarray(slope) / N, jnp.float64)


@pytest.mark.version
@BOTH
def test_one_trace_per_shape(linear, monkeypatch):
    traces, split = [], NormalHead.split

    def counting(self, raw):
        traces.append(raw.shape)
        return split(self, raw)

    monkeypatch.setattr(NormalHead, "split", counting)
    function = jaxmdn.linear_nll if linear else jaxmdn.nll
    network = CALLS[linear][1][:-2]

    def call(rows, scale):  # equal heads, other values; rows as in no other test
        x = [scale * (jnp.tile(x, (4, 1))[:rows] if x.shape[0] == N else x) for x in (*network, Y)]
        return function(NormalHead(3, 2), *x, chunk_size=32, implementation=FUSED)

    call(19, 1.0)
    first = len(traces)
    call(19, 2.0)
    assert len(traces) == first > 0
    call(18, 1.0)
    assert len(traces) == 2 * first


# ---------------------------------------------------------------------------------- other heads


PER_CLASS = ClassConditionalHead(2, NormalHead(2, 2))
LABEL = jnp.asarray([0, 1, 1, 0, 1])
OTHERS = {
    "labeled": (PER_CLASS, Y, lambda y: jaxmdn.Labeled(LABEL, y), False),
    "labeled-linear": (PER_CLASS, Y, lambda y: jaxmdn.Labeled(LABEL, y), True),
    "softmax": (jaxmdn.CategoricalHead(4), None, lambda y: LABEL[:, None], False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_head_is_served(name):
    head, y, target, linear = OTHERS[name]
    rng = np.random.default_rng(1)
    hidden, kernel, bias = (
        jnp.asarray(rng.normal(size=shape))
        for shape in ((N, H), (H, head.num_outputs), head.num_outputs)
    )
    mask = jnp.asarray([True, True, False, True, True])
    which = (0,) if y is None else (0, 1)

    @jax.jit
    @partial(jax.value_and_grad, argnums=which)
    def fused(x, y):
        options = {"mask": mask, "weights": WEIGHTS, "implementation": FUSED, "chunk_size": 2}
        if not linear:
            return jaxmdn.nll(head, x, target(y), **options)
        options["reduction"] = "none"
        return jnp.sum(jaxmdn.linear_nll(head, x, kernel, bias, target(y), **options))

    @jax.jit
    def plain(raw, y):
        options = {"reduction": "none", "implementation": PLAIN}
        arguments = (raw, y)[: len(which)]
        value, pull = jax.vjp(
            lambda *x: jaxmdn.nll(head, x[0], target(x[-1]), **options), *arguments
        )
        return value, *pull(jnp.ones_like(value))

    raw = hidden @ kernel + bias
    dirty = None if y is None else jnp.where(mask[:, None], y, jnp.nan)
    loss, gradients = fused(hidden if linear else raw, dirty)
    value, slope, *y_slope = map(np.asarray, plain(raw, y))
    rows = (value, slope, y_slope[0] if y_slope else np.zeros((N, 1)))
    how = "sum" if linear else "mean"
    expected = reduced(rows, np.asarray(WEIGHTS), np.asarray(mask), how, None)
    outer = expected["raw"] @ np.asarray(kernel).T if linear else expected["raw"]
    close(loss, expected["loss"], jnp.float64)
    for gradient, slope in zip(gradients, (outer, expected["y"]), strict=False):
        close(gradient, slope, jnp.float64)


def test_labels_that_carry_no_batch_are_refused(user_errors):
    target = jaxmdn.Labeled(jnp.asarray(1), Y)
    message = r"nll: every part of a structured target must carry the batch shape \[5\], got \[\]"
    with pytest.raises(ValueError, match=message):
        jaxmdn.nll(PER_CLASS, jnp.zeros((N, PER_CLASS.num_outputs)), target, implementation=FUSED)


# --------------------------------------------------------------------------------------- memory


def temporary_bytes(rows, **options):
    head, width = NormalHead(16, 16), 256
    P = head.num_outputs

    def loss(hidden, kernel, bias, y):
        return jnp.sum(jaxmdn.linear_nll(head, hidden, kernel, bias, y, **options))

    shapes = ((rows, width), (width, P), (P,), (rows, 16))
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_temporaries_of_linear_nll_do_not_grow_with_the_rows():
    # The gradient of hidden is an output. Left are a block's own arrays (some 2.4 MB) and one sum
    # per block; the plain composition keeps raw outputs and more for every row (88 MB).
    few, many = (temporary_bytes(rows) for rows in (16384, 65536))
    assert many - few < 65536
    assert few <= 0.05 * temporary_bytes(16384, implementation=PLAIN)


def test_temporaries_of_linear_nll_per_row():
    # Each row's cotangent may differ, so that what the blocks are computed from is kept for the
    # backward pass: hidden [256], the target [16], two numbers; and as above.
    assert temporary_bytes(16384, reduction="none") <= 4 * 16384 * (256 + 16 + 2) + 4e6


def test_default_blocks():
    narrow, wide = NormalHead(3, 2), NormalHead(16, 16)
    full = NormalHead(8, 2, covariance="full")
    for head, size in ((narrow, 2048), (wide, 256), (full, 2048)):
        blocks = chunked.choose_blocks(head, 5000, None)
        assert blocks.implementation == FUSED
        assert blocks.gradient == size
        # The value alone is one pass, unless the rows are wide.
        assert blocks.value == (5000 if head is narrow else size)
        assert chunked.choose_blocks(head, 5000, 7) == (7, 7, FUSED)
    assert chunked.choose_blocks(narrow, 0, None).value == 1


# ------------------------------------------------------------------------------------- dispatch


def test_default_on_one_cpu():
    class Derived(NormalHead):
        pass

    chosen = {
        (NormalHead(8, 2), False): FUSED,
        (NormalHead(8, 2), True): FUSED,
        (NormalHead(2, 2), False): FUSED,
        (NormalHead(2, 2), True): PLAIN,  # few raw outputs: stored, and fused from there
        (NormalHead(8, 2, tied=True), False): PLAIN,
        (NormalHead(8, 2, tied=True, covariance="full"), False): FUSED,
        (Derived(8, 2), False): PLAIN,  # may compute something else
        (jaxmdn.CategoricalHead(3), False): PLAIN,
        (jaxmdn.CategoricalHead(3), True): FUSED,
    }
    for (head, linear), name in chosen.items():
        assert dispatch.choose("nll", None, head, linear=linear) == name, (head, linear)
        assert dispatch.choose("nll", PLAIN, head, linear=linear) == PLAIN
        assert dispatch.choose("nll", FUSED, head, linear=linear) == FUSED


@pytest.mark.version
def test_several_devices():
    # Elsewhere, since the number of devices is fixed once JAX has started.
    program = """
        import jax, jax.numpy as jnp, numpy as np, jaxmdn
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from jaxmdn.losses.kernels import dispatch

        assert jax.device_count() == 2
        jax.config.update("jax_enable_x64", True)
        head, rng = jaxmdn.NormalHead(8, 2, covariance="full"), np.random.default_rng(0)
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, P("rows"))
        raw, y, hidden = (jnp.asarray(rng.normal(size=(8, n))) for n in (head.num_outputs, 2, 3))
        kernel = jnp.asarray(rng.normal(size=(3, head.num_outputs)))
        bias, chosen = jnp.zeros(head.num_outputs), []

        def choices():
            chosen.append(dispatch.choose("nll", None, head))
            chosen.append(dispatch.choose("linear_nll", None, head, linear=True))

        @jax.jit
        def losses(raw, hidden, kernel, y):
            choices()
            return [
                jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y))(raw),
                jax.value_and_grad(
                    lambda *layer: jaxmdn.linear_nll(head, *layer, bias, y), (0, 1)
                )(hidden, kernel),
            ]

        spread = losses(*(jax.device_put(x, rows) for x in (raw, hidden)), kernel,
                        jax.device_put(y, rows))
        assert spread[0][1].sharding.is_equivalent_to(rows, 2)
        assert chosen == ["xla"] * 2, chosen

        def plain(raw, hidden, kernel, y):
            options = {"implementation": "xla"}
            return [
                jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, y, **options))(raw),
                jax.value_and_grad(
                    lambda *layer: jaxmdn.linear_nll(head, *layer, bias, y, **options), (0, 1)
                )(hidden, kernel),
            ]

        def close(a, b):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

        expected = plain(raw, hidden, kernel, y)
        jax.tree.map(close, spread, expected)

        # The same local shapes as above would be, so that no cached trace may be taken for this.
        def local(raw, hidden, kernel, y):
            choices()
            half = losses(raw, hidden, kernel, y)
            return [(value[None], gradient) for value, gradient in half]

        by_row = [(P("rows"), P("rows")), (P("rows"), (P("rows"), P()))]
        inside = jax.jit(jax.shard_map(
            local, mesh=mesh, in_specs=(P("rows"), P("rows"), P(), P("rows")), out_specs=by_row,
        ))
        result = inside(raw, hidden, kernel, y)
        assert set(chosen[2:]) == {"xla_chunked"}, chosen
        close(np.mean(result[0][0]), expected[0][0])
        close(result[0][1] / 2, expected[0][1])  # half the rows, so twice each one's share
        close(np.mean(result[1][0]), expected[1][0])
        close(result[1][1][0] / 2, expected[1][1][0])
        close(result[1][1][1] / 2, expected[1][1][1])  # summed over the devices
        print("agreed")
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment.pop("JAXMDN_CHECK_TYPES", None)
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]


# --------------------------------------------------------------------------------------- errors

LINEAR_ERRORS = {
    "kernel": (
        {"kernel": KERNEL[:2]},
        ValueError,
        r"linear_nll: kernel must have shape \[3, 15\] for hidden features \[5, 3\] and "
        r"NormalHead\(num_components=3.*\), got \[2, 15\]\.",
    ),
    "bias": (
        {"bias": BIAS[1:]},
        ValueError,
        r"linear_nll: bias must have shape \[15\] for hidden .*\[5, 3\] and .*, got \[14\]\.",
    ),
    "hidden dtype": (
        {"hidden": jnp.ones((N, H), int)},
        TypeError,
        "linear_nll: hidden must have a real floating dtype, got int64; convert it with "
        r"hidden.astype\(jax.numpy.float32\)",
    ),
    "implementation": (
        {"implementation": "cuda"},
        ValueError,
        "linear_nll: implementation must be one of 'xla', 'xla_chunked'.*; got 'cuda'",
    ),
    "triton": (
        {"implementation": "pallas_triton"},
        (NotImplementedError, ValueError),
        "linear_nll: implementation.*pallas_triton",
    ),
    "chunk_size": (
        {"chunk_size": 0},
        ValueError,
        "linear_nll: chunk_size must be at least 1, got 0",
    ),
    "chunk_size type": (
        {"chunk_size": 2.0},
        TypeError,
        r"linear_nll: chunk_size must be a Python int, got float \(2.0\)",
    ),
    "reduction": (
        {"reduction": "max"},
        ValueError,
        "linear_nll: reduction must be one of 'mean', 'sum', 'none'; got 'max'",
    ),
    "weights": (
        {"weights": WEIGHTS[:4]},
        ValueError,
        r"linear_nll: weights must have one entry per row, shape \[5\], got \[4\]",
    ),
    "mask": ({"mask": WEIGHTS}, TypeError, "linear_nll: mask must be boolean.*got float64"),
    "y rows": ({"y": Y[:4]}, ValueError, r"axes must broadcast.*\[5\].*\[4\]"),
    "y size": ({"y": Y[:, :1]}, ValueError, r"y of shape \[\.\.\., 2\].*got \[5, 1\]"),
}


@pytest.mark.parametrize("case", LINEAR_ERRORS)
def test_linear_nll_errors(user_errors, case):
    changes, kind, message = LINEAR_ERRORS[case]
    arguments = {"hidden": HIDDEN, "kernel": KERNEL, "bias": BIAS, "y": Y} | changes
    with pytest.raises(kind, match=message) as caught:
        jaxmdn.linear_nll(HEAD, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [NormalHead(2, 2, covariance="full"), jaxmdn.CategoricalHead(3)],
    ids=["full", "softmax"],
)
def test_triton_says_what_it_serves(head, user_errors):
    message = '"pallas_triton" serves NormalHead with isotropic or diagonal covariance, got'
    with pytest.raises(NotImplementedError, match=message):
        dispatch.choose("nll", "pallas_triton", head)
