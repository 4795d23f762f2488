"""Temperatures and stacking, against formulas in NumPy and SciPy's own optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn.calibration import (
    apply_temperature,
    fit_scale_factor,
    fit_temperature,
    stacking_weights,
)
from jaxmdn.calibration.temperature import Temperature

N = 500


@pytest.fixture(scope="module")
def problem():
    """Two over-confident models of standard deviation 0.5 and 0.2 around noisy means; outliers."""
    rng = np.random.default_rng(1)
    centre = rng.normal(size=N)
    y = centre + rng.normal(size=N)
    y[::50] += 8.0
    loc = np.stack([centre + 0.3 * rng.normal(size=N), centre + rng.normal(size=N)])
    scale = np.stack([np.full(N, 0.5), np.full(N, 0.2)])
    normal = jaxmdn.components.Normal(
        loc=jnp.asarray(loc)[..., None, None], scale=jnp.asarray(scale)[..., None, None]
    )
    models = jaxmdn.Mixture(logits=jnp.zeros((2, N, 1)), components=normal)
    return models, loc, scale, y


def log_density(theta, loc, scale, y):
    """The calibrated density by the formula of the docstring, in NumPy."""
    factor, weights = np.exp(theta[:2]), special.softmax(theta[2:4])
    noise, share = np.exp(theta[4] - 4) * y.std(), 0.1 * special.expit(theta[5] - 4)
    wide = np.hypot(factor[:, None] * scale, noise)
    own = weights @ stats.norm.pdf(y, loc, wide)
    return np.log((1 - share) * own + share * stats.norm.pdf(y, y.mean(), 1.5 * y.std()))


def objective(theta, loc, scale, y):
    prior = 0.5 * np.sum((theta / [1, 1, 1, 1, 2, 2]) ** 2)
    return prior / len(y) - log_density(theta, loc, scale, y).mean()


def test_fitted_where_scipy_finds_nothing_better(problem):
    """SciPy's BFGS on an independent formula stays where the fit ended."""
    models, *arrays = problem
    y = arrays[-1]
    fitted = fit_temperature(models, jnp.asarray(y)[:, None])
    found = np.concatenate(
        [
            np.log(fitted.scale),
            np.log(fitted.weights) - np.log(fitted.weights).mean(),
            np.log(fitted.noise / y.std()) + 4,
            [special.logit(float(fitted.outliers) / 0.1) + 4],
        ]
    )
    best = optimize.minimize(objective, found, args=tuple(arrays), method="BFGS", tol=1e-9)
    np.testing.assert_allclose(found, best.x, atol=1e-5)
    raw = np.log(0.5 * stats.norm.pdf(y, *arrays[:2]).sum(axis=0)).mean()
    assert log_density(found, *arrays).mean() > raw + 0.5, "the problem is one of calibration"


@pytest.mark.parametrize(("width", "lowest"), [(1.0, 1.5), (0.05, 15.0), (50.0, 1.0)])
def test_one_factor_is_where_scipy_finds_the_maximum(problem, width, lowest):
    """Over-confident, beyond the largest factor, and too wide already: never below one."""
    models, loc, scale, y = problem
    weights = np.arange(N) % 3.0
    mixture = jaxmdn.Mixture(
        logits=models.logits[0],
        components=jaxmdn.components.Normal(
            loc=models.components.loc[0], scale=width * models.components.scale[0]
        ),
    )

    def objective(log_factor):
        each = stats.norm.logpdf(y, loc[0], np.exp(log_factor) * width * scale[0])
        return 0.5 * log_factor**2 - weights @ each

    best = optimize.minimize_scalar(objective, bounds=(0, 3), method="bounded").x
    found = fit_scale_factor(mixture, jnp.asarray(y)[:, None], weights=jnp.asarray(weights))
    assert found >= lowest
    np.testing.assert_allclose(np.log(found), best, atol=0.01)


def test_float32_finds_the_same(problem):
    """The optimum of float64 to the digits that float32 has in a mean."""
    models, *_, y = problem
    wide = fit_temperature(models, jnp.asarray(y)[:, None])
    narrow = fit_temperature(
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), models),
        jnp.asarray(y, jnp.float32)[:, None],
    )
    np.testing.assert_allclose(narrow.scale, wide.scale, rtol=1e-2)
    np.testing.assert_allclose(narrow.weights, wide.weights, rtol=1e-2)
    np.testing.assert_allclose(narrow.outliers, wide.outliers, rtol=2e-2)


def test_applied_as_the_formula_says(problem):
    models, loc, scale, y = problem
    theta = np.array([0.4, -0.2, 1.0, 0.0, 2.0, 1.0])
    temperature = Temperature(
        scale=jnp.exp(theta[:2]),
        noise=jnp.asarray([np.exp(theta[4] - 4) * y.std()]),
        weights=jnp.asarray(special.softmax(theta[2:4])),
        outliers=jnp.asarray(0.1 * special.expit(theta[5] - 4)),
        loc=jnp.asarray([y.mean()]),
        spread=jnp.asarray([1.5 * y.std()]),
    )
    density = apply_temperature(temperature, models)
    found = jaxmdn.log_prob(density, jnp.asarray(y)[:, None])
    np.testing.assert_allclose(found, log_density(theta, loc, scale, y), rtol=1e-10)
    assert density.num_components == 3
    # A floor above the noise takes its place.
    floored = apply_temperature(temperature, models, floor=3.0)
    wide = np.hypot(np.exp(theta[0]) * 0.5, 3.0)
    np.testing.assert_allclose(floored.components.scale[0, 0, 0], wide, rtol=1e-12)


def test_models_of_different_numbers_of_components_are_passed_beside_each_other(problem):
    """Split in two, with a component twice in the second: the same temperatures and density."""
    models, *_, y = problem
    y = jnp.asarray(y)[:, None]
    first, second = (models.map_parameters(lambda leaf, rank, i=i: leaf[i : i + 1]) for i in (0, 1))
    doubled = second.components.map_parameters(lambda leaf, rank: jnp.repeat(leaf, 2, axis=2))
    groups = (first, jaxmdn.Mixture(logits=jnp.zeros((1, N, 2)), components=doubled))
    together, apart = fit_temperature(models, y), fit_temperature(groups, y)
    for name in ("scale", "noise", "weights", "outliers"):
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-6)
    density = apply_temperature(apart, groups, floor=0.3)
    assert density.num_components == 4
    expected = jaxmdn.log_prob(apply_temperature(together, models, floor=0.3), y)
    np.testing.assert_allclose(jaxmdn.log_prob(density, y), expected, rtol=1e-6)


def test_row_weights_are_repetitions(problem):
    """A row of weight two counts as two rows; a row of weight zero not at all."""
    models, _, _, y = problem
    weights = np.r_[np.full(100, 2.0), np.zeros(N - 100)]
    some = models.map_parameters(lambda leaf, rank: leaf[:, np.r_[0:100, 0:100]])
    twice = fit_temperature(some, jnp.asarray(np.r_[y[:100], y[:100]])[:, None])
    weighted = fit_temperature(models, jnp.asarray(y)[:, None], weights=jnp.asarray(weights))
    for name in ("loc", "spread"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(twice, name), rtol=1e-10)
    np.testing.assert_allclose(weighted.scale, twice.scale, rtol=1e-6)


def test_rows_of_weight_zero_may_hold_anything(problem):
    models, *_, y = problem
    weights = jnp.asarray(np.r_[np.ones(N - 1), 0.0])
    expected = fit_temperature(models, jnp.asarray(y)[:, None], weights=weights)
    for value in (1e300, np.nan):
        spoiled = jnp.asarray(np.r_[y[:-1], value])[:, None]
        found = fit_temperature(models, spoiled, weights=weights)
        for name in ("scale", "noise", "weights", "spread"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_one_factor_without_weights_and_with_rows_that_are_no_numbers():
    """By the formula, one where nothing counts; NaN was taken for a factor of 1.1."""
    narrow = jaxmdn.components.Normal(
        loc=jnp.asarray(np.zeros((1, 1))), scale=jnp.asarray(np.full((1, 1), 0.2))
    )
    density = jaxmdn.Mixture(logits=jnp.asarray(np.zeros(1)), components=narrow)
    y = np.random.default_rng(1).normal(size=(5, 4, 1))
    y[:3, 3, 0] = np.nan, np.inf, 1e200

    def find(*weights):
        weights = jnp.asarray(np.array(weights))
        return np.array([fit_scale_factor(density, jnp.asarray(own), weights=weights) for own in y])

    known = find(1.0, 1.0, 1.0, 0.0)
    assert np.all(known > 1.2)
    np.testing.assert_array_equal(np.isnan(find(1.0, 1.0, 1.0, 1.0)), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(find(0.0, 0.0, 0.0, 0.0), 1)
    assert np.isnan(find(1.0, 1.0, 1.0, -1.0)).all()


def test_the_floor_is_part_of_what_is_fitted():
    """Scales of 0.1 under a floor of 0.29 where the errors are 0.3: hardly any more is needed."""
    rng = np.random.default_rng(0)
    y = 0.3 * rng.normal(size=(2000, 1))
    normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 2000, 1, 1)), scale=jnp.full((1, 1), 0.1))
    models = jaxmdn.Mixture(logits=jnp.zeros((1, 2000, 1)), components=normal)
    fitted = fit_temperature(models, jnp.asarray(y), floor=0.29)
    density = apply_temperature(fitted, models, floor=0.29)
    np.testing.assert_allclose(jnp.sqrt(jaxmdn.variance(density)), 0.3, rtol=0.05)


def test_log_normals_have_no_scale_of_the_target():
    """Their parameters are of the logarithm: the weights alone act."""
    normal = jaxmdn.components.LogNormal(
        loc=jnp.full((1, 50, 1, 1), 5.0), scale=jnp.full((1, 1), 0.3)
    )
    models = jaxmdn.Mixture(logits=jnp.zeros((1, 50, 1)), components=normal)
    y = jnp.exp(5.0 + 0.3 * jnp.asarray(np.random.default_rng(0).normal(size=(50, 1))))
    density = apply_temperature(fit_temperature(models, y), models)
    np.testing.assert_allclose(jaxmdn.mean(density), np.exp(5.0 + 0.045), rtol=1e-10)


def test_without_scales_the_weights_alone_are_fitted():
    """Two Poisson models, one of them right: nearly all the weight is its own."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.poisson(4.0, (400, 1)), jnp.float32)
    rate = jnp.broadcast_to(
        jnp.asarray([4.0, 9.0], jnp.float32)[:, None, None, None], (2, 400, 1, 1)
    )
    models = jaxmdn.Mixture(
        logits=jnp.zeros((2, 400, 1), jnp.float32), components=jaxmdn.components.Poisson(rate=rate)
    )
    fitted = fit_temperature(models, y)
    density = apply_temperature(fitted, models)
    assert density.num_components == 2
    assert float(fitted.weights[0]) > 0.95


def test_stacking_is_the_concave_optimum():
    """Against SLSQP on the simplex, and the bound on what is left to gain."""
    rng = np.random.default_rng(2)
    log_prob = rng.normal(size=(300, 4)) * [1.0, 1.0, 2.0, 0.3] - [0.0, 0.2, 0.5, 3.0]
    weights = rng.uniform(0.0, 2.0, 300)
    share = weights / weights.sum()

    def loss(w):
        return -share @ np.log(np.exp(log_prob) @ w)

    best = optimize.minimize(
        loss,
        np.full(4, 0.25),
        bounds=[(1e-9, 1)] * 4,
        method="SLSQP",
        tol=1e-12,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    found = np.asarray(stacking_weights(jnp.asarray(log_prob), weights=jnp.asarray(weights)))
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-12)
    assert loss(found) <= best.fun + 1e-5
    np.testing.assert_allclose(found, best.x, atol=2e-2)


def test_stacking_leaves_rows_of_weight_zero_out_whatever_they_hold():
    rows = np.array([[0.0, -1.0], [-1.0, 0.0], [-1.0, -0.5]])
    expected = stacking_weights(jnp.asarray(rows))
    left_out = jnp.asarray(np.array([1.0, 1.0, 1.0, 0.0]))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        broken = np.concatenate([rows, np.full((1, 2), bad)])
        found = stacking_weights(jnp.asarray(broken), weights=left_out)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    negative = jnp.asarray(np.array([1.0, 1.0, -1.0]))
    assert np.isnan(stacking_weights(jnp.asarray(rows), weights=negative)).all()


def test_stacking_far_from_every_model():
    """Log-densities of -1e4 and rows that no model reaches leave finite weights."""
    log_prob = jnp.asarray([[-1e4, -1.0001e4], [-jnp.inf, -jnp.inf], [-2.0, -3.0]])
    found = stacking_weights(log_prob)
    np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-4)


def test_errors(problem, user_errors):
    models = problem[0]
    fitted = fit_temperature(models, jnp.asarray(problem[-1])[:, None])
    with pytest.raises(ValueError, match=r"fit_temperature: expected .* \[A, N\]"):
        fit_temperature(models.map_parameters(lambda leaf, rank: leaf[0]), jnp.zeros((N, 1)))
    with pytest.raises(ValueError, match=r"apply_temperature: expected .* \[2, ...\]"):
        apply_temperature(fitted, models.map_parameters(lambda leaf, rank: leaf[:1]))
    with pytest.raises(ValueError, match=r"or several of them, got \['ArrayImpl'\]"):
        apply_temperature(fitted, jnp.zeros((2, 3)))
    counts = jaxmdn.Mixture(
        logits=jnp.zeros((1, N, 1)),
        components=jaxmdn.components.Poisson(rate=jnp.ones((1, N, 1, 1))),
    )
    with pytest.raises(ValueError, match="must have components with a location and a scale"):
        fit_temperature((counts, counts), jnp.ones((N, 1)))
    with pytest.raises(ValueError, match=r"stacking_weights: expected log_prob of shape \[N, A\]"):
        stacking_weights(jnp.zeros(3))


def test_gradients_reach_the_models(problem):
    """A temperature can be applied inside a loss: gradients are finite, also far outside."""
    models, *_, y = problem
    fitted = fit_temperature(models, jnp.asarray(y)[:, None])

    def loss(models):
        return jnp.mean(jaxmdn.log_prob(apply_temperature(fitted, models), jnp.full((N, 1), 1e6)))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss)(models)))
