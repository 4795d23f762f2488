"""Modes: against sign changes on a dense grid, SciPy's optimiser, and known criteria."""

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from test_regions import KINDS, exact_turns, log_density, parameters, univariate

import jaxmdn
from jaxmdn.components import Beta, FullNormal, Gamma, Independent, Normal, StudentT


def exact_modes(weights, loc, scale):
    """All modes in increasing order."""
    alive = weights > 0
    _, turns, is_mode = exact_turns(weights[alive], loc[alive], scale[alive])
    return turns[is_mode]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS))
def test_all_modes_of_one_dimension(seed, kind):
    logits, loc, scale = parameters(np.random.default_rng(seed), kind, 20, 4)
    location, height = jaxmdn.modes(univariate(logits, loc, scale))
    assert location.shape == (20, 4, 1)
    location, height = np.asarray(location)[..., 0], np.asarray(height)
    weights = special.softmax(logits, axis=-1)
    for row in range(20):
        exact = exact_modes(weights[row], loc[row], scale[row])
        count = len(exact)
        assert np.all(np.diff(height[row, :count]) <= 0)
        assert np.isposinf(location[row, count:]).all()
        assert np.all(height[row, count:] == -np.inf)
        # Where the top is flat to third order, rounding of 1e-16 in the slope moves a mode by its
        # cube root; elsewhere by far less.
        np.testing.assert_allclose(np.sort(location[row, :count]), exact, atol=2e-5, rtol=1e-9)
        found = log_density(weights[row], loc[row], scale[row], location[row, :count])
        np.testing.assert_allclose(height[row, :count], found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_normals_have_two_modes_if_they_are_two_deviations_apart(dtype):
    gap = np.array([0.1, 1.9, 1.99, 2.01, 2.1, 4.0, 40.0])
    expected = np.where(gap > 2, 2, 1)
    loc = np.stack([np.zeros_like(gap), gap], axis=-1)
    line = jaxmdn.modes(univariate(np.zeros((7, 2)), 0.3 * loc, np.full((7, 2), 0.3), dtype))
    np.testing.assert_array_equal(np.isfinite(line.log_prob).sum(-1), expected)
    # In a plane, along a direction, with the other one narrower.
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    plane = jaxmdn.Mixture(
        logits=jnp.zeros((7, 2), dtype),
        components=FullNormal.from_covariance(
            jnp.asarray(loc[..., None] * turn[:, 0], dtype),
            jnp.asarray(turn @ np.diag([1.0, 0.01]) @ turn.T, dtype)[None, None],
        ),
    )
    found = jaxmdn.modes(plane)
    assert found.location.dtype == dtype
    # Within a few of the local scale's 1e-2 of merging, 60 float32 steps do not come to rest.
    clear = slice(None) if dtype == np.float64 else [0, 1, 4, 5, 6]
    counts = np.isfinite(found.log_prob).sum(-1)
    np.testing.assert_array_equal(counts[clear], expected[clear])
    apart = np.sort(found.location[6, :, 0])  # equal heights: in either order
    np.testing.assert_allclose(apart, [0.0, 40 * 0.8], atol=1e-3 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize(
    ("covariance", "D"),
    [("isotropic", 2), ("diagonal", 3), ("full", 2), ("full", 5), ("low_rank", 3)],
)
def test_several_dimensions_against_an_optimiser(covariance, D):
    rng = np.random.default_rng(D)
    mixture = oracles.random_mixture(rng, covariance, 4, D, (12,))
    location, height = (np.asarray(x) for x in jaxmdn.modes(mixture))
    dense = oracles.of_mixture(mixture)
    precision = np.linalg.inv(dense.covariances)
    log_det = np.linalg.slogdet(dense.covariances)[1]
    shape = (12, 4)

    def surface(row, x):
        w, m, p, d = (
            np.broadcast_to(v, (*shape, *v.shape[2:]))[row]
            for v in (dense.weights, dense.loc, precision, log_det)
        )
        gaps = x - m
        pulls = np.einsum("kij,kj->ki", p, gaps)
        terms = np.log(w) - 0.5 * (np.sum(gaps * pulls, -1) + d + D * np.log(2 * np.pi))
        share = special.softmax(terms)
        slope = -share @ pulls
        spread = np.einsum("k,ki,kj->ij", share, pulls, pulls) - np.outer(slope, slope)
        return special.logsumexp(terms), slope, spread - np.einsum("k,kij->ij", share, p)

    for row in range(12):
        count = np.isfinite(height[row]).sum()
        assert count >= 1
        for x, value in zip(location[row, :count], height[row, :count], strict=True):
            exact, slope, hessian = surface(row, x)
            np.testing.assert_allclose(value, exact, rtol=1e-10, atol=1e-10)
            assert np.abs(np.linalg.solve(hessian, slope)).max() < 1e-7
            assert np.linalg.eigvalsh(hessian).max() < 0
        starts = np.concatenate(
            [np.broadcast_to(dense.loc, (*shape, D))[row], rng.normal(size=(8, D))]
        )
        ends = [
            optimize.minimize(
                lambda x, row=row: -surface(row, x)[0],
                start,
                jac=lambda x, row=row: -surface(row, x)[1],
                method="BFGS",
            )
            for start in starts
        ]
        # The highest mode is the first, and no two slots hold the same.
        assert height[row, 0] >= max(-end.fun for end in ends) - 1e-9
        gaps = np.linalg.norm(location[row, :count, None] - location[row, None, :count], axis=-1)
        assert np.all(gaps + np.eye(count) > 1e-3)
        # The optimiser, started from the centres, finds no mode that is not there.
        for end in ends[:4]:
            _, slope, _ = surface(row, end.x)
            if np.abs(slope).max() < 1e-5:
                distance = np.linalg.norm(location[row, :count] - end.x, axis=-1).min()
                lost = distance > 1e-3
                assert not lost or _is_far(starts, end.x)


def _is_far(starts, x):
    """BFGS may leap over a ridge to a mode that no centre climbs to; that is no loss."""
    return np.linalg.norm(starts[:4] - x, axis=-1).min() > 0.1


def climbed(dense, x):
    """The mode near ``x`` by Newton's method; with complex parameters, where they move it to."""
    precision = np.linalg.inv(dense.covariances)
    log_det = np.log(np.linalg.det(dense.covariances))
    for _ in range(5):
        gaps = x - dense.loc
        pulls = np.einsum("kij,kj->ki", precision, gaps)
        joint = dense.weights * np.exp(-0.5 * (np.sum(gaps * pulls, -1) + log_det))
        share = joint / np.sum(joint)
        slope = -share @ pulls
        bend = np.einsum("k,ki,kj->ij", share, pulls, pulls) - np.outer(slope, slope)
        x = x - np.linalg.solve(bend - np.einsum("k,kij->ij", share, precision), slope)
    return x


@pytest.mark.parametrize("covariance", ["full", "low_rank", "diagonal"])
def test_derivatives_of_modes_and_their_heights(covariance):
    """Several outputs, and (diagonal) one, where modes are found by other means."""
    if covariance == "diagonal":
        mixture = univariate([0.2, -0.1, -1.0], [-2.0, 2.0, 0.5], [0.7, 1, 3])
    else:
        mixture = oracles.random_mixture(np.random.default_rng(3), covariance, 3, 3)
    places = np.asarray(jaxmdn.modes(mixture).location)
    places = places[np.isfinite(places[:, 0])]
    assert len(places) > 1

    def total(mixture):  # the unused slots' NaN must not reach the gradient
        found = jaxmdn.modes(mixture)
        kept = jnp.where(jnp.isinf(found.location), 0, found.location)
        return jnp.sum(kept**2) + found.log_prob[0]

    def exact(mixture):
        dense = oracles.of_mixture(mixture)
        modes = [climbed(dense, place) for place in places]
        return sum(x @ x for x in modes) + complex_step.log_density(dense, modes[0])

    complex_step.check(total, exact, mixture, rtol=1e-8, atol=1e-8)


def test_a_saddle_is_no_mode_and_dead_components_are_silent():
    # The middle component's centre is a saddle by symmetry; the last has no weight.
    normal = Normal(
        loc=jnp.array([[-1.5, 0.0], [1.5, 0.0], [0.0, 0.0], [0.0, 50.0]]), scale=jnp.ones((4, 1))
    )
    mixture = jaxmdn.Mixture(logits=jnp.array([0.0, 0.0, -5.0, -jnp.inf]), components=normal)
    found = jaxmdn.modes(mixture)
    np.testing.assert_array_equal(np.isfinite(found.log_prob), [True, True, False, False])
    np.testing.assert_allclose(np.abs(found.location[:2, 0]), 1.459481, atol=1e-6)  # brentq
    broken = jaxmdn.Mixture(
        logits=mixture.logits, components=Normal(loc=normal.loc * jnp.nan, scale=normal.scale)
    )
    assert np.isnan(jaxmdn.modes(broken).location).all()
    assert np.isnan(jaxmdn.modes(broken).log_prob).any()


def test_vmap_classes_and_low_precision():
    rng = np.random.default_rng(4)
    head = jaxmdn.ClassConditionalHead(2, jaxmdn.NormalHead(2, 2, covariance="full"))
    half = head(jnp.asarray(3 * rng.normal(size=(5, head.num_outputs)), jnp.bfloat16))
    exact = jax.vmap(jaxmdn.modes)(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), half))
    assert exact.location.shape == (5, 4, 2)
    found = jaxmdn.modes(half)
    assert found.location.dtype == jnp.float32
    # Float32: a mode moves by the rounding of the slope, 1e-7 of the pulls, over the curvature.
    np.testing.assert_allclose(found.location[:, 0], exact.location[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1))), "modes: expected a Mixture"),
        (
            jaxmdn.Mixture(
                logits=jnp.zeros(2),
                components=jaxmdn.components.Categorical(logits=jnp.zeros((2, 3))),
            ),
            "modes: needs a density over real numbers",
        ),
        (
            jaxmdn.Mixture(
                logits=jnp.zeros(2),
                components=jaxmdn.components.Laplace(loc=jnp.zeros((2, 2)), scale=jnp.ones((2, 2))),
            ),
            "modes: for D > 1 every dimension must be a smooth density over numbers, got Laplace",
        ),
    ],
)
def test_errors(user_errors, mixture, message):
    with pytest.raises(TypeError, match=message):
        jaxmdn.modes(mixture)


def product(kind, rng, rows=6, K=3):
    """Mixtures of independent dimensions, and a box that holds all of their modes."""

    def draw(low, high, dims=2):
        return jnp.asarray(np.exp(rng.uniform(np.log(low), np.log(high), (rows, K, dims))))

    loc = jnp.asarray(rng.uniform(-5, 5, (rows, K, 2)))
    if kind == "student-t":
        components = StudentT(loc=loc, scale=draw(0.5, 1.5), df=draw(1, 9))
        box = ([-5, 5], [-5, 5])
    elif kind == "gamma":
        components = Gamma(concentration=draw(2, 40), rate=draw(1, 4))
        box = ([0.01, 40], [0.01, 40])
    else:
        first = Beta(concentration1=draw(1.5, 30, 1), concentration0=draw(1.5, 30, 1))
        second = Normal(loc=loc[..., :1], scale=draw(0.3, 2, 1))
        parts, box = (first, second), ([0.001, 0.999], [-5, 5])
        components = Independent(parts=parts, dims=((0,), (1,)))
    return jaxmdn.Mixture(
        logits=jnp.asarray(rng.normal(size=(rows, K))), components=components
    ), box


@pytest.mark.parametrize(
    "kind", ["student-t", *(pytest.param(k, marks=pytest.mark.nightly) for k in ("gamma", "mixed"))]
)
def test_modes_of_products_against_a_grid(kind):
    """All local maxima of a grid of 300 x 300, polished by SciPy."""
    mixture, box = product(kind, np.random.default_rng(5))
    location, height = map(np.asarray, jax.jit(jaxmdn.modes)(mixture))
    axes = [np.linspace(*side, 300) for side in box]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    evaluate = jax.jit(lambda y: jaxmdn.log_prob(mixture, y[..., None, :]))
    grid = np.asarray(evaluate(jnp.asarray(points)))  # [300, 300, rows]
    slope = jax.jit(lambda y: jax.grad(lambda y: jnp.sum(jaxmdn.log_prob(mixture, y)))(y))
    for row in range(location.shape[0]):
        own = grid[..., row]
        padded = np.pad(own, 1, constant_values=-np.inf)
        around = [
            padded[1 + i : 301 + i, 1 + j : 301 + j]
            for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)
        ]  # fmt: skip
        peaks = points[np.all(own > np.stack(around), axis=0)]
        found = location[row][np.isfinite(height[row])]
        cell = np.array([axis[1] - axis[0] for axis in axes])
        gaps = np.max(np.abs(peaks[:, None] - found) / cell, axis=-1)
        assert len(found) == len(peaks), (row, found, peaks)
        assert np.all(gaps.min(axis=0) < 2)
        assert np.all(gaps.min(axis=1) < 2)
    used = np.isfinite(height)
    for slot in range(location.shape[1]):
        rows = used[:, slot]
        at = np.where(rows[:, None], location[:, slot], location[:, 0])
        np.testing.assert_allclose(slope(jnp.asarray(at)), 0, atol=1e-8)


def test_many_components_have_their_modes_and_regions():
    """More than are counted at once: twenty normals apart, each with its mode and its interval."""
    loc, scale = 10.0 * np.arange(20), np.linspace(0.5, 1.5, 20)
    normal = Normal(loc=jnp.asarray(loc[:, None]), scale=jnp.asarray(scale[:, None]))
    mixture = jaxmdn.Mixture(logits=jnp.log(jnp.asarray(scale)), components=normal)  # of one height
    location, intervals = jax.jit(
        lambda mixture: (jaxmdn.modes(mixture).location, jaxmdn.hdr_intervals(mixture, 0.9))
    )(mixture)
    np.testing.assert_allclose(np.sort(location[:, 0]), loc, atol=1e-9)
    ends = np.stack([intervals.lower, intervals.upper])
    reach = special.ndtri(0.95) * scale
    np.testing.assert_allclose(ends, [loc - reach, loc + reach], atol=1e-6)
