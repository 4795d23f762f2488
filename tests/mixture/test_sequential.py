"""Each dimension given those before it: against dense covariances, and as uniform numbers."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from head_cases import answers, every_density, rows
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

import jaxmdn
from jaxmdn.components import FullNormal, LowRankNormal
from jaxmdn.mixture import sequential

conditionals = jax.jit(sequential.conditionals)


def dense_conditionals(dense, y):
    """Log-density, cdf and survival of ``y_d | y_<d`` by covariance blocks, one row at a time.

    Complex parameters are served, too.
    """
    value = np.empty((3, *y.shape), np.result_type(y, dense.loc))
    for row in np.ndindex(*y.shape[:-1]):
        part = dense.row(*row)
        log_joint = np.log(part.weights)
        for d in range(y.shape[-1]):
            terms = []
            for m, c in zip(part.loc, part.covariances, strict=True):
                gain = np.linalg.solve(c[:d, :d], c[:d, d])
                deviation = np.sqrt(c[d, d] - gain @ c[:d, d])
                z = (y[row][d] - m[d] - gain @ (y[row][:d] - m[:d])) / deviation
                log_density = -(z**2) / 2 - np.log(deviation) - np.log(2 * np.pi) / 2
                terms.append([log_density, *map(complex_step.ndtr, (z, -z))])
            log_pdf, cdf, survival = np.transpose(terms)
            share = np.exp(log_joint - _logsumexp(log_joint))
            log_density = _logsumexp(log_joint + log_pdf) - _logsumexp(log_joint)
            value[(slice(None), *row, d)] = log_density, share @ cdf, share @ survival
            log_joint = log_joint + log_pdf
    return value


def _logsumexp(x):
    largest = np.max(x.real)
    return largest + np.log(np.sum(np.exp(x - largest)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_against_dense_covariances(covariance, tied):
    rng = np.random.default_rng(11)
    mixture = oracles.random_mixture(rng, covariance, 3, 5, (6,), tied=tied)
    # Within reach, and far out on either side, where 1 - cdf has no digit left.
    y = rng.normal(size=(6, 5)) * np.array([1, 1, 1, 4, 12, 12])[:, None]
    expected = dense_conditionals(oracles.of_mixture(mixture), y)
    found = conditionals(mixture, jnp.asarray(y))
    # The oracle's covariances are inverted: 1e-9 of the deviation, times the slope of far tails.
    for name, a, b in zip(found._fields, found, expected, strict=True):
        near = np.abs(np.log(np.maximum(b, 1e-300))) if name != "log_density" else 1
        np.testing.assert_array_less(np.abs(a - b), 1e-9 * (1 + near) * np.abs(b) + 1e-15)
    np.testing.assert_array_equal(jaxmdn.rosenblatt(mixture, jnp.asarray(y)), found.cdf)


@every_density
def test_the_densities_multiply_to_the_joint(case):
    head, raw, y = rows(case)
    mixture = head(raw)
    found = conditionals(mixture, y)
    whole = answers(mixture, y)
    log_density = np.asarray(found.log_density).sum(-1)
    np.testing.assert_allclose(log_density, whole["log_prob"], rtol=1e-12, atol=1e-12)
    # The first dimension has nothing before it, the last is the mixture's own conditional.
    cdf, y = np.asarray(found.cdf), np.asarray(y)
    np.testing.assert_allclose(cdf[:, 0], np.asarray(whole["cdf"])[:, 0], rtol=1e-10)
    last = jaxmdn.condition(mixture, (0,), jnp.asarray(y[:, :1]))
    np.testing.assert_allclose(cdf[:, 1:], jaxmdn.cdf(last, jnp.asarray(y[:, 1:])), rtol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.1, 1.0, 10.0]))
def test_joint_and_tails_on_random_mixtures(seed, size):
    rng = np.random.default_rng(seed)
    whitening = np.tril(rng.normal(size=(20, 3, 3, 3)), -1) + np.exp(rng.normal(size=(20, 3, 3)))[
        ..., None
    ] * np.eye(3)
    mixture = jaxmdn.Mixture(
        logits=jnp.asarray(size * rng.normal(size=(20, 3))),
        components=FullNormal(
            loc=jnp.asarray(size * rng.normal(size=(20, 3, 3))),
            whitening_tril=jnp.asarray(whitening),
        ),
    )
    y = jnp.asarray(size * rng.normal(size=(20, 3)))
    found = conditionals(mixture, y)
    # By the factor itself: a covariance would have to be inverted, and is ill-conditioned at times.
    z = np.einsum("nkde,nke->nkd", whitening, np.asarray(y)[:, None] - mixture.components.loc)
    volume = np.sum(np.log(np.diagonal(whitening, axis1=-2, axis2=-1)), axis=-1)
    each = np.sum(stats.norm.logpdf(z), axis=-1) + volume
    joint = special.logsumexp(each + special.log_softmax(mixture.logits, axis=-1), axis=-1)
    np.testing.assert_allclose(jnp.sum(found.log_density, -1), joint, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.cdf + found.survival, 1, rtol=1e-14)
    assert bool(jnp.all((found.cdf >= 0) & (found.cdf <= 1)))


@every_density
def test_samples_become_independent_uniform_numbers(case):
    head, raw, _ = rows(case)
    mixture = head(raw[:2])
    draws = jaxmdn.sample(jax.random.key(2), mixture, (4000,))
    u = np.asarray(jaxmdn.rosenblatt(mixture, draws))
    assert u.shape == (4000, 2, 2)
    for row in (0, 1):
        first, second = u[:, row].T
        # Dependence would show in the sum and the difference, wrapped around.
        for numbers in (first, second, (first + second) % 1, (first - second) % 1):
            assert stats.kstest(numbers, "uniform").pvalue > 1e-4


def test_dependence_that_the_marginals_do_not_see():
    covariance = jnp.array([[[1.0, 0.8], [0.8, 1.0]]])
    normal = FullNormal.from_covariance(jnp.zeros((1, 2)), covariance)
    mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    draws = jaxmdn.sample(jax.random.key(2), mixture, (4000,))
    for transform, independent in ((jaxmdn.pit, False), (jaxmdn.rosenblatt, True)):
        first, second = np.asarray(transform(mixture, draws)).T
        assert (stats.kstest((first - second) % 1, "uniform").pvalue > 1e-4) == independent


def test_one_dimension_is_the_pit():
    mixture = oracles.random_mixture(np.random.default_rng(0), "full", 3, 1, (7,))
    y = jnp.asarray(np.random.default_rng(1).normal(size=(7, 1)))
    np.testing.assert_allclose(jaxmdn.rosenblatt(mixture, y), jaxmdn.pit(mixture, y), rtol=1e-13)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_low_rank_as_full(size):
    # Two nearly parallel loadings of size 1e4: the Cholesky factor of the covariance, or of
    # I + A^T A, is NaN in float32.
    rng = np.random.default_rng(8)
    first = rng.normal(size=(3, 6, 1))
    factor = size * np.concatenate([first, first + 1e-3 * rng.normal(size=(3, 6, 1))], axis=-1)
    low = LowRankNormal(
        loc=jnp.zeros((3, 6), jnp.float32),
        factor=jnp.asarray(factor, jnp.float32),
        scale=jnp.asarray(np.exp(rng.normal(size=(1, 6))), jnp.float32),
    )
    found = np.asarray(jax.jit(LowRankNormal.to_full)(low).whitening_tril, np.float64)
    factor, scale = np.asarray(low.factor, np.float64), np.asarray(low.scale, np.float64)
    for k in range(3):
        covariance = oracles.mp.matrix(factor[k]) * oracles.mp.matrix(factor[k]).T
        covariance += oracles.mp.diag([oracles.mp.mpf(s) ** 2 for s in scale[0]])
        exact = np.array((oracles.mp.cholesky(covariance) ** -1).tolist(), np.float64)
        # Rounding of a loading, in units of the independent part: 1e-7 times 1e4.
        error = np.abs(found[k] - exact) / np.linalg.norm(exact, axis=-1, keepdims=True)
        assert np.max(error) < (2e-6 if size == 1.0 else 2e-3)
        np.testing.assert_array_equal(found[k], np.tril(found[k]))


def test_gradients():
    rng = np.random.default_rng(3)
    low = oracles.random_mixture(rng, "low_rank", 2, 3)
    point = low, jnp.asarray(rng.normal(size=3))
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)
    share = rng.normal(size=(3, 3))  # of each number in one sum of all

    def total(mixture, y):
        return jnp.vdot(jnp.asarray(share), jnp.stack(sequential.conditionals(mixture, y)))

    @jax.jit
    def slopes(point):
        return jax.jvp(total, point, direction)[1], jax.grad(total, (0, 1))(*point)

    forward, reverse = slopes(point)
    pairs = zip(jax.tree.leaves(reverse), jax.tree.leaves(direction), strict=True)
    leaves, tree = jax.tree.flatten(point)

    def dense_total(*leaves):
        mixture, y = jax.tree.unflatten(tree, leaves)
        return np.sum(share * dense_conditionals(oracles.of_mixture(mixture), y))

    exact = complex_step.derivative(dense_total, leaves, jax.tree.leaves(direction))
    np.testing.assert_allclose(forward, exact, rtol=1e-9)
    np.testing.assert_allclose(sum(np.vdot(a, b) for a, b in pairs), exact, rtol=1e-9)


def test_edges():
    normal = jaxmdn.components.Normal(
        loc=jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.float32), scale=jnp.ones((2, 2), jnp.float32)
    )
    mixture = jaxmdn.Mixture(logits=jnp.array([0.0, -jnp.inf], jnp.float32), components=normal)
    y = jnp.array([[0.5, -1.0], [jnp.nan, 0.0], [0.0, jnp.nan], [1e30, 0.0], [9.0, jnp.inf]])
    found = conditionals(mixture, y.astype(jnp.float32))
    exact = stats.norm.cdf([0.5, -1.0])  # the dead component has no say
    np.testing.assert_allclose(found.cdf[0], exact, rtol=1e-6)
    assert np.isnan(found.cdf[1]).all()
    np.testing.assert_array_equal(np.isnan(found.cdf[2]), [False, True])
    # Behind a value that no component reaches there is nothing to condition on.
    np.testing.assert_array_equal(np.isnan(found.cdf[3]), [False, True])
    np.testing.assert_array_equal(found.log_density[3], [-np.inf, -np.inf])
    np.testing.assert_allclose(found.survival[4], [stats.norm.sf(9.0), 0.0], rtol=1e-5)
    np.testing.assert_array_equal(found.cdf[4], [1.0, 1.0])


def test_broadcasting_vmap_and_half_precision():
    mixture = oracles.random_mixture(np.random.default_rng(5), "full", 2, 3, (4,))
    mixture = jax.tree.map(lambda a: jnp.asarray(np.broadcast_to(a, (4, *a.shape[1:]))), mixture)
    y = jnp.asarray(np.random.default_rng(6).normal(size=(5, 1, 3)))
    found = jaxmdn.rosenblatt(mixture, y)
    assert found.shape == (5, 4, 3)
    each = jax.vmap(jax.vmap(jaxmdn.rosenblatt, (0, None)), (None, 0))
    each = jax.jit(each)(mixture, jnp.asarray(np.asarray(y)[:, 0]))
    np.testing.assert_allclose(each, found, rtol=1e-12)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), mixture)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    y = y.astype(jnp.bfloat16)
    found = jaxmdn.rosenblatt(half, y)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jaxmdn.rosenblatt(wide, y.astype(jnp.float32)))


def test_the_log_density_of_each_marginal():
    mixture = oracles.random_mixture(np.random.default_rng(7), "low_rank", 2, 2, (3,))
    y = jnp.asarray(np.random.default_rng(8).normal(size=(3, 2)))

    @jax.jit
    def both(mixture, y):
        single = [jaxmdn.log_prob(jaxmdn.marginal(mixture, (d,)), y[:, [d]]) for d in (0, 1)]
        return mixture.marginal_log_prob(y), jnp.stack(single, -1)

    found, single = both(mixture, y)
    np.testing.assert_allclose(found, single, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((jnp.zeros(3), jnp.zeros(3)), TypeError, "rosenblatt: expected a density"),
        (
            (jaxmdn.CategoricalHead(3)(jnp.zeros(3)), jnp.zeros(1)),
            ValueError,
            "rosenblatt: a discrete density needs a key",
        ),
        (
            (oracles.random_mixture(np.random.default_rng(0), "full", 2, 3), jnp.zeros(2)),
            ValueError,
            r"rosenblatt: expected y of shape \[\.\.\., 3\]",
        ),
    ],
)
def test_errors(user_errors, arguments, kind, message):
    with pytest.raises(kind, match=message):
        jaxmdn.rosenblatt(*arguments)
