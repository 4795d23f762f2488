"""Incomplete gamma and beta functions and Bessel's, of extreme shapes: against SciPy and mpmath."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special

from jaxmdn.components import Beta
from jaxmdn.special import beta as beta_functions
from jaxmdn.special import circular
from jaxmdn.special import gamma as gamma_functions

DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])
SHAPES = np.array([1e-2, 0.1, 1.0, 30.0, 1e4, 1e6])


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 2e-12), (np.float32, 1e-5)])
def test_gamma_of_extreme_shape(dtype, rtol):
    # Against 30 digits. JAX's own float32 form of the density is off by 1e-1 for shape 1e6.
    with mpmath.workdps(30):
        points, exact, slopes = [], [], []
        for a in SHAPES.astype(dtype):
            for z in (-3.0, -0.5, 0.5, 3.0):
                x = dtype(max(a + z * np.sqrt(a), 0.2 * a))
                a_, x_ = mpmath.mpf(float(a)), mpmath.mpf(float(x))
                points.append((a, x))
                exact.append(float(a_ * mpmath.log(x_) - x_ - mpmath.loggamma(a_)))
                slopes.append(float(mpmath.log(x_) - mpmath.digamma(a_)))
    a, x = (jnp.asarray(column) for column in np.array(points, dtype).T)
    value, slope = jax.jvp(lambda a: gamma_functions.log_kernel(x, a), (a,), (jnp.ones_like(a),))
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(slope, slopes, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 2e-12), (np.float32, 1e-4)])
def test_gamma_tails_and_quantiles_of_extreme_shape(dtype, rtol):
    # SciPy itself is off by 1e-6 in a lower tail of shape 1e6, so that it ends at 1e5 here. Below
    # shape one the tail above a small target has absolute accuracy (see the class).
    rng = np.random.default_rng(17)
    a = np.exp(rng.uniform(np.log(1e-2), np.log(1e5), 500)).astype(dtype)
    p = np.where(rng.random(500) < 0.5, 10 ** rng.uniform(-6, -0.3, 500), rng.uniform(0.5, 1, 500))
    p = p.astype(dtype)
    x = special.gammaincinv(a.astype(float), p.astype(float))
    usable = x > float(np.finfo(dtype).tiny)
    a, p, x = a[usable], p[usable], x[usable].astype(dtype)
    below, above = jax.jit(gamma_functions.tails)(jnp.asarray(x), jnp.asarray(a))
    a64, x64 = a.astype(float), x.astype(float)
    np.testing.assert_allclose(below, special.gammainc(a64, x64), rtol=rtol)
    np.testing.assert_allclose(above, special.gammaincc(a64, x64), rtol=rtol)
    found = jax.jit(gamma_functions.quantile)(jnp.asarray(p), jnp.asarray(a))
    np.testing.assert_allclose(found, special.gammaincinv(a64, p.astype(float)), rtol=2 * rtol)


def test_gamma_tails_have_the_derivative_in_the_shape():
    points = [(0.05, 0.3), (0.05, 2.0), (5.0, 4.0), (30.0, 80.0), (400.0, 380.0)]
    with mpmath.workdps(30):
        step = mpmath.mpf("1e-10")
        exact = [
            [
                float(
                    (
                        mpmath.gammainc(a + step, *ends, regularized=True)
                        - mpmath.gammainc(a - step, *ends, regularized=True)
                    )
                    / (2 * step)
                )
                for ends in ((0, x), (x, mpmath.inf))
            ]
            for a, x in points
        ]
    a, x = (jnp.asarray(column) for column in np.array(points).T)
    found = jax.jvp(lambda a: gamma_functions.tails(x, a), (a,), (jnp.ones_like(a),))[1]
    np.testing.assert_allclose(np.stack(found, -1), exact, rtol=1e-11)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 3e-12), (np.float32, 1e-4)])
def test_incomplete_beta_of_extreme_shapes(dtype, rtol):
    # Absolute accuracy beside a shape below one; in float32 shapes end at 1e4, where an ulp of x is
    # worth 1e-5 of a tail.
    rng = np.random.default_rng(20)
    end = 6 if dtype == np.float64 else 4
    a, b = (10 ** rng.uniform(-2, end, (2, 1000))).astype(dtype)
    p = np.where(
        rng.random(1000) < 0.5, 10 ** rng.uniform(-6, -0.3, 1000), rng.uniform(0.5, 1, 1000)
    )
    p = p.astype(dtype)
    a64, b64, p64 = (v.astype(float) for v in (a, b, p))
    x, y = special.betaincinv(a64, b64, p64), special.betainccinv(b64, a64, p64)
    x, y = np.where(x < 0.5, x, 1 - y), np.where(x < 0.5, 1 - x, y)
    usable = np.minimum(x, y) > 1e-30
    a, b, p, a64, b64, p64, x, y = (v[usable] for v in (a, b, p, a64, b64, p64, x, y))
    below, above = jax.jit(beta_functions.tails)(*(jnp.asarray(v, dtype) for v in (x, y, a, b)))
    np.testing.assert_allclose(below, p64, rtol=10 * rtol)
    np.testing.assert_allclose(above, 1 - p64, rtol=10 * rtol, atol=1e-9)
    found, rest = jax.jit(beta_functions.quantile)(*(jnp.asarray(v) for v in (p, a, b)))
    np.testing.assert_allclose(found, x, rtol=10 * rtol)
    np.testing.assert_allclose(rest, y, rtol=10 * rtol)


def test_incomplete_beta_has_derivatives_in_the_shapes():
    points = [(18.3, 27.1, 0.4), (0.3, 200.0, 1e-3), (0.2, 0.3, 0.7), (3.0, 0.2, 0.99)]
    with mpmath.workdps(30):
        step, exact = mpmath.mpf("1e-10"), []
        for a, b, x in points:
            ends = [
                mpmath.betainc(a + i * step, b + j * step, 0, x, regularized=True)
                for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))
            ]
            exact.append([float((ends[i] - ends[i + 1]) / (2 * step)) for i in (0, 2)])
    a, b, x = (jnp.asarray(column) for column in np.array(points).T)
    slopes = jax.jit(
        jax.grad(lambda a, b: jnp.sum(beta_functions.tails(x, 1 - x, a, b)[0]), argnums=(0, 1))
    )(a, b)
    np.testing.assert_allclose(np.stack(slopes, -1), exact, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_beta_density_of_extreme_shapes(dtype, rtol):
    with mpmath.workdps(30):
        points, exact = [], []
        for a, b in ((1e-2, 1e-2), (1e-2, 1e4), (1e4, 3e4), (1e6, 1e6), (2.0, 1e6)):
            for z in (0.5, 0.9):
                x = special.betaincinv(a, b, z)
                a_, b_, x_ = (mpmath.mpf(float(dtype(v))) for v in (a, b, x))
                log_beta = mpmath.loggamma(a_) + mpmath.loggamma(b_) - mpmath.loggamma(a_ + b_)
                value = (a_ - 1) * mpmath.log(x_) + (b_ - 1) * mpmath.log(1 - x_) - log_beta
                points.append((a, b, x))
                exact.append(float(value))
    a, b, x = (jnp.asarray(column, dtype) for column in np.array(points).T)
    value = Beta(concentration1=a, concentration0=b).marginal_log_prob(x)
    np.testing.assert_allclose(value, exact, rtol=rtol, atol=rtol)


@DTYPES
def test_the_normaliser_of_any_concentration(dtype):
    k = np.array([0, 1e-6, 1e-3, 0.1, 1, 3, 7.9, 8.1, 20, 100, 1e4, 1e6, 1e8], dtype)
    with mpmath.workdps(40):
        at = [mpmath.mpf(float(v)) for v in k]
        ratio = [1 - mpmath.besseli(1, v) / mpmath.besseli(0, v) for v in at]
        log = [mpmath.log(mpmath.besseli(0, v)) - v for v in at]
        ratio, log = (np.array([float(v) for v in values]) for values in (ratio, log))
    value, slope = jax.jvp(circular.log_i0e, (jnp.asarray(k),), (jnp.ones(13, dtype),))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, log, rtol=4 * eps, atol=4 * eps)
    # Up to 8 one less a quotient, to last places of one; beyond, a series that cancels nothing.
    room = 30 * eps * ratio + np.where(k < 8, 4 * eps, 0)
    assert np.all(np.abs(np.asarray(slope) + ratio) <= room)
