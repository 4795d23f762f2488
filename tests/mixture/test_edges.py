"""The contract at its edges: values and gradients in both precisions, against 80-digit numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import (
    CONTINUOUS,
    ROWS,
    K,
    answers,
    every_density,
    log_prob_and_gradients,
    numpy_rows,
)

import jaxmdn
from jaxmdn import Mixture, components

EDGES = (
    "far above",
    "far below",
    "scale at its floor",
    "scale at its floor, target far",
    "one weight zero",
    "one weight alone",
    "every weight zero",
    "lopsided",
)


def _edge_rows(head, rng):
    """Raw outputs and targets, a row per edge, in numbers that float32 holds exactly."""
    where = oracles.layout(head)
    raw = 0.3 * rng.normal(size=(ROWS, head.num_outputs))
    count = len(where["loc"]) // head.event_dim
    # Well apart, so that float32 can tell the components' distances from 1e6.
    raw[:, where["loc"]] = np.outer(4.0 * np.arange(count), [1, -1]).ravel()
    y = rng.normal(size=(ROWS, head.event_dim))
    y[0], y[1] = (1e6, -1e6), (-1e6, 3.0)
    raw[2:4, where["scale"]] = -1e4
    y[2], y[3] = (1e-3, -5e-4), (1e6, -1e6)
    raw[4, where["logits"][0]] = -np.inf
    raw[5, where["logits"][1:]] = -np.inf
    raw[6, where["logits"]] = -np.inf
    raw[7, where["logits"][:2]] = (1e4, -1e4)
    return raw.astype(np.float32), y.astype(np.float32)


@functools.cache
def _exact(case):
    head = case.make(K, 2)
    raw, y = _edge_rows(head, case.rng())
    value = [float(oracles.exact_log_prob(head, *row)) for row in zip(raw, y, strict=True)]
    slopes = [oracles.exact_gradient(head, *row) for row in zip(raw, y, strict=True)]
    return head, raw, y, np.array(value), *map(np.array, zip(*slopes, strict=True))


@pytest.mark.optimised
@every_density
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient_at_the_edges(case, dtype):
    head, raw, y, value, slope_raw, slope_y = _exact(case)
    result, (d_raw, d_y) = log_prob_and_gradients(
        head, jnp.asarray(raw, dtype), jnp.asarray(y, dtype)
    )
    # The quadratic form's relative error is some tens of roundings. A gradient multiplies it by
    # responsibilities whose own error is the absolute error of the values of O(10) near the edge.
    rtol, atol = {"float32": (2e-5, 2e-5), "float64": (1e-11, 1e-11)}[dtype]
    floored = getattr(head, "min_weight", 0.0) > 0
    for i, edge in enumerate(EDGES):
        if edge == "every weight zero":
            if floored:  # the floor lifts all weights, alike
                assert np.isfinite(result[i]), edge
                assert np.all(np.isfinite(d_raw[i])), edge
            else:
                assert result[i] == -np.inf, edge
                assert not np.any(d_raw[i]), edge
                assert not np.any(d_y[i]), edge
            continue
        np.testing.assert_allclose(result[i], value[i], rtol, atol, err_msg=edge)
        np.testing.assert_allclose(d_raw[i], slope_raw[i], 5 * rtol, atol, err_msg=edge)
        np.testing.assert_allclose(d_y[i], slope_y[i], 5 * rtol, atol, err_msg=edge)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_tiny_scale_of_a_far_component_leaves_no_nan(covariance):
    # With the floor off, 1 / scale^2 = e^100 overflows float32; that component does not matter.
    head = oracles.head_of(covariance, 2, 2, scale_link="exp", min_scale=0.0)
    where = oracles.layout(head)
    raw = np.full(head.num_outputs, 0.25, np.float32)
    raw[where["scale"][: len(where["scale"]) // 2]] = -50.0
    y = np.array([0.5, -1.0], np.float32)
    value, (found, _) = log_prob_and_gradients(head, jnp.asarray(raw), jnp.asarray(y))
    exact, (slope, _) = oracles.exact_log_prob(head, raw, y), oracles.exact_gradient(head, raw, y)
    np.testing.assert_allclose(value, float(exact), rtol=1e-5)
    np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)


def test_low_rank_with_nearly_parallel_loadings_in_float32():
    # I + A^T A has condition 1e9 here: its float32 Cholesky factor is NaN.
    head = jaxmdn.NormalHead(1, 4, covariance="low_rank", rank=2, min_scale=1e-3)
    raw = np.zeros(head.num_outputs, np.float32)
    raw[oracles.layout(head)["scale"]] = -1e4
    raw[oracles.layout(head)["shape"]] = [3, 3, 3, 3, -3, -3, 3, 3.0003]
    y = np.array([1.0, 1.0, -1.0, 1.0], np.float32)
    value = jaxmdn.log_prob(head(jnp.asarray(raw)), jnp.asarray(y))
    np.testing.assert_allclose(value, float(oracles.exact_log_prob(head, raw, y)), rtol=1e-5)


@every_density
def test_nan_in_is_nan_out(case):
    head, raw, y = numpy_rows(case)
    raw[0, 0] = np.nan  # a logit
    found = answers(head(raw), y)
    for moment in ("mean", "variance", "covariance"):
        result = np.asarray(found[moment])
        assert np.all(np.isnan(result[0]))
        assert np.all(np.isfinite(result[1:]))


@pytest.mark.parametrize("case", CONTINUOUS[:4], ids=lambda case: case.name)
def test_moments_ignore_a_weight_of_zero(case):
    head, raw, y = numpy_rows(case)
    where = oracles.layout(head)
    raw[:, where["logits"][0]] = -np.inf
    wild = np.array(raw)
    wild[:, where["loc"][:2]] = np.inf  # the first component's mean
    found, expected = answers(head(wild), y), answers(head(raw), y)
    for moment in ("mean", "variance", "covariance"):
        np.testing.assert_array_equal(found[moment], expected[moment])


@pytest.mark.parametrize(("logits", "components"), [(1, 3), (3, 1), (3, 4)])
def test_components_never_broadcast_against_weights(logits, components, user_errors):
    # One logit for three components used to give a density that integrates to three.
    ones = jnp.ones((components, 1))
    normal = jaxmdn.components.Normal(loc=ones, scale=ones)
    mixture = jaxmdn.Mixture(logits=jnp.zeros(logits), components=normal)
    message = rf"Mixture: expected .* batch shape \[\.\.\., {logits}\].*got \[{components}\]"
    for call in (
        lambda: jaxmdn.log_prob(mixture, jnp.zeros(1)),
        lambda: jaxmdn.sample(jax.random.key(0), mixture),
        lambda: jaxmdn.mean(mixture),
        lambda: jaxmdn.variance(mixture),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("family", ["normal", "gamma"])
def test_a_batch_without_rows_has_answers_without_rows(family):
    """As the last part of a table may have none; nothing is run, only traced."""
    head, none = jaxmdn.FactorizedHead(family, 2), jnp.zeros((0, 1))

    def ask(raw, y):
        density = head(raw)
        return (
            jaxmdn.quantile(density, 0.3),
            jaxmdn.quantile(density, [0.1, 0.9]),
            jaxmdn.modes(density).location,
            jaxmdn.hdr_intervals(density, 0.5).lower,
            jaxmdn.hdr_level(density, y).value,
            jaxmdn.crps(density, y),
            jaxmdn.scoring.quantile_crps(density, y),
        )

    found = jax.eval_shape(ask, jnp.zeros((0, head.num_outputs)), none)
    slots = 2 if family == "normal" else 4
    shapes = [(0, 1), (2, 0, 1), (0, slots, 1), (0, slots), (0,), (0, 1), (0, 1)]
    assert [leaf.shape for leaf in found] == shapes


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
def test_float16_parameters_give_what_their_numbers_say(covariance, float16):
    """A variance of 300^2 does not fit into float16: the cdf was 0.41 where it is 0.23."""
    unit = np.array([300.0, 2e-4])[:, None, None]
    rng = np.random.default_rng(4)
    loc, scale = unit * rng.normal(size=(2, 3, 2)), unit * np.exp(rng.normal(size=(2, 3, 2)) / 2)
    if covariance == "full":
        rows = np.array([[1.0, 0.0], [-0.5, 1.0]]) / scale[..., None]
        parameters = {"whitening_tril": rows}
    else:
        parameters = {"factor": 0.5 * scale[..., None], "scale": scale}
    family = {"full": components.FullNormal, "low_rank": components.LowRankNormal}[covariance]
    parameters = {n: np.asarray(v, np.float16) for n, v in {"loc": loc, **parameters}.items()}
    y = np.asarray(unit[:, 0] * rng.normal(size=(2, 2)), np.float16)

    @jax.jit
    def ask(dtype_of, parameters, y):
        parameters = {name: value.astype(dtype_of.dtype) for name, value in parameters.items()}
        single = family(**parameters)
        mixture = Mixture(logits=jnp.zeros((2, 3), dtype_of.dtype), components=single)
        y = y.astype(dtype_of.dtype)
        moments = mixture.mean(), mixture.variance(), mixture.covariance(), single.covariance()
        return mixture.cdf(y), moments

    found, exact = (ask(np.ones((), dtype), parameters, y) for dtype in (np.float16, np.float64))
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5)
    with np.errstate(over="ignore"):
        for value, expected in zip(found[1], exact[1], strict=True):
            assert value.dtype == jnp.float16
            rounded = np.asarray(expected).astype(np.float16)
            np.testing.assert_allclose(value, rounded, rtol=2e-3, atol=1e-7)


def test_a_normal_truncated_nowhere_is_a_normal_and_no_weight_has_no_score():
    loc, y = jnp.asarray([[1000.0], [1002.0]]), jnp.asarray([1001.3])
    nowhere = jaxmdn.components.TruncatedNormal(
        loc=loc, scale=jnp.ones((2, 1)), lower=-np.inf, upper=np.inf
    )
    normal = jaxmdn.components.Normal(loc=loc, scale=jnp.ones((2, 1)))
    mixtures = [jaxmdn.Mixture(logits=jnp.zeros(2), components=own) for own in (nowhere, normal)]
    scores = [jaxmdn.crps(mixture, y) for mixture in mixtures]
    np.testing.assert_allclose(*scores, rtol=1e-9)
    for own in (nowhere, normal):
        dead = jaxmdn.Mixture(logits=jnp.full(2, -jnp.inf), components=own)
        assert np.isnan(jaxmdn.crps(dead, y)).all()
