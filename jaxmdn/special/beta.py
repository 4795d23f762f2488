"""The incomplete beta function, with derivatives in both shapes, for any shapes.

JAX's has none in its shapes, and in float32 few digits for large ones. As for the gamma function
both tails are integrals of log-concave functions, here of ``log(t / (1 - t))``: with ``n = a + b``,
``y = 1 - x`` and ``m`` the smaller one of ``x`` and ``y``,

    I_x(a, b) = x^a y^b / (a B(a, b)) (1 + n x J),
    J = int_0^inf exp(-((a + 1) - (n + 1) x) v - (n + 1) g(v)) dv,
    g(v) = log(1 + y (exp(v) - 1)) - y v,

which is the cumulant generating function of a centred Bernoulli variable at ``v`` (mean ``y``) and
``-v`` (mean ``x``): taken of the smaller mean. The upper tail is the lower one with ``x`` and
``y``, ``a`` and ``b`` exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxmdn import meshes, numerics
from jaxmdn.special.elementary import (
    CUT,
    NODES,
    centred_cumulant,
    centred_slope,
    integrate,
    log_excess,
)
from jaxmdn.special.gamma import solve_fraction, stirling_rest
from jaxmdn.special.sides import complete, log_complete, log_rest, log_side, nearer_side
from jaxmdn.special.softplus import sigmoid
from jaxmdn.typing import Array, Float

#: Newton's steps of the quantile: of 20,000 (shapes from 1e-2 to 1e6, p from 1e-12 on) twelve miss
#: float64's floor after 7, none after 8. And those that find where an integrand ends: of as many, 2
#: leave 0.3 % of the width, 3 nothing.
NEWTON_STEPS, _WIDTH_STEPS = 8, 4


def log_kernel(x: Array, y: Array, a: Array, b: Array) -> Array:
    """``log(x^a y^b / B(a, b))`` for ``x, y > 0``, ``x + y = 1``: the log-density of the logit."""
    return kernel_of_gap(x, y, a, b, x * b - y * a)


def kernel_of_gap(x: Array, y: Array, a: Array, b: Array, gap: Array) -> Array:
    """The same, from ``gap = x b - y a = n x - a`` without its cancellation.

    Loader's form (2000): with ``d(r) = r - 1 - log(r)``, Stirling's rest ``S`` and ``n = a + b``,
    ``log(a b / (2 pi n)) / 2 + S(n) - S(a) - S(b) - a d(n x / a) - b d(n y / b)``.
    """
    n = a + b
    # Two terms, and not one of stacked pairs: those would be stored, at 2.5 times the time.
    # Of shares of n, which underflow no earlier than x and y do.
    fit = a * log_excess(x * (n / a), gap / a) + b * log_excess(y * (n / b), -gap / b)
    rests = stirling_rest(n) - stirling_rest(a) - stirling_rest(b)
    return 0.5 * (jnp.log(a / n * b) - numerics.LOG_2PI) + rests - fit


def _rests(a: Array, b: Array) -> Array:
    """``S(a) + S(b) - S(a + b)`` of Stirling's rest, a long program, which is written once."""
    first, second, both = stirling_rest(jnp.stack(jnp.broadcast_arrays(a, b, a + b)))
    return first + second - both


def log_beta(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log B(a, b)`` for ``a, b > 0``."""
    n = a + b
    halves = 0.5 * (numerics.LOG_2PI - jnp.log(a / n * b))
    return _rests(a, b) + halves - a * jnp.log1p(b / a) - b * jnp.log1p(a / b)


def is_lower(x: Array, y: Array, a: Array, b: Array) -> Array:
    """Whether ``I_x`` is computed: the smaller side, or next to an end the one that ends there."""
    n = a + b
    low_edge, high_edge = (n * x < 1) & (x < 0.5), (n * y < 1) & (y < 0.5)
    return low_edge | (~high_edge & (x * b <= y * a))


def side(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The logarithm of the computed side, its derivative in the logit of ``x``, and ``x y``."""
    lower = is_lower(x, y, a, b)
    own, other = jnp.where(lower, x, y), jnp.where(lower, y, x)
    a_own, b_own = jnp.where(lower, a, b), jnp.where(lower, b, a)
    n = a + b
    slope = (a_own + 1) * other - b_own * own  # (a + 1) - (n + 1) x
    integral = tilted_integral(own, other, slope, n + 1)
    inner = (1 + n * own * integral) / a_own
    sign = jnp.where(lower, 1, -1).astype(x.dtype)
    return log_kernel(x, y, a, b) + jnp.log(inner), sign / inner, x * y


def tilted_integral(
    x: Array, y: Array, slope: Array, n: Array, extra: Callable[[Array], Array] | None = None
) -> Any:
    """``int_0^inf exp(-slope v - n g(v)) dv``, and with a factor ``extra(v)`` if there is one.

    Crowds the nodes at zero where ``x <= y``, for the long tail that the integrand has there.
    """
    left = x <= y
    m, sign = jnp.where(left, x, y), jnp.where(left, -1, 1).astype(x.dtype)
    width = jax.lax.stop_gradient(_width(slope, n, m, sign, y))
    stretched = jnp.log1p(jnp.where(left, width, 0))

    def integrand(node: Array) -> Any:
        inner = stretched * node
        v = jnp.where(left, jnp.expm1(inner), width * node)
        stretch = jnp.where(left, stretched * jnp.exp(inner), width)
        value = stretch * jnp.exp(-(slope * v + n * centred_cumulant(m, sign * v)))
        return value if extra is None else (value, value * extra(v))

    like = width if extra is None else (width, width)
    return integrate(integrand, NODES[x.dtype.itemsize], like)


def _width(slope: Array, n: Array, m: Array, sign: Array, y: Array) -> Array:
    """Where the exponent ``slope v + n g(v)`` has grown to the cut ``c``, or a little further.

    ``g(v) >= m (1 - m) v^2 / (2 + v)`` gives a bound. Where ``m = y`` the exponent grows like an
    exponential, ``n log(1 + y (exp(v) - 1 - v))`` at least (slope and ``n y`` together are not
    negative), which gives another. Newton's method goes on from the smaller one.
    """
    cut = CUT[slope.dtype.itemsize]
    slope = jnp.maximum(slope, 0)
    share = jnp.expm1(jnp.minimum(cut / n, 60)) / y
    steep = jnp.log1p(share + jnp.sqrt(2 * share))
    start = solve_fraction(slope, n * m * (1 - m), cut)

    def step(_: Any, width: Array) -> Array:
        u = sign * width
        excess = slope * width + n * centred_cumulant(m, u) - cut
        rate = slope + n * sign * centred_slope(m, u)
        return jnp.clip(width - excess / rate, 0.1 * width, 10 * width)

    start = jnp.where(sign > 0, jnp.minimum(start, steep), start)
    return meshes.fori_loop(0, _WIDTH_STEPS, step, start)


def tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """``I_x(a, b)`` and ``I_y(b, a)`` for ``x, y > 0``, ``x + y = 1``; ``y`` has no derivative."""
    return complete(is_lower(x, y, a, b), log_side(side, (x, y), (a, b)))


def log_tails(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Logarithms of :func:`tails`."""
    return log_complete(is_lower(x, y, a, b), log_side(side, (x, y), (a, b)))


def quantile(q: Array, a: Array, b: Array, upper: Array | bool = False) -> tuple[Array, Array]:
    """The ``x`` with ``I_x(a, b) = q``, and ``1 - x``; ``1 - q`` where ``upper``; no derivatives.

    Newton's method on the logarithm of the smaller tail, which is concave in the logit.
    """
    near, above = nearer_side(q, upper)
    below, log_q = ~above, jnp.log(near)
    a, b = jnp.where(below, a, b), jnp.where(below, b, a)
    # log x deep in its tail, and log y deep in the other one
    constant = log_beta(a, b)
    log_x = (log_q + constant + jnp.log(a)) / a
    log_y = (jnp.log1p(-near) + constant + jnp.log(b)) / b
    floor = math.log(float(jnp.finfo(q.dtype).eps)) - 1 - jnp.log(jnp.maximum(a + b, 1))
    # Abramowitz and Stegun (1964), 26.5.22
    z = -ndtri(near)
    c, d = 1 / (2 * jnp.maximum(a, 0.6) - 1), 1 / (2 * jnp.maximum(b, 0.6) - 1)
    h, bend = 2 / (c + d), (z * z - 3) / 6
    root = z * jnp.sqrt(jnp.maximum(h + bend, 0)) / h
    normal = jnp.log(a / b) - 2 * (root - (d - c) * (bend + 5 / 6 - 2 / (3 * h)))
    log_end = jnp.minimum(jnp.minimum(log_x, log_y), -0.1)
    log_end = log_end - jnp.log(-jnp.expm1(log_end))  # the logit
    edge = jnp.where(log_x < log_y, log_end, -log_end)
    start = jnp.where((a > 1) & (b > 1) & (h + bend > 0), normal, edge)
    start = jnp.clip(start, floor, -floor)

    def step(_: Any, logit: Array) -> Array:
        x, y = sigmoid(logit), sigmoid(-logit)
        log, slope, _ = side(x, y, a, b)
        lower, other = is_lower(x, y, a, b), log_rest(jnp.minimum(log, 0))
        hazard = jnp.abs(slope) * jnp.where(lower, 1, jnp.exp(log - other))
        return logit - jnp.clip((jnp.where(lower, log, other) - log_q) / hazard, -4, 4)

    logit = meshes.fori_loop(0, NEWTON_STEPS, step, start)
    x, y = sigmoid(logit), sigmoid(-logit)
    deep_x, deep_y = log_x < floor, log_y < floor
    x, y = (
        jnp.where(deep, jnp.exp(log), jnp.where(other, 1, value))
        for deep, other, log, value in ((deep_x, deep_y, log_x, x), (deep_y, deep_x, log_y, y))
    )
    return jnp.where(below, x, y), jnp.where(below, y, x)
