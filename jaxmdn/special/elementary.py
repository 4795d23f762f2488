"""Special functions of the families, each right in value and in derivative over its whole range.

All of them are differences of nearly equal numbers at one end (equal scales, many degrees of
freedom), where the textbook formula, or its derivative by autodiff, has no digit left in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.typing import Array, Float

# By the dtype's bytes: from which argument the series below hold, and how many terms they take.
_SHIFTS, _STIRLING_TERMS, _TAYLOR_TERMS = {4: 3, 8: 10}, {4: 6, 8: 7}, {4: 10, 8: 18}
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
_STIRLING = tuple(
    (2.0 ** -(2 * n + 1) - 2) * number / ((2 * n + 1) * (2 * n + 2))
    for n, number in enumerate(_BERNOULLI)
)


@jax.custom_jvp
def decay_mean(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The mean of ``exp(-t)`` over ``0 <= t <= x``: ``(1 - exp(-x)) / x``, one at zero."""
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, -jnp.expm1(-safe) / safe)


@decay_mean.defjvp
def _decay_mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    value = decay_mean(x)
    near = jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    # sum_n (-1)^n n x^(n - 1) / (n + 1)!
    coefficients = [(-1.0) ** n * n / _factorial(n + 1) for n in range(1, _terms(x))]
    slope = jnp.where(near, _polynomial(small, coefficients), (jnp.exp(-large) - value) / large)
    return value, slope * dx


def log1p_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 + x) - x / (1 + x)`` for ``x >= 0``; ``x^2 / 2`` near zero."""
    near = x < 0.25
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    w = small / (2 + small)  # log(1 + x) = 2 artanh(w)
    series = _polynomial(w * w, [2 / (2 * n + 1) for n in range(1, 9)])
    close = w * small / (1 + small) + w**3 * series
    return jnp.where(near, close, jnp.log1p(large) - 1 / (1 + 1 / large))


def log_gamma_ratio(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(Gamma(a + 1/2) / (Gamma(a) sqrt(a)))`` for ``a > 0``; ``-1 / (8 a)`` for large ``a``.

    Stirling's series, after the recurrence for small arguments; NaN for ``a < 0``.
    """
    shift = _SHIFTS[a.dtype.itemsize]
    small = a < shift
    low = jnp.where(small, a, 1)
    moved = jnp.where(small, a + shift, a)
    inverse = 1 / moved
    terms = _STIRLING[: _STIRLING_TERMS[a.dtype.itemsize]]
    series = inverse * _polynomial(inverse * inverse, terms)
    product = jnp.ones_like(low)
    for step in range(shift):
        product = product * ((low + step + 0.5) / (low + step))
    back = 0.5 * jnp.log1p(shift / low) - jnp.log(product)
    return series + jnp.where(small, back, 0)


def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights of the interval from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (nodes + 1), 0.5 * weights


def _polynomial(x: Array, coefficients: list[float] | tuple[float, ...]) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _terms(x: Array) -> int:
    return _TAYLOR_TERMS[x.dtype.itemsize]


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1, dtype=np.float64)))
