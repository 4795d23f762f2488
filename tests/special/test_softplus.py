"""``log(1 + e^x)``, its slope and curvature against 50 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxmdn.special.softplus import log_sigmoid, softplus

POINTS = [-700.0, -90.0, -20.0, -3.5, -1e-3, 0.0, 1e-3, 0.7, 4.0, 30.0, 1e4]


def exact(x):
    with mpmath.workdps(50):
        x = mpmath.mpf(x)
        share = 1 / (1 + mpmath.exp(-x))
        return mpmath.log1p(mpmath.exp(x)), share, share * (1 - share)


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_slope_and_curvature(dtype):
    x = jnp.asarray(POINTS, dtype)
    slope = jax.grad(softplus)
    found = jax.jit(jax.vmap(lambda x: (softplus(x), slope(x), jax.grad(slope)(x))))(x)
    info = np.finfo(dtype)
    expected = np.array([[float(v) for v in exact(float(p))] for p in x])
    for got, right in zip(found, expected.T, strict=True):
        np.testing.assert_allclose(got, right, rtol=8 * info.eps, atol=2 * float(info.tiny))
    np.testing.assert_array_equal(log_sigmoid(x), -softplus(-x))
    ends = softplus(jnp.asarray([-np.inf, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(ends, [0, np.inf, np.nan])
