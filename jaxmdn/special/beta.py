"""The incomplete beta function, with derivatives in both shapes, for any shapes.

JAX's has none in its shapes, and in float32 few digits for large ones. As for the gamma function
both tails are integrals of log-concave functions, here of ``log(t / (1 - t))``: with ``n = a + b``,
``y = 1 - x`` and ``m`` the smaller one of ``x`` and ``y``,

    I_x(a, b) = x^a y^b / (a B(a, b)) (1 + n x J),
    J = int_0^inf exp(-((a + 1) - (n + 1) x) v - (n + 1) g(v)) dv,
    g(v) = log(1 + y (exp(v) - 1)) - y v = m (exp(u) - 1 - u) - (r - log(1 + r)),

``u = -v`` where ``m = x`` and ``v`` where ``m = y``, ``r = m (exp(u) - 1)``. The upper tail is the
lower one with ``x`` and ``y``, ``a`` and ``b`` exchanged.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxmdn import numerics
from jaxmdn.special.gamma import CUT, NODES, exp_excess, integrate, log_excess, stirling_rest
from jaxmdn.typing import Array, Float

#: Newton's steps of the quantile, and those that find where an integrand ends.
NEWTON_STEPS, _WIDTH_STEPS = 8, 4


def log_kernel(x: Array, y: Array, a: Array, b: Array) -> Array:
    """``log(x^a y^b / B(a, b))`` for ``x, y > 0``, ``x + y = 1``: the log-density of the logit."""
    n, gap = a + b, x * b - y * a
    fit = a * log_excess(x * n / a, gap / a) + b * log_excess(y * n / b, -gap / b)
    rests = stirling_rest(n) - stirling_rest(a) - stirling_rest(b)
    return 0.5 * (jnp.log(a) - jnp.log(n) + jnp.log(b) - numerics.LOG_2PI) + rests - fit


def log_beta(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log B(a, b)`` for ``a, b > 0``."""
    n = a + b
    rests = stirling_rest(a) + stirling_rest(b) - stirling_rest(n)
    halves = 0.5 * (numerics.LOG_2PI + jnp.log(n) - jnp.log(a) - jnp.log(b))
    return rests + halves - a * jnp.log1p(b / a) - b * jnp.log1p(a / b)


def _bracket(m: Array, u: Array) -> Array:
    """``log(1 + m (exp(u) - 1)) - m u``, which is ``m (1 - m) u^2 / 2`` near zero."""
    near = jnp.abs(u) < 0.5
    small, large = jnp.where(near, u, 0), jnp.where(near, 1, u)
    r = m * jnp.expm1(small)
    close = m * exp_excess(small) - log_excess(1 + r, r)
    return jnp.where(near, close, jnp.log1p(m * jnp.expm1(large)) - m * large)


def _log_side(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Whether ``I_x`` is computed directly (else its complement), its logarithm, the hazard.

    The hazard is the density of the logit over the tail.
    """
    n = a + b
    low_edge, high_edge = (n * x < 1) & (x < 0.5), (n * y < 1) & (y < 0.5)
    lower = low_edge | (~high_edge & (x * b <= y * a))
    x, y = jnp.where(lower, x, y), jnp.where(lower, y, x)
    a, b = jnp.where(lower, a, b), jnp.where(lower, b, a)

    slope = (a + 1) * y - b * x  # (a + 1) - (n + 1) x
    left = x < y
    m, sign = jnp.where(left, x, y), jnp.where(left, -1, 1).astype(x.dtype)
    width = jax.lax.stop_gradient(_width(slope, n + 1, m, sign, y))
    stretched = jnp.log1p(jnp.where(left, width, 0))

    def integrand(node: Array) -> Array:
        inner = stretched * node
        v = jnp.where(left, jnp.expm1(inner), width * node)
        stretch = jnp.where(left, stretched * jnp.exp(inner), width)
        return stretch * jnp.exp(-(slope * v + (n + 1) * _bracket(m, sign * v)))

    integral = integrate(integrand, NODES[x.dtype.itemsize], width)
    inner = (1 + n * x * integral) / a
    return lower, log_kernel(x, y, a, b) + jnp.log(inner), 1 / inner


def _width(slope: Array, n: Array, m: Array, sign: Array, y: Array) -> Array:
    """Where the exponent of the integrand has grown to the cut, or a little further."""
    cut = CUT[slope.dtype.itemsize]
    slope = jnp.maximum(slope, 0)
    curve = n * m * (1 - m)
    # The bracket is at least m (1 - m) v^2 / (2 + v); where m = y it is exponential at first.
    half = slope - 0.5 * cut
    root = jnp.sqrt(half * half + 2 * (slope + curve) * cut)
    positive = half > 0
    width = jnp.where(
        positive, 2 * cut / (jnp.where(positive, half, 1) + root), (root - half) / (slope + curve)
    )
    share = jnp.expm1(jnp.minimum(cut / n, 60)) / y
    steep = jnp.log1p(share + jnp.sqrt(2 * share))
    width = jnp.where(sign > 0, jnp.minimum(width, steep), width)
    for _ in range(_WIDTH_STEPS):
        u = sign * width
        rise = m * jnp.expm1(u)
        gradient = slope + n * sign * m * (1 - m) * jnp.expm1(u) / (1 + rise)
        excess = slope * width + n * _bracket(m, u) - cut
        width = jnp.clip(width - excess / gradient, 0.1 * width, 10 * width)
    return width


def _tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    lower, log_side, _ = _log_side(x, y, a, b)
    side = jnp.minimum(jnp.exp(log_side), 1)
    return jnp.where(lower, side, 1 - side), jnp.where(lower, 1 - side, side)


def _log_tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    lower, log_side, _ = _log_side(x, y, a, b)
    other = jnp.log1p(-jnp.minimum(jnp.exp(log_side), 1))
    return jnp.where(lower, log_side, other), jnp.where(lower, other, log_side)


@jax.custom_jvp
def tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """``I_x(a, b)`` and ``I_y(b, a)`` for ``x, y > 0``, ``x + y = 1``; ``y`` has no derivative."""
    return _tails(x, y, a, b)


@tails.defjvp
def _tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, y, a, b), (dx, _, da, db) = primals, tangents
    values, slopes = _slope(_tails, x, y, (a, b), (da, db))
    change = slopes[0] + jnp.exp(log_kernel(x, y, a, b)) / (x * y) * dx
    return values, (change, -change)


@jax.custom_jvp
def log_tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Logarithms of :func:`tails`."""
    return _log_tails(x, y, a, b)


@log_tails.defjvp
def _log_tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (x, y, a, b), (dx, _, da, db) = primals, tangents
    values, slopes = _slope(_log_tails, x, y, (a, b), (da, db))
    lower, _, hazard = _log_side(x, y, a, b)
    other = jnp.exp(log_kernel(x, y, a, b) - jnp.where(lower, values[1], values[0]))
    step = dx / (x * y)
    below, above = jnp.where(lower, hazard, other), jnp.where(lower, other, hazard)
    return values, (slopes[0] + below * step, slopes[1] - above * step)


def _slope(function: object, x: Array, y: Array, shapes: tuple, tangents: tuple) -> tuple:
    """The values of an elementwise function and their change with the shapes."""
    lead = jnp.broadcast_shapes(x.shape, *(shape.shape for shape in shapes))
    shapes, tangents = (tuple(jnp.broadcast_to(v, lead) for v in t) for t in (shapes, tangents))
    return jax.jvp(lambda a, b: function(x, y, a, b), shapes, tangents)  # type: ignore[operator]


def quantile(p: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """The ``x`` with ``I_x(a, b) = p`` for ``0 < p < 1``, and ``1 - x``; no derivatives.

    Newton's method on the logarithm of the smaller tail, which is concave in the logit.
    """
    below = p < 0.5
    a, b = jnp.where(below, a, b), jnp.where(below, b, a)
    log_q = jnp.where(below, jnp.log(p), jnp.log1p(-p))
    # log x deep in its tail, and log y deep in the other one
    constant = log_beta(a, b)
    log_x = (log_q + constant + jnp.log(a)) / a
    log_y = (jnp.log1p(-jnp.exp(log_q)) + constant + jnp.log(b)) / b
    floor = math.log(float(jnp.finfo(p.dtype).eps)) - 1 - jnp.log(jnp.maximum(a + b, 1))
    # Abramowitz and Stegun (1964), 26.5.22
    z = -ndtri(jnp.exp(log_q))
    c, d = 1 / (2 * jnp.maximum(a, 0.6) - 1), 1 / (2 * jnp.maximum(b, 0.6) - 1)
    h, bend = 2 / (c + d), (z * z - 3) / 6
    root = z * jnp.sqrt(jnp.maximum(h + bend, 0)) / h
    normal = jnp.log(a / b) - 2 * (root - (d - c) * (bend + 5 / 6 - 2 / (3 * h)))
    side = jnp.minimum(jnp.minimum(log_x, log_y), -0.1)
    side = side - jnp.log(-jnp.expm1(side))
    edge = jnp.where(log_x < log_y, side, -side)
    start = jnp.where((a > 1) & (b > 1) & (h + bend > 0), normal, edge)
    start = jnp.clip(start, floor, -floor)

    def step(_: Any, logit: Array) -> Array:
        x, y = _unit(logit)
        lower, log_side, hazard = _log_side(x, y, a, b)
        other = jnp.log1p(-jnp.minimum(jnp.exp(log_side), 1))
        value = jnp.where(lower, log_side, other)
        hazard = jnp.where(lower, hazard, hazard * jnp.exp(log_side - other))
        return logit - jnp.clip((value - log_q) / hazard, -4, 4)

    x, y = _unit(jax.lax.fori_loop(0, NEWTON_STEPS, step, start))
    deep_x, deep_y = log_x < floor, log_y < floor
    x, y = (
        jnp.where(deep, jnp.exp(log), jnp.where(other, 1, value))
        for deep, other, log, value in ((deep_x, deep_y, log_x, x), (deep_y, deep_x, log_y, y))
    )
    return jnp.where(below, x, y), jnp.where(below, y, x)


def _unit(logit: Array) -> tuple[Array, Array]:
    power = jnp.exp(-jnp.abs(logit))
    small, large = power / (1 + power), 1 / (1 + power)
    return jnp.where(logit < 0, small, large), jnp.where(logit < 0, large, small)


__all__ = ["log_beta", "log_kernel", "log_tails", "quantile", "tails"]
