"""What the other modules are made of: series, quadrature, and differences that do not cancel.

Close to zero each of these functions is a power of its argument while its textbook form is a
difference of numbers of size one, of which float32 has no digit left: there it is a series. The
derivatives are written out: those of the series would cost more and hold fewer digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.typing import Array, Float

# By the dtype's bytes: terms of the series below, so many that the first one left out is below
# rounding at the largest argument: 2 w^(2 n) / (2 n + 3) of artanh, for w <= 1/3 in log_excess
# (where it counts one sixth) and w <= 0.14 in centred_cumulant; .7^n / (n + 2)! of exp;
# n / (n + 1)! of the slope of decay_mean.
_LOG_TERMS, _CUMULANT_TERMS = {4: 7, 8: 15}, {4: 5, 8: 9}
_EXP_TERMS, _DECAY_TERMS = {4: 8, 8: 14}, {4: 12, 8: 19}
#: By the dtype's bytes: Gauss nodes for integrands that are smooth up to where they end, and the
#: exponent at which they end: exp(-20) = 2e-9 and exp(-42) = 6e-19. Beside 100 nodes the logarithm
#: of a tail (20,000 shapes from 1e-2 to 1e6) changes by rounding, but for the beta's in float64: by
#: up to 1.4e-13 of one plus itself.
NODES, CUT = {4: 14, 8: 32}, {4: 20.0, 8: 42.0}


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """``sum_n c_n x^n`` by Horner's rule."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def chebyshev(x: Array, coefficients: np.ndarray) -> Array:
    """``sum_n c_n T_n(x)`` for ``-1 <= x <= 1`` by Clenshaw's recurrence."""
    last, *inner, first = (float(c) for c in coefficients[::-1])
    twice, before, total = 2 * x, jnp.zeros_like(x), jnp.full_like(x, last)
    for coefficient in inner:
        before, total = total, twice * total - before + coefficient
    return x * total - before + first


def chebyshev_fit(function: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """The coefficients with which :func:`chebyshev` is a function at ``count`` Chebyshev nodes."""
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    return np.polynomial.chebyshev.chebfit(nodes, function(nodes), count - 1)


@functools.cache
def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights of the interval from 0 to 1.

    Newton's method for the roots of the Legendre polynomial ``P_n``, whose weights are
    ``2 / ((1 - x^2) P_n'(x)^2)``; NumPy's are off by 1e-13.
    """
    x = np.cos(np.pi * (np.arange(count)[::-1] + 0.75) / (count + 0.5)).astype(np.longdouble)
    for _ in range(6):
        before, value = np.ones_like(x), x
        for n in range(2, count + 1):
            before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
        slope = count * (x * value - before) / (x * x - 1)
        x = x - value / slope
    return tuple(v.astype(float) for v in (0.5 * (1 + x), 1 / ((1 - x * x) * slope**2)))


def integrate(integrand: Callable[[Array], Any], count: int, like: Any, panels: int = 1) -> Any:
    """``int_0^1 integrand(t) dt`` by Gauss and Legendre, elementwise; a pytree shaped as ``like``.

    ``count`` nodes on each of equal panels. Node by node, which compilers vectorise over the
    elements; all nodes at once they do not.
    """
    dtype = jax.tree.leaves(like)[0].dtype
    places, weights = (np.tile(v, panels) / panels for v in legendre(count))
    places = places + np.repeat(np.arange(panels), count) / panels
    nodes = jnp.asarray(np.stack([places, weights], axis=-1), dtype)

    def add(total: Any, node: Array) -> tuple[Any, None]:
        return jax.tree.map(lambda sum_, v: sum_ + node[1] * v, total, integrand(node[0])), None

    return meshes.scan(add, jax.tree.map(jnp.zeros_like, like), nodes)[0]


@jax.custom_jvp
def log_excess(ratio: Float[Array, "..."], above: Float[Array, "..."]) -> Float[Array, "..."]:
    """``r - 1 - log(r)`` for ``r > 0``; ``above`` is ``r - 1`` without its cancellation.

    ``log(1 + a) = 2 artanh(w) = 2 (w + w^3 / 3 + ...)`` with ``w = a / (2 + a)``, and ``a - 2 w``
    is ``a w``. The derivative takes the tangent of whichever does not cancel.
    """
    close = _log_series(above, _LOG_TERMS)
    return jnp.where(jnp.abs(above) < 0.5, close, ratio - 1 - jnp.log(ratio))


@log_excess.defjvp
def _log_excess_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # Both tangents are the same number; that of ``above`` cancels where the ratio is small.
    (ratio, above), (dratio, dabove) = primals, tangents
    change = jnp.where(jnp.abs(above) < 0.5, dabove, dratio)
    return log_excess(ratio, above), above / ratio * change


def _log_series(x: Array, count: dict[int, int]) -> Array:
    w = x / (2 + x)
    terms = [2 / (2 * n + 3) for n in range(count[w.dtype.itemsize])]
    return w * (x - w * w * polynomial(w * w, terms))


def log_gap(a: Array, b: Array, rise: Array) -> Array:
    """``b / a - 1 - log(b / a)``; ``rise`` is ``b - a`` without its cancellation."""
    return log_excess(b / a, rise / a)


@jax.custom_jvp
def exp_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``exp(x) - 1 - x``."""
    return jnp.where(jnp.abs(x) < 0.7, _exp_series(x), jnp.expm1(x) - x)


exp_excess.defjvps(lambda dx, _, x: jnp.expm1(x) * dx)


def _exp_series(x: Array) -> Array:
    terms = [1 / math.factorial(n + 2) for n in range(_EXP_TERMS[x.dtype.itemsize])]
    return x * x * polynomial(x, terms)


@jax.custom_jvp
def centred_cumulant(m: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 + m (exp(u) - 1)) - m u`` for ``0 <= m <= 1/2``; ``m (1 - m) u^2 / 2`` near zero.

    The cumulant generating function of a Bernoulli variable less its mean ``m``. With
    ``r = m (exp(u) - 1)`` it is ``m (exp(u) - 1 - u) - (r - log(1 + r))``.
    """
    r = m * jnp.expm1(u)
    close = m * _exp_series(u) - _log_series(r, _CUMULANT_TERMS)
    return jnp.where(jnp.abs(u) < 0.5, close, jnp.log1p(r) - m * u)


@centred_cumulant.defjvp
def _centred_cumulant_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # In m: (exp(u) - 1) / (1 + r) - u.
    (m, u), (dm, du) = primals, tangents
    r = _centred_rise(m, u)
    in_m = (exp_excess(u) - u * r) / (1 + r)
    return centred_cumulant(m, u), centred_slope(m, u) * du + in_m * dm


def centred_slope(m: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of :func:`centred_cumulant` in ``u``, ``(1 - m) r / (1 + r)``."""
    r = _centred_rise(m, u)
    return (1 - m) * r / (1 + r)


def _centred_rise(m: Array, u: Array) -> Array:
    return jnp.minimum(m * jnp.expm1(u), float(jnp.finfo(u.dtype).max) / 4)


@jax.custom_jvp
def decay_mean(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The mean of ``exp(-t)`` over ``0 <= t <= x``: ``(1 - exp(-x)) / x``, one at zero."""
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, -jnp.expm1(-safe) / safe)


@decay_mean.defjvp
def _decay_mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # (exp(-x) - E(x)) / x, or sum_n (-1)^n n x^(n - 1) / (n + 1)!
    (x,), (dx,) = primals, tangents
    value, near = decay_mean(x), jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    terms = range(1, _DECAY_TERMS[x.dtype.itemsize])
    series = polynomial(small, [(-1.0) ** n * n / math.factorial(n + 1) for n in terms])
    return value, jnp.where(near, series, (jnp.exp(-large) - value) / large) * dx
