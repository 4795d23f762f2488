"""Reparameterised samples: how they move with the parameters, and what that estimates."""

import functools

import complex_step
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from complex_step import STEP
from head_cases import CONTINUOUS, rows
from scipy import optimize, special, stats

import jaxmdn
from jaxmdn import components
from jaxmdn.mixture import sequential


def by_name(*names):
    cases = [case for case in CONTINUOUS if case.name in names]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


every_normal = by_name("isotropic", "diagonal-tied", "full", "full-tied", "low-rank", "per-class")
some_normals = by_name("diagonal", "full", "per-class")


def directions(tree, seed):
    """A random tangent for every parameter; a triangular one stays triangular."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        tangent = rng.normal(size=leaf.shape)
        triangular = "whitening" in jax.tree_util.keystr(path)
        return jnp.asarray(np.tril(tangent) if triangular else tangent, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def moved(tree, direction, step):
    return jax.tree.map(lambda leaf, d: np.asarray(leaf) + step * np.asarray(d), tree, direction)


@functools.partial(jax.jit, static_argnums=(1, 3))
def draws_and_velocity(mixture, shape, direction, reparameterize=True):
    def draw(mixture):
        return jaxmdn.sample(jax.random.key(7), mixture, shape, reparameterize=reparameterize)

    return jax.jvp(draw, (mixture,), (direction,))


def conditional_cdf(dense, y, d):
    """``P(Y_d <= y_d | y_<d)`` by covariance blocks, of real or complex numbers."""
    shares, parts = [], []
    for weight, m, c in zip(dense.weights, dense.loc, dense.covariances, strict=True):
        block, error = c[:d, :d], y[:d] - m[:d]
        gain = np.linalg.solve(block, c[:d, d])
        shares.append(
            weight
            * np.exp(-error @ np.linalg.solve(block, error) / 2)
            / np.linalg.det(block) ** 0.5
        )
        z = (y[d] - m[d] - gain @ error) / np.sqrt(c[d, d] - gain @ c[:d, d])
        parts.append(complex_step.ndtr(z))
    return np.array(shares) @ np.array(parts) / np.sum(shares)


def exact_velocity(dense, stepped, sample):
    """How the sample moves where each of its conditional probabilities stays: exactly."""
    velocity = np.zeros(len(sample))
    for d in range(len(sample)):
        drift = conditional_cdf(stepped, sample + 1j * STEP * velocity, d).imag / STEP
        unit = np.eye(len(sample))[d]
        velocity[d] = -drift * STEP / conditional_cdf(dense, sample + 1j * STEP * unit, d).imag
    return velocity


@every_normal
def test_reparameterised_samples_move_as_the_exact_map_does(case):
    head, raw, _ = rows(case)
    mixture = head(raw[:2])
    direction = directions(mixture, 3)
    draws, velocity = draws_and_velocity(mixture, (3,), direction)
    plain = jaxmdn.sample(jax.random.key(7), mixture, (3,))
    np.testing.assert_array_equal(draws, plain)  # bitwise
    check_velocity(mixture, direction, draws, velocity)


def check_velocity(mixture, direction, draws, velocity):
    here = oracles.of_mixture(mixture)
    stepped = oracles.of_mixture(moved(mixture, direction, 1j * STEP))
    for s, row in np.ndindex(draws.shape[:-1]):
        exact = exact_velocity(here.row(row), stepped.row(row), np.asarray(draws[s, row]))
        # The oracle's covariances are inverted, a component's share is a ratio of densities.
        np.testing.assert_allclose(velocity[s, row], exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank"])
def test_four_dimensions(covariance):
    # From the third on, the weights move with the innovations of those before, not with y alone.
    mixture = oracles.random_mixture(np.random.default_rng(30), covariance, 3, 4, tied=True)
    mixture = jax.tree.map(lambda leaf: leaf[None], mixture)
    direction = directions(mixture, 31)
    draws, velocity = draws_and_velocity(mixture, (4,), direction)
    check_velocity(mixture, direction, draws, velocity)


def exact_motion(mixture, direction, sample):
    """First and second derivative of a sample of two dimensions, by differences in 80 digits."""
    step, mp = oracles.mp.mpf("1e-20"), oracles.mp

    def at(tree, tangent, t):
        exact = np.vectorize(lambda a, b: mp.mpf(float(a)) + t * mp.mpf(float(b)), otypes=[object])
        return exact(np.asarray(tree), np.asarray(tangent))

    def conditional(t, y, d):
        logits = at(mixture.logits, direction.logits, t)
        loc = at(mixture.components.loc, direction.components.loc, t)
        factors = at(mixture.components.whitening_tril, direction.components.whitening_tril, t)
        total = below = mp.mpf(0)
        for logit, m, w in zip(logits, loc, factors, strict=True):
            z = w[0, 0] * (y[0] - m[0])
            share = mp.exp(logit)
            if d:
                share *= abs(w[0, 0]) * mp.npdf(z)
                z = w[1, 0] * (y[0] - m[0]) + w[1, 1] * (y[1] - m[1])
            total += share
            below += share * mp.ncdf(z)
        return below / total

    still = [mp.mpf(float(value)) for value in sample]
    velocity, bend = [mp.mpf(0)] * 2, [mp.mpf(0)] * 2
    for d in (0, 1):

        def along(t, d=d):
            y = [y + t * v + t**2 / 2 * b for y, v, b in zip(still, velocity, bend, strict=True)]
            return conditional(t, y, d)

        def across(t, d=d):
            return conditional(mp.mpf(0), [y + t * (e == d) for e, y in enumerate(still)], d)

        slope = (across(step) - across(-step)) / (2 * step)
        velocity[d] = -(along(step) - along(-step)) / (2 * step) / slope
        bend[d] = -(along(step) - 2 * along(mp.mpf(0)) + along(-step)) / step**2 / slope
    return np.array(velocity, float), np.array(bend, float)


def test_reverse_mode_vmap_and_second_derivatives():
    mixture = oracles.random_mixture(np.random.default_rng(1), "full", 2, 2)
    direction = directions(mixture, 4)
    draws, velocity = draws_and_velocity(mixture, (4,), direction)
    reverse = jax.jit(
        jax.jacrev(lambda m: jaxmdn.sample(jax.random.key(7), m, (4,), reparameterize=True))
    )(mixture)
    total = sum(
        np.tensordot(slope, d, np.ndim(d))
        for slope, d in zip(jax.tree.leaves(reverse), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(total, velocity, rtol=1e-10)

    @jax.jit
    @jax.vmap
    def motion(draw):
        def velocity(t):
            return jax.jvp(lambda t: sequential.reattach(line(t), draw), (t,), (1.0,))[1]

        def line(t):
            return jax.tree.map(lambda leaf, d: leaf + t * d, mixture, direction)

        return jax.jvp(velocity, (0.0,), (1.0,))

    exact = [exact_motion(mixture, direction, draw) for draw in draws]
    for found, expected in zip(motion(draws), zip(*exact, strict=True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


W = np.array([0.7, -0.4])


def expectations(mixture):
    """``E[y]``, ``E[y^2]``, ``E[y_0 y_1]`` and ``E[sin(w.y)]`` in closed form."""
    flat = jaxmdn.flatten_mixture(mixture)
    weights = jax.nn.softmax(flat.logits, axis=-1)
    loc = flat.components.loc
    if hasattr(flat.components, "whitening_tril"):
        whitening = flat.components.whitening_tril
        covariance = jnp.linalg.inv(jnp.einsum("...ji,...jk->...ik", whitening, whitening))
    else:
        scale = flat.components.scale
        covariance = jnp.broadcast_to(scale**2, loc.shape)[..., None] * jnp.eye(2)
        if hasattr(flat.components, "factor"):
            factor = flat.components.factor
            covariance = covariance + jnp.einsum("...ir,...jr->...ij", factor, factor)
    second = covariance + loc[..., :, None] * loc[..., None, :]
    w = jnp.asarray(W)
    wave = jnp.exp(-0.5 * jnp.einsum("i,...ij,j->...", w, covariance, w)) * jnp.sin(loc @ w)
    per_component = jnp.concatenate(
        [loc, second[..., 0, :1], second[..., 1, 1:], second[..., 0, 1:], wave[..., None]], axis=-1
    )
    return jnp.sum(weights[..., None] * per_component, axis=-2)


def integrands(y):
    wave = jnp.sin(y @ jnp.asarray(W))[..., None]
    return jnp.concatenate([y, y**2, y[..., :1] * y[..., 1:], wave], axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def gradient_estimates(mixture, count, direction):
    """Single-draw estimates of the derivative of the expectations, by two unbiased routes."""

    def values(mixture):
        draws = jaxmdn.sample(jax.random.key(11), mixture, (count,), reparameterize=True)
        return integrands(draws), draws

    (value, draws), (pathwise, _) = jax.jvp(values, (mixture,), (direction,))
    _, score = jax.jvp(lambda m: jaxmdn.log_prob(m, draws), (mixture,), (direction,))
    # Any constant may be subtracted from the integrand: the score's mean is zero.
    score_function = (value - jnp.mean(value, axis=0)) * score[..., None]
    exact = jax.jvp(expectations, (mixture,), (direction,))[1]
    return pathwise, score_function, exact


@some_normals
def test_derivatives_of_expectations(case):
    # Components that overlap: between modes far apart the variance is large beyond estimation.
    head, raw, _ = rows(case)
    mixture = head(0.4 * raw[:2])
    count = 20_000
    estimates = gradient_estimates(mixture, count, directions(mixture, 6))
    pathwise, score_function, exact = map(np.asarray, estimates)
    errors = []
    for estimate in (pathwise, score_function):
        error = np.std(estimate, axis=0) / np.sqrt(count)
        assert np.all(np.abs(np.mean(estimate, axis=0) - exact) < 4 * error)
        errors.append(error)
    difference = np.mean(pathwise, axis=0) - np.mean(score_function, axis=0)
    assert np.all(np.abs(difference) < 4 * np.hypot(*errors))
    assert np.all(errors[0] < 0.2 * np.max(np.abs(exact)))  # the test sees an error of this size


@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_one_component_is_the_ordinary_pathwise_derivative(covariance):
    mixture = oracles.random_mixture(np.random.default_rng(2), covariance, 1, 3, (2,))
    direction = directions(mixture, 5)
    for density, tangent in ((mixture, direction), (mixture.components, direction.components)):
        draws, velocity = draws_and_velocity(density, (50,), tangent)
        plain, ordinary = draws_and_velocity(density, (50,), tangent, False)
        np.testing.assert_array_equal(draws, plain)
        np.testing.assert_allclose(velocity, ordinary, rtol=1e-9, atol=1e-10)


def test_far_components_and_weights_near_zero_in_float32():
    # Three modes 30 deviations apart, one of weight 1e-9 in their midst, and a dead one on top.
    loc = np.array([[0.0, 0.0], [30.0, 0.0], [0.0, -30.0], [0.5, 0.5], [0.2, 0.1]])
    logits = np.array([0.0, 0.5, -0.5, np.log(1e-9), -np.inf])
    mixture = jaxmdn.Mixture(
        logits=jnp.asarray(logits),
        components=jaxmdn.components.Normal(loc=jnp.asarray(loc), scale=jnp.ones((5, 2))),
    )
    direction = directions(mixture, 8)
    narrow, narrow_direction = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (mixture, direction)
    )
    draws, velocity = draws_and_velocity(narrow, (2000,), narrow_direction)
    assert velocity.dtype == jnp.float32

    @jax.jit
    def exact_velocity(point):
        return jax.jvp(lambda m: sequential.reattach(m, point), (mixture,), (direction,))[1]

    exact = exact_velocity(draws.astype(jnp.float64))
    # Rounding of the location, and of the cdf where its density is low: 1e-7 over 1e-3.
    error = np.abs(np.asarray(velocity, np.float64) - np.asarray(exact))
    assert np.max(error / (1 + np.abs(np.asarray(exact)))) < 1e-4
    # So far apart, a sample moves as its own component's does, but for the change of the weights.
    gradient = jax.jit(
        jax.grad(
            lambda m: jnp.sum(jaxmdn.sample(jax.random.key(7), m, (2000,), reparameterize=True))
        )
    )(narrow)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(gradient.logits[4], 0.0)
    np.testing.assert_array_equal(gradient.components.loc[4], 0.0)


def test_where_the_density_underflows_the_derivative_is_zero():
    normal = jaxmdn.components.Normal(
        loc=jnp.zeros((2, 2), jnp.float32), scale=jnp.ones((2, 2), jnp.float32)
    )
    mixture = jaxmdn.Mixture(logits=jnp.zeros(2, jnp.float32), components=normal)
    point = jnp.array([[0.3, 20.0], [1e25, 0.1]], jnp.float32)
    slope = jax.jit(jax.jacrev(lambda m: sequential.reattach(m, point)))(mixture)
    leaves = jax.tree.leaves(slope)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
    for leaf in leaves:
        np.testing.assert_array_equal(leaf[0, 1], 0.0)
        np.testing.assert_array_equal(leaf[1, 0], 0.0)
    np.testing.assert_allclose(slope.components.loc[0, 0, :, 0], 0.5, rtol=1e-6)


def test_reparameterised_index_half_precision_and_errors():
    mixture = oracles.random_mixture(np.random.default_rng(3), "low_rank", 3, 2, (4,))
    key = jax.random.key(1)
    draws, index = jaxmdn.sample(key, mixture, (5,), return_index=True, reparameterize=True)
    plain, plain_index = jaxmdn.sample(key, mixture, (5,), return_index=True)
    np.testing.assert_array_equal(draws, plain)
    np.testing.assert_array_equal(index, plain_index)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mixture)
    draws, velocity = draws_and_velocity(half, (5,), directions(half, 2))
    assert (draws.dtype, velocity.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert bool(jnp.all(jnp.isfinite(velocity)))
    with pytest.raises(TypeError, match="reparameterize needs real-valued samples"):
        jaxmdn.sample(key, jaxmdn.CategoricalHead(3)(jnp.zeros(3)), reparameterize=True)


@pytest.mark.parametrize("family", [stats.laplace, stats.logistic, stats.t])
def test_other_families_move_as_the_exact_map_does(family):
    rng = np.random.default_rng(20)
    loc, scale = rng.normal(size=(2, 2)), np.exp(0.5 * rng.normal(size=(2, 2)))
    parameters = {"loc": jnp.asarray(loc), "scale": jnp.asarray(scale)}
    kind = {"laplace": "Laplace", "logistic": "Logistic", "t": "StudentT"}[family.name]
    if kind == "StudentT":
        parameters["df"] = jnp.array([[2.5, 8.0], [4.0, 30.0]])
    mixture = jaxmdn.Mixture(
        logits=jnp.array([0.3, -0.4]), components=getattr(components, kind)(**parameters)
    )
    direction = directions(mixture, 21)
    draws, velocity = draws_and_velocity(mixture, (4,), direction)

    def conditional(mixture, before, value):  # the cdf of the next dimension
        part, d = mixture.components, len(before)
        extra = (np.asarray(part.df),) if kind == "StudentT" else ()
        laws = [
            [family(*(x[k, d] for x in extra), loc=part.loc[k, d], scale=part.scale[k, d])]
            + [
                family(*(x[k, e] for x in extra), loc=part.loc[k, e], scale=part.scale[k, e])
                for e in range(d)
            ]
            for k in (0, 1)
        ]
        log_joint = [
            float(mixture.logits[k])
            + sum(law.logpdf(b) for law, b in zip(laws[k][1:], before, strict=True))
            for k in (0, 1)
        ]
        return special.softmax(log_joint) @ [laws[k][0].cdf(value) for k in (0, 1)]

    step = 1e-4
    for draw, moving in zip(np.asarray(draws), np.asarray(velocity), strict=True):
        ends = []
        for sign in (1, -1):
            there, found = moved(mixture, direction, sign * step), []
            for d in (0, 1):
                level = conditional(mixture, draw[:d], draw[d])

                def excess(t, d=d, level=level, there=there, found=found):
                    return conditional(there, found[:d], t) - level

                found.append(optimize.brentq(excess, draw[d] - 1, draw[d] + 1, xtol=1e-15))
            ends.append(np.array(found))
        numeric = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(moving, numeric, rtol=1e-5, atol=1e-5)
