"""The fused likelihoods of every covariance, link and dtype: values, gradients, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sweep import FUSED, PLAIN, Case, H, check, close, exact_rows, normal, plain_rows

import jaxmdn
from jaxmdn import NormalHead
from jaxmdn.heads import links

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
    y, mask = rng.normal(size=(5, head.event_dim)), np.arange(5) != 2
    hidden, kernel = rng.normal(size=(5, H)), rng.normal(size=(H, head.num_outputs))
    bias = np.full(head.num_outputs, rng.normal())
    raw = hidden @ kernel + bias

    @jax.jit
    def values(raw, hidden, y):
        layer = (hidden, jnp.asarray(kernel), jnp.asarray(bias))
        options = {"mask": jnp.asarray(mask), "implementation": FUSED, "chunk_size": 2}
        return (
            jaxmdn.nll(head, raw, y, reduction="none", **options),
            jaxmdn.nll(head, raw, y, **options),
            jaxmdn.linear_nll(head, *layer, y, reduction="none", **options),
            jaxmdn.linear_nll(head, *layer, y, **options),
        )

    expected = np.where(mask, plain_rows(head, raw, y)[0], 0.0)
    dirty = (np.where(mask[:, None], x, np.nan) for x in (raw, hidden, y))
    each, mean, linear_each, linear_mean = values(*dirty)
    for actual in (each, linear_each):
        close(actual, expected, jnp.float64)
    for actual in (mean, linear_mean):
        close(actual, np.sum(expected) / 4, jnp.float64)


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
    head, near = NormalHead(3, 1), np.full((1, 9), 0.25, np.float32)
    near[0, :3] = 0.0, 0.5, -0.25
    far = near + np.asarray([1e6] * 3 + [0] * 6, np.float32)
    both = jax.jit(jax.value_and_grad(lambda raw: jaxmdn.nll(head, raw, raw[:, 3:4])))
    for a, b in zip(jax.tree.leaves(both(far)), jax.tree.leaves(both(near)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
