"""Conformal sets: the ranks by hand, and the promise they make for models that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

import jaxmdn
from jaxmdn.calibration import central_interval, conformal_hdr, conformal_interval
from jaxmdn.components import FullNormal, Normal

ROWS, NEW, REPETITIONS, LEVEL = 100, 200, 200, 0.9


def univariate(logits, loc, scale, dtype=jnp.float64):
    loc, scale = (jnp.asarray(part, dtype)[..., None] for part in (loc, scale))
    return jaxmdn.Mixture(
        logits=jnp.asarray(logits, dtype), components=Normal(loc=loc, scale=scale)
    )


STANDARD = univariate([0.0], [0.0], [1.0])
MIXTURE = oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, 2, (6,))
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros((4, 3)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)))


def skewed_data(seed):
    """Repetitions of inputs and skewed targets that no normal mixture with one bend describes."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, size=(REPETITIONS, ROWS + NEW))
    return x, np.sin(3 * x)[..., None] + rng.gamma(1.5, 0.4, size=(*x.shape, 1))


def keeps_its_promise(covered):
    """Coverage of each repetition ``[R, ...]``, averaged, between the two bounds."""
    covered = np.asarray(covered)
    mean = covered.mean(axis=0)
    error = covered.std(axis=0, ddof=1) / np.sqrt(len(covered))
    assert np.all(error < 0.005)
    assert np.all(mean >= LEVEL - 3 * error), mean
    assert np.all(mean <= LEVEL + 1 / (ROWS + 1) + 3 * error), mean


def test_highest_density_regions_of_a_wrong_model_hold_their_level():
    x, y = skewed_data(0)
    # Two narrow bumps that follow the input the wrong way round.
    loc = np.stack([-x, 1.5 + 0 * x], axis=-1)
    model = univariate(np.zeros(loc.shape), loc, np.full(loc.shape, 0.3))

    @jax.jit
    @jax.vmap
    def run(model, y):
        fit, new = (jax.tree.map(lambda leaf, s=s: leaf[s], (model, y)) for s in SPLIT)
        adjusted = conformal_hdr(*fit, LEVEL)
        return adjusted, jnp.mean(jaxmdn.hdr_level(*new).value <= adjusted, dtype=jnp.float64)

    adjusted, covered = run(model, jnp.asarray(y))
    assert np.all((adjusted > 0.9) & (adjusted <= 1))  # a model so narrow needs more than it says
    keeps_its_promise(covered)


SPLIT = (slice(None, ROWS), slice(ROWS, None))


def test_highest_density_regions_of_several_outputs_hold_their_level():
    rng = np.random.default_rng(2)
    y = rng.standard_t(3.0, size=(REPETITIONS, ROWS + NEW, 2))
    y[..., 1] += 0.5 * y[..., 0] ** 2
    components = FullNormal(loc=jnp.zeros((1, 2)), whitening_tril=jnp.eye(2)[None])
    model = jaxmdn.Mixture(logits=jnp.zeros(1), components=components)

    # Two programs, as in use: rows to calibrate on, then others.
    options = {"num_samples": 500}
    fit = jax.jit(jax.vmap(lambda key, y: conformal_hdr(model, y, LEVEL, key=key, **options)))
    new = jax.jit(jax.vmap(lambda key, y: jaxmdn.hdr_level(model, y, key=key, **options).value))
    keys = jax.random.split(jax.random.key(0), (2, REPETITIONS))
    adjusted = fit(keys[0], jnp.asarray(y[:, :ROWS]))
    levels = new(keys[1], jnp.asarray(y[:, ROWS:]))
    covered = np.asarray(levels) <= np.asarray(adjusted)[:, None]
    covered = covered.mean(axis=1)
    # Levels of 500 samples tie, and an upper bound holds without ties only.
    error = covered.std() / np.sqrt(REPETITIONS)
    assert LEVEL - 3 * error <= covered.mean() <= 1.0


def test_intervals_of_a_wrong_model_hold_their_level():
    x, y = skewed_data(3)
    y = np.concatenate([y, -2.0 * y[..., ::-1]], axis=-1)  # the second far off its prediction
    # Too narrow in the first dimension, much too wide in the second.
    shape = (*x.shape, 1, 2)
    loc = jnp.asarray(np.broadcast_to(x[..., None, None], shape))
    scale = jnp.asarray(np.broadcast_to([0.1, 20.0], shape))
    model = jaxmdn.Mixture(logits=jnp.zeros(shape[:-1]), components=Normal(loc=loc, scale=scale))

    @jax.jit
    @jax.vmap
    def run(model, y):
        fit, new = (jax.tree.map(lambda leaf, s=s: leaf[s], (model, y)) for s in SPLIT)
        offset = conformal_interval(*fit, LEVEL)
        lower, upper = central_interval(new[0], LEVEL, offset=offset)
        inside = (lower <= new[1]) & (new[1] <= upper)
        return offset, jnp.mean(inside, axis=0, dtype=jnp.float64)

    offset, covered = run(model, jnp.asarray(y))
    assert np.all(offset[:, 0] > 0)
    assert np.all(offset[:, 1] < 0)
    keeps_its_promise(covered)


@pytest.mark.parametrize("level", [0.9, 0.5, 0.77, 0.95, 1e-10])
def test_the_rank_by_hand(level):
    count = 9
    y = np.random.default_rng(count).normal(size=(count, 1))
    # ceil((n + 1) level) in integers: 10 * 0.9 is 9, not 9.000000000000002.
    rank = max(-(-(count + 1) * round(100 * level) // 100), 1)
    region = np.sort(1 - 2 * stats.norm.sf(np.abs(y[:, 0])))
    half = stats.norm.isf((1 - level) / 2)
    excess = np.sort(np.abs(y[:, 0])) - half
    found = conformal_hdr(STANDARD, jnp.asarray(y), level)
    offset = conformal_interval(STANDARD, jnp.asarray(y), level)
    assert (found.shape, offset.shape) == ((), (1,))
    if rank > count:  # nine rows cannot promise 95 %
        assert (level, found, offset[0]) == (0.95, 1.0, np.inf)
    else:
        np.testing.assert_allclose(found, region[rank - 1], rtol=1e-9)
        np.testing.assert_allclose(offset, excess[rank - 1], rtol=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_exchangeable_rows_by_enumeration(level):
    """Each of eight rows in turn is the new one: exact without ties, at least that with ties."""
    calibrate = jax.vmap(lambda y: conformal_interval(STANDARD, y[:, None], level)[0])
    rank = {0.5: 4, 0.9: 8}[level]  # the first that is at least 8 level
    apart, tied = [0.1, -3.0, 0.4, 2.0, 5.0, -0.7, 1.0, 9.0], [2.0] * 5 + [1.0] * 3
    for rows, ties in ((apart, False), (tied, True)):
        y = np.array(rows)
        others = np.stack([np.delete(y, i) for i in range(8)])
        offset = np.asarray(calibrate(jnp.asarray(others)))
        reach = stats.norm.ppf(0.5 + 0.5 * level)
        covered = np.mean(np.abs(y) <= reach + offset + 1e-12)
        assert covered >= rank / 8 if ties else covered == rank / 8


def test_central_intervals_are_scipy_s_moved_outward():
    for level in (0.5, 0.999):
        lower, upper = central_interval(univariate([0.0], [1.0], [2.0]), level, offset=0.25)
        expected = stats.norm.interval(level, 1.0, 2.0)
        np.testing.assert_allclose([lower[0], upper[0]], expected + np.array([-0.25, 0.25]))
    offset = jnp.array([0.5, -30.0])
    lower, upper = central_interval(MIXTURE, 0.9, offset=offset)
    plain = central_interval(MIXTURE, jnp.float64(0.9))
    np.testing.assert_allclose(lower, plain[0] - offset, rtol=1e-12)
    np.testing.assert_allclose(upper, plain[1] + offset, rtol=1e-12)
    assert np.all(lower[:, 1] > upper[:, 1])  # empty
    np.testing.assert_allclose(jaxmdn.cdf(MIXTURE, plain[0]), 0.05, rtol=1e-9)
    np.testing.assert_allclose(jaxmdn.cdf(MIXTURE, plain[1]), 0.95, rtol=1e-9)


def test_leading_axes_are_pooled_and_classes_are_mixed():
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(1, 1))
    rng = np.random.default_rng(5)
    mixture = head(oracles.random_raw(rng, head, (12,)))
    y = jnp.asarray(rng.normal(size=(12, 1)))
    flat = jaxmdn.flatten_mixture(mixture)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(3, 4, *leaf.shape[1:]), mixture)
    for function in (conformal_hdr, conformal_interval):
        expected = function(flat, y, 0.8)
        np.testing.assert_allclose(function(blocks, y.reshape(3, 4, 1), 0.8), expected, rtol=1e-9)
        assert np.all(np.isnan(function(flat, y.at[3].set(jnp.nan), 0.8)))


def test_conformal_sets_in_low_precision():
    y = jnp.linspace(-4.0, 4.0, 99, dtype=jnp.float32)[:, None]
    single = univariate([0.0], [0.0], [1.0], jnp.float32)
    adjusted, offset = conformal_hdr(single, y), conformal_interval(single, y)
    assert adjusted.dtype == offset.dtype == jnp.float32
    distance = 45 * 8 / 98  # the 90th smallest of 0, 1, 1, 2, 2, ... steps
    # An ulp or two of a probability next to one; a quantile's rounding.
    np.testing.assert_allclose(1 - adjusted, 2 * stats.norm.sf(distance), atol=3e-7)
    np.testing.assert_allclose(offset, distance - stats.norm.isf(0.05), rtol=1e-5)
    half = univariate([0.0], [0.0], [1.0], jnp.bfloat16)
    lower, _ = central_interval(half, 0.999)
    assert lower.dtype == jnp.float32
    np.testing.assert_allclose(lower, stats.norm.ppf(0.0005), rtol=1e-4)  # 0.999 is not rounded


ERRORS = [
    (conformal_hdr, (STANDARD, Y[:, :1], 1.0), ValueError, r"conformal_hdr: level must lie in \(0"),
    (conformal_hdr, (MIXTURE, Y), ValueError, "needs samples, and they a key"),
    (conformal_interval, (MIXTURE, Y, 0.0), ValueError, r"conformal_interval: level must lie"),
    (conformal_interval, (MIXTURE, Y[:, :1]), ValueError, "conformal_interval: expected y of"),
    (central_interval, (MIXTURE, 1.5), ValueError, r"central_interval: level must lie in \(0, 1\)"),
    (central_interval, (CATEGORICAL, 0.5), TypeError, "not defined for Categorical"),
]


@pytest.mark.parametrize(("function", "arguments", "kind", "message"), ERRORS)
def test_errors(user_errors, function, arguments, kind, message):
    with pytest.raises(kind, match=message):
        function(*arguments)
