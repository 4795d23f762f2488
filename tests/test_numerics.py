"""The stable primitives against 80-digit arithmetic and NumPy, at the edges and in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import mp
from scipy import special

from jaxmdn import numerics

INF = np.inf


def vectors(low=-50, high=50, size=5):
    return st.lists(st.floats(low, high), min_size=size, max_size=size).map(np.array)


# ------------------------------------------------------------------------ logsumexp and weights


@given(vectors(-1e4, 1e4))
def test_logsumexp_is_scipys(a):
    """Near zero to the rounding of the sum, which is near one there."""
    found = numerics.logsumexp(jnp.asarray(a))
    np.testing.assert_allclose(found, special.logsumexp(a), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([-INF, -INF], -INF),
        ([-INF, 3.0], 3.0),
        ([INF, 3.0], INF),
        ([np.nan, 3.0], np.nan),
        ([np.nan, -INF], np.nan),
        ([1e4, 1e4], 1e4 + np.log(2)),
        ([-1e4, -1e4], -1e4 + np.log(2)),
    ],
)
def test_logsumexp_at_the_edges(entries, expected):
    np.testing.assert_allclose(numerics.logsumexp(jnp.asarray(entries)), expected, rtol=1e-15)


def test_logsumexp_along_another_axis():
    a = np.random.default_rng(0).normal(size=(2, 3, 4))
    for axis in (-1, 0):
        value = numerics.logsumexp(jnp.asarray(a), axis=axis)
        np.testing.assert_allclose(value, special.logsumexp(a, axis=axis), rtol=1e-13)


def _softmax_curvature(a):
    weights = special.softmax(a)
    return np.diag(weights) - np.outer(weights, weights)


@jax.jit
def _derivatives_of_logsumexp(point):
    modes = (jax.jacfwd, jax.jacrev)
    slopes = [mode(numerics.logsumexp)(point) for mode in modes]
    return slopes, [a(b(numerics.logsumexp))(point) for a in modes for b in modes]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dead", [[], [0], [1, 2], [0, 1, 2]])
def test_logsumexp_gradients_with_dead_entries(dead, dtype):
    a = np.array([0.3, -1.2, 2.0])
    a[dead] = -INF
    with np.errstate(invalid="ignore"):
        slope = np.nan_to_num(special.softmax(a))  # of no entry at all: zero
        curvature = np.nan_to_num(_softmax_curvature(a))
    point = jnp.asarray(a, dtype)
    rtol = {"float32": 1e-6, "float64": 1e-14}[dtype]
    slopes, curvatures = _derivatives_of_logsumexp(point)
    for value in slopes:
        np.testing.assert_allclose(value, slope, rtol, atol=rtol)
    for value in curvatures:
        np.testing.assert_allclose(value, curvature, rtol, atol=rtol)


@pytest.mark.parametrize("dead", [[], [1], [0, 2]])
def test_log_normalize_with_dead_entries(dead):
    logits = np.array([0.3, -1.2, 2.0, 700.0])
    logits[dead] = -INF
    value = numerics.log_normalize(jnp.asarray(logits))
    np.testing.assert_allclose(value, special.log_softmax(logits), rtol=1e-13)
    alive = np.isfinite(logits)
    weights = special.softmax(logits)
    jacobian = jax.jit(jax.jacrev(numerics.log_normalize))(jnp.asarray(logits))
    expected = (np.eye(4) - weights)[alive]
    np.testing.assert_allclose(jacobian[alive], expected, rtol=1e-13, atol=1e-15)


def test_log_normalize_is_blind_to_a_common_constant():
    # In float32 the logarithm of the sum, 1e4 + 0.69, is only known to 5e-4.
    value = numerics.log_normalize(jnp.asarray([1e4, 1e4, 1e4 - 3], jnp.float32))
    np.testing.assert_allclose(value, special.log_softmax([0.0, 0.0, -3.0]), rtol=1e-6)


def test_log_normalize_of_nothing_but_dead_entries():
    logits = jnp.full((3,), -jnp.inf)
    np.testing.assert_array_equal(numerics.log_normalize(logits), [-INF] * 3)
    np.testing.assert_array_equal(
        jax.grad(lambda a: numerics.log_normalize(a)[0])(logits)[1:], [0, 0]
    )
    total = jax.grad(lambda a: jnp.sum(jnp.exp(numerics.log_normalize(a))))(logits)
    np.testing.assert_array_equal(total, [0, 0, 0])


def test_weighted_sum_silences_only_a_weight_of_zero():
    values = jnp.asarray([[1.0, INF], [2.0, np.nan], [3.0, 5.0]])
    weights = jnp.asarray([[0.25, 0.0], [0.5, 0.0], [0.25, 1.0]])
    np.testing.assert_array_equal(numerics.weighted_sum(weights, values, 0), [2.0, 5.0])
    slope = jax.grad(lambda v: jnp.sum(numerics.weighted_sum(weights, v, 0)))(values)
    np.testing.assert_array_equal(slope, weights)
    spoiled = numerics.weighted_sum(jnp.asarray([np.nan, 0.5]), jnp.ones(2), 0)
    assert np.isnan(spoiled)


@given(vectors(-1e4, 1e4, size=4), st.floats(1e-6, 0.24))
def test_floored_weights(logits, floor):
    weights = np.exp(numerics.floor_log_weights(jnp.asarray(logits), floor))
    expected = floor + (1 - 4 * floor) * special.softmax(logits)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@given(vectors(-4, 4, size=4), st.sampled_from([0.0, 1e-3, 0.2]))
def test_floored_weights_invert(logits, floor):
    floored = numerics.floor_log_weights(jnp.asarray(logits), floor)
    back = numerics.unfloor_log_weights(floored, floor)
    np.testing.assert_allclose(special.softmax(back), special.softmax(logits), rtol=1e-10)


_jacobian_of_floored = jax.jit(jax.jacrev(lambda a: numerics.floor_log_weights(a, 0.1)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "logits", [[1e4, -1e4, 0.0], [-INF, 0.0, 1.0], [-INF, -INF, 0.0], [-INF, -INF, -INF]]
)
def test_gradient_of_floored_weights_is_finite(logits, dtype):
    jacobian = _jacobian_of_floored(jnp.asarray(logits, dtype))
    if np.any(np.isfinite(logits)):
        softmax = special.softmax(logits)
        weights = 0.1 + 0.7 * softmax
        expected = 0.7 * _softmax_curvature(np.array(logits)) / weights[:, None]
    else:
        expected = np.zeros((3, 3))
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-7)


def test_weights_below_the_floor_have_no_raw_number():
    back = numerics.unfloor_log_weights(jnp.log(jnp.asarray([0.05, 0.35, 0.6])), 0.1)
    assert np.isnan(back[0])
    assert np.all(np.isfinite(back[1:]))


# --------------------------------------------------------------------------- elementwise parts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_softplus(dtype):
    y = np.array([1e-30, 1e-12, 1e-3, 0.5, 1.0, 20.0, 90.0, 1e4]).astype(dtype)
    exact = np.array([float(mp.log(mp.expm1(mp.mpf(float(value))))) for value in y])
    # An error of one rounding in y is one of 1 / (1 - e^-y) <= 2 in the result, where y is large.
    tolerance = {"float32": 3e-7, "float64": 1e-15}[dtype]
    result = numerics.inverse_softplus(jnp.asarray(y))
    np.testing.assert_allclose(result, exact, rtol=tolerance, atol=tolerance)
    slope = jax.vmap(jax.grad(numerics.inverse_softplus))(jnp.asarray(y))
    np.testing.assert_allclose(slope, -1 / np.expm1(-y.astype(np.float64)), rtol=5 * tolerance)


def test_inverse_softplus_of_zero_and_less():
    assert numerics.inverse_softplus(jnp.float64(0.0)) == -INF
    assert np.isnan(numerics.inverse_softplus(jnp.float64(-1.0)))


def test_standardize_has_the_derivatives_of_a_division():
    rng = np.random.default_rng(1)
    y, loc = (jnp.asarray(rng.normal(size=(2, 3))) for _ in range(2))
    scale = jnp.asarray(np.exp(rng.normal(size=(2, 1))))
    np.testing.assert_allclose(
        numerics.standardize(y, loc, scale), (np.asarray(y) - loc) / scale, rtol=1e-15
    )

    directions = [rng.normal(size=x.shape) for x in (y, loc, scale)]

    def along(t):
        moved = (x + t * jnp.asarray(v) for x, v in zip((y, loc, scale), directions, strict=True))
        return numerics.standardize(*moved)

    # Along a line, d z = (dy - dloc - z dscale) / scale, and d dz = -2 dz dscale / scale.
    dy, dloc, dscale = directions
    first = (dy - dloc - (np.asarray(y) - loc) / scale * dscale) / np.asarray(scale)
    second = -2 * first * dscale / np.asarray(scale)

    @jax.jit
    def derivatives(t):
        modes = (jax.jacfwd, jax.jacrev)
        return [mode(along)(t) for mode in modes], [a(b(along))(t) for a in modes for b in modes]

    for found, expected in zip(derivatives(0.0), (first, second), strict=True):
        for value in found:
            np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_standardize_survives_a_tiny_scale_in_float32():
    # autodiff of a division forms 1 / scale^2 = 1e60 there.
    y, loc, scale = jnp.float32(2.0), jnp.float32(1.0), jnp.float32(1e-30)
    value, pull = jax.vjp(numerics.standardize, y, loc, scale)
    np.testing.assert_allclose(value, 1e30, rtol=1e-6)
    assert [float(slope) for slope in pull(jnp.float32(0))] == [0, 0, 0]
    slopes = pull(jnp.float32(1e-25))
    np.testing.assert_allclose(slopes, [1e5, -1e5, -1e35], rtol=1e-6)
    _, pull = jax.vjp(numerics.divide, y, scale)
    np.testing.assert_allclose(pull(jnp.float32(1e-25)), [1e5, -2e35], rtol=1e-6)


# -------------------------------------------------------------------------------- linear algebra


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_packing_a_triangle(dim):
    packed = np.random.default_rng(dim).normal(size=(2, dim * (dim - 1) // 2))
    matrix = jax.jit(numerics.unpack_unit_tril, static_argnums=1)(packed, dim)
    expected = np.broadcast_to(np.eye(dim), (2, dim, dim)).copy()
    position = 0
    for i in range(dim):
        for j in range(i):
            expected[:, i, j] = packed[:, position]
            position += 1
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(jax.jit(numerics.pack_tril)(matrix), packed)
    assert numerics.tril_size(dim) == packed.shape[-1]


def test_derivatives_of_a_triangle_scatter_nothing():
    packed, weights = np.asarray([2.0, 3.0, 4.0]), np.arange(9.0).reshape(3, 3)

    def total(packed):
        whole = numerics.unpack_unit_tril(packed, 3)
        return jnp.sum(weights * whole) + jnp.sum(numerics.diagonal(weights * whole) ** 2)

    @jax.jit
    def derivatives(packed, weights):
        change = jax.jvp(lambda p: numerics.unpack_unit_tril(p, 3), (packed,), (packed,))[1]
        slopes = jax.grad(lambda w: jnp.sum(numerics.diagonal(w) ** 2))(weights)
        return jax.grad(total)(packed), change, slopes

    assert "scatter" not in str(jax.make_jaxpr(jax.grad(total))(packed))
    gradient, change, slopes = derivatives(packed, weights)
    np.testing.assert_array_equal(gradient, [3, 6, 7])
    np.testing.assert_array_equal(change, [[0, 0, 0], [2, 0, 0], [3, 4, 0]])
    np.testing.assert_array_equal(slopes, np.diag([0, 8, 16]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_inverting_a_triangle(dtype):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(np.tril(rng.normal(size=(2, 3, 4, 4)), -1) + 2 * np.eye(4), dtype)
    result = numerics.invert_tril(matrix)
    wide = dtype == jnp.float64
    assert result.dtype == (jnp.float64 if wide else jnp.float32)
    expected = np.linalg.inv(np.asarray(matrix.astype(jnp.float64)))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14 if wide else 1e-5)


def test_matvec_broadcasts():
    rng = np.random.default_rng(0)
    matrix, vector = rng.normal(size=(3, 1, 2, 4)), rng.normal(size=(5, 4))
    expected = (matrix @ vector[..., None])[..., 0]
    np.testing.assert_allclose(numerics.matvec(jnp.asarray(matrix), jnp.asarray(vector)), expected)


@pytest.mark.parametrize(
    ("lead", "size", "trailing", "index_shape"),
    [
        ((), 3, (), ()),
        ((), 3, (2,), (5,)),
        ((4,), 3, (2,), (4,)),
        ((4,), 3, (2, 2), (5, 4)),
        ((1, 4), 3, (2,), (5, 1)),
        ((4,), 1, (2,), (5, 4)),
        ((), 1, (2,), (5, 4)),
    ],
)
def test_take_along_broadcasts(lead, size, trailing, index_shape):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(*lead, size, *trailing))
    index = rng.integers(3, size=index_shape)
    take = jax.jit(numerics.take_along, static_argnums=2)
    result = take(array, index, -1 - len(trailing))
    shape = np.broadcast_shapes(lead, index_shape)
    assert result.shape == (*shape, *trailing)
    array = np.broadcast_to(array, (*shape, size, *trailing))
    index = np.broadcast_to(index, shape)
    for position in np.ndindex(*shape):
        entry = array[position][0 if size == 1 else index[position]]
        np.testing.assert_array_equal(result[position], entry)


def test_compute_dtype_is_at_least_float32():
    half, single, double = (jnp.zeros(1, d) for d in (jnp.bfloat16, jnp.float32, jnp.float64))
    assert numerics.compute_dtype(half) == jnp.float32
    assert numerics.compute_dtype(half, jnp.zeros(1, jnp.float16)) == jnp.float32
    assert numerics.compute_dtype(single, double, jnp.zeros(1, jnp.int32)) == jnp.float64
    assert [a.dtype for a in numerics.upcast(half, single)] == [jnp.float32] * 2
