"""The normal distribution's tail: against mpmath and SciPy, from the centre to 1e9 scales out."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special

from jaxmdn.components import LogitNormal, LogNormal, Normal
from jaxmdn.special.normal import half_moment, log_ndtr

SCALES = np.array([0.5, 5.0, 40.0, 1e4, 1e9])
EDGES = np.concatenate([-SCALES, SCALES, [-13.7, -5.0, -1e-3, 0.0, 1e-3, 4.9, 13.7]])


def exact(z):
    """``log P(Z < z)``, its first and its second derivative."""
    z = mpmath.mpf(float(z))
    if z < -60:  # Laplace's continued fraction for h - x, of density over tail
        excess = mpmath.mpf(0)
        for k in range(300, 0, -1):
            excess = k / (excess - z)
        hazard = excess - z
        value = -z * z / 2 - mpmath.log(2 * mpmath.pi) / 2 - mpmath.log(hazard)
        return value, hazard, -hazard * excess
    probability = mpmath.erfc(-z / mpmath.sqrt(2)) / 2
    hazard = mpmath.npdf(z) / probability
    value = mpmath.log1p(-mpmath.erfc(z / mpmath.sqrt(2)) / 2) if z > 0 else mpmath.log(probability)
    return value, hazard, -hazard * (z + hazard)


@jax.jit
def with_derivatives(z):
    one = jnp.ones_like(z)

    def first(z):
        return jax.jvp(log_ndtr, (z,), (one,))

    (value, slope), (_, curvature) = jax.jvp(first, (z,), (one,))
    return value, slope, curvature


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_ndtr_and_its_derivatives(dtype):
    z = EDGES.astype(dtype)
    with mpmath.workdps(50):
        expected = np.array([[float(v) for v in exact(point)] for point in z]).T
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    # Where the numbers are densities, exp(-z^2 / 2), the square's rounding is one of them.
    room = 16 * eps * (1 + np.where(z > 0, np.minimum(z.astype(float), 40) ** 2, 0))
    for found, value in zip(with_derivatives(jnp.asarray(z)), expected, strict=True):
        assert found.dtype == dtype
        gap = np.abs(np.asarray(found, np.float64) - value)
        np.testing.assert_array_less(gap, room * np.abs(value) + tiny)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_ndtr_at_infinity(dtype):
    z = jnp.asarray(np.array([-np.inf, np.inf, np.nan], dtype))
    value, slope, curvature = with_derivatives(z)
    np.testing.assert_array_equal(value, [-np.inf, 0, np.nan])
    np.testing.assert_array_equal(slope, [np.inf, 0, np.nan])
    np.testing.assert_array_equal(curvature[:2], [-1, 0])


def families(y):
    """The families whose tails are the normal's, at scale two around the location one."""
    loc, scale = jnp.ones_like(y), 2 * jnp.ones_like(y)
    return {
        "normal": Normal(loc=loc, scale=scale).log_survival(y),
        "log-normal": LogNormal(loc=loc, scale=scale).log_survival(jnp.exp(y)),
        "logit-normal": LogitNormal(loc=loc, scale=scale).log_cdf(jax.nn.sigmoid(y)),
    }


def test_the_tails_of_families_have_slopes_as_far_as_their_targets_go():
    z = np.array([0.5, 5.0, 40.0])
    y = {"normal": 1 + 2 * np.append(z, [1e4, 1e9]), "log-normal": 1 + 2 * z}
    y["logit-normal"] = 1 - 2 * z
    points = jnp.asarray(np.concatenate(list(y.values())))[:, None]
    _, slopes = jax.jit(lambda y: jax.jvp(families, (y,), (jnp.ones_like(y),)))(points)
    start = 0
    for name, own in y.items():
        found = slopes[name][start : start + len(own), 0]
        start += len(own)
        with mpmath.workdps(50):
            hazard = np.array([float(exact(-abs((v - 1) / 2))[1]) for v in own])
        sign = 1 if name == "logit-normal" else -1
        # exp(y) and the logit of sigmoid(y) are rounded: a last place of y beside one of z.
        np.testing.assert_allclose(found, sign * hazard / 2, rtol=8e-12, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_moments(dtype):
    offset = np.array([0.0, 0.3, 2.0, 30.0, 1e4, 1e9], dtype)
    length = np.array([np.inf, 0.7, np.inf, 1e-3, 5e-5, np.inf], dtype)

    def integral(x, length, power):
        x, length = mpmath.mpf(float(x)), mpmath.mpf(float(length))
        end = min(length, 60 / (1 + x))
        cuts = [end * mpmath.mpf(i) / 8 for i in range(9)]
        return float(mpmath.quad(lambda r: r**power * mpmath.exp(-x * r - r * r / 2), cuts))

    with mpmath.workdps(30):
        exact = [
            [integral(x, w, power) for x, w in zip(offset, length, strict=True)] for power in (0, 1)
        ]

    def found(offset):
        return half_moment(offset, jnp.asarray(length))

    value, slope = jax.jit(lambda x: jax.jvp(found, (x,), (jnp.ones_like(x),)))(jnp.asarray(offset))
    rtol = 20 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, exact[0], rtol=rtol)
    np.testing.assert_allclose(slope, -np.array(exact[1]), rtol=rtol)


def test_log_ndtr_beside_scipy_s():
    z = np.linspace(-30, 8, 2001)
    found = with_derivatives(jnp.asarray(np.resize(z, 2001)))[0]
    np.testing.assert_allclose(found, special.log_ndtr(z), rtol=1e-14 * (1 + np.max(z) ** 2))
