"""Proper scores against quadrature, SciPy's cdf, sampling and closed forms."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import integrate, stats

import jaxmdn
from jaxmdn.components import Normal

K, D, N = 3, 2, 5
RNG = np.random.default_rng(0)
Y = jnp.asarray(2.0 * RNG.normal(size=(N, D)))
HEADS = {name: jaxmdn.NormalHead(K, D, covariance=name) for name in oracles.COVARIANCES}
MIXTURES = {name: head(oracles.random_raw(RNG, head, (N,))) for name, head in HEADS.items()}
LABELLED = jaxmdn.ClassConditionalHead(2, HEADS["diagonal"])
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros((N, 3)))
NESTED = LABELLED(oracles.random_raw(RNG, LABELLED, (N,)))


def mixture_of(weights, loc, scale):
    """A univariate mixture from three lists."""
    weights, loc, scale = (jnp.asarray(part, jnp.float64) for part in (weights, loc, scale))
    return jaxmdn.Mixture(
        logits=jnp.log(weights), components=Normal(loc=loc[:, None], scale=scale[:, None])
    )


def crps_integral(weights, loc, scale, y):
    """``integral (F(t) - 1[t >= y])^2 dt``: the definition, cut where nothing is left."""

    def squared(t, step):
        return (np.sum(weights * stats.norm.cdf(t, loc, scale)) - step) ** 2

    low, high = min(y, np.min(loc - 12.0 * scale)), max(y, np.max(loc + 12.0 * scale))
    below, _ = integrate.quad(squared, low, y, args=(0.0,), limit=200, epsabs=1e-11)
    above, _ = integrate.quad(squared, y, high, args=(1.0,), limit=200, epsabs=1e-11)
    return below + above


@pytest.mark.parametrize("name", [*HEADS, "nested"])
def test_crps_is_the_integral_of_the_squared_cdf_difference(name):
    mixture = MIXTURES.get(name, NESTED)
    dense = oracles.of_mixture(mixture)
    scale = np.sqrt(np.diagonal(dense.covariances, axis1=-2, axis2=-1))
    expected = [
        [
            crps_integral(dense.weights[n], dense.loc[n, :, d], scale[n, :, d], Y[n, d])
            for d in (0, 1)
        ]
        for n in range(N)
    ]
    np.testing.assert_allclose(jaxmdn.crps(mixture, Y), expected, rtol=1e-8)


def test_crps_against_sampling():
    """``E|Y - y| - E|Y - Y'| / 2`` from NumPy's own draws."""
    weights, loc, scale = np.array([[0.2, 0.5, 0.3], [-2.0, 0.0, 3.0], [1.0, 0.3, 2.0]])
    index = RNG.choice(3, size=200_000, p=weights)
    draws = RNG.normal(loc[index], scale[index])
    first, second = draws[:100_000], draws[100_000:]
    terms = np.abs(first - 0.7) - 0.5 * np.abs(first - second)
    ours = jaxmdn.crps(mixture_of(weights, loc, scale), jnp.asarray([0.7]))[0]
    assert abs(ours - terms.mean()) < 4.0 * terms.std() / np.sqrt(len(terms))


def test_crps_of_one_normal_is_the_closed_form():
    """Gneiting and Raftery (2007), eq. 21."""
    y, loc, scale = np.linspace(-30.0, 40.0, 15), 1.5, 0.7
    z = (y - loc) / scale
    expected = scale * (
        z * (2.0 * stats.norm.cdf(z) - 1.0) + 2.0 * stats.norm.pdf(z) - 1.0 / np.sqrt(np.pi)
    )
    ours = jaxmdn.crps(mixture_of([1.0], [loc], [scale]), jnp.asarray(y[:, None]))
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-12)


def test_crps_of_a_point_forecast_is_the_absolute_error():
    y = jnp.asarray([[-3.0], [2.0], [2.5]])
    ours = jaxmdn.crps(mixture_of([1.0], [2.0], [1e-12]), y)
    np.testing.assert_allclose(ours[:, 0], [5.0, 0.0, 0.5], atol=1e-11)


def test_crps_has_the_unit_of_the_target_and_ignores_dead_components():
    mixture, y = mixture_of([0.3, 0.7], [-1.0, 2.0], [0.5, 1.0]), jnp.asarray([[0.3], [9.0]])
    score = jaxmdn.crps(mixture, y)
    scaled = mixture_of([0.3, 0.7], [-1e3, 2e3], [500.0, 1e3])
    np.testing.assert_allclose(jaxmdn.crps(scaled, 1e3 * y), 1e3 * score, rtol=1e-12)
    dead = mixture_of([0.3, 0.7, 0.0], [-1.0, 2.0, 50.0], [0.5, 1.0, 3.0])
    np.testing.assert_allclose(jaxmdn.crps(dead, y), score, rtol=1e-12)


def exact_crps(logits, loc, scale, y):
    """The closed form of a mixture of normals, analytic in every argument."""

    def mean_distance(gap, width):
        z = gap / width
        return gap * (2 * complex_step.ndtr(z) - 1) + 2 * width * np.exp(-z * z / 2) / np.sqrt(
            2 * np.pi
        )

    weights = np.exp(logits) / np.sum(np.exp(logits))
    width = np.sqrt(scale[:, None] ** 2 + scale**2)
    own = weights @ mean_distance(loc[:, None] - loc, width) @ weights
    return weights @ mean_distance(y - loc, scale) - own / 2


def test_gradient_of_the_crps():
    rng = np.random.default_rng(1)
    point = rng.normal(size=3), rng.normal(size=3), np.exp(rng.normal(size=3)), np.array(0.7)

    def score(logits, loc, scale, y):
        components = Normal(loc=loc[:, None], scale=scale[:, None])
        return jaxmdn.crps(jaxmdn.Mixture(logits=logits, components=components), y[None])[0]

    arguments = map(jnp.asarray, point)
    value, slopes = jax.jit(jax.value_and_grad(score, argnums=(0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(value, exact_crps(*point), rtol=1e-13)
    for slope, exact in zip(slopes, complex_step.gradient(exact_crps, point), strict=True):
        np.testing.assert_allclose(slope, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [*HEADS, "nested"])
def test_cdf_against_scipy(name):
    mixture = MIXTURES.get(name, NESTED)
    expected = oracles.of_mixture(mixture).cdf(Y)
    np.testing.assert_allclose(jaxmdn.cdf(mixture, Y), expected, rtol=1e-12)
    ends = jnp.asarray([[-jnp.inf, jnp.inf]])
    expected = np.tile([0.0, 1.0], (N, 1))  # up to the rounding of the weights' sum
    np.testing.assert_allclose(jaxmdn.cdf(mixture, ends), expected, rtol=1e-15)


def test_cdf_far_in_the_tail():
    mixture = mixture_of([0.9, 0.1], [0.0, 1.0], [1.0, 2.0])
    y = np.array([-60.0, -38.0, -20.0, -9.0])
    expected = 0.9 * stats.norm.cdf(y) + 0.1 * stats.norm.cdf(y, 1.0, 2.0)
    np.testing.assert_allclose(jaxmdn.cdf(mixture, y[:, None])[:, 0], expected, rtol=1e-9)
    slope = jax.vmap(jax.grad(lambda t: jaxmdn.cdf(mixture, t[None])[0]))(jnp.asarray(y))
    density = 0.9 * stats.norm.pdf(y) + 0.1 * stats.norm.pdf(y, 1.0, 2.0)
    np.testing.assert_allclose(slope, density, rtol=1e-9)


def test_log_score_is_minus_the_log_density():
    expected = -oracles.of_mixture(MIXTURES["full"]).log_prob(Y)
    np.testing.assert_allclose(jaxmdn.log_score(MIXTURES["full"], Y), expected, rtol=1e-12)
    labels = jnp.zeros((N, 1), int)
    np.testing.assert_allclose(jaxmdn.log_score(CATEGORICAL, labels), np.log(3.0), rtol=1e-6)


FULL, LABELS = MIXTURES["full"], jnp.zeros((N, 1), int)
ERRORS = [
    (jaxmdn.crps, (FULL, Y[:, :1]), ValueError, r"crps: expected y of shape \[\.\.\., 2\]"),
    (jaxmdn.crps, (CATEGORICAL, LABELS), TypeError, "crps: expected a Mixture, got Categorical"),
    (jaxmdn.cdf, (CATEGORICAL, LABELS), TypeError, "cdf: not defined for Categorical"),
    (jaxmdn.cdf, (FULL, Y.astype(int)), TypeError, "cdf: y must have a real floating dtype"),
    (jaxmdn.log_score, (FULL, Y[:4]), ValueError, r"log_score: leading \(batch\) axes must"),
]


@pytest.mark.parametrize(("function", "arguments", "kind", "message"), ERRORS)
def test_errors(user_errors, function, arguments, kind, message):
    with pytest.raises(kind, match=message):
        function(*arguments)


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full", "low_rank"])
def test_component_quantiles_are_the_marginals_quantiles(covariance):
    rng = np.random.default_rng(5)
    head = jaxmdn.NormalHead(3, 2, covariance=covariance)
    components = head(jnp.asarray(rng.normal(size=(4, head.num_outputs)))).components
    p = np.array([0.0, 1e-6, 0.3, 1 - 1e-6])[:, None, None] * np.ones((4, 3, 2))
    deviation = np.sqrt(np.diagonal(components.covariance(), axis1=-2, axis2=-1))
    expected = stats.norm.ppf(p, components.loc, deviation)
    np.testing.assert_allclose(components.quantile(jnp.asarray(p)), expected, rtol=1e-9)
    inside = p[1:, :, :]
    values = components.take(jnp.arange(4) % 3).quantile(jnp.asarray(inside[:, 0, :])[:, None, :])
    assert values.shape == (3, 4, 2)
    assert np.isnan(components.quantile(jnp.full((4, 3, 2), 1.5))).all()
