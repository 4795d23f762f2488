"""Uniform transforms, their test, coverage, reliability and recalibration: SciPy and sampling."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

import jaxmdn
from jaxmdn.calibration import (
    Recalibration,
    pit,
    pit_test,
    recalibrate,
    recalibrated_cdf,
    recalibrated_log_prob,
    recalibrated_quantile,
    reliability_table,
)
from jaxmdn.components import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    FullNormal,
    Gamma,
    Hurdle,
    Independent,
    Normal,
    Poisson,
    Support,
    ZeroInflated,
)

K, D, N = 3, 2, 5
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
Y = jnp.asarray(2.0 * RNG.normal(size=(N, D)))
HEADS = {name: jaxmdn.NormalHead(K, D, covariance=name) for name in ("diagonal", "full")}
HEADS["nested"] = jaxmdn.ClassConditionalHead(2, HEADS["diagonal"])
MIXTURES = {name: head(oracles.random_raw(RNG, head, (N,))) for name, head in HEADS.items()}
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros((N, 3)))
LABELS = jnp.zeros((N, 1), int)


def mixture_of(weights, loc, scale, dtype=jnp.float64):
    """A univariate mixture from three lists."""
    weights, loc, scale = (jnp.asarray(part, dtype) for part in (weights, loc, scale))
    return jaxmdn.Mixture(
        logits=jnp.log(weights), components=Normal(loc=loc[:, None], scale=scale[:, None])
    )


STANDARD = mixture_of([1.0], [0.0], [1.0])


def draws_of(dense, row, count):
    """Draws of one row by NumPy, ``[count, D]``."""
    components = dense.weights.shape[-1]
    index = RNG.choice(components, size=count, p=dense.weights[row])
    factor = np.linalg.cholesky(dense.covariances[row])
    noise = RNG.normal(size=(count, D))
    return dense.loc[row][index] + np.einsum("nij,nj->ni", factor[index], noise)


# The transform


@pytest.mark.parametrize("name", HEADS)
def test_the_true_density_is_calibrated(name):
    mixture = MIXTURES[name]
    dense = oracles.of_mixture(mixture)
    count, levels = 2000, (0.1, 0.5, 0.9, 0.99)
    y = jnp.asarray(np.stack([draws_of(dense, row, count) for row in range(N)], axis=1))
    values = np.asarray(pit(mixture, y))  # [count, N, D]
    np.testing.assert_allclose(values[:3], dense.cdf(y[:3]), rtol=1e-12)
    for n, d in np.ndindex(N, D):
        assert stats.kstest(values[:, n, d], "uniform").pvalue > 1e-4
    shares = jaxmdn.coverage(mixture, y, levels)
    assert shares.shape == (len(levels), D)
    table = reliability_table(mixture, y, levels)
    assert (table.p.shape, table.observed.shape) == ((4,), (4, D))
    for i, level in enumerate(levels):
        error = np.sqrt(level * (1.0 - level) / (count * N))
        np.testing.assert_allclose(table.standard_error[i], error, rtol=1e-12)
        np.testing.assert_allclose(shares[i], level, atol=4.0 * error)
        np.testing.assert_allclose(table.observed[i], level, atol=4.0 * error)
        np.testing.assert_allclose(table.observed[i], np.mean(values <= level, axis=(0, 1)))
    assert np.all(np.asarray(pit_test(jnp.asarray(values)).p_value) > 1e-4)


def test_pit_of_classes_is_uniform_over_many_keys():
    """Czado et al. (2009): ``F(y-) + v p(y)``, classes in the order of their indices."""
    probabilities = np.array([0.5, 0.0, 0.2, 0.3])
    classes = Categorical(logits=jnp.log(jnp.asarray(probabilities)))
    y = jnp.asarray(RNG.choice(4, size=(2000, 1), p=probabilities))
    keys = jax.random.split(KEY, 50)
    values = np.asarray(jax.vmap(lambda key: pit(classes, y, key=key))(keys))[..., 0]
    starts = np.cumsum(probabilities) - probabilities
    low, high = starts[y[:, 0]], (starts + probabilities)[y[:, 0]]
    assert np.all((low - 1e-15 <= values) & (values <= high + 1e-15))
    # Given the labels, each value is uniform on its step.
    place = (values - low) / (high - low)
    assert stats.kstest(place.ravel(), "uniform").pvalue > 1e-3
    fresh = jnp.asarray(RNG.choice(4, size=(50, 400, 1), p=probabilities))
    values = np.asarray(jax.vmap(lambda key, y: pit(classes, y, key=key))(keys, fresh))[..., 0]
    p_values = [stats.kstest(row, "uniform").pvalue for row in values]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_pit_of_a_mixture_of_classes_and_of_labels_that_do_not_exist():
    inner = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    mixture = jaxmdn.Mixture(
        logits=jnp.log(jnp.array([0.25, 0.75])), components=Categorical(logits=jnp.log(inner))
    )
    y = jnp.tile(jnp.array([[-1.0], [0.0], [1.0], [2.0], [3.0], [jnp.nan]])[:, None], (1, 4000, 1))
    values = np.asarray(pit(mixture, y, key=KEY))[..., 0]
    ends = np.concatenate([[0.0], np.cumsum([0.25, 0.75] @ inner)])
    for c in range(3):
        np.testing.assert_allclose(values[c + 1].min(), ends[c], atol=2e-3)
        np.testing.assert_allclose(values[c + 1].max(), ends[c + 1], atol=2e-3)
    np.testing.assert_array_equal(values[0], 0.0)
    np.testing.assert_allclose(values[4], 1.0, rtol=1e-15)
    assert np.isnan(values[5]).all()


def test_pit_of_counts_spreads_each_over_its_step():
    """A stand-in for a count family: a geometric distribution, ``F(y) = 1 - (1 - q)^(y + 1)``."""

    class Geometric(Normal):
        domain = Support("integers", lower=0.0, step=1.0)

        def cdf(self, y):
            return jnp.where(y < 0, 0.0, 1 - (1 - self.scale) ** (jnp.floor(y) + 1))

    jax.tree_util.register_dataclass(Geometric, ["loc", "scale"], [])
    family = Geometric(loc=jnp.zeros(1), scale=jnp.array([0.3]))
    y = RNG.geometric(0.3, size=(5000, 1)) - 1
    values = np.asarray(pit(family, jnp.asarray(y), key=KEY))
    assert np.all(values >= stats.geom.cdf(y, 0.3) - 1e-12)  # SciPy counts from one
    assert np.all(values <= stats.geom.cdf(y + 1, 0.3) + 1e-12)
    assert stats.kstest(values[:, 0], "uniform").pvalue > 1e-3


# Its test


def test_pit_test_is_scipy_s_and_its_p_values_are_uniform_under_the_null():
    values = RNG.uniform(size=(2000, 40, 2))
    found = jax.jit(jax.vmap(pit_test))(jnp.asarray(values))
    for row in range(20):
        for d in (0, 1):
            expected = stats.kstest(values[row, :, d], "uniform", mode="exact")
            np.testing.assert_allclose(found.statistic[row, d], expected.statistic, rtol=1e-12)
            np.testing.assert_allclose(found.p_value[row, d], expected.pvalue, rtol=1e-12)
    for d in (0, 1):
        assert stats.kstest(np.asarray(found.p_value[:, d]), "uniform").pvalue > 1e-3
    many = RNG.uniform(size=(4000, 5, 1)) ** 1.02  # leading axes are pooled
    result, expected = pit_test(jnp.asarray(many)), stats.kstest(many.ravel(), "uniform")
    np.testing.assert_allclose(result.statistic[0], expected.statistic, rtol=1e-12)
    np.testing.assert_allclose(
        result.p_value[0], stats.kstwo.sf(expected.statistic, many.size), rtol=1e-9
    )
    single = pit_test(jnp.asarray(many, jnp.float32))
    assert single.p_value.dtype == jnp.float32
    exact = stats.kstwo.sf(float(single.statistic[0]), many.size)
    np.testing.assert_allclose(single.p_value[0], exact, rtol=1e-6)
    assert float(jax.grad(lambda v: pit_test(v).p_value[0])(jnp.asarray(many[:9, 0]))[0, 0]) == 0
    broken = pit_test(jnp.asarray(values[0]).at[3, 1].set(jnp.nan))
    assert np.isfinite(broken.p_value[0])
    assert np.isnan(broken.statistic[1])
    assert np.isnan(broken.p_value[1])


# Coverage


def test_coverage_counts_exactly():
    """PIT 0.5, 0.75 and 0.99: the intervals that hold them follow by hand."""
    y = jnp.asarray(stats.norm.isf([[0.5], [0.25], [0.01]]))
    levels = (0.1, 0.49, 0.51, 0.97, 0.99)
    expected = np.array([1, 1, 2, 2, 3]) / 3
    np.testing.assert_allclose(jaxmdn.coverage(STANDARD, y, levels)[:, 0], expected)
    # A normal's highest-density regions are its central intervals.
    shares = jaxmdn.coverage(STANDARD, y, levels, region="highest_density")
    np.testing.assert_allclose(shares, expected)
    np.testing.assert_allclose(
        reliability_table(STANDARD, y, (0.6, 0.8)).observed[:, 0], [1 / 3, 2 / 3]
    )
    broken = y.at[1, 0].set(jnp.nan)
    assert np.isnan(jaxmdn.coverage(STANDARD, broken)).all()
    assert np.isnan(jaxmdn.coverage(STANDARD, broken, region="highest_density")).all()
    assert np.isnan(reliability_table(STANDARD, broken).observed).all()


def test_coverage_shows_a_density_that_is_too_narrow():
    y = jnp.asarray(RNG.normal(size=(20_000, 2)))
    share = jaxmdn.coverage(mixture_of([1.0], [0.0], [0.5]), y[:, :1], (0.9,))
    expected = 1.0 - 2.0 * stats.norm.sf(0.5 * stats.norm.isf(0.05))  # 0.59, not 0.9
    np.testing.assert_allclose(share, [[expected]], atol=4.0 * np.sqrt(0.25 / 20_000))
    narrow = FullNormal(loc=jnp.zeros((1, 2)), whitening_tril=2.0 * jnp.eye(2)[None])
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=narrow)
    share = jaxmdn.coverage(mixture, y, (0.9,), region="highest_density", key=KEY)
    expected = stats.chi2.cdf(stats.chi2.ppf(0.9, 2) / 4, 2)
    # The region's own 1000 samples move its level by 0.01.
    np.testing.assert_allclose(share, [expected], atol=0.04)


def test_coverage_of_highest_density_regions_of_several_modes():
    y = jaxmdn.sample(KEY, MISFIT, (8000,))
    shares = jaxmdn.coverage(MISFIT, y, (0.3, 0.9), region="highest_density")
    assert shares.shape == (2,)
    np.testing.assert_allclose(shares, [0.3, 0.9], atol=4 * np.sqrt(0.25 / 8000))


# Recalibration


def test_an_even_grid_gives_the_identity():
    even = jnp.asarray(np.arange(1, 100)[:, None] / 100)
    for num_knots in (2, 8, 21, 300):
        fitted = recalibrate(even, num_knots=num_knots)
        np.testing.assert_allclose(fitted.knots[0], np.linspace(0, 1, num_knots), atol=1e-14)
    y = jnp.linspace(-6.0, 6.0, 41)[:, None]
    np.testing.assert_allclose(recalibrated_cdf(fitted, STANDARD, y), stats.norm.cdf(y), atol=1e-13)
    found = recalibrated_log_prob(fitted, STANDARD, y)
    np.testing.assert_allclose(found, stats.norm.logpdf(y[:, 0]), atol=1e-11)
    p = np.array([0.0, 0.01, 0.5, 0.987, 1.0])
    found = recalibrated_quantile(fitted, STANDARD, p[:, None])[:, 0]
    np.testing.assert_allclose(found, stats.norm.ppf(p), atol=1e-10)


def test_the_map_by_hand():
    values = RNG.beta(0.4, 0.7, size=(60, 2))
    fitted = recalibrate(jnp.asarray(values), num_knots=6, pseudo_rows=3.0)
    grid = np.linspace(0, 1, 6)
    for d in (0, 1):
        points = np.concatenate([[0.0], np.sort(values[:, d]), [1.0]])
        empirical = np.interp(grid, np.arange(62) / 61, points)
        knots = (60 * empirical + 3 * grid) / 63
        np.testing.assert_allclose(fitted.knots[d], knots, rtol=1e-12)
        p = RNG.uniform(size=(50, 2))
        y = jnp.asarray(stats.norm.ppf(p))
        pair = mixture_of_pairs()
        found = recalibrated_cdf(fitted, pair, y)[:, d]
        np.testing.assert_allclose(found, np.interp(p[:, d], knots, grid), rtol=1e-9)
        found = recalibrated_quantile(fitted, pair, jnp.asarray(p))[:, d]
        np.testing.assert_allclose(
            found, stats.norm.ppf(np.interp(p[:, d], grid, knots)), rtol=1e-9
        )


def mixture_of_pairs():
    return jaxmdn.Mixture(
        logits=jnp.zeros(1), components=Normal(loc=jnp.zeros((1, 2)), scale=jnp.ones((1, 2)))
    )


MISFIT = mixture_of([0.4, 0.6], [-1.0, 2.0], [0.5, 0.7])


def misfit_targets(count):
    """Wider and further right than ``MISFIT`` says."""
    left = RNG.random(size=count) < 0.3
    return jnp.asarray(np.where(left, -1.0, 2.4) + 1.1 * RNG.normal(size=count))[:, None]


def test_a_misfit_becomes_uniform_on_fresh_rows():
    fitted = recalibrate(pit(MISFIT, misfit_targets(4000)))
    fresh = misfit_targets(4000)
    before = pit_test(pit(MISFIT, fresh)).statistic[0]
    after = pit_test(recalibrated_cdf(fitted, MISFIT, fresh)).statistic[0]
    assert before > 0.1
    assert after < 0.045  # two empirical cdfs of 4000 rows, 1.36 sqrt(2 / 4000) = 0.03 at 95 %
    gain = np.mean(recalibrated_log_prob(fitted, MISFIT, fresh) - jaxmdn.log_prob(MISFIT, fresh))
    assert gain > 0.1


def test_recalibrated_densities_integrate_to_one_and_are_the_cdf_s_slope():
    fitted = recalibrate(pit(MISFIT, misfit_targets(300)), num_knots=11)
    ends = np.asarray(recalibrated_quantile(fitted, MISFIT, jnp.linspace(0, 1, 11)[:, None]))[:, 0]
    ends = np.concatenate([[-25.0], ends[1:-1], [25.0]])  # jumps at the knots
    nodes, weights = np.polynomial.legendre.leggauss(200)
    middle, half = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    y = middle[:, None] + half[:, None] * nodes
    density = np.exp(recalibrated_log_prob(fitted, MISFIT, jnp.asarray(y)[..., None]))
    np.testing.assert_allclose(np.sum(density * weights, axis=-1) * half, 0.1, rtol=1e-6)
    y = jnp.asarray(RNG.normal(size=(50, 1)))
    slope = jax.vmap(jax.grad(lambda y: recalibrated_cdf(fitted, MISFIT, y[None])[0, 0]))(y)
    found = recalibrated_log_prob(fitted, MISFIT, y)
    np.testing.assert_allclose(jnp.exp(found), slope[:, 0], rtol=1e-9)


def test_recalibrated_joint_density_keeps_the_copula_and_integrates_to_one():
    factor = np.linalg.inv(np.linalg.cholesky([[1.0, 0.8], [0.8, 1.0]]))
    components = FullNormal(
        loc=jnp.array([[0.0, 0.0], [1.0, -1.0]]), whitening_tril=jnp.asarray([factor, np.eye(2)])
    )
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=components)
    fitted = recalibrate(jnp.asarray(RNG.beta(0.6, 1.5, size=(500, 2))), num_knots=5)
    # Cells between the knots, on each of which the density is smooth.
    levels = jnp.linspace(0, 1, 5)[:, None]
    knots = np.array(recalibrated_quantile(fitted, mixture, levels))  # [5, 2]
    knots[0], knots[-1] = -9.0, 9.0
    nodes, weights = np.polynomial.legendre.leggauss(60)
    half = np.diff(knots, axis=0) / 2  # [4, 2]
    points = knots[:-1, None] + half[:, None] * (1 + nodes[:, None])  # [4, 60, 2]
    points, mass = points.reshape(-1, 2), (half[:, None] * weights[:, None]).reshape(-1, 2)
    grid = jnp.stack(jnp.meshgrid(points[:, 0], points[:, 1], indexing="ij"), axis=-1)
    density = np.exp(recalibrated_log_prob(fitted, mixture, grid))
    np.testing.assert_allclose(mass[:, 0] @ density @ mass[:, 1], 1.0, rtol=1e-5)
    # Its marginals are the recalibrated ones.
    inside = np.einsum("i,ij,j->ij", mass[:, 0], density, mass[:, 1]).reshape(4, 60, 4, 60)
    np.testing.assert_allclose(inside.sum(axis=(1, 2, 3)), 0.25, rtol=1e-4)
    np.testing.assert_allclose(inside.sum(axis=(0, 1, 3)), 0.25, rtol=1e-4)
    # Independent dimensions: the slopes alone.
    pair, y = mixture_of_pairs(), jnp.asarray(RNG.normal(size=(20, 2)))
    slopes = np.prod(0.25 / np.diff(fitted.knots)[[0, 1], segment_of(fitted, pair, y)], axis=-1)
    found = recalibrated_log_prob(fitted, pair, y)
    np.testing.assert_allclose(found, jaxmdn.log_prob(pair, y) + np.log(slopes), rtol=1e-7)


def hurdles(logit):
    """Exponential amounts, or nothing."""
    one = jnp.asarray(np.ones((1, 1)))
    hurdle = Hurdle(
        base=Gamma(concentration=one, rate=one), logit=jnp.asarray(np.asarray(logit)[..., None, :])
    )
    return jaxmdn.Mixture(logits=one[0], components=hurdle)


def test_recalibrated_mass_at_zero_is_the_difference_of_the_cdf():
    """The slope times the mass, 0.43 for 0.27 here, is right within one segment alone."""
    share = np.array([0.6, 0.05, 1e-12])[:, None]
    density = hurdles(np.log(share / (1 - share)))
    fitted = Recalibration(knots=jnp.asarray(np.array([[0.0, 0.4, 0.7, 0.8, 1.0]])))
    levels = np.linspace(0, 1, 5)
    at_zero = np.interp(share, fitted.knots[0], levels)
    y = np.broadcast_to([0.0, 2.0, -1.0], (3, 3))[..., None]  # a row of targets for each density
    found = np.exp(recalibrated_log_prob(fitted, density, jnp.asarray(np.swapaxes(y, 0, 1)))).T
    np.testing.assert_allclose(found[:, :1], at_zero, rtol=1e-9)
    slope = 0.25 / np.diff(fitted.knots[0])
    below = share + (1 - share) * -np.expm1(-2)
    segment = np.searchsorted(fitted.knots[0], below) - 1
    np.testing.assert_allclose(found[:, 1:2], slope[segment] * (1 - share) * np.exp(-2), rtol=1e-9)
    np.testing.assert_array_equal(found[:, 2], 0)


def segment_of(fitted, mixture, y):
    p = np.asarray(jaxmdn.cdf(mixture, y))
    return np.stack(
        [np.searchsorted(fitted.knots[d], p[:, d], side="right") - 1 for d in (0, 1)], axis=-1
    )


def dense_recalibrated_log_prob(fitted, leaves):
    """The formula in NumPy, summed over rows, for complex numbers around ``leaves``.

    ``z`` moves by the implicit function: one step of Newton's from its real value.
    """
    knots, dims = np.asarray(fitted.knots), np.arange(D)
    steps = knots.shape[-1] - 1

    def parts(outer, inner, loc, scale, y):
        weights = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (outer, inner)]
        weights = weights[0][..., None] * weights[1]  # [N, C, K]
        z = (y[:, None, None] - loc) / scale  # [N, C, K, D]
        density = np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * scale)
        cdf = np.einsum("nck,nckd->nd", weights, complex_step.ndtr(z))
        marginals = np.einsum("nck,nckd->nd", weights, density)
        return cdf, marginals, np.einsum("nck,nck->n", weights, density.prod(axis=-1))

    def mapped(p):  # R(p) and its slope
        index = [np.searchsorted(knots[d], p[:, d].real, side="right") - 1 for d in dims]
        low, high = (knots[dims, np.stack(index, axis=-1) + i] for i in (0, 1))
        slope = 1 / (steps * (high - low))
        return np.stack(index, axis=-1) / steps + (p - low) * slope, slope

    real = [np.asarray(leaf) for leaf in leaves]
    target = mapped(parts(*real)[0])[0]
    low, high = np.full((N, D), -50.0), np.full((N, D), 50.0)
    for _ in range(64):  # halvings
        z = 0.5 * (low + high)
        right = parts(*real[:-1], z)[0] < target
        low, high = np.where(right, z, low), np.where(right, high, z)

    def log_prob(*moved):
        p, at_y, _ = parts(*moved)
        target, slope = mapped(p)
        reached, density, _ = parts(*moved[:-1], z)
        at = z - (reached - target) / density
        _, at_z, joint = parts(*moved[:-1], at)
        return np.sum(np.log(joint)) + np.sum(np.log(slope) + np.log(at_y) - np.log(at_z))

    return log_prob


def test_round_trips_gradients_and_low_precision():
    mixture = MIXTURES["nested"]
    fitted = recalibrate(jnp.asarray(RNG.beta(2.0, 0.7, size=(40, N, D))))
    assert fitted.knots.shape == (D, 21)
    p = jnp.asarray(RNG.uniform(0.001, 0.999, size=(N, D)))
    y = recalibrated_quantile(fitted, mixture, p)
    np.testing.assert_allclose(recalibrated_cdf(fitted, mixture, y), p, rtol=1e-9)
    back = recalibrated_quantile(fitted, mixture, recalibrated_cdf(fitted, mixture, y))
    np.testing.assert_allclose(back, y, rtol=1e-9, atol=1e-9)
    found = jax.jit(jax.grad(lambda m, y: recalibrated_log_prob(fitted, m, y).sum(), (0, 1)))
    inner = mixture.components
    leaves = [mixture.logits, inner.logits, inner.components.loc, inner.components.scale, y]
    expected = complex_step.gradient(dense_recalibrated_log_prob(fitted, leaves), leaves)
    for slope, exact in zip(jax.tree.leaves(found(mixture, y)), expected, strict=True):
        np.testing.assert_allclose(slope, exact, rtol=1e-7, atol=1e-9)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (fitted, mixture, y))
    found = jax.jit(jax.vmap(recalibrated_log_prob, (None, 0, 0)))(*single)
    assert found.dtype == jnp.float32
    # The slope multiplies the cdf's rounding, the quantile's is divided by its density.
    np.testing.assert_allclose(found, recalibrated_log_prob(fitted, mixture, y), atol=2e-3)


def test_ties_many_rows_and_bad_values():
    for dtype in (jnp.float32, jnp.float64):
        tied = jnp.concatenate([jnp.ones((100_000, 1), dtype), jnp.zeros((50_000, 1), dtype)])
        knots = np.asarray(recalibrate(tied).knots[0], np.float64)
        assert np.all(np.diff(knots) > 0)
        assert (knots[0], knots[-1]) == (0.0, 1.0)
    values = jnp.asarray(RNG.uniform(size=(9, 3))).at[2, 0].set(jnp.nan).at[3, 1].set(1.5)
    knots = np.asarray(recalibrate(values).knots)
    assert np.isnan(knots[:2]).all()
    assert np.isfinite(knots[2]).all()
    fitted = recalibrate(jnp.asarray(RNG.uniform(size=(9, 1))))
    p = jnp.array([[jnp.nan], [-0.1], [1.1]])
    assert np.isnan(recalibrated_quantile(fitted, STANDARD, p)).all()
    ends = recalibrated_quantile(fitted, STANDARD, jnp.array([[0.0], [1.0]]))[:, 0]
    np.testing.assert_array_equal(ends, [-np.inf, np.inf])
    assert np.isnan(recalibrated_cdf(fitted, STANDARD, jnp.array([jnp.nan]))).all()
    assert np.isnan(recalibrated_log_prob(fitted, STANDARD, jnp.array([jnp.nan])))


FULL = MIXTURES["full"]
FITTED = Recalibration(knots=jnp.array([[0.0, 0.5, 1.0]]))
PAIR = Recalibration(knots=jnp.array([[0.0, 0.5, 1.0]] * 2))
CLAIMS = hurdles(np.zeros(2))
ERRORS = [
    (pit, (FULL, Y[:, :1]), {}, ValueError, r"pit: expected y of shape \[\.\.\., 2\]"),
    (pit, (FULL, Y.astype(int)), {}, TypeError, "pit: y must have a real floating dtype"),
    (pit, (CATEGORICAL, LABELS), {}, ValueError, "pit: a discrete density needs a key"),
    (pit_test, (jnp.zeros(4),), {}, ValueError, r"pit_values of shape \[\.\.\., D\]"),
    (pit_test, (jnp.zeros((0, 2)),), {}, ValueError, "at least one row"),
    (pit_test, (jnp.zeros((3, 2), int),), {}, TypeError, "must have a real floating dtype"),
    (jaxmdn.coverage, (FULL, Y, (0.5, 1.0)), {}, ValueError, r"levels must lie in \(0, 1\), got 1"),
    (jaxmdn.coverage, (FULL, Y, (0.0,)), {}, ValueError, r"levels must lie in \(0, 1\), got 0.0"),
    (jaxmdn.coverage, (FULL, Y), {"region": "hdr"}, ValueError, "region must be one of 'central'"),
    (jaxmdn.coverage, (FULL, Y), {"region": "highest_density"}, ValueError, "needs samples"),
    (reliability_table, (FULL, Y, (1.0,)), {}, ValueError, r"reliability_table: p must lie"),
    (recalibrate, (Y[:, 0],), {}, ValueError, r"recalibrate: expected pit_values of shape"),
    (recalibrate, (Y,), {"num_knots": 1}, ValueError, "num_knots must be at least 2"),
    (recalibrate, (Y,), {"pseudo_rows": 0.0}, ValueError, r"pseudo_rows must lie in \(0, inf\)"),
    (recalibrated_cdf, (FITTED, FULL, Y), {}, ValueError, "a map of 2 dimensions .* one of 1"),
    (recalibrated_cdf, (FULL, FITTED, Y), {}, TypeError, "expected a Recalibration, got Mixture"),
    (recalibrated_quantile, (FITTED, STANDARD, 1.5), {}, ValueError, r"p must lie in \[0, 1\]"),
    (recalibrated_log_prob, (FITTED, CATEGORICAL, LABELS), {}, TypeError, "continuous density"),
    (
        recalibrated_log_prob,
        (PAIR, CLAIMS, Y),
        {},
        TypeError,
        r"dimensions \[0, 1\] have values of",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "options", "kind", "message"), ERRORS)
def test_errors(user_errors, function, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        function(*arguments, **options)


def test_shares_of_jumps_add_up_to_the_level():
    """Of a right model, summed over all values with their probabilities: exact, without a key."""
    rate, zeros, logit = np.array([2.0, 9.0]), -0.4, 0.7
    weights, rest = np.array([0.3, 0.7]), special.expit(-zeros)
    base = Poisson(rate=jnp.asarray(rate[:, None]))
    z = jnp.full((2, 1), zeros)
    gamma = Gamma(concentration=jnp.full((2, 1), 2.0), rate=jnp.asarray(rate[:, None]))
    levels = DiscretizedLogistic(
        loc=jnp.asarray(rate[:, None] / 4), scale=jnp.ones((2, 1)), lower=0.0, upper=3.0, num_bins=4
    )
    parts = (base, ZeroInflated(base=base, logit=z), Bernoulli(logit=jnp.full((2, 1), logit)))
    parts = (*parts, levels, Hurdle(base=gamma, logit=z))
    density = jaxmdn.Mixture(
        logits=jnp.log(weights),
        components=Independent(parts=parts, dims=tuple((d,) for d in range(5))),
    )

    grid = np.arange(80.0)
    poisson = stats.poisson.pmf(grid[:, None], rate) @ weights
    edges = stats.logistic.cdf(np.arange(3)[:, None] + 0.5, rate / 4, 1.0) @ weights
    masses = np.zeros((80, 5))
    masses[:, 0] = poisson
    masses[:, 1] = rest * poisson + (1 - rest) * (grid == 0)
    masses[:2, 2] = special.expit([-logit, logit])
    masses[:4, 3] = np.diff(edges, prepend=0, append=1)
    masses[0, 4] = 1 - rest  # and a continuum above
    y = jnp.asarray(np.minimum(grid[:, None], [80.0, 80.0, 1.0, 3.0, 80.0]))
    chosen = (0.05, 0.3, 0.5, 0.9)

    def each(y):
        table = reliability_table(density, y[None], chosen)
        return jaxmdn.coverage(density, y[None], chosen), table.observed

    inside, below = (np.asarray(part) for part in jax.jit(jax.vmap(each))(y))  # [80, L, D]
    expected = np.broadcast_to(np.array(chosen)[:, None], (4, 4))
    total = np.einsum("gd,gld->ld", masses, inside)
    np.testing.assert_allclose(total[:, :4], expected, rtol=1e-9)
    np.testing.assert_allclose(np.einsum("gd,gld->ld", masses, below)[:, :4], expected, rtol=1e-9)
    # The hurdle's zeros lie at the bottom; above them a target lies below a level or not.
    np.testing.assert_allclose(below[0, :, 4], np.minimum(np.array(chosen) / (1 - rest), 1))
    law = 1 - rest + rest * (stats.gamma.cdf(grid[1:, None], 2, scale=1 / rate) @ weights)
    np.testing.assert_array_equal(below[1:, :, 4], law[:, None] <= np.array(chosen))
    # The mid-PIT, too, has the mean 1/2, and is what the randomised one has on average.
    middle = np.asarray(pit(density, y, middle=True))
    start = np.cumsum(masses, axis=0) - masses
    np.testing.assert_allclose(middle[:2, :4], (start + 0.5 * masses)[:2, :4], rtol=1e-9)
    np.testing.assert_allclose(np.sum(masses * middle, axis=0)[:4], 0.5, rtol=1e-9)
    np.testing.assert_allclose(middle[1:, 4], law, rtol=1e-9)


def test_highest_density_regions_of_values_with_probabilities():
    """By falling probability, equal ones together: NumPy's sums; counts by samples."""
    levels, shares = (0.1, 0.5, 0.93), np.array([0.3, 0.1, 0.1, 0.3, 0.2])

    def region(density, y, key=None):
        def each(y):
            level = jaxmdn.hdr_level(density, y[None], key=key).value[0]
            return level, jaxmdn.coverage(
                density, y[None], levels, region="highest_density", key=key
            )

        return [np.asarray(part) for part in jax.jit(jax.vmap(each))(y)]

    def check(density, masses, y, key=None, atol=1e-12):
        level, inside = region(density, y, key)
        denser, same = (
            np.sum(np.where(of(masses, masses[:, None]), masses, 0), axis=1)
            for of in (lambda a, b: a > b * (1 + 1e-12), lambda a, b: np.isclose(a, b, rtol=1e-12))
        )
        np.testing.assert_allclose(level, denser + same, rtol=0, atol=atol)
        within = np.clip((np.array(levels) - denser[:, None]) / same[:, None], 0, 1)
        np.testing.assert_allclose(inside, within, atol=atol / np.min(same))
        np.testing.assert_allclose(masses @ inside, levels, atol=2 * atol)

    classes = jaxmdn.components.Categorical(logits=jnp.log(jnp.asarray(shares)))
    check(classes, shares, jnp.arange(5)[:, None])
    weights = np.array([0.3, 0.7])
    loc, scale = np.array([1.0, 6.0]), np.array([0.7, 1.5])
    family = jaxmdn.components.DiscretizedLogistic(
        loc=jnp.asarray(loc)[:, None],
        scale=jnp.asarray(scale)[:, None],
        lower=0.0,
        upper=9.0,
        num_bins=10,
    )
    edges = stats.logistic.cdf(np.arange(9)[:, None] + 0.5, loc, scale) @ weights
    grid = jnp.arange(10.0)[:, None]
    mixture = jaxmdn.Mixture(logits=jnp.log(jnp.asarray(weights)), components=family)
    check(mixture, np.diff(edges, prepend=0, append=1), grid)
    rate = np.array([0.5, 6.0])
    counts = jaxmdn.Mixture(
        logits=jnp.log(jnp.asarray(weights)),
        components=jaxmdn.components.Poisson(rate=jnp.asarray(rate)[:, None]),
    )
    masses = stats.poisson.pmf(np.asarray(grid), rate) @ weights
    level, _ = region(counts, grid, KEY)
    exact = [np.sum(masses[masses >= mass * (1 - 1e-12)]) for mass in masses]
    np.testing.assert_allclose(level[:9], exact[:9], atol=0.08)
    with pytest.raises(ValueError, match="hdr_level: a density of counts needs samples"):
        jaxmdn.hdr_level(counts, grid)
    hurdle = jaxmdn.Mixture(
        logits=jnp.zeros(1),
        components=jaxmdn.components.Hurdle(
            base=jaxmdn.components.Gamma(concentration=jnp.ones((1, 1)), rate=jnp.ones((1, 1))),
            logit=jnp.log(jnp.full((1, 1), 1.5)),  # zeros are .6 of all
        ),
    )
    level, inside = region(hurdle, jnp.asarray([[0.0], [0.5]]))
    np.testing.assert_allclose(level, [0.6, 0.6 + 0.4 * (1 - np.exp(-0.5))], rtol=1e-9)
    np.testing.assert_allclose(inside, [[0.1 / 0.6, 0.5 / 0.6, 1], [0, 0, 1]], rtol=1e-9)
