"""Student's t distribution with real degrees of freedom: tails, quantile, mean distances.

The tails are half an incomplete beta function of ``v / (v + z^2)``, to rounding, but their
derivative in ``v`` is then a difference that grows with ``v`` beside it: off by half of itself in
float32 at ``v = 40``, by 2e-4 in float64 at 1e4. Hence integrals of their own.

The incomplete beta function of JAX has no derivative in its parameters and, in float32, no digit
left for many degrees of freedom. With ``tau = (v / 2) log(1 + z^2 / v)``, which is ``z^2 / 2`` for
the normal, both halves of the distribution are integrals of smooth functions for all ``v >= 0.1``:

    P(0 < T < z) = c / sqrt(pi) int_0^sqrt(tau) exp(-t^2) E(2 t^2 / v)^(-1/2) dt,
    P(T > z) = f(z) (1 + z^2 / v) / z int_0^inf exp(-t) (1 + 2 t E(2 t / v) / z^2)^(-1/2) dt,

``E(x) = (1 - exp(-x)) / x``. The first serves ``tau < 1``, the second the rest; a few Gauss nodes
give both to rounding, and their derivatives in ``v``, too.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from jaxmdn import meshes, numerics
from jaxmdn.special.elementary import CUT, decay_mean, integrate, legendre, log_excess
from jaxmdn.special.gamma import log_gamma_ratio
from jaxmdn.special.sides import complete, log_complete, log_side
from jaxmdn.typing import Array, Float

# By the dtype's bytes: Gauss nodes of the two integrals above; beside 100 of them the logarithm of
# a tail changes by rounding (20,000 z from 1e-3 to 1e4, df from 0.1 to 1e9).
_NODES = {4: 16, 8: 32}
#: Newton's steps of the quantile: one more than the worst of v >= 0.1, p >= 1e-30 (1e-300) needs.
NEWTON_STEPS = 6


def bound_df(df: Float[Array, "..."]) -> Float[Array, "..."]:
    """Degrees of freedom up to where the distribution is the normal to the dtype's last digit.

    The logarithm of a tail differs from the normal's by ``z^4 / df``: far out it takes many.
    """
    return jnp.minimum(df, float(jnp.finfo(df.dtype).eps) ** -3)


def log_peak(df: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-density at zero."""
    return log_gamma_ratio(0.5 * df) - 0.5 * numerics.LOG_2PI


@jax.custom_jvp
def radial(z: Array, df: Array) -> tuple[Array, Array]:
    """``tau = (df / 2) log(1 + x)`` and ``log(1 + x)`` for ``x = z^2 / df``."""
    far = _is_far(z, df)
    near = jnp.where(far, 1, z)
    largest = float(jnp.finfo(z.dtype).max)
    x = jnp.minimum(near * near / df, largest)
    positive = x > 0
    safe = jnp.where(positive, x, 1)
    log_near = jnp.log1p(x)
    ratio = jnp.where(positive, log_near / safe, 1)
    size = jnp.minimum(jnp.where(far, jnp.abs(z), 1), largest)
    log_far = 2 * jnp.log(size) - jnp.log(df)
    tau = jnp.where(far, 0.5 * df * log_far, 0.5 * near * near * ratio)
    # At infinity tau alone is infinite: it is what the logarithm is subtracted from.
    tau = jnp.where(jnp.isinf(z), jnp.inf, tau)
    return tau, jnp.where(far, log_far, log_near)


@radial.defjvp
def _radial_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (z, df), (dz, ddf) = primals, tangents
    tau, log_ratio = radial(z, df)
    far = _is_far(z, df)
    near = jnp.where(far, 1, z)
    x = near * near / df
    share = jnp.where(far, 1, x / (1 + x))  # x / (1 + x)
    slope = jnp.where(far, df / jnp.where(far, z, 1), near / (1 + x))  # d tau / dz
    excess = jnp.where(far, log_ratio - 1, log_excess(1 / (1 + x), -x / (1 + x)))
    dtau = slope * dz + 0.5 * excess * ddf
    return (tau, log_ratio), (dtau, 2 * slope / df * dz - share / df * ddf)


def _is_far(z: Array, df: Array) -> Array:
    """Where ``z^2`` may overflow while ``1 + z^2 / df`` is ``z^2 / df``."""
    return (jnp.abs(z) > 1e15) & (df < 1e12)


@jax.custom_jvp
def middle_log_density(z: Array, df: Array) -> Array:
    """:func:`log_density` with one logarithm, for ``z`` whose square is a number."""
    largest = 0.5 * math.sqrt(float(jnp.finfo(z.dtype).max))
    z, df = jnp.clip(z, -largest, largest), bound_df(df)
    power = 0.5 * (df + 1)
    # A quotient, which XLA computes once for all points; a sum would be repeated at each.
    return power * (log_peak(df) / power - jnp.log1p(z * z / df))


@middle_log_density.defjvp
def _middle_log_density_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return middle_log_density(*primals), jax.jvp(log_density, primals, tangents)[1]


def log_density(z: Float[Array, "..."], df: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-density of the standard distribution."""
    df = bound_df(df)
    tau, log_ratio = radial(z, df)
    return log_peak(df) - tau - 0.5 * log_ratio


def _integral(near: Array, tau: Array, inverse_square: Array, df: Array) -> Array:
    """The first integral over ``sqrt(tau)`` where ``near``, else the second, from ``1 / z^2``.

    With ``s = t^2``, or ``s = t``, both take one mean of exponentials, ``E(2 s / df)``, a node. The
    nodes of the second lie in ``log(1 + t)``; its weights are scaled to integrate ``exp(-t)``.
    """
    count, end = _NODES[df.dtype.itemsize], math.log1p(CUT[df.dtype.itemsize])
    nodes, weights = legendre(count)
    total = float(np.sum(weights * np.exp(end * nodes - np.expm1(end * nodes))))

    def integrand(node: Array) -> Array:
        t = jnp.expm1(end * node)
        s = jnp.where(near, tau * node * node, t)
        mean = decay_mean(2 * s / df)
        weight = jnp.where(near, jnp.exp(-s), jnp.exp(end * node - t) / total)
        return weight * jax.lax.rsqrt(jnp.where(near, mean, 1 + inverse_square * (2 * s * mean)))

    return integrate(integrand, count, jnp.zeros_like(tau + inverse_square + df))


def _half_mass(integral: Array, tau: Array, peak: Array) -> Array:
    """``P(0 < T < z)`` from the first integral, and the log-density at zero."""
    positive = tau > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, tau, 1)), 0)
    return math.sqrt(2.0) * root * jnp.exp(peak) * integral


def central_mass(tau: Array, df: Array) -> Array:
    """``P(0 < T < z)`` from ``tau``, for all ``z``; to rounding next to one half if ``df > 1``."""
    tau, one = jnp.minimum(tau, CUT[tau.dtype.itemsize]), jnp.ones_like(tau)
    return _half_mass(_integral(one > 0, tau, one, df), tau, log_peak(df))


def _side(z: Array, df: Array) -> tuple[Array, Array, Any]:
    """``log P(T > z)`` for ``z >= 0``, its derivative in ``z``, and one."""
    df = bound_df(df)
    tau, log_ratio = radial(z, df)
    near, peak = tau < 1, log_peak(df)
    size, low = jnp.where(near, 1, z), jnp.where(near, tau, 0.5)
    integral = _integral(near, low, (1 / size) ** 2, df)
    rest = 0.5 - _half_mass(jnp.where(near, integral, 0.5), low, peak)
    log_far = peak - tau + 0.5 * log_ratio - jnp.log(size) + jnp.log(integral)
    density = jnp.exp(peak - jnp.where(near, tau + 0.5 * log_ratio, 0))
    hazard = jnp.where(near, density / rest, 1 / ((1 / size + size / df) * integral))
    return jnp.where(near, jnp.log(rest), log_far), -hazard, 1.0


def _sides(z: Array, df: Array) -> tuple[Array, Array]:
    left = z < 0
    return left, log_side(_side, (jnp.where(left, -z, z),), (df,))


def tail(z: Array, df: Array) -> Array:
    """``P(T > z)``, with relative accuracy for positive ``z``."""
    return complete(*_sides(z, df))[1]


def log_tail(z: Array, df: Array) -> Array:
    """``log P(T > z)``."""
    return log_complete(*_sides(z, df))[1]


@jax.custom_jvp
def quantile(p: Array, df: Array) -> Array:
    """The ``z`` with ``P(T < z) = p``; -inf and inf at 0 and 1, NaN outside."""
    df = bound_df(df)
    q = jnp.minimum(p, 1 - p)  # exact
    inside = (q > 0) & (q < 0.5)
    q = jnp.where(inside, q, 0.25)
    log_q, root, peak = jnp.log(q), jnp.sqrt(df), log_peak(df)

    # In s = sqrt(v) asinh(z / sqrt(v)) the density is log-concave, so that Newton's method on the
    # log-tail converges from everywhere, and nothing overflows before the quantile does.
    def step(_: Any, s: Array) -> Array:
        angle = s / root
        tau, tanh = df * _log_cosh(angle), root * jnp.tanh(angle)
        near = tau < 1
        low = jnp.where(near, tau, 0.5)
        integral = _integral(near, low, jnp.where(near, 0, 1 / (root * jnp.sinh(angle)) ** 2), df)
        half = _half_mass(jnp.where(near, integral, 0.5), low, peak)
        log_far = peak - tau - jnp.log(tanh) + jnp.log(integral)
        # The difference of the two masses first: their logarithms would cancel at the median.
        excess = jnp.where(near, ((0.5 - q) - half) / q, 0)
        gap = jnp.where(near, jnp.log1p(jnp.maximum(excess, -0.999)), log_far - log_q)
        density = jnp.exp(peak - jnp.where(near, tau, 0))
        slope = jnp.where(near, density / jnp.where(near, 0.5 - half, 1), tanh / integral)
        return jnp.maximum(s + gap / slope, 0.5 * s)

    normal = -ndtri(q)
    tau = 0.5 * (normal * (1 + 3 / (8 * df)) / (1 + 1 / (8 * df))) ** 2 / df
    start = root * (tau + jnp.log1p(jnp.sqrt(-jnp.expm1(-2 * tau))))  # Wallace (1959)
    s = meshes.fori_loop(0, NEWTON_STEPS, step, start)
    z = jnp.where(inside, root * jnp.sinh(s / root), jnp.where(p == 0.5, 0, jnp.inf))
    valid = (p >= 0) & (p <= 1) & (df > 0)
    return jnp.where(valid, jnp.where(p < 0.5, -z, z), jnp.nan)


@quantile.defjvp
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (p, df), (dp, ddf) = primals, tangents
    z = quantile(p, df)
    change = jax.jvp(lambda df: tail(jnp.abs(z), df), (df,), (ddf,))[1]
    return z, (dp + jnp.where(z < 0, -change, change)) / jnp.exp(log_density(z, df))


def _log_cosh(x: Array) -> Array:
    small = x < 1
    low, high = jnp.where(small, x, 0), jnp.where(small, 1, x)
    near = jnp.log1p(2 * jnp.sinh(0.5 * low) ** 2)
    return jnp.where(small, near, high - math.log(2.0) + jnp.log1p(jnp.exp(-2 * high)))
