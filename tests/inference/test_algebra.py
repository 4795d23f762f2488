"""Linear maps, products and temperatures: against dense covariances, quadrature and mpmath."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import mp
from scipy import special, stats

import jaxmdn
from jaxmdn import Mixture
from jaxmdn.components import FullNormal, Independent, LowRankNormal, Normal, StudentT
from jaxmdn.components.gamma import Gamma

MATRICES = {rows: np.random.default_rng(rows).normal(size=(rows, 4)) for rows in (1, 2, 4)}
per_covariance = pytest.mark.parametrize("covariance", oracles.COVARIANCES)


def dense(mixture):
    return oracles.of_mixture(mixture)


@per_covariance
@pytest.mark.parametrize("rows", MATRICES)
def test_matrices_against_dense_covariances(covariance, rows):
    rng = np.random.default_rng(3)
    mixture = oracles.random_mixture(rng, covariance, 3, 4, (5,))
    matrix, shift = MATRICES[rows], rng.normal(size=rows)
    moved = jaxmdn.affine(mixture, shift, matrix)
    assert isinstance(moved.components, FullNormal)
    assert (moved.batch_shape, moved.event_dim) == ((5,), rows)
    before, after = dense(mixture), dense(moved)
    np.testing.assert_allclose(after.weights, before.weights, rtol=1e-12)
    np.testing.assert_allclose(after.loc, shift + before.loc @ matrix.T, rtol=1e-10, atol=1e-12)
    exact = matrix @ before.covariances @ matrix.T
    np.testing.assert_allclose(after.covariances, exact, rtol=1e-9, atol=1e-9)
    assert bool(jnp.all(jnp.triu(moved.components.whitening_tril, 1) == 0))
    if rows == 4:  # change of variables
        y = rng.normal(size=(5, 4))
        image = jnp.asarray(shift + y @ matrix.T)
        expected = before.log_prob(y) - np.linalg.slogdet(matrix)[1]
        np.testing.assert_allclose(jaxmdn.log_prob(moved, image), expected, rtol=1e-9, atol=1e-9)


@per_covariance
def test_scales_against_dense_covariances(covariance):
    rng = np.random.default_rng(4)
    mixture = oracles.random_mixture(rng, covariance, 3, 4, (5,))
    y = rng.normal(size=(5, 4))
    before = dense(mixture)
    for shift, scale in (
        (rng.normal(size=4), np.array([2.0, -0.5, 1e-3, -30.0])),
        (1.5, -2),
        (np.zeros(1), np.array([3.0])),
    ):
        moved = jaxmdn.affine(mixture, shift, scale)
        if covariance != "isotropic":
            assert type(moved.components) is type(mixture.components)
        factor = np.broadcast_to(scale, 4).astype(np.float64)
        expected = before.log_prob(y) - np.sum(np.log(np.abs(factor)))
        image = jnp.asarray(shift + factor * y)
        np.testing.assert_allclose(jaxmdn.log_prob(moved, image), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            jaxmdn.variance(moved), factor**2 * jaxmdn.variance(mixture), rtol=1e-12
        )


@per_covariance
def test_a_marginal_of_a_map_is_the_map_of_its_rows(covariance):
    mixture = oracles.random_mixture(np.random.default_rng(5), covariance, 2, 4)
    matrix, shift = MATRICES[4], np.arange(4.0)
    dims = (3, 1)
    one = dense(jaxmdn.marginal(jaxmdn.affine(mixture, shift, matrix), dims))
    other = dense(jaxmdn.affine(mixture, shift[list(dims)], matrix[list(dims)]))
    np.testing.assert_allclose(one.loc, other.loc, rtol=1e-12)
    np.testing.assert_allclose(one.covariances, other.covariances, rtol=1e-8)
    # Rows of the identity are a marginal.
    picked = dense(jaxmdn.affine(mixture, 0.0, np.eye(4)[list(dims)]))
    expected = dense(jaxmdn.marginal(mixture, dims))
    np.testing.assert_allclose(picked.covariances, expected.covariances, rtol=1e-9, atol=1e-10)


def test_batches_of_matrices_classes_jit_and_vmap():
    rng = np.random.default_rng(6)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(2, 3, covariance="full"))
    mixture = head(jnp.asarray(rng.normal(size=(5, head.num_outputs))))
    matrix, shift = jnp.asarray(rng.normal(size=(5, 2, 3))), jnp.asarray(rng.normal(size=(5, 2)))
    moved = jaxmdn.affine(mixture, shift, matrix)
    y = jnp.asarray(rng.normal(size=(5, 2)))
    value = jaxmdn.log_prob(moved, y)
    before = dense(mixture)
    exact = oracles.Dense(
        before.weights,
        np.asarray(shift)[:, None] + np.einsum("ned,nkd->nke", matrix, before.loc),
        np.einsum("ned,nkdc,nfc->nkef", matrix, before.covariances, matrix),
    )
    np.testing.assert_allclose(value, exact.log_prob(y), rtol=1e-9)
    each = jax.jit(jax.vmap(lambda *a: jaxmdn.log_prob(jaxmdn.affine(*a[:3]), a[3])))
    np.testing.assert_allclose(each(mixture, shift, matrix, y), value, rtol=1e-10)


def test_an_ill_conditioned_matrix_in_float32():
    # Condition number 1e5: the covariance would have 1e10, more than float32 can tell from a
    # singular one (its Cholesky factor is NaN).
    rng = np.random.default_rng(7)
    left, right = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    matrix = (left * np.array([1.0, 1e-1, 1e-3, 1e-5]) @ right).astype(np.float32)
    scales = np.exp(rng.normal(size=(2, 4)))
    normal = Normal(loc=jnp.zeros((2, 4), jnp.float32), scale=jnp.asarray(scales, jnp.float32))
    low = LowRankNormal(
        loc=normal.loc,
        factor=jnp.asarray(rng.normal(size=(2, 4, 1)), jnp.float32),
        scale=normal.scale,
    )
    for components in (normal, low):
        mixture = Mixture(logits=jnp.zeros(2, jnp.float32), components=components)
        found = np.asarray(jaxmdn.affine(mixture, 0.0, matrix).components.whitening_tril)
        assert found.dtype == jnp.float32
        exact_matrix = matrix.astype(np.float64)
        for k in range(2):
            covariance = dense(mixture).covariances[k]
            exact = exact_matrix @ covariance @ exact_matrix.T
            exact = np.array((mp.cholesky(mp.matrix(exact)) ** -1).tolist(), np.float64)
            # Rounding times the condition number, about 1e-2 of each row.
            norms = np.linalg.norm(exact, axis=-1, keepdims=True)
            assert np.max(np.abs(found[k] - exact) / norms) < 2e-2


def test_a_shift_is_not_rounded_to_the_parameters_half_precision():
    half = jnp.asarray(np.asarray([[0.5]], jnp.bfloat16))
    mixture = Mixture(logits=jnp.asarray(np.zeros(1)), components=Normal(loc=half, scale=half))
    moved = jax.jit(lambda own: jaxmdn.affine(own, 1000.25, 1.3))(
        mixture
    )  # 1000 and 1.296875 in bfloat16
    np.testing.assert_allclose(moved.components.loc, [[1000.25 + 0.65]], rtol=1e-7)
    np.testing.assert_allclose(moved.components.scale, [[0.65]], rtol=1e-7)


def test_gradients_of_a_map():
    rng = np.random.default_rng(8)
    for covariance, matrix in (("full", MATRICES[4]), ("low_rank", MATRICES[2])):
        mixture = oracles.random_mixture(rng, covariance, 2, 4)
        y = rng.normal(size=len(matrix))

        def value(mixture, shift, matrix, y=y):
            return jaxmdn.log_prob(jaxmdn.affine(mixture, shift, matrix), jnp.asarray(y))

        def exact(mixture, shift, matrix, y=y):
            own = oracles.of_mixture(mixture)
            moved = oracles.Dense(
                own.weights, shift + own.loc @ matrix.T, matrix @ own.covariances @ matrix.T
            )
            return complex_step.log_density(moved, y)

        shift = jnp.asarray(rng.normal(size=len(matrix)))
        complex_step.check(value, exact, mixture, shift, jnp.asarray(matrix))


def test_traced_zeros_give_nan():
    mixture = oracles.random_mixture(np.random.default_rng(9), "full", 2, 3)
    flat = jnp.asarray(np.diag([1.0, 0.0, 1.0]))
    for factor in (jnp.array([1.0, 0.0, 2.0]), flat, flat[:2]):
        moved = jaxmdn.affine(mixture, 0.0, factor)
        assert bool(jnp.isnan(jaxmdn.log_prob(moved, jnp.zeros(moved.event_dim))))


def dense_product(a, b):
    """Textbook product of two dense mixtures of one row each: normal by normal, by inverses."""
    log_weights, loc, covariances = [], [], []
    for weight_a, mean_a, cov_a in zip(a.weights, a.loc, a.covariances, strict=True):
        for weight_b, mean_b, cov_b in zip(b.weights, b.loc, b.covariances, strict=True):
            total = np.linalg.inv(cov_a + cov_b)
            overlap = stats.multivariate_normal(mean_b, cov_a + cov_b).logpdf(mean_a)
            log_weights.append(np.log(weight_a * weight_b) + overlap)
            loc.append(mean_a + cov_a @ total @ (mean_b - mean_a))
            covariances.append(cov_a @ total @ cov_b)
    log_normalizer = special.logsumexp(log_weights)
    weights = np.exp(np.array(log_weights) - log_normalizer)
    return oracles.Dense(weights, np.array(loc), np.array(covariances)), log_normalizer


PAIRS = [
    ("isotropic", "diagonal"),
    ("diagonal", "diagonal"),
    ("full", "full"),
    ("low_rank", "full"),
    ("diagonal", "low_rank"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_products_against_dense_covariances(pair):
    rng = np.random.default_rng(10)
    a, b = (
        oracles.random_mixture(rng, covariance, K, 3, (4,), tied=K == 3)
        for covariance, K in zip(pair, (2, 3), strict=True)
    )
    found, log_normalizer = jaxmdn.product(a, b)
    family = Normal if set(pair) <= {"isotropic", "diagonal"} else FullNormal
    assert type(found.components) is family
    assert (found.num_components, found.batch_shape) == (6, (4,))
    assert log_normalizer.shape == (4,)
    result, left, right = dense(found), dense(a), dense(b)
    lead = (4,)
    left, right = (
        oracles.Dense(*(np.broadcast_to(x, (*lead, *x.shape[1:])) for x in vars(part).values()))
        for part in (left, right)
    )
    for row in range(4):
        expected, total = dense_product(left.row(row), right.row(row))
        np.testing.assert_allclose(log_normalizer[row], total, rtol=1e-10)
        weights = np.broadcast_to(result.weights, (4, 6))[row]
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-9)
        np.testing.assert_allclose(result.loc[row], expected.loc, rtol=1e-9, atol=1e-10)
        covariances = np.broadcast_to(result.covariances, (4, 6, 3, 3))[row]
        np.testing.assert_allclose(covariances, expected.covariances, rtol=1e-8, atol=1e-10)
    # Either order: the same density, and the density is the product of the two.
    swapped, swapped_total = jaxmdn.product(b, a)
    np.testing.assert_allclose(swapped_total, log_normalizer, rtol=1e-12)
    y = jnp.asarray(rng.normal(size=(4, 3)))
    value = jaxmdn.log_prob(found, y)
    np.testing.assert_allclose(jaxmdn.log_prob(swapped, y), value, rtol=1e-9)
    direct = left.log_prob(y) + right.log_prob(y) - log_normalizer
    np.testing.assert_allclose(value, direct, rtol=1e-8, atol=1e-9)


def test_the_normalizer_is_the_integral():
    rng = np.random.default_rng(12)
    for covariance, D, points in (("diagonal", 1, 4001), ("full", 2, 801)):
        a, b = (oracles.random_mixture(rng, covariance, 2, D) for _ in range(2))
        axis = np.linspace(-12, 12, points)
        grid = np.stack(np.meshgrid(*[axis] * D, indexing="ij"), axis=-1)
        joint = np.zeros(grid.shape[:-1])
        for mixture in (a, b):
            part = dense(mixture)
            density = sum(
                w * stats.multivariate_normal(m, c).pdf(grid)
                for w, m, c in zip(part.weights, part.loc, part.covariances, strict=True)
            )
            joint = density.reshape(joint.shape) * (joint if mixture is b else 1)
        # The trapezoidal sum of a smooth function that vanishes at the ends is exact.
        integral = np.sum(joint) * (axis[1] - axis[0]) ** D
        np.testing.assert_allclose(jaxmdn.product(a, b).log_normalizer, np.log(integral), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_products_of_random_mixtures(seed, size):
    rng = np.random.default_rng(seed)

    def draw():
        whitening = np.tril(rng.normal(size=(20, 2, 2, 2)), -1)
        diagonal = np.exp(rng.normal(size=(20, 2, 2)) * rng.choice([0.1, 2.0]))
        return Mixture(
            logits=jnp.asarray(3 * rng.normal(size=(20, 2))),
            components=FullNormal(
                loc=jnp.asarray(size * rng.normal(size=(20, 2, 2))),
                whitening_tril=jnp.asarray(whitening + diagonal[..., None] * np.eye(2)),
            ),
        )

    def exact_log_prob(mixture, y):
        whitening, loc = (np.asarray(x) for x in jax.tree.leaves(mixture.components)[::-1])
        z = np.einsum("nkij,nkj->nki", whitening, y[:, None] - loc)
        log_det = np.sum(np.log(np.diagonal(whitening, axis1=-2, axis2=-1)), axis=-1)
        parts = np.sum(stats.norm.logpdf(z), axis=-1) + log_det
        return special.logsumexp(parts + special.log_softmax(mixture.logits, axis=-1), axis=-1)

    a, b = draw(), draw()
    found, log_normalizer = jaxmdn.product(a, b)
    y = size * rng.normal(size=(20, 2))
    left, right = exact_log_prob(a, y), exact_log_prob(b, y)
    value = jaxmdn.log_prob(found, jnp.asarray(y))
    # A cancellation of the two: a rounding of each, and of quadratic forms the size of theirs.
    tolerance = 1e-9 * (1 + np.abs(left) + np.abs(right) + np.abs(log_normalizer))
    assert np.all(np.abs(value - (left + right - log_normalizer)) < tolerance)


@pytest.mark.parametrize("family", ["diagonal", "full", "low_rank"])
def test_factors_far_apart_and_of_very_different_width_in_float32(family):
    # A distance of 300 in units of the wider: log Z = -4.5e4. In the product of the densities
    # themselves nothing would be left, and their logarithms would cancel to 1e-2.
    rng = np.random.default_rng(13)
    loc = [np.zeros((1, 3), np.float32), np.float32([[100.0, -200.0, 200.0]])]
    mixtures, covariances = [], []
    for m, width in zip(loc, ([1.0, 1e-3, 1.0], [1e-2, 1.0, 1e-4]), strict=True):
        scale = np.float32(width)[None]
        if family == "diagonal":
            components = Normal(loc=jnp.asarray(m), scale=jnp.asarray(scale))
        elif family == "full":
            whitening = (np.tril(0.3 * rng.normal(size=(1, 3, 3)), -1) + np.eye(3)) / scale[:, None]
            components = FullNormal(
                loc=jnp.asarray(m), whitening_tril=jnp.asarray(whitening, jnp.float32)
            )
        else:
            factor = 0.5 * scale[..., None] * rng.normal(size=(1, 3, 1))
            components = LowRankNormal(
                loc=jnp.asarray(m),
                factor=jnp.asarray(factor, jnp.float32),
                scale=jnp.asarray(scale),
            )
        mixtures.append(Mixture(logits=jnp.zeros(1, jnp.float32), components=components))
        covariances.append(mp.matrix(dense(mixtures[-1]).covariances[0]))
    found, log_normalizer = jaxmdn.product(*mixtures)
    total = covariances[0] + covariances[1]
    distance = mp.matrix((loc[1] - loc[0])[0].astype(np.float64))
    solved = mp.lu_solve(total, distance)
    exact = -((distance.T * solved)[0] + mp.log(mp.det(total)) + 3 * mp.log(2 * mp.pi)) / 2
    assert float(exact) < -1e4
    np.testing.assert_allclose(log_normalizer, float(exact), rtol=2e-6)
    mean = mp.matrix(loc[0][0].astype(np.float64)) + covariances[0] * solved
    covariance = covariances[0] - covariances[0] * mp.inverse(total) * covariances[0]
    exact_mean = np.array(mean.tolist(), np.float64)[:, 0]
    deviation = np.sqrt(np.array([float(covariance[i, i]) for i in range(3)]))
    error = np.abs(np.asarray(jaxmdn.mean(found), np.float64) - exact_mean)
    # One rounding of the mean (of size 200, its deviation 1e-4); near zero, of the deviation.
    assert np.all(error < 1.2e-7 * np.abs(exact_mean) + 3e-4 * deviation)
    np.testing.assert_allclose(np.sqrt(jaxmdn.variance(found)), deviation, rtol=1e-3)
    swapped = jaxmdn.product(*mixtures[::-1])
    np.testing.assert_allclose(swapped.log_normalizer, log_normalizer, rtol=1e-6)


def test_gradients_jit_and_vmap_of_a_product():
    rng = np.random.default_rng(14)
    a = oracles.random_mixture(rng, "low_rank", 2, 2, (3,))
    b = oracles.random_mixture(rng, "full", 2, 2)
    a = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape[1:])), a)
    y = rng.normal(size=2)

    def value(a, b):
        found, log_normalizer = jaxmdn.product(a, b)
        return jaxmdn.log_prob(found, jnp.asarray(y)) + log_normalizer

    def exact(a, b):  # what is multiplied
        rows, other = oracles.of_mixture(a), oracles.of_mixture(b)
        first = sum(complex_step.log_density(rows.row(i), y) for i in range(3))
        return first + 3 * complex_step.log_density(other, y)

    complex_step.check(lambda a, b: jnp.sum(value(a, b)), exact, a, b)
    each = jax.vmap(value, (0, None))(a, b)
    np.testing.assert_allclose(each, value(a, b), rtol=1e-10)


@per_covariance
def test_temperatures(covariance):
    rng = np.random.default_rng(15)
    mixture = oracles.random_mixture(rng, covariance, 3, 2, (5,))
    before = dense(mixture)
    weight, spread = 0.3, 4.0
    after = dense(jaxmdn.temper(mixture, weight_temperature=weight, scale_temperature=spread))
    powers = before.weights ** (1 / weight)
    np.testing.assert_allclose(
        after.weights, powers / powers.sum(axis=-1, keepdims=True), rtol=1e-10
    )
    np.testing.assert_allclose(after.covariances, spread * before.covariances, rtol=1e-9)
    np.testing.assert_array_equal(after.loc, before.loc)
    same = jaxmdn.temper(mixture)
    y = jnp.asarray(rng.normal(size=(5, 2)))
    np.testing.assert_allclose(jaxmdn.log_prob(same, y), jaxmdn.log_prob(mixture, y), rtol=1e-12)
    # One temperature for each row, traced; towards zero the likeliest component's mean is left.
    cold = jax.jit(lambda t: jaxmdn.temper(mixture, weight_temperature=t, scale_temperature=t))
    rates = jnp.array([1e-30, 1.0, 0.5, 0.0, -1.0])
    tempered = cold(rates)
    weights = np.broadcast_to(before.weights, (5, 3))
    best = np.broadcast_to(before.loc, (5, 3, 2))[0, np.argmax(weights[0])]
    draws = jaxmdn.sample(jax.random.key(0), tempered, (100,))
    np.testing.assert_allclose(draws[:, 0], np.broadcast_to(best, (100, 2)), rtol=1e-12)
    value = jaxmdn.log_prob(tempered, y)
    np.testing.assert_allclose(value[1], jaxmdn.log_prob(mixture, y)[1], rtol=1e-12)
    assert np.isnan(value[3:]).all()


def test_temperatures_of_other_families(user_errors):
    student = StudentT(
        loc=jnp.array([[1.0], [2.0]]), scale=jnp.full((2, 1), 0.5), df=jnp.full((2, 1), 3.0)
    )
    normal = Normal(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)))
    both = Independent(parts=(student, normal), dims=((1,), (0,)))
    mixture = Mixture(logits=jnp.zeros(2), components=both)
    hot = jaxmdn.temper(mixture, scale_temperature=4.0)
    y = np.array([0.3, 1.7])
    parts = [stats.norm.pdf(y[0], 0, 2) * stats.t.pdf(y[1], 3.0, loc, 1.0) for loc in (1.0, 2.0)]
    np.testing.assert_allclose(
        jaxmdn.log_prob(hot, jnp.asarray(y)), np.log(np.mean(parts)), rtol=1e-12
    )
    gamma = Gamma(concentration=jnp.ones((2, 1)), rate=jnp.ones((2, 1)))
    with pytest.raises(TypeError, match="temper: not defined for Gamma"):
        jaxmdn.temper(Mixture(logits=jnp.zeros(2), components=gamma), scale_temperature=2.0)


MIXED = ("normal", "gamma", "poisson", "beta", "von_mises")


def test_weights_have_a_temperature_whatever_the_components():
    rng = np.random.default_rng(17)
    heads = [jaxmdn.FactorizedHead(name, 3) for name in MIXED]
    mixed = jaxmdn.FactorizedHead(MIXED, 3)
    for head in (*heads, mixed):
        mixture = head(jnp.asarray(rng.normal(size=(2, head.num_outputs))))
        cold = jaxmdn.temper(mixture, weight_temperature=0.5)
        expected = special.softmax(np.asarray(mixture.logits) / 0.5, axis=-1)
        np.testing.assert_allclose(cold.weights(), expected, rtol=1e-12)
        assert cold.components is not None
        for old, new in zip(
            *map(jax.tree.leaves, (mixture.components, cold.components)), strict=True
        ):
            np.testing.assert_array_equal(old, new)
    # Independent densities are tempered each by itself, and classes by their logits.
    head = jaxmdn.IndependentHead((jaxmdn.NormalHead(3), jaxmdn.CategoricalHead(4)))
    joint = head(jnp.asarray(rng.normal(size=(2, head.num_outputs))))
    cold = jaxmdn.temper(joint, weight_temperature=0.5, scale_temperature=4.0)
    first = jaxmdn.temper(joint.parts[0], weight_temperature=0.5, scale_temperature=4.0)
    y = jnp.array([[0.3], [1.0]])
    np.testing.assert_allclose(
        jaxmdn.log_prob(cold.parts[0], y), jaxmdn.log_prob(first, y), rtol=1e-12
    )
    expected = special.softmax(2 * np.asarray(joint.parts[1].logits), axis=-1)
    np.testing.assert_allclose(cold.parts[1].probabilities(), expected, rtol=1e-12)
    alone = jaxmdn.temper(joint.parts[1], weight_temperature=0.5)
    np.testing.assert_allclose(alone.probabilities(), expected, rtol=1e-12)


def test_independent_densities_are_pooled_and_scored():
    rng = np.random.default_rng(18)
    head = jaxmdn.IndependentHead((jaxmdn.NormalHead(3), jaxmdn.FactorizedHead("logistic", 2)))
    raw = rng.normal(size=(3, 2, head.num_outputs))
    each = [head(jnp.asarray(row)) for row in raw]
    weights = np.array([0.2, 0.5, 0.3])
    pooled = jaxmdn.merge(each, jnp.asarray(weights))
    y = jnp.asarray(rng.normal(size=(2, 2)))
    by_member = np.stack([jaxmdn.log_prob(density, y) for density in each])
    expected = special.logsumexp(by_member, b=weights[:, None], axis=0)
    np.testing.assert_allclose(jaxmdn.log_prob(pooled, y), expected, rtol=1e-12)
    cdf = sum(w * jaxmdn.cdf(density, y) for w, density in zip(weights, each, strict=True))
    np.testing.assert_allclose(jaxmdn.cdf(pooled, y), cdf, rtol=1e-12)
    back = jaxmdn.quantile(pooled, np.asarray(cdf))
    np.testing.assert_allclose(back, y, rtol=1e-9)
    assert jaxmdn.sample(jax.random.key(0), pooled, 5).shape == (5, 2, 2)
    scores = jaxmdn.crps(each[0], y)
    for d, part in enumerate(each[0].parts):
        own = jaxmdn.crps(part, y[:, d : d + 1])
        np.testing.assert_allclose(scores[:, d : d + 1], own, rtol=1e-13)


def test_temperatures_of_classes_dead_weights_and_gradients():
    rng = np.random.default_rng(16)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(2, 2))
    mixture = head(jnp.asarray(rng.normal(size=(3, head.num_outputs))))
    found = jaxmdn.temper(mixture, weight_temperature=2.0)
    roots = np.sqrt(dense(mixture).weights)
    np.testing.assert_allclose(
        dense(found).weights, roots / roots.sum(axis=-1, keepdims=True), rtol=1e-12
    )
    normal = Normal(loc=jnp.zeros((3, 1)), scale=jnp.ones((3, 1)))
    logits = jnp.array([1000.0, -jnp.inf, 998.0])
    mixture = Mixture(logits=logits, components=normal)

    def weights(t):
        return jaxmdn.temper(mixture, weight_temperature=t, scale_temperature=t).weights()

    expected = special.softmax([0.0, -np.inf, -4.0])
    np.testing.assert_allclose(weights(jnp.asarray(0.5)), expected, rtol=1e-12)
    np.testing.assert_array_equal(weights(jnp.asarray(1e-306)), [1, 0, 0])
    slope = jax.jacrev(weights)(jnp.asarray(0.5))
    # d/dT of a logit of -2 / T is 2 / T^2 = 8, times w (1 - w).
    np.testing.assert_allclose(slope, 8 * expected[0] * expected[2] * np.array([-1, 0, 1]))


MIXTURE = oracles.random_mixture(np.random.default_rng(4), "full", 2, 3)
CATEGORICAL = jaxmdn.CategoricalHead(3)(jnp.zeros(3))


@pytest.mark.parametrize(
    ("function", "arguments", "options", "kind", "message"),
    [
        ("affine", (MIXTURE, 0.0, 0), {}, ValueError, "affine: a scale must not be zero, got 0"),
        ("affine", (MIXTURE, 0.0, np.array([1.0, 0.0, 1.0])), {}, ValueError, "must not be zero"),
        ("affine", (MIXTURE, 0.0, np.ones(2)), {}, ValueError, r"expected matrix_or_scale to be a"),
        ("affine", (MIXTURE, np.ones(2), 1.0), {}, ValueError, r"shift to be a number or of shap"),
        ("affine", (MIXTURE, 0.0, np.ones((4, 3))), {}, ValueError, "more rows than columns"),
        ("affine", (MIXTURE, 0.0, np.ones((2, 2))), {}, ValueError, r"a matrix \[\.\.\., E, 3\]"),
        ("affine", (MIXTURE, 0.0, np.ones((2, 3))), {}, ValueError, "the matrix is singular"),
        ("affine", (MIXTURE, np.ones(3), np.eye(3)[:2]), {}, ValueError, r"shape \[\.\.\., 2\]"),
        ("affine", (MIXTURE, 0.0, 1j), {}, TypeError, "must be real numbers, got complex"),
        ("affine", (jnp.zeros(3), 0.0, 1.0), {}, TypeError, "affine: expected a density"),
        ("affine", (CATEGORICAL, 0.0, np.eye(1)), {}, TypeError, "affine: mixture must be a Mix"),
        ("affine", (CATEGORICAL, 0.0, 2.0), {}, TypeError, "affine: not defined for Categorical"),
        ("product", (MIXTURE, CATEGORICAL), {}, TypeError, "product: b must be a Mixture"),
        (
            "product",
            (MIXTURE, oracles.random_mixture(np.random.default_rng(0), "full", 2, 2)),
            {},
            ValueError,
            "must have the same event dimension D, got 3 and 2",
        ),
        (
            "temper",
            (MIXTURE.components,),
            {},
            TypeError,
            "temper: expected a Mixture, got FullNormal",
        ),
        (
            "temper",
            (MIXTURE,),
            {"weight_temperature": 0.0},
            ValueError,
            "temper: weight_temperature must be positive, got 0.0",
        ),
        (
            "temper",
            (MIXTURE,),
            {"scale_temperature": np.array([1.0, -1.0])},
            ValueError,
            "temper: scale_temperature must be positive",
        ),
    ],
)
def test_errors(user_errors, function, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        getattr(jaxmdn, function)(*arguments, **options)


def test_positive_families_take_a_positive_scale_alone(user_errors):
    gamma = Gamma(concentration=jnp.array([[2.0], [5.0]]), rate=jnp.array([[1.0], [3.0]]))
    mixture = Mixture(logits=jnp.array([0.2, -0.1]), components=gamma)
    moved = jaxmdn.affine(mixture, 0, 2.5)
    weights = special.softmax([0.2, -0.1])
    exact = weights @ [stats.gamma(2.0).pdf(0.7), stats.gamma(5.0, scale=1 / 3).pdf(0.7)] / 2.5
    found = jaxmdn.log_prob(moved, jnp.array([0.7 * 2.5]))
    np.testing.assert_allclose(found, np.log(exact), rtol=1e-12)
    for shift, scale in ((1.0, 2.0), (jnp.zeros(1), 2.0), (0.0, -2.0)):
        with pytest.raises(ValueError, match=r"affine: dimensions \[0\] of Gamma take a positive"):
            jaxmdn.affine(mixture, shift, scale)
    negative = jax.jit(lambda scale: jaxmdn.affine(mixture, 0.0, scale))(jnp.array(-2.0))
    assert bool(jnp.isnan(jaxmdn.log_prob(negative, jnp.ones(1))))


def test_components_of_another_kind_are_refused(user_errors):
    labels = Mixture(logits=jnp.zeros(2), components=jaxmdn.CategoricalHead(3)(jnp.zeros((2, 3))))
    with pytest.raises(TypeError, match="product: not defined for Categorical; the components of"):
        jaxmdn.product(labels, labels)
    with pytest.raises(TypeError, match="temper: not defined for Categorical"):
        jaxmdn.temper(labels, scale_temperature=2.0)
