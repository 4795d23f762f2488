"""The gamma function and its incomplete integrals, with derivatives in the shape, for any shape.

JAX's own form ``a log(x) - x - log Gamma(a)`` from large terms that cancel (in float32 nothing is
left of a density of shape 1e6), and their incomplete integrals run until the slowest element has
converged. Here the cancellation is done on paper and both tails are integrals of log-concave
functions of ``log t``, cut where they are negligible and given to rounding by a few Gauss nodes:

    Q(a, x) = x^a exp(-x) / Gamma(a) int_0^inf exp(-(x - a) w - x (exp(w) - 1 - w)) dw,
    P(a, x) = x^a exp(-x) / Gamma(a + 1) (1 + x J),
    J = int_0^inf exp(-(a + 1 - x) w - x (exp(-w) - 1 + w)) dw

(``t = x exp(w)`` and ``t = x exp(-w)`` in the definitions; the second one after
``P(a, x) = x^a exp(-x) / Gamma(a + 1) + P(a + 1, x)``, which makes it smooth for small ``a``).
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

from jaxmdn import meshes, numerics
from jaxmdn.special.elementary import (
    CUT,
    NODES,
    chebyshev,
    chebyshev_fit,
    exp_excess,
    integrate,
    log_gap,
)
from jaxmdn.special.sides import complete, log_complete, log_rest, log_side, nearer_side
from jaxmdn.typing import Array, Bool, Float

# Stirling's series, B_2n / (2 n (2 n - 1)) of Bernoulli's numbers; at a >= 13 the first term left
# out is 9e-17 beside the sum, 1 / (12 a).
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
# By the dtype's bytes: Chebyshev terms for a >= 1; with one more nothing changes but rounding.
_TERMS = {4: 9, 8: 25}
#: Newton's steps of the quantile: of 20,000 (shapes from 1e-2 to 1e6, p from 1e-12 on) one misses
#: float64's floor after 4, none after 5.
NEWTON_STEPS = 6


def _exact_rest(a: np.ndarray, order: int = 0) -> np.ndarray:
    """``S(a)`` of :func:`stirling_rest`, or ``-S'(a)``, for ``a >= 1`` in float64.

    With ``w = 1 / (2 a + 1)``, ``S(a) - S(a + 1) = artanh(w) / w - 1`` is positive and decreases:
    added up until the asymptotic series holds, nothing cancels.
    """
    total = np.zeros_like(a)
    for step in range(12):
        w = 1 / (2 * (a + step) + 1)
        for n in range(1, 20):
            total += w ** (2 * n + order) * (4 * n) ** order / (2 * n + 1)
    for n, c in enumerate(_STIRLING):
        total += c * (2 * n + 1) ** order / (a + 12) ** (2 * n + 1 + order)
    return total


def _exact_ratio(a: np.ndarray, order: int = 0) -> np.ndarray:
    """``-L(a)`` of :func:`log_gamma_ratio`, or ``L'(a)``, for ``a >= 1`` in float64.

    ``-L(a) = S(a) - S(a + 1/2) + a (h - log(1 + h))`` with ``h = 1 / (2 a)``.
    """
    h, w = 0.5 / a, 1 / (4 * a + 1)  # w = h / (2 + h); log(1 + h) = 2 artanh(w), h - 2 w = h w
    excess = w * (h - sum(2 * w ** (2 * n) / (2 * n + 1) for n in range(1, 20)))
    rest = _exact_rest(a, order) - _exact_rest(a + 0.5, order)
    return rest + (h * h / (1 + h) - excess if order else a * excess)


@functools.cache
def _coefficients(exact: Callable[..., np.ndarray], order: int, count: int) -> np.ndarray:
    """Chebyshev series in ``2 / a - 1`` of a function times ``a``, its derivative times ``a^2``."""

    def scaled(nodes: np.ndarray) -> np.ndarray:
        a = 2 / (nodes + 1)
        return a ** (1 + order) * exact(a, order)

    return chebyshev_fit(scaled, count)


def _series(exact: Callable[..., np.ndarray], a: Array, order: int = 0) -> Array:
    inverse = 1 / a
    coefficients = _coefficients(exact, order, _TERMS[a.dtype.itemsize])
    return chebyshev(2 * inverse - 1, coefficients) * inverse ** (1 + order)


@jax.custom_jvp
def stirling_rest(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """What Stirling's formula misses, ``log Gamma(a) - (a - 1/2) log(a) + a - log(2 pi) / 2``.

    ``1 / (12 a)`` for large ``a``; relative accuracy, in the derivative too. Below one it is
    ``S(a) = S(a + 1) + (a + 1/2) log(1 + 1 / a) - 1``.
    """
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, (low + 0.5) * jnp.log1p(1 / low) - 1, 0)
    return _series(_exact_rest, jnp.where(small, a + 1, a)) + back


stirling_rest.defjvps(lambda da, _, a: stirling_slope(a) * da)


def stirling_slope(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of :func:`stirling_rest`, ``digamma(a) - log(a) + 1 / (2 a)``."""
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, jnp.log1p(1 / low) - (low + 0.5) / (low + 1) / low, 0)
    return back - _series(_exact_rest, jnp.where(small, a + 1, a), 1)


def log_gamma(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log Gamma(a)`` for ``a > 0``."""
    return stirling_rest(a) + (a - 0.5) * jnp.log(a) - a + 0.5 * numerics.LOG_2PI


@jax.custom_jvp
def log_gamma_ratio(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(Gamma(a + 1/2) / (Gamma(a) sqrt(a)))`` for ``a > 0``; ``-1 / (8 a)`` for large ``a``.

    A series for ``a >= 1``; below, ``a / (a + 1/2) sqrt(1 + 1 / a)`` of the ratio at ``a + 1``.
    NaN for ``a < 0``.
    """
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, 0.5 * jnp.log1p(1 / low) - jnp.log1p(0.5 / low), 0)
    return back - _series(_exact_ratio, jnp.where(small, a + 1, a))


@log_gamma_ratio.defjvp
def _log_gamma_ratio_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (a,), (da,) = primals, tangents
    small = a < 1
    low = jnp.where(small, a, 1)
    back = jnp.where(small, 0.25 / (low * (low + 0.5) * (low + 1)), 0)
    return log_gamma_ratio(a), (back + _series(_exact_ratio, jnp.where(small, a + 1, a), 1)) * da


@jax.custom_jvp
def log_kernel(x: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(x^a exp(-x) / Gamma(a))`` for ``x > 0``: the log-density of ``log t`` at ``log x``."""
    fit = -a * log_gap(a, x, x - a)
    return fit + 0.5 * (jnp.log(a) - numerics.LOG_2PI) - stirling_rest(a)


@log_kernel.defjvp
def _log_kernel_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, a), (dx, da) = primals, tangents
    return log_kernel(x, a), (a - x) / x * dx + _slope_in_shape(x, a) * da


def _slope_in_shape(x: Array, a: Array) -> Array:
    """``log(x) - digamma(a)``; the terms above would cancel where ``x`` is far from ``a``."""
    above = (x - a) / a
    near = jnp.abs(above) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, above, 0)), jnp.log(x) - jnp.log(a))
    return log_ratio + 0.5 / a - stirling_slope(a)


@jax.custom_jvp
def log_density(
    y: Float[Array, "..."], a: Float[Array, "..."], rate: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``log(rate^a y^(a - 1) exp(-rate y) / Gamma(a))`` for ``y > 0``.

    ``rate y`` is kept within the dtype's range.
    """
    return log_kernel(bounded(rate * y), a) - jnp.log(y)


@log_density.defjvp
def _log_density_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # In y the kernel's a / y and the logarithm's 1 / y would cancel for a close to one.
    (y, a, rate), (dy, da, drate) = primals, tangents
    x = bounded(rate * y)
    change = ((a - 1) - x) / y * dy + (a - x) / rate * drate
    return log_density(y, a, rate), change + _slope_in_shape(x, a) * da


def bounded(x: Array) -> Array:
    """``x > 0`` within the dtype's range of normal numbers."""
    info = jnp.finfo(x.dtype)
    return jnp.clip(x, float(info.tiny), float(info.max))


def is_lower(x: Array, a: Array) -> Array:
    """Whether ``P`` is the side that is computed, else ``Q``."""
    return x < jnp.maximum(a, 1)


def side(x: Array, a: Array) -> tuple[Array, Array, Array]:
    """The logarithm of the computed side, its derivative in ``log x``, and ``x``."""
    lower = is_lower(x, a)
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
    return log_kernel(x, a) + jnp.log(inner), -sign / inner, x


def _width(x: Array, shape: Array, lower: Array) -> Array:
    """Where the exponent of the integrand has grown to the cut ``c``, or a little further.

    Above, with ``s = x - shape``: from ``s w + x w^2 / 2 = c``, or ``x (exp(w) - 1 - w) = c``,
    where ``exp(w) - 1 - w >= y`` at ``w = log(1 + y + sqrt(2 y))``. Below, with
    ``s = shape - x``: from ``s w + x w^2 / (2 + w) = c``, as ``exp(-w) - 1 + w >= w^2 / (2 + w)``.
    """
    cut = CUT[x.dtype.itemsize]
    slope = jnp.abs(x - shape)
    parabola = 2 * cut / (slope + jnp.sqrt(slope * slope + 2 * x * cut))
    share = cut / jnp.where(lower, 1, x)
    above = jnp.minimum(parabola, jnp.log1p(share + jnp.sqrt(2 * share)))
    return jnp.where(lower, solve_fraction(slope, x, cut), above)


def solve_fraction(slope: Array, curve: Array, cut: float) -> Array:
    """The positive ``w`` with ``slope w + curve w^2 / (2 + w) = cut``."""
    half = slope - 0.5 * cut
    root = jnp.sqrt(half * half + 2 * (slope + curve) * cut)
    positive = half > 0
    steep = 2 * cut / (jnp.where(positive, half, 1) + root)
    return jnp.where(positive, steep, (root - half) / (slope + curve))


def tails(x: Array, a: Array) -> tuple[Array, Array]:
    """``P(a, x)`` and ``Q(a, x)`` for ``0 < x < inf``."""
    return complete(is_lower(x, a), log_side(side, (x,), (a,)))


def log_tails(x: Array, a: Array) -> tuple[Array, Array]:
    """``log P(a, x)`` and ``log Q(a, x)`` for ``0 < x < inf``."""
    return log_complete(is_lower(x, a), log_side(side, (x,), (a,)))


def quantile(
    q: Float[Array, "..."], a: Float[Array, "..."], upper: Bool[Array, "..."] | bool = False
) -> Float[Array, "..."]:
    """The ``x`` with ``Q(a, x) = q`` where ``upper``, else ``P(a, x) = q``; no derivatives.

    Newton's method on the logarithm of the smaller tail, which is concave in ``log x`` below and
    nearly straight in ``x`` above, from Wilson and Hilferty's cube (1931). Deep in the lower tail
    ``P = x^a / Gamma(a + 1)``.
    """
    near, above = nearer_side(q, upper)
    below, log_q, z = ~above, jnp.log(near), ndtri(near)
    log_p = jnp.where(below, log_q, jnp.log1p(-near))
    power = (log_p + log_gamma(a + 1)) / a  # not above log x
    deep = power < math.log(float(jnp.finfo(q.dtype).eps)) - 1  # x is the relative error
    cube = 1 - 1 / (9 * a) + jnp.where(below, z, -z) / (3 * jnp.sqrt(a))
    fair = cube > 0.3  # where the cube is small it is far off
    wilson = jnp.log(a) + 3 * jnp.log(jnp.where(fair, cube, 1))
    log_start = jnp.where(fair, jnp.maximum(wilson, power), power)

    def step(_: Any, x: Array) -> Array:
        log, slope, _ = side(x, a)
        other = log_rest(jnp.minimum(log, 0))
        direct = is_lower(x, a) == below
        hazard = jnp.abs(slope) * jnp.where(direct, 1, jnp.exp(log - other))
        gap = (jnp.where(direct, log, other) - log_q) / hazard
        return x * jnp.where(below, jnp.exp(-jnp.clip(gap, -4, 4)), jnp.maximum(1 + gap, 0.1))

    x = meshes.fori_loop(0, NEWTON_STEPS, step, jnp.exp(jnp.where(deep, 0, log_start)))
    return jnp.where(deep, jnp.exp(power), x)


def log_draw(key: Array, a: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Return the logarithms of gamma draws of shape ``a``: those of small shape underflow."""
    key, a = meshes.vary_alike(key, a)
    return jax.random.loggamma(key, a, shape, a.dtype)
