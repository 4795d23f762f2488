"""Series and Stirling's rest: values and derivatives against mpmath, over their whole range."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxmdn.special import elementary
from jaxmdn.special.gamma import log_gamma_ratio, stirling_rest

mp = mpmath
POSITIVE = np.exp(np.linspace(np.log(1e-2), np.log(1e9), 60))
ABOVE = np.concatenate([-1 + np.exp(np.linspace(-12, -0.1, 20)), [-1e-7, 0, 1e-7], POSITIVE])
REAL = np.concatenate([-np.exp(np.linspace(-16, 4, 40)), [0], np.exp(np.linspace(-16, 4, 40))])

# name: the function, its arguments, value and derivative in the last argument.
CASES = {
    "log_excess": (
        lambda x: elementary.log_excess(1 + x, x),
        ABOVE,
        lambda x: x - mp.log1p(x),
        lambda x: x / (1 + x),
    ),
    "exp_excess": (elementary.exp_excess, REAL, lambda x: mp.expm1(x) - x, mp.expm1),
    "decay_mean": (
        elementary.decay_mean,
        np.abs(REAL),
        lambda x: -mp.expm1(-x) / x if x else mp.mpf(1),
        lambda x: (mp.exp(-x) + mp.expm1(-x) / x) / x if x else mp.mpf(-0.5),
    ),
    "stirling_rest": (
        stirling_rest,
        POSITIVE,
        lambda a: mp.loggamma(a) - (a - 0.5) * mp.log(a) + a - mp.log(2 * mp.pi) / 2,
        lambda a: mp.digamma(a) - mp.log(a) + 1 / (2 * a),
    ),
    "log_gamma_ratio": (
        log_gamma_ratio,
        POSITIVE,
        lambda a: mp.loggamma(a + 0.5) - mp.loggamma(a) - mp.log(a) / 2,
        lambda a: mp.digamma(a + 0.5) - mp.digamma(a) - 1 / (2 * a),
    ),
}


@jax.jit
def run(points):
    return {name: jax.jvp(CASES[name][0], (x,), (jnp.ones_like(x),)) for name, x in points.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_derivatives(dtype):
    points = {name: jnp.asarray(case[1].astype(dtype)) for name, case in CASES.items()}
    found, eps = run(points), float(np.finfo(dtype).eps)
    for name, (_, _, value, slope) in CASES.items():
        with mp.workdps(50):
            exact = [[float(f(mp.mpf(float(x)))) for x in points[name]] for f in (value, slope)]
        for outcome, expected, what in zip(found[name], exact, ("", "'"), strict=True):
            assert outcome.dtype == dtype
            # A few operations; Stirling's rest next to one is a sum of two parts of size one.
            np.testing.assert_allclose(outcome, expected, rtol=16 * eps, err_msg=name + what)


@jax.jit
def cumulant(m, u):
    def both(direction):
        return jax.jvp(elementary.centred_cumulant, (m, u), direction)[1]

    one, none = jnp.ones_like(m), jnp.zeros_like(m)
    return elementary.centred_cumulant(m, u), both((one, none)), both((none, one))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_centred_cumulant(dtype):
    m, u = (v.ravel().astype(dtype) for v in np.meshgrid([1e-30, 1e-3, 0.2, 0.5], REAL))
    with mp.workdps(60):
        exact = []
        for m_, u_ in zip(m, u, strict=True):
            m_, u_ = mp.mpf(float(m_)), mp.mpf(float(u_))
            r = m_ * mp.expm1(u_)
            exact.append(
                [
                    float(mp.log1p(r) - m_ * u_),
                    float(mp.expm1(u_) / (1 + r) - u_),
                    float((1 - m_) * r / (1 + r)),
                ]
            )
    exact, eps = np.array(exact).T, float(np.finfo(dtype).eps)
    found = cumulant(jnp.asarray(m), jnp.asarray(u))
    # Its terms are log(1 + r) and m u beyond one half; those of the slope in m are
    # (exp(u) - 1 - u) / (1 + r) and u r / (1 + r).
    u, small = u.astype(float), np.minimum(np.abs(u.astype(float)), 1)
    sizes = (
        np.abs(exact[0]) + m * np.abs(u),
        np.abs(exact[1]) + small**2 * (1 + np.abs(u)),
        np.abs(exact[2]),
    )
    for outcome, expected, size in zip(found, exact, sizes, strict=True):
        gap = np.abs(np.asarray(outcome, np.float64) - expected)
        np.testing.assert_array_less(gap, 16 * eps * size + 1e-37)


def test_a_chebyshev_series_is_the_function_it_was_made_of():
    coefficients = elementary.chebyshev_fit(np.exp, 16)
    x = np.linspace(-1, 1, 21)
    found = elementary.chebyshev(jnp.asarray(x), coefficients)
    np.testing.assert_allclose(found, np.exp(x), atol=1e-14, rtol=0)
    np.testing.assert_allclose(
        elementary.polynomial(jnp.asarray(x), [1.0, -2.0, 3.0]), 1 - 2 * x + 3 * x**2
    )


def test_quadrature_of_a_pair():
    like = (jnp.zeros(2), jnp.zeros(2))
    power = jnp.array([3.0, 5.0])
    found = elementary.integrate(lambda t: (t**power, jnp.exp(power * t)), 12, like)
    np.testing.assert_allclose(found[0], [1 / 4, 1 / 6], rtol=1e-15)
    np.testing.assert_allclose(found[1], np.expm1([3, 5]) / [3, 5], rtol=1e-14)
