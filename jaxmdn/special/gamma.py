"""The gamma function and its incomplete integrals, with derivatives in the shape, for any shape.

JAX's own form ``a log(x) - x - log Gamma(a)`` from large terms that cancel (in float32 nothing is
left of a density of shape 1e6), and their incomplete integrals run until the slowest element has
converged. Here the cancellation is done on paper and both tails are integrals of log-concave
functions of ``log t``, cut where they are negligible and given to rounding by a few Gauss nodes:

    Q(a, x) = x^a exp(-x) / Gamma(a) int_0^inf exp(-(x - a) w - x (exp(w) - 1 - w)) dw,
    P(a, x) = x^a exp(-x) / Gamma(a + 1) (1 + x J),
    J = int_0^inf exp(-(a + 1 - x) w - x (exp(-w) - 1 + w)) dw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from jaxmdn import numerics
from jaxmdn.special.elementary import legendre
from jaxmdn.typing import Array, Float

# By the dtype's bytes: Gauss nodes, where an integrand exp(-E) is cut, terms of the series below.
NODES, CUT = {4: 14, 8: 32}, {4: 20.0, 8: 42.0}
_LOG_TERMS, _EXP_TERMS = {4: 7, 8: 15}, {4: 8, 8: 14}
_STIRLING_TERMS = {4: 9, 8: 25}
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
#: Newton's steps of the quantile.
NEWTON_STEPS = 6


def log_excess(ratio: Float[Array, "..."], above: Float[Array, "..."]) -> Float[Array, "..."]:
    """``r - 1 - log(r)`` for ``r > 0``; ``above`` is ``r - 1`` without its cancellation."""
    near = jnp.abs(above) < 0.5
    small, far = jnp.where(near, above, 0), jnp.where(near, 1, ratio)
    w = small / (2 + small)  # log(1 + x) = 2 artanh(w), and x - 2 w = x w
    terms = [2 / (2 * n + 3) for n in range(_LOG_TERMS[w.dtype.itemsize])]
    close = w * (small - w * w * polynomial(w * w, terms))
    return jnp.where(near, close, far - 1 - jnp.log(far))


def exp_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``exp(x) - 1 - x``."""
    near = jnp.abs(x) < 0.7
    small, far = jnp.where(near, x, 0), jnp.where(near, 1, x)
    terms = [1 / math.factorial(n + 2) for n in range(_EXP_TERMS[x.dtype.itemsize])]
    return jnp.where(near, small * small * polynomial(small, terms), jnp.expm1(far) - far)


@functools.cache
def _stirling_coefficients(count: int) -> tuple[np.ndarray, np.ndarray]:
    """``12 a S(a)`` and ``-12 a^2 S'(a)`` of :func:`stirling_rest`, ``a >= 1``, by ``2 / a - 1``.

    Chebyshev series. With ``w = 1 / (2 a + 1)``, ``S(a) - S(a + 1) = artanh(w) / w - 1`` is
    positive and decreases: added up until the asymptotic series holds, nothing cancels.
    """
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    a = 2 / (nodes + 1)
    value, slope = np.zeros(count), np.zeros(count)
    for step in range(12):
        w = 1 / (2 * (a + step) + 1)
        value += sum(w ** (2 * n) / (2 * n + 1) for n in range(1, 20))
        slope += sum(w ** (2 * n + 1) * (4 * n) / (2 * n + 1) for n in range(1, 20))
    inverse = 1 / (a + 12)
    value += sum(c * inverse ** (2 * n + 1) for n, c in enumerate(_STIRLING))
    slope += sum(c * (2 * n + 1) * inverse ** (2 * n + 2) for n, c in enumerate(_STIRLING))
    fit = np.polynomial.chebyshev.chebfit
    return fit(nodes, 12 * a * value, count - 1), fit(nodes, 12 * a * a * slope, count - 1)


def _stirling_series(inverse: Array, which: int) -> Array:
    x = 2 * inverse - 1
    before, total = jnp.zeros_like(x), jnp.zeros_like(x)
    coefficients = _stirling_coefficients(_STIRLING_TERMS[x.dtype.itemsize])[which]
    for coefficient in coefficients[:0:-1]:  # Clenshaw's recurrence
        before, total = total, 2 * x * total - before + float(coefficient)
    return (x * total - before + float(coefficients[0])) * (inverse / 12)


@jax.custom_jvp
def stirling_rest(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """What Stirling's formula misses, ``log Gamma(a) - (a - 1/2) log(a) + a - log(2 pi) / 2``.

    ``1 / (12 a)`` for large ``a``; relative accuracy, in the derivative too.
    """
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, (low + 0.5) * jnp.log1p(1 / low) - 1, 0)
    return _stirling_series(1 / jnp.where(small, a + 1, a), 0) + back


@stirling_rest.defjvp
def _stirling_rest_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (a,), (da,) = primals, tangents
    return stirling_rest(a), stirling_slope(a) * da


def stirling_slope(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of :func:`stirling_rest`, ``digamma(a) - log(a) + 1 / (2 a)``."""
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, jnp.log1p(1 / low) - (low + 0.5) / (low + 1) / low, 0)
    inverse = 1 / jnp.where(small, a + 1, a)
    return back - _stirling_series(inverse, 1) * inverse


def log_gamma(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log Gamma(a)`` for ``a > 0``."""
    return stirling_rest(a) + (a - 0.5) * jnp.log(a) - a + 0.5 * numerics.LOG_2PI


def log_kernel(x: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(x^a exp(-x) / Gamma(a))`` for ``x > 0``: the log-density of ``log t`` at ``log x``."""
    fit = -a * log_excess(x / a, (x - a) / a)
    return fit + 0.5 * (jnp.log(a) - numerics.LOG_2PI) - stirling_rest(a)


def _log_side(x: Array, a: Array) -> tuple[Array, Array, Array]:
    """Whether ``P`` is computed directly (else ``Q``), its logarithm, and density over it."""
    lower = x < jnp.maximum(a, 1)
    shape = jnp.where(lower, a + 1, a)
    sign = jnp.where(lower, -1, 1).astype(x.dtype)
    width = jax.lax.stop_gradient(_width(x, shape, lower))

    stretched = jnp.log1p(jnp.where(lower, width, 0))

    def integrand(node: Array) -> Array:
        # Towards zero the integrand has a bend at w = 1 and a long tail: crowd the nodes there.
        inner = stretched * node
        w = jnp.where(lower, jnp.expm1(inner), width * node)
        stretch = jnp.where(lower, stretched * jnp.exp(inner), width)
        power = sign * (x - shape) * w + x * exp_excess(sign * w)
        return stretch * jnp.exp(-power)

    integral = integrate(integrand, NODES[x.dtype.itemsize], width)
    inner = jnp.where(lower, (1 + x * integral) / a, integral)
    return lower, log_kernel(x, a) + jnp.log(inner), 1 / (x * inner)


def integrate(integrand: Callable[[Array], Array], count: int, like: Array) -> Array:
    """``int_0^1 integrand(t) dt`` by Gauss and Legendre, elementwise.

    Node by node, which compilers vectorise over the elements; all nodes at once they do not.
    """
    nodes = jnp.asarray(np.stack(legendre(count), axis=-1), like.dtype)

    def add(total: Array, node: Array) -> tuple[Array, None]:
        return total + node[1] * integrand(node[0]), None

    return jax.lax.scan(add, jnp.zeros_like(like), nodes)[0]


def _width(x: Array, shape: Array, lower: Array) -> Array:
    """Where the exponent of the integrand has grown to the cut, or a little further."""
    cut = CUT[x.dtype.itemsize]
    slope = jnp.abs(x - shape)
    parabola = 2 * cut / (slope + jnp.sqrt(slope * slope + 2 * x * cut))
    share = cut / jnp.where(lower, 1, x)
    above = jnp.minimum(parabola, jnp.log1p(share + jnp.sqrt(2 * share)))
    # exp(-w) - 1 + w >= w^2 / (2 + w)
    half = slope - 0.5 * cut
    root = jnp.sqrt(half * half + 2 * shape * cut)
    positive = half > 0
    below = jnp.where(
        positive, 2 * cut / (jnp.where(positive, half, 1) + root), (root - half) / shape
    )
    return jnp.where(lower, below, above)


def _tails(x: Array, a: Array) -> tuple[Array, Array]:
    lower, log_side, _ = _log_side(x, a)
    side = jnp.minimum(jnp.exp(log_side), 1)
    return jnp.where(lower, side, 1 - side), jnp.where(lower, 1 - side, side)


@jax.custom_jvp
def tails(x: Array, a: Array) -> tuple[Array, Array]:
    """``P(a, x)`` and ``Q(a, x)`` for ``0 < x < inf``."""
    return _tails(x, a)


@tails.defjvp
def _tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, a), (dx, da) = primals, tangents
    values, (slope, _) = slope_in(lambda a: _tails(x, a), x, a)
    change = slope * da + jnp.exp(log_kernel(x, a) - jnp.log(x)) * dx
    return values, (change, -change)


def _log_tails(x: Array, a: Array) -> tuple[Array, Array]:
    lower, log_side, _ = _log_side(x, a)
    other = jnp.log1p(-jnp.minimum(jnp.exp(log_side), 1))
    return jnp.where(lower, log_side, other), jnp.where(lower, other, log_side)


@jax.custom_jvp
def log_tails(x: Array, a: Array) -> tuple[Array, Array]:
    """``log P(a, x)`` and ``log Q(a, x)`` for ``0 < x < inf``."""
    return _log_tails(x, a)


@log_tails.defjvp
def _log_tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, a), (dx, da) = primals, tangents
    values, slopes = slope_in(lambda a: _log_tails(x, a), x, a)
    lower, _, hazard = _log_side(x, a)
    other = jnp.exp(log_kernel(x, a) - jnp.log(x) - jnp.where(lower, values[1], values[0]))
    hazards = jnp.where(lower, hazard, other), -jnp.where(lower, other, hazard)
    changes = tuple(s * da + h * dx for s, h in zip(slopes, hazards, strict=True))
    return values, changes


def slope_in(function: object, like: Array, parameter: Array) -> tuple:
    """The values of an elementwise function and their derivatives in its argument."""
    full = jnp.broadcast_to(parameter, jnp.broadcast_shapes(parameter.shape, like.shape))
    return jax.jvp(function, (full,), (jnp.ones_like(full),))  # type: ignore[arg-type]


def quantile(p: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ``x`` with ``P(a, x) = p`` for ``0 < p < 1``; no derivatives of its own.

    Newton's method on the logarithm of the smaller tail, which is concave in ``log x`` below and
    nearly straight in ``x`` above. Deep in the lower tail ``P = x^a / Gamma(a + 1)``.
    """
    below = p < 0.5
    log_q = jnp.where(below, jnp.log(p), jnp.log1p(-p))
    power = (jnp.log(p) + log_gamma(a + 1)) / a  # not above log x
    deep = power < math.log(float(jnp.finfo(p.dtype).eps)) - 1
    cube = 1 - 1 / (9 * a) + ndtri(p) / (3 * jnp.sqrt(a))
    fair = cube > 0.3
    wilson = jnp.log(a) + 3 * jnp.log(jnp.where(fair, cube, 1))  # Wilson and Hilferty (1931)
    start = jnp.where(fair, jnp.maximum(wilson, power), power)
    start = jnp.exp(jnp.where(deep, 0, jnp.where(start == power, start, wilson)))

    def step(_: Any, x: Array) -> Array:
        lower, log_side, hazard = _log_side(x, a)
        other = jnp.log1p(-jnp.minimum(jnp.exp(log_side), 1))
        direct = lower == below
        value = jnp.where(direct, log_side, other)
        hazard = jnp.where(direct, hazard, hazard * jnp.exp(log_side - other))
        gap = value - log_q
        down = x * jnp.exp(-jnp.clip(gap / (x * hazard), -4, 4))
        return jnp.where(below, down, jnp.maximum(x + gap / hazard, 0.1 * x))

    x = jax.lax.fori_loop(0, NEWTON_STEPS, step, start)
    return jnp.where(deep, jnp.exp(power), x)


def polynomial(x: Array, coefficients: list[float] | tuple[float, ...]) -> Array:
    """``sum_n c_n x^n`` by Horner's rule."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


__all__ = [
    "log_gamma",
    "log_kernel",
    "log_tails",
    "quantile",
    "stirling_rest",
    "stirling_slope",
    "tails",
]
