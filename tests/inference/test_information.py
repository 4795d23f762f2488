"""Entropy, divergence and counts of components: against quadrature and closed forms."""

import functools

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from test_regions import log_density, univariate

import jaxmdn
from jaxmdn.components import FullNormal, Normal


def random_rows(rng, rows, K):
    scale = np.exp(rng.choice([0.1, 1.0]) * rng.normal(size=(rows, K)))
    loc = rng.choice([0.3, 2.0, 10.0]) * rng.normal(size=(rows, K))
    return rng.choice([0.3, 3.0]) * rng.normal(size=(rows, K)), loc, scale


def expectation(p, function, points=4001):
    """``E[function(Y)]`` for ``Y`` from a univariate mixture: the trapezium rule, per component."""
    weights, loc, scale = p
    z = np.linspace(-10, 10, points)
    # The integrand is smooth on the component's own scale, but what it holds may be narrower.
    mass = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    values = function(loc[:, None] + scale[:, None] * z)
    return np.sum(weights * np.sum(mass * values, axis=-1))


def entropy(p):
    return -expectation(p, lambda y: log_density(*p, y))


def divergence(p, q):
    return expectation(p, lambda y: log_density(*p, y) - log_density(*q, y))


def rows_of(logits, loc, scale):
    return list(zip(special.softmax(logits, axis=-1), loc, scale, strict=True))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_entropy_lies_between_its_bounds(seed):
    rows = random_rows(np.random.default_rng(seed), 20, 4)
    lower, upper = (np.asarray(bound) for bound in jaxmdn.entropy_bounds(univariate(*rows)))
    exact = np.array([entropy(row) for row in rows_of(*rows)])
    assert np.all(lower <= exact + 1e-9)
    assert np.all(exact <= upper + 1e-9)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_entropy_bounds_in_the_plane(covariance):
    mixture = oracles.random_mixture(np.random.default_rng(1), covariance, 3, 2, (6,))
    dense = oracles.of_mixture(mixture)
    bounds = jaxmdn.entropy_bounds(mixture)
    lead = (6, 3)
    weights = np.broadcast_to(dense.weights, lead)
    loc = np.broadcast_to(dense.loc, (*lead, 2))
    covariances = np.broadcast_to(dense.covariances, (*lead, 2, 2))
    z = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(-0.5 * np.sum(grid**2, -1)) / (2 * np.pi) * (z[1] - z[0]) ** 2
    for row in range(6):
        total = 0.0
        for k in range(3):
            y = loc[row, k] + grid @ np.linalg.cholesky(covariances[row, k]).T
            terms = []
            for j in range(3):
                whitened = np.linalg.solve(
                    np.linalg.cholesky(covariances[row, j]), (y - loc[row, j]).T
                )
                log_det = np.linalg.slogdet(2 * np.pi * covariances[row, j])[1]
                terms.append(
                    np.log(weights[row, j]) - 0.5 * np.sum(whitened**2, axis=0) - 0.5 * log_det
                )
            total -= weights[row, k] * np.sum(mass * special.logsumexp(terms, axis=0))
        assert bounds.lower[row] <= total + 1e-6
        assert bounds.upper[row] >= total - 1e-6
        assert bounds.upper[row] - bounds.lower[row] < 1.2  # they say something


def pairwise_bounds(dense):
    """The formulas of Kolchinsky and Tracey, and of Huber et al., through dense covariances."""
    weights, loc, covariances = dense.weights, dense.loc, dense.covariances
    K, D = loc.shape
    log_det = np.log(np.linalg.det(covariances))
    entropies = 0.5 * (D * (1 + np.log(2 * np.pi)) + log_det)
    near, overlap = np.zeros((2, K, K), loc.dtype)
    for i, j in np.ndindex(K, K):
        gap, total = loc[i] - loc[j], covariances[i] + covariances[j]
        middle = np.log(np.linalg.det(total / 2))
        near[i, j] = gap @ np.linalg.solve(total / 2, gap) / 8
        near[i, j] += 0.5 * middle - 0.25 * (log_det[i] + log_det[j])
        overlap[i, j] = -0.5 * (
            gap @ np.linalg.solve(total, gap) + np.log(np.linalg.det(2 * np.pi * total))
        )
    pairs = [
        weights @ (entropies - np.log(np.exp(-distance) @ weights))
        for distance in (near, divergences(dense, dense))
    ]
    product = -weights @ np.log(np.exp(overlap) @ weights)
    single = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * dense.covariance()))
    # By the real part: an imaginary step moves neither.
    real = np.real
    return max(pairs[0], product, key=real), min(pairs[1], single, key=real)


def divergences(p, q):
    """``KL`` from every component of one mixture to every one of another, ``[K, L]``."""
    result = np.zeros((len(p.loc), len(q.loc)), p.loc.dtype)
    for i, j in np.ndindex(result.shape):
        gap, inverse = p.loc[i] - q.loc[j], np.linalg.inv(q.covariances[j])
        ratio = inverse @ p.covariances[i]
        distance = np.trace(ratio) + gap @ inverse @ gap - len(gap)
        log_dets = (np.log(np.linalg.det(c)) for c in (p.covariances[i], q.covariances[j]))
        result[i, j] = 0.5 * (distance - np.subtract(*log_dets))
    return result


def variational_bound(p, q, num_iterations):
    """Hershey and Olsen's bound, by their two updates of the weights' joint distribution."""
    kernel = np.exp(-divergences(p, q))
    psi = p.weights[:, None] * q.weights
    for _ in range(num_iterations):
        phi = p.weights[:, None] * psi * kernel / (psi * kernel).sum(1, keepdims=True)
        psi = q.weights * phi / phi.sum(0)
    phi = p.weights[:, None] * psi * kernel / (psi * kernel).sum(1, keepdims=True)
    bound = np.sum(phi * (np.log(phi / psi) - np.log(kernel)))
    matched = np.sum(p.weights * (np.log(p.weights / q.weights) - np.log(np.diagonal(kernel))))
    return min(bound, matched, key=np.real)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_entropy_bounds_are_their_formulas(covariance):
    mixture = oracles.random_mixture(np.random.default_rng(2), covariance, 3, 4, (8,))
    bounds = jax.vmap(jaxmdn.entropy_bounds)(
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (8, *leaf.shape[1:])), mixture)
    )
    dense = oracles.of_mixture(mixture)
    dense = oracles.Dense(
        np.broadcast_to(dense.weights, (8, 3)),
        np.broadcast_to(dense.loc, (8, 3, 4)),
        np.broadcast_to(dense.covariances, (8, 3, 4, 4)),
    )
    expected = np.array([pairwise_bounds(dense.row(i)) for i in range(8)])
    np.testing.assert_allclose(np.stack(bounds, axis=-1), expected, rtol=1e-9, atol=1e-9)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mixture)
    rough = jaxmdn.entropy_bounds(single)
    assert rough.lower.dtype == jnp.float32
    np.testing.assert_allclose(np.stack(rough, axis=-1), expected, rtol=2e-5, atol=2e-5)


def test_entropy_bounds_of_almost_flat_components_in_float32():
    """A sum of covariances has the square of their condition: at 1e4 its factor was NaN."""
    rng, rows = np.random.default_rng(5), 10
    turned = np.linalg.qr(rng.normal(size=(rows, 2, 3, 3)))[0]
    thin = np.repeat(10.0 ** -np.arange(5), 2)[:, None, None, None] * turned[..., 2:] / 3
    roots = np.concatenate([turned[..., :2], thin], axis=-1)
    roots[::2, 1] = roots[::2, 0]  # every other row has two equal ones
    factor = np.linalg.inv(np.linalg.cholesky(roots @ np.swapaxes(roots, -1, -2)))
    loc = rng.normal(size=(rows, 1, 3)) * np.ones((1, 2, 1))
    arrays = [np.asarray(part, np.float32) for part in (np.zeros((rows, 2)), loc, factor)]

    def mixture(dtype):
        logits, loc, factor = (jnp.asarray(part.astype(dtype)) for part in arrays)
        normal = jaxmdn.components.FullNormal(loc=loc, whitening_tril=factor)
        return jaxmdn.Mixture(logits=logits, components=normal)

    found = jaxmdn.entropy_bounds(mixture(np.float32))
    dense = oracles.of_mixture(mixture(np.float64))
    expected = np.array([pairwise_bounds(dense.row(i)) for i in range(rows)])
    np.testing.assert_allclose(np.stack(found, axis=-1), expected, rtol=1e-3, atol=1e-3)
    tight = -np.log(np.abs(np.linalg.det(arrays[-1].astype(float))))
    tight = tight[::2, 0] + 1.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(np.stack(found, axis=-1)[::2], tight[:, None] * [1, 1], rtol=1e-3)


def test_entropy_bounds_are_tight_where_they_should_be():
    one = jaxmdn.entropy_bounds(univariate([0.0], [3.0], [0.2]))
    exact = 0.5 * np.log(2 * np.pi * np.e * 0.04)
    np.testing.assert_allclose([one.lower, one.upper], exact, rtol=1e-12)
    # Far apart: the entropy of the weights adds to the components' mean entropy.
    weights, scale = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.1, 2.0])
    apart = jaxmdn.entropy_bounds(univariate(np.log(weights), [-1e3, 0.0, 1e3], scale))
    each = 0.5 * np.log(2 * np.pi * np.e * scale**2)
    exact = np.sum(weights * (each - np.log(weights)))
    np.testing.assert_allclose([apart.lower, apart.upper], exact, rtol=1e-12)
    same = jaxmdn.entropy_bounds(univariate(np.log(weights), np.ones(3), np.full(3, 0.2)))
    np.testing.assert_allclose(
        [same.lower, same.upper], 0.5 * np.log(2 * np.pi * np.e * 0.04), rtol=1e-12
    )
    dead = jaxmdn.entropy_bounds(univariate([0.0, -np.inf], [3.0, 1e6], [0.2, 1.0]))
    np.testing.assert_allclose(
        [dead.lower, dead.upper], 0.5 * np.log(2 * np.pi * np.e * 0.04), rtol=1e-12
    )


@pytest.mark.parametrize("covariance", ["full", "low_rank"])
def test_gradients_of_the_bounds(covariance):
    rng = np.random.default_rng(3)
    p, q = (oracles.random_mixture(rng, covariance, 3, 2) for _ in range(2))

    def bounds(p, q):
        lower, upper = jaxmdn.entropy_bounds(p)
        return 0.3 * lower + 0.7 * upper + jaxmdn.kl_upper_bound(p, q, num_iterations=3)

    def exact(p, q):
        p, q = oracles.of_mixture(p), oracles.of_mixture(q)
        lower, upper = pairwise_bounds(p)
        return 0.3 * lower + 0.7 * upper + variational_bound(p, q, 3)

    complex_step.check(bounds, exact, p, q)


def test_gradients_survive_a_dead_component():
    def total(logits):
        mixture = univariate(logits, [3.0, 1e6], [0.2, 1.0])
        return sum(jaxmdn.entropy_bounds(mixture)) + jaxmdn.kl_upper_bound(mixture, mixture)

    assert np.isfinite(jax.grad(total)(jnp.array([0.0, -jnp.inf]))).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_divergence_s_bound_lies_above_it(seed):
    rng = np.random.default_rng(seed)
    p, q = random_rows(rng, 20, 3), random_rows(rng, 20, 3)
    bounds = {n: upper_bound(univariate(*p), univariate(*q), n) for n in (0, 30)}
    pairs = zip(rows_of(*p), rows_of(*q), strict=True)
    for row, (first, second) in enumerate(pairs):
        exact = divergence(first, second)
        assert bounds[30][row] >= exact - 1e-7 * (1 + exact)
        (w, m, s), (v, n, t) = first, second
        each = np.log(t / s[:, None]) + (s[:, None] ** 2 + (m[:, None] - n) ** 2) / (2 * t**2) - 0.5
        matched = np.sum(w * (np.log(w / v) + np.diag(each)))
        limit = min(w @ each @ v, matched)
        assert bounds[0][row] <= limit * (1 + 1e-9)
        assert bounds[30][row] <= bounds[0][row] * (1 + 1e-9)


@functools.partial(jax.jit, static_argnums=2)
def upper_bound(p, q, n):
    return jaxmdn.kl_upper_bound(p, q, num_iterations=n)


@pytest.mark.parametrize("covariance", oracles.COVARIANCES)
def test_the_divergence_s_bound_for_single_and_equal_ones(covariance):
    rng = np.random.default_rng(5)
    p, q = (oracles.random_mixture(rng, covariance, 1, 3) for _ in range(2))
    if covariance == "low_rank":
        assert p.components.factor.shape[-1] != 0  # ranks may differ
    (m,), (a,) = (x for x in (oracles.of_mixture(p).loc, oracles.of_mixture(p).covariances))
    (n,), (b,) = (x for x in (oracles.of_mixture(q).loc, oracles.of_mixture(q).covariances))
    exact = np.trace(np.linalg.solve(b, a)) + (m - n) @ np.linalg.solve(b, m - n) - 3
    exact = 0.5 * (exact + np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])
    np.testing.assert_allclose(jaxmdn.kl_upper_bound(p, q), exact, rtol=1e-10)
    several = oracles.random_mixture(rng, covariance, 4, 3, (5,))
    np.testing.assert_allclose(jaxmdn.kl_upper_bound(several, several), 0.0, atol=1e-12)
    # Three against four components, one row against five.
    other = oracles.random_mixture(rng, covariance, 3, 3)
    assert jaxmdn.kl_upper_bound(other, several).shape == (5,)


def test_iterations_improve_on_both_simple_bounds():
    # Components in another order: the matched bound is useless, the convexity bound loose.
    p = univariate([0.0, 0.5], [0.0, 9.0], [1.0, 1.0])
    q = univariate([0.5, 0.0], [9.0, 0.0], [1.0, 1.0])
    assert jaxmdn.kl_upper_bound(p, q) < 1e-9
    assert jaxmdn.kl_upper_bound(p, q, num_iterations=0) > 0.5


def test_divergence_by_samples():
    rng = np.random.default_rng(7)
    p, q = random_rows(rng, 4, 3), random_rows(rng, 1, 2)
    estimate = jaxmdn.kl_divergence(
        jax.random.key(0), univariate(*p), univariate(*q), num_samples=4000
    )
    assert estimate.value.shape == estimate.standard_error.shape == (4,)
    (second,) = rows_of(*q)
    exact = np.array([divergence(first, second) for first in rows_of(*p)])
    assert np.all(np.abs(estimate.value - exact) < 5 * estimate.standard_error)
    # The error is right: the spread of independent estimates, and it falls with their size.
    keys = jax.random.split(jax.random.key(1), 300)
    many = jax.vmap(
        lambda key: jaxmdn.kl_divergence(key, univariate(*p), univariate(*q), num_samples=100)
    )(keys)
    spread = np.std(many.value, axis=0)
    typical = np.sqrt(np.mean(np.asarray(many.standard_error) ** 2, axis=0))
    np.testing.assert_allclose(typical, spread, rtol=0.25)
    np.testing.assert_allclose(spread / estimate.standard_error, np.sqrt(40), rtol=0.3)


def test_divergence_by_samples_broadcasts_and_takes_any_density():
    rng = np.random.default_rng(8)
    p = univariate(*random_rows(rng, 3, 2))
    q = jax.tree.map(lambda leaf: leaf[:, None], univariate(*random_rows(rng, 4, 2)))
    assert jaxmdn.kl_divergence(jax.random.key(0), p, q).value.shape == (4, 3)
    head = jaxmdn.CategoricalHead(4)
    first, second = (head(jnp.asarray(rng.normal(size=4))) for _ in range(2))
    estimate = jaxmdn.kl_divergence(jax.random.key(1), first, second, num_samples=20000)
    a, b = (special.softmax(np.asarray(d.logits)) for d in (first, second))
    assert abs(estimate.value - np.sum(a * np.log(a / b))) < 5 * estimate.standard_error
    once = jaxmdn.kl_divergence(jax.random.key(1), first, second, num_samples=1)
    assert np.isnan(once.standard_error)


def test_effective_components():
    rng = np.random.default_rng(9)
    logits, loc, scale = random_rows(rng, 20, 5)
    mixture, y = univariate(logits, loc, scale), jnp.asarray(rng.normal(size=(20, 1)))
    weights = special.softmax(logits, axis=-1)
    expected = np.exp(-np.sum(special.xlogy(weights, weights), axis=-1))
    np.testing.assert_allclose(jaxmdn.effective_num_components(mixture), expected, rtol=1e-12)
    share = weights * np.exp(-0.5 * ((y - loc) / scale) ** 2) / scale
    share = np.asarray(share / share.sum(-1, keepdims=True))
    expected = np.exp(-np.sum(special.xlogy(share, share), axis=-1))
    np.testing.assert_allclose(jaxmdn.effective_num_components(mixture, y), expected, rtol=1e-10)
    edges = univariate([[0.0, -np.inf], [0.0, 0.0]], [0.0, 0.0], [1.0, 1.0])
    np.testing.assert_allclose(jaxmdn.effective_num_components(edges), [1.0, 2.0], rtol=1e-15)
    assert np.isnan(jaxmdn.effective_num_components(edges, jnp.full((2, 1), jnp.nan))).all()
    assert np.isnan(jaxmdn.effective_num_components(edges, jnp.full((2, 1), jnp.inf))).all()

    def count(logits):
        return jaxmdn.effective_num_components(univariate(logits, [0.0, 1.0], [1.0, 2.0]))

    assert np.isfinite(jax.grad(count)(jnp.array([0.0, -jnp.inf]))).all()
    logits = np.array([0.3, -0.4])

    def exact(logits):
        weights = np.exp(logits) / np.sum(np.exp(logits))
        return np.exp(-np.sum(weights * np.log(weights)))

    (expected,) = complex_step.gradient(exact, [logits])
    np.testing.assert_allclose(jax.grad(count)(jnp.asarray(logits)), expected, rtol=1e-13)


def test_dead_components():
    weights = np.array([[[0.5, 0.4995, 0.0005], [0.999, 0.0005, 0.0005]]])  # [1, 2, 3]
    mixture = univariate(np.log(weights), np.zeros(3), np.ones(3))
    assert jaxmdn.is_dead(mixture).tolist() == [False, False, True]
    assert jaxmdn.is_dead(mixture, threshold=1e-4).tolist() == [False] * 3
    assert jaxmdn.is_dead(mixture, threshold=0.6).tolist() == [False, True, True]
    broken = univariate([jnp.nan, 0.0], np.zeros(2), np.ones(2))
    assert jaxmdn.is_dead(broken).tolist() == [False, False]


LINE, PLANE = (oracles.random_mixture(np.random.default_rng(0), "diagonal", 2, D) for D in (1, 2))
LABELS = jaxmdn.CategoricalHead(3)(jnp.zeros(3))
FULL = jaxmdn.Mixture(
    logits=jnp.zeros(1),
    components=FullNormal(loc=jnp.zeros((1, 2)), whitening_tril=jnp.eye(2)[None]),
)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "kind", "message"),
    [
        ("entropy_bounds", (LABELS,), {}, TypeError, "entropy_bounds: expected a Mixture"),
        (
            "entropy_bounds",
            (
                jaxmdn.Mixture(
                    logits=jnp.zeros(2),
                    components=jaxmdn.components.Categorical(logits=jnp.zeros((2, 3))),
                ),
            ),
            {},
            TypeError,
            "entropy_bounds: the components must be normal, got Categorical",
        ),
        ("kl_divergence", (LINE, LINE, KEY), {}, TypeError, "q must be a density"),
        ("kl_divergence", (KEY, LINE, PLANE), {}, ValueError, "event dimensions 1 and 2"),
        ("kl_divergence", (KEY, LINE, LABELS), {}, TypeError, "both discrete or both continuous"),
        (
            "kl_divergence",
            (KEY, LINE, LINE),
            {"num_samples": 0},
            ValueError,
            "num_samples must be at least 1",
        ),
        ("kl_upper_bound", (PLANE, FULL), {}, TypeError, "got Normal and FullNormal"),
        ("kl_upper_bound", (LINE, PLANE), {}, ValueError, "event dimensions 1 and 2"),
        (
            "kl_upper_bound",
            (LINE, LINE),
            {"num_iterations": 2.0},
            TypeError,
            "num_iterations must be a Python int",
        ),
        ("effective_num_components", (LABELS,), {}, TypeError, "expected a Mixture"),
        (
            "effective_num_components",
            (LINE, jnp.zeros(2)),
            {},
            ValueError,
            r"y of shape \[\.\.\., 1\]",
        ),
        ("is_dead", (LINE,), {"threshold": 1.5}, ValueError, r"must lie in \(0, 1\)"),
        (
            "is_dead",
            (Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1))),),
            {},
            TypeError,
            "is_dead: expected a Mixture",
        ),
    ],
)
def test_errors(user_errors, function, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        getattr(jaxmdn, function)(*arguments, **options)
