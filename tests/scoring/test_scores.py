"""Scores of quantiles and of several outputs: SciPy, closed forms, ensemble formulas by hand."""

from functools import partial

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn import scoring
from jaxmdn.components import FullNormal, Normal
from jaxmdn.scoring import interval_score, pinball_score

K, D, N = 3, 2, 5
RNG = np.random.default_rng(1)
Y = jnp.asarray(2.0 * RNG.normal(size=(N, D)))
HEAD = jaxmdn.NormalHead(K, D, covariance="full")
NESTED_HEAD = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(K, D, covariance="diagonal"))
MIXTURES = {
    "full": HEAD(oracles.random_raw(RNG, HEAD, (N,))),
    "nested": NESTED_HEAD(oracles.random_raw(RNG, NESTED_HEAD, (N,))),
}
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros((N, 3)))
LEVELS = np.array([0.01, 0.3, 0.5, 0.95])


def normal(loc, scale, dtype=jnp.float64):
    """One normal with independent dimensions as a mixture, from ``[..., D]``."""
    loc, scale = (jnp.asarray(part, dtype)[..., None, :] for part in (loc, scale))
    return jaxmdn.Mixture(
        logits=jnp.zeros(loc.shape[:-1], dtype), components=Normal(loc=loc, scale=scale)
    )


def univariate(logits, loc, scale):
    loc, scale = (jnp.asarray(part, jnp.float64)[:, None] for part in (loc, scale))
    return jaxmdn.Mixture(
        logits=jnp.asarray(logits, jnp.float64), components=Normal(loc=loc, scale=scale)
    )


def correlated(correlation):
    """One bivariate standard normal with a correlation."""
    factor = np.linalg.inv(np.linalg.cholesky([[1.0, correlation], [correlation, 1.0]]))
    components = FullNormal(loc=jnp.zeros((1, 2)), whitening_tril=jnp.asarray(factor)[None])
    return jaxmdn.Mixture(logits=jnp.zeros(1), components=components)


def quantiles_of(mixture, p):
    """Quantiles ``[N, D]`` by root finding on SciPy's cdfs."""
    dense = oracles.of_mixture(mixture)
    scale = np.sqrt(np.diagonal(dense.covariances, axis1=-2, axis2=-1))
    value = np.empty((N, D))
    for n, d in np.ndindex(N, D):

        def excess(t, n=n, d=d):
            return dense.weights[n] @ stats.norm.cdf(t, dense.loc[n, :, d], scale[n, :, d]) - p

        value[n, d] = optimize.brentq(excess, -60.0, 60.0, xtol=1e-13)
    return value


# Quantiles and intervals


@pytest.mark.parametrize("name", MIXTURES)
def test_pinball_and_interval_scores_against_scipy_s_quantiles(name):
    mixture, y = MIXTURES[name], np.asarray(Y)
    scores = pinball_score(mixture, Y, jnp.asarray(LEVELS)[:, None, None])
    assert scores.shape == (len(LEVELS), N, D)
    for p, score in zip(LEVELS, scores, strict=True):
        error = y - quantiles_of(mixture, p)
        np.testing.assert_allclose(score, np.where(error > 0, p, p - 1) * error, atol=1e-11)
    missed = []
    for level in (0.5, 0.99):
        low, high = (quantiles_of(mixture, p) for p in ((1 - level) / 2, (1 + level) / 2))
        miss = np.maximum(low - y, 0) + np.maximum(y - high, 0)
        expected = high - low + 2 / (1 - level) * miss
        missed.extend(miss.ravel() > 0)
        np.testing.assert_allclose(interval_score(mixture, Y, level), expected, rtol=1e-9)
    assert 0 < np.mean(missed) < 1


def test_quantile_scores_follow_the_conventions_of_scoringrules():
    scoringrules = pytest.importorskip("scoringrules")
    mixture, y = normal(np.zeros((7, 1)), np.full((7, 1), 2.0)), np.linspace(-6.0, 6.0, 7)
    for p in (0.05, 0.8):
        expected = scoringrules.quantile_score(y, np.full(7, stats.norm.ppf(p, 0.0, 2.0)), p)
        score = pinball_score(mixture, jnp.asarray(y)[:, None], p)[:, 0]
        np.testing.assert_allclose(score, expected, rtol=1e-12)
    ends = (np.full(7, 2.0 * stats.norm.ppf(p)) for p in (0.1, 0.9))
    expected = scoringrules.interval_score(y, *ends, 0.2)
    score = interval_score(mixture, jnp.asarray(y)[:, None], 0.8)[:, 0]
    np.testing.assert_allclose(score, expected, rtol=1e-12)


def test_pinball_scores_of_all_levels_make_the_crps():
    nodes, weights = np.polynomial.legendre.leggauss(400)
    scores = pinball_score(MIXTURES["full"], Y, jnp.asarray(0.5 + 0.5 * nodes)[:, None, None])
    integral = 2 * np.einsum("l,lnd->nd", 0.5 * weights, scores)
    np.testing.assert_allclose(integral, jaxmdn.crps(MIXTURES["full"], Y), rtol=1e-4)


def test_pinball_score_at_the_ends_and_of_what_is_no_probability():
    p = jnp.array([0.0, 1.0, jnp.nan, -0.1, 1.1])[:, None]
    scores = pinball_score(normal([0.0], [1.0]), jnp.array([0.3]), p)[:, 0]
    np.testing.assert_array_equal(scores[:2], 0.0)
    assert np.isnan(scores[2:]).all()
    assert np.isnan(interval_score(normal([0.0], [1.0]), jnp.array([jnp.nan]))).all()


def test_gradients_of_quantile_scores():
    """Their quantiles by Newton's method from those of SciPy's root finding."""
    mixture = HEAD(oracles.random_raw(RNG, HEAD, (N,)))

    def total(mixture, y):
        return jnp.sum(pinball_score(mixture, y, 0.3)) + jnp.sum(interval_score(mixture, y, 0.5))

    found = {p: quantiles_of(mixture, p) for p in (0.3, 0.25, 0.75)}

    def exact(mixture, y):
        dense = oracles.of_mixture(mixture)
        scale = np.sqrt(np.diagonal(dense.covariances, axis1=-2, axis2=-1))

        def quantile(p):
            z = (found[p][:, None] - dense.loc) / scale
            below = np.sum(dense.weights[..., None] * complex_step.ndtr(z), axis=1)
            parts = dense.weights[..., None] * np.exp(-0.5 * z * z) / scale
            return found[p] - (below - p) * np.sqrt(2 * np.pi) / np.sum(parts, axis=1)

        error, low, high = y - quantile(0.3), quantile(0.25), quantile(0.75)
        pinball = np.where(error.real > 0, 0.3, -0.7) * error
        missed = sum(np.where(miss.real > 0, miss, 0) for miss in (low - y, y - high))
        return np.sum(pinball + high - low + 4 * missed)

    complex_step.check(total, exact, mixture, Y)


def test_quantile_scores_in_low_precision_and_mapped():
    mixture = MIXTURES["full"]
    expected = pinball_score(mixture, Y, 0.3), interval_score(mixture, Y, 0.9)
    assert expected[0].shape == expected[1].shape == (N, D)
    each = jax.jit(jax.vmap(lambda m, y: (pinball_score(m, y, 0.3), interval_score(m, y, 0.9))))
    for found, value in zip(each(mixture, Y), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (mixture, Y))
    for found, value in zip(each(*single), expected, strict=True):
        assert found.dtype == jnp.float32
        # The interval's fine multiplies the rounding of a quantile of O(10) by 2 / 0.1.
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=2e-4)
    # A level of 0.9 is not rounded to the parameters' 8 bits.
    point = normal([0.0], [1.0], jnp.bfloat16)
    width = interval_score(point, jnp.zeros(1, jnp.float32), 0.999)
    np.testing.assert_allclose(width, 2 * stats.norm.ppf(0.9995), rtol=1e-4)


# Several outputs


def energy_score(*arguments, **options):
    return scoring.energy_score(*arguments, **options).value


def variogram_score(*arguments, **options):
    return scoring.variogram_score(*arguments, **options).value


def normal_energy(loc, scale, y):
    """The energy score of an isotropic normal, by the mean length of a normal vector."""
    size = loc.size

    def length(distance, scale):
        z = -(distance**2) / (2 * scale**2)
        gammas = np.exp(special.gammaln((size + 1) / 2) - special.gammaln(size / 2))
        return scale * np.sqrt(2) * gammas * special.hyp1f1(-0.5, size / 2, z)

    return length(np.linalg.norm(y - loc), scale) - length(0.0, np.sqrt(2) * scale) / 2


def repeated(function, count, seed=0):
    """``function(key)`` for many keys: mean and standard error of the mean."""
    values = np.asarray(jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), count)))
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(count), values


@pytest.mark.parametrize(("size", "num_samples"), [(2, 2), (7, 3), (7, 64)])
def test_energy_score_of_a_normal_is_the_closed_form_without_bias(size, num_samples):
    loc, y = RNG.normal(size=size), 1.5 * RNG.normal(size=size)
    mixture = normal(loc, np.full(size, 0.8))
    mean, error, _ = repeated(
        lambda key: energy_score(key, mixture, jnp.asarray(y), num_samples=num_samples),
        40_000 // num_samples,
    )
    assert abs(mean - normal_energy(loc, 0.8, y)) < 4 * error
    assert error < 0.02


def test_energy_score_of_one_dimension_is_the_crps():
    mixture = univariate([0.0, 1.0, -1.0], [-2.0, 0.0, 3.0], [1.0, 0.3, 2.0])
    y = jnp.array([[-4.0], [0.1], [6.0]])
    mean, error, _ = repeated(lambda key: energy_score(key, mixture, y), 256)
    assert np.all(np.abs(mean - jaxmdn.crps(mixture, y)[:, 0]) < 4 * error)
    assert np.all(error < 0.02)


def test_errors_fall_with_the_root_of_the_number_of_samples():
    mixture = jax.tree.map(lambda leaf: leaf[:2], MIXTURES["full"])

    def both(key, num_samples):
        functions = (scoring.energy_score, scoring.variogram_score)
        scores = (score(key, mixture, Y[:2], num_samples=num_samples) for score in functions)
        return jnp.stack([jnp.stack(score) for score in scores])  # [2, 2, 2]

    few, many = (repeated(lambda key, s=s: both(key, s), 500)[2] for s in (128, 2048))
    spreads = [values[:, :, 0].std(axis=0) for values in (few, many)]
    # A standard deviation from 500 values is off by 3 %.
    np.testing.assert_allclose(spreads[0] / spreads[1], 4.0, rtol=0.2)
    for values, spread in zip((few, many), spreads, strict=True):  # what each says of itself
        stated = np.sqrt(np.mean(values[:, :, 1] ** 2, axis=0))
        np.testing.assert_allclose(stated[0], spread[0], rtol=0.15)
        # The jackknife errs upwards, by sqrt(2) where the variograms agree (Efron and Stein 1981).
        assert np.all((stated[1] / spread[1] > 0.85) & (stated[1] / spread[1] < 1.15 * np.sqrt(2)))
    alone = scoring.energy_score(jax.random.key(0), mixture, Y[:2], num_samples=8)
    assert np.isnan(alone.standard_error).all()


def length(x):  # of complex steps, too
    return np.sqrt(np.sum(x * x, axis=-1))


def fair_energy(draws, y):
    """``mean |x - y| - sum_ij |x_i - x_j| / (2 M (M - 1))`` with draws ``[M, N, D]``."""
    count = len(draws)
    accuracy = length(draws - y).mean(axis=0)
    pairs = length(draws[:, None] - draws[None]).sum(axis=(0, 1))
    return accuracy - pairs / (2 * count * (count - 1))


def variogram(x, order):
    gaps = x[..., :, None] - x[..., None, :]
    return np.where(gaps.real < 0, -gaps, gaps) ** order


def fair_variogram(draws, y, weights, order):
    """The plug-in form less the variance of its mean."""
    values, observed = variogram(draws, order), variogram(y, order)
    squared = (values.mean(axis=0) - observed) ** 2 - values.var(axis=0, ddof=1) / len(draws)
    return np.sum(weights * squared, axis=(-2, -1))


def test_scores_of_given_draws_are_the_ensemble_formulas():
    mixture, y, key = MIXTURES["full"], np.asarray(Y), jax.random.key(3)
    weights = RNG.uniform(size=(D, D))
    for count in (5, 24):
        blocks = max(count // 8, 1)
        keys = jax.random.split(key, blocks)
        draws = [np.asarray(jaxmdn.sample(k, mixture, (count // blocks,))) for k in keys]
        score = energy_score(key, mixture, Y, num_samples=count)
        np.testing.assert_allclose(score, np.mean([fair_energy(x, y) for x in draws], axis=0))
        joined = np.concatenate(draws)
        options = {"order": 0.7, "weights": weights, "num_samples": count}
        score = variogram_score(key, mixture, Y, **options)
        np.testing.assert_allclose(score, fair_variogram(joined, y, weights, 0.7), rtol=1e-9)
    # The formulas above, by the package that has them.
    scoringrules = pytest.importorskip("scoringrules")
    theirs = scoringrules.es_ensemble(y, draws[0], 0, -1, estimator="fair")
    np.testing.assert_allclose(fair_energy(draws[0], y), theirs, rtol=1e-12)
    everywhere = np.broadcast_to(weights, (N, D, D))
    theirs = scoringrules.vs_ensemble(y, joined, everywhere, 0, -1, p=0.7, estimator="fair")
    np.testing.assert_allclose(fair_variogram(joined, y, weights, 0.7), theirs, rtol=1e-9)


def test_variogram_score_of_a_normal_without_bias():
    """Differences of a bivariate normal are normal: ``E|X|^p`` in closed form."""
    mixture, y, order = correlated(0.6), np.array([1.0, -0.7]), 0.5
    deviation = np.sqrt(2 - 2 * 0.6)
    moment = special.gamma((order + 1) / 2) / np.sqrt(np.pi) * (np.sqrt(2) * deviation) ** order
    expected = 2 * (np.abs(y[0] - y[1]) ** order - moment) ** 2
    for count in (2, 16):
        mean, error, _ = repeated(
            lambda key, s=count: variogram_score(key, mixture, jnp.asarray(y), num_samples=s), 4000
        )
        assert abs(mean - expected) < 4 * error
        assert error < 0.01


def test_scores_are_smallest_at_the_truth():
    """In expectation over targets from the truth; the same draws for all forecasts."""
    rng = np.random.default_rng(4)
    covariance = [[1.0, 0.6], [0.6, 1.0]]
    y = jnp.asarray(rng.multivariate_normal([0.0, 0.0], covariance, size=4000))

    def forecast(correlation, scale=1.0, shift=0.0):
        normal = correlated(correlation).components
        return jaxmdn.Mixture(
            logits=jnp.zeros(1),
            components=FullNormal(
                loc=normal.loc + jnp.array([shift, 0.0]),  # the variogram sees no common shift
                whitening_tril=normal.whitening_tril / scale,
            ),
        )

    wrong = [forecast(0.6, 0.7), forecast(0.6, 1.4), forecast(0.6, 1.0, 0.5)]
    for score, others in (
        (energy_score, wrong),
        (variogram_score, [*wrong, forecast(-0.3), forecast(0.9)]),
    ):
        truth = score(jax.random.key(0), forecast(0.6), y, num_samples=1024)
        for i, other in enumerate(others):
            excess = np.asarray(score(jax.random.key(0), other, y, num_samples=1024) - truth)
            assert excess.mean() > 3 * excess.std() / np.sqrt(len(excess)), (score, i)


def test_the_gradient_of_an_energy_score_is_that_of_its_expectation():
    """With ``reparameterize`` in the weights, too: against the closed form's."""
    logits, loc, scale = np.array([0.3, -0.4]), np.array([-1.0, 0.8]), np.array([0.7, 0.5])
    y = jnp.array([0.4])

    def score(key, *parameters):
        mixture = univariate(*parameters)
        return energy_score(key, mixture, y, num_samples=8, reparameterize=True)

    parameters = tuple(map(jnp.asarray, (logits, loc, scale)))
    slopes = jax.vmap(jax.grad(score, argnums=(1, 2, 3)), (0, None, None, None))
    slopes = jax.jit(slopes)(jax.random.split(jax.random.key(1), 8000), *parameters)

    def distance(shift, spread):
        z = shift / spread
        return shift * (2 * complex_step.ndtr(z) - 1) + spread * np.sqrt(2 / np.pi) * np.exp(
            -0.5 * z * z
        )

    def closed_form(logits, loc, scale):
        weights = np.exp(logits) / np.sum(np.exp(logits))
        spread = np.sqrt(scale[:, None] ** 2 + scale**2)
        pairs = distance(loc[:, None] - loc, spread)
        return weights @ distance(0.4 - loc, scale) - 0.5 * weights @ pairs @ weights

    exact = complex_step.gradient(closed_form, (logits, loc, scale))
    for values, expected in zip(map(np.asarray, slopes), exact, strict=True):
        error = values.std(axis=0) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(axis=0) - expected) < 4 * error)


def test_derivatives_in_the_target_and_at_a_point_forecast():
    mixture, key = MIXTURES["full"], jax.random.key(5)

    def total(y):
        scores = (energy_score, variogram_score)
        return sum(jnp.sum(score(key, mixture, y, num_samples=16)) for score in scores)

    keys = jax.random.split(key, 2)
    draws = [np.asarray(jaxmdn.sample(k, mixture, (8,))) for k in keys]

    def exact(y):
        energy = sum(fair_energy(x, y) for x in draws) / 2
        return np.sum(energy + fair_variogram(np.concatenate(draws), y, np.ones((D, D)), 0.5))

    complex_step.check(total, exact, Y)
    # All draws alike, and the target among them: lengths of zero, differences of zero.
    for score in (energy_score, variogram_score):
        slope = jax.grad(
            lambda loc, y, score=score: score(key, normal(loc, jnp.full(2, 1e-300)), y),
            argnums=(0, 1),
        )(jnp.ones(2), jnp.ones(2))
        np.testing.assert_array_equal(slope, 0.0)


def test_memory_does_not_grow_with_the_number_of_samples():
    def temporary(score, num_samples):
        def loss(loc, y):
            mixture = normal(loc, jnp.ones((64, 6)))
            return jnp.sum(score(jax.random.key(0), mixture, y, num_samples=num_samples))

        compiled = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((64, 6)), jnp.ones((64, 6)))
        return compiled.compile().memory_analysis().temp_size_in_bytes

    for score in (energy_score, variogram_score):
        few, many = temporary(score, 64), temporary(score, 4096)
        assert many < few + 4096 * 64  # the keys of the blocks, and nothing of [S, N, D]


@pytest.mark.parametrize("score", [energy_score, variogram_score])
def test_multivariate_scores_broadcast_map_and_keep_dtypes(score):
    mixture, key = MIXTURES["nested"], jax.random.key(7)
    expected = score(key, mixture, Y)
    assert expected.shape == (N,)
    more = jnp.stack([Y, Y + 1.0, Y])  # further leading axes share the draws
    found = score(key, mixture, more)
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    np.testing.assert_allclose(found[2], expected, rtol=1e-12)
    np.testing.assert_allclose(score(key, mixture, Y + 1.0), found[1], rtol=1e-12)
    keys = jax.random.split(key, N)
    row = jax.tree.map(lambda leaf: leaf[1], mixture)
    mapped = jax.jit(jax.vmap(partial(score, num_samples=6)))(keys, mixture, Y)
    alone = score(keys[1], row, Y[1], num_samples=6)
    np.testing.assert_allclose(mapped[1], alone, rtol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (mixture, Y))
    found = score(key, *single)
    assert found.dtype == jnp.float32
    # Other draws than in float64: the same score within Monte Carlo errors, below 0.1 each.
    np.testing.assert_allclose(found, expected, atol=0.5)
    broken = score(key, mixture, Y.at[0, 1].set(jnp.nan))
    assert np.isnan(broken[0])
    np.testing.assert_allclose(broken[1:], expected[1:], rtol=1e-12)


FULL, KEY, LABELS = MIXTURES["full"], jax.random.key(0), jnp.zeros((N, 1), int)
ERRORS = [
    (pinball_score, (FULL, Y[:, :1], 0.5), {}, ValueError, r"pinball_score: expected y of shape"),
    (pinball_score, (FULL, Y, 1.5), {}, ValueError, r"p must lie in \[0, 1\], got 1.5"),
    (pinball_score, (FULL, Y, jnp.ones((N + 1, 1))), {}, ValueError, "pinball_score: .* broadcast"),
    (pinball_score, (CATEGORICAL, LABELS, 0.5), {}, TypeError, "not defined for Categorical"),
    (interval_score, (FULL, Y, 1.0), {}, ValueError, r"interval_score: level must lie in \(0, 1\)"),
    (interval_score, (FULL, Y[:4], 0.5), {}, ValueError, r"leading \(batch\) axes must"),
    (energy_score, (KEY, FULL, Y[:, :1]), {}, ValueError, "energy_score: expected y of shape"),
    (energy_score, (KEY, FULL, Y), {"num_samples": 1}, ValueError, "num_samples must be at least"),
    (energy_score, (KEY, CATEGORICAL, LABELS), {}, TypeError, "classes have no distance"),
    (variogram_score, (KEY, FULL, Y), {"order": 0.0}, ValueError, r"order must lie in \(0, inf\)"),
    (variogram_score, (KEY, FULL, Y), {"weights": jnp.ones(2)}, ValueError, r"shape \[2, 2\]"),
    (
        variogram_score,
        (KEY, FULL, Y),
        {"weights": -np.ones((2, 2))},
        ValueError,
        "must not be negative",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "options", "kind", "message"), ERRORS)
def test_errors(user_errors, function, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        function(*arguments, **options)
