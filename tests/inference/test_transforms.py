"""Marginals and conditionals: against dense covariances, and against each other."""

import itertools

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import every_density, rows
from scipy import special, stats

import jaxmdn
from jaxmdn import numerics

SUBSETS = [
    dims
    for size in range(1, 5)
    for subset in itertools.combinations(range(5), size)
    for dims in (subset, subset[::-1])
    if size > 1 or dims is subset
]


def dense(mixture):
    """Weights, means and covariances of every component, by NumPy in float64."""
    found = oracles.of_mixture(mixture)
    return found.weights, found.loc, found.covariances


def dense_condition(mixture, dims, values):
    """Textbook conditioning through the covariances' blocks (Bishop 2006, eq. 2.81-2.82)."""
    weights, loc, covariances = dense(mixture)
    rest = [d for d in range(loc.shape[-1]) if d not in dims]
    dims = list(dims)
    log_weights, means, spreads = [], [], []
    for w, m, c in zip(weights, loc, covariances, strict=True):
        gain = c[np.ix_(rest, dims)] @ np.linalg.inv(c[np.ix_(dims, dims)])
        means.append(m[rest] + gain @ (values - m[dims]))
        spreads.append(c[np.ix_(rest, rest)] - gain @ c[np.ix_(dims, rest)])
        given = stats.multivariate_normal(m[dims], c[np.ix_(dims, dims)])
        log_weights.append(np.log(w) + given.logpdf(values))
    return special.softmax(log_weights), np.array(means), np.array(spreads)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_every_subset_and_order_against_dense_covariances(covariance):
    rng = np.random.default_rng(5)
    mixture = oracles.random_mixture(rng, covariance, 3, 5)
    weights, loc, covariances = dense(mixture)
    for i, dims in enumerate(SUBSETS):
        order = list(dims)
        values = rng.normal(size=len(dims))
        with jax.disable_jit(i % 7 > 0):  # compiling every subset takes minutes
            marginal = jaxmdn.marginal(mixture, dims)
            conditional = jaxmdn.condition(mixture, dims, jnp.asarray(values))
        expected = (weights, loc[:, order], covariances[:, order][:, :, order])
        for a, b in zip(dense(marginal), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
        expected = dense_condition(mixture, dims, values)
        for a, b in zip(dense(conditional), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@every_density
def test_marginal_times_conditional_is_the_joint(case):
    head, raw, y = rows(case)
    mixture = head(raw)
    for dims in ((0,), (1,)):
        rest = tuple(d for d in range(2) if d not in dims)
        conditional = jaxmdn.condition(mixture, dims, y[:, dims])
        assert conditional.batch_shape == mixture.batch_shape
        total = jaxmdn.log_prob(jaxmdn.marginal(mixture, dims), y[:, dims])
        total = total + jaxmdn.log_prob(conditional, y[:, rest])
        np.testing.assert_allclose(total, jaxmdn.log_prob(mixture, y), rtol=1e-9, atol=1e-9)


@every_density
def test_marginals_of_one_dimension_have_its_cdf(case):
    head, raw, y = rows(case)
    mixture = head(raw)
    for d in range(2):
        single = jaxmdn.cdf(jaxmdn.marginal(mixture, (d,)), y[:, [d]])
        np.testing.assert_allclose(single[:, 0], jaxmdn.cdf(mixture, y)[:, d], atol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_gradients_of_conditioning(covariance):
    mixture = oracles.random_mixture(np.random.default_rng(3), covariance, 2, 3)

    def value(mixture, y):
        return jaxmdn.log_prob(jaxmdn.condition(mixture, (2,), y[2:]), y[:2])

    def exact(mixture, y):  # the joint density by the marginal
        joint = oracles.of_mixture(mixture)
        given = oracles.Dense(joint.weights, joint.loc[:, 2:], joint.covariances[:, 2:, 2:])
        return complex_step.log_density(joint, y) - complex_step.log_density(given, y[2:])

    complex_step.check(value, exact, mixture, jnp.array([-0.4, 0.1, 0.3]))


def test_conditioning_broadcasts_jits_and_vmaps():
    rng = np.random.default_rng(9)
    head = jaxmdn.NormalHead(2, 3, covariance="full")
    mixture = head(jnp.asarray(rng.normal(size=(4, head.num_outputs))))
    values = jnp.asarray(rng.normal(size=(6, 1, 2)))  # six values against each of four rows
    found = jaxmdn.condition(mixture, (2, 0), values)
    assert found.batch_shape == (6, 4)
    y = jnp.asarray(rng.normal(size=(6, 4, 1)))
    expected = jaxmdn.log_prob(found, y)

    def one(mixture, values, y):
        return jaxmdn.log_prob(jaxmdn.condition(mixture, (2, 0), values), y)

    each = jax.vmap(jax.vmap(one), in_axes=(None, 0, 0))
    looped = each(mixture, jnp.broadcast_to(values, (6, 4, 2)), y)
    np.testing.assert_allclose(looped, expected, rtol=1e-12)
    jitted = jax.jit(lambda m, v: jaxmdn.condition(m, (2, 0), v))(mixture, values)
    np.testing.assert_allclose(jaxmdn.log_prob(jitted, y), expected, rtol=1e-12)


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
def test_float32_and_strong_correlation(covariance):
    # Correlation 0.9999: forming the covariance in float32 would leave 1e-3 of the conditional.
    rng = np.random.default_rng(1)
    if covariance == "full":
        factor = np.tril(rng.normal(size=(1, 4, 4))) + 3 * np.eye(4)
        factor[..., 3, :3] = 300 * rng.normal(size=3)
        components = jaxmdn.components.FullNormal(
            loc=jnp.zeros((1, 4), jnp.float32), whitening_tril=jnp.asarray(factor, jnp.float32)
        )
    else:
        components = jaxmdn.components.LowRankNormal(
            loc=jnp.zeros((1, 4), jnp.float32),
            factor=jnp.asarray(100 * rng.normal(size=(1, 4, 1)), jnp.float32),
            scale=jnp.ones((1, 4), jnp.float32),
        )
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1, jnp.float32), components=components)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), mixture)
    values = np.array([0.5, -0.2], np.float32)
    found = jaxmdn.condition(mixture, (0, 2), jnp.asarray(values))
    _, means, spreads = dense_condition(exact, (0, 2), values.astype(np.float64))
    np.testing.assert_allclose(jaxmdn.variance(found), np.diagonal(spreads[0]), rtol=2e-4)
    deviation = np.sqrt(np.diagonal(spreads[0]))
    mean = np.asarray(jaxmdn.mean(found), np.float64)
    assert np.all(np.abs(mean - means[0]) < 2e-3 * deviation + 2e-4 * abs(means[0]))


def test_lower_factor_keeps_the_quadratic_form():
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(7, 4, 4))
    factor = np.asarray(numerics.lower_factor(jnp.asarray(matrix)))
    np.testing.assert_array_equal(factor, np.tril(factor))
    assert np.all(np.diagonal(factor, axis1=-2, axis2=-1) > 0)
    squares = [np.swapaxes(m, -1, -2) @ m for m in (factor, matrix)]
    np.testing.assert_allclose(*squares, rtol=1e-9, atol=1e-10)


MIXTURE = oracles.random_mixture(np.random.default_rng(4), "full", 2, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "message"),
    [
        ("marginal", (MIXTURE, ()), ValueError, r"dims must be distinct indices in 0 \.\. 2"),
        ("marginal", (MIXTURE, (0, 0)), ValueError, r"got \[0, 0\]"),
        ("marginal", (MIXTURE, (3,)), ValueError, r"got \[3\]"),
        ("marginal", (MIXTURE, (-1,)), ValueError, r"got \[-1\]"),
        ("marginal", (MIXTURE, 1), TypeError, "dims must be a sequence of Python ints"),
        ("marginal", (jnp.zeros(3), (0,)), TypeError, "marginal: expected a density"),
        (
            "marginal",
            (jaxmdn.CategoricalHead(3)(jnp.zeros(3)), (0,)),
            TypeError,
            "marginal: not defined for Categorical",
        ),
        ("condition", (MIXTURE, (0, 1, 2), jnp.zeros(3)), ValueError, "are all dimensions"),
        ("condition", (MIXTURE, (0,), jnp.zeros(2)), ValueError, r"values of shape \[\.\.\., 1\]"),
        ("condition", (MIXTURE, (0,), jnp.zeros(1, int)), TypeError, "values must have a real"),
    ],
)
def test_errors(user_errors, function, arguments, kind, message):
    with pytest.raises(kind, match=message):
        getattr(jaxmdn, function)(*arguments)
