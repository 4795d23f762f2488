"""Mean distances of log-normal numbers from a point and from each other, without their means.

With ``X = exp(m + s Z)``, ``t^2 = s^2 + s'^2``, ``a = (m - m' + s^2) / t`` and ``b = t - a``,

    E|X - X'| = E X (2 F(a) - 1) + E X' (2 F(b) - 1)                    (Margrabe 1978, eq. 7)

for the normal's ``F``. Of a wide variable the mean may overflow, and is far larger than a score:
there ``E X`` is subtracted, which leaves ``-2 E X F(-a)``, of the size of ``min(X, X')``, since
``g = E X f(a) = E X' f(b)``. Of a narrow one the mean is near all that it is compared with.

References:
  Margrabe (1978), The value of an option to exchange one asset for another.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.special.normal import erf, hazard_excess
from jaxmdn.typing import Array, Bool, Float

# From this scale on the mean is left out; up to that logarithm exp(m) is a factor, whose rounding
# is not that of m.
_WIDE, _MOST = 0.5, 40.0


def is_wide(loc: Float[Array, "..."], scale: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Of which variables :func:`reduced_distance` leaves out the mean."""
    return (scale > _WIDE) | (jnp.abs(loc) > _MOST)


@jax.custom_jvp
def reduced_distance(
    loc: Float[Array, "..."],
    scale: Float[Array, "..."],
    size: Float[Array, "..."],
    other_loc: Float[Array, "..."],
    other_scale: Float[Array, "..."],
    other_size: Float[Array, "..."],
) -> Float[Array, "..."]:
    """``E|X - X'|`` less the mean of each that is wide; ``X'`` of scale zero is a constant.

    ``size`` is ``exp(loc)``, and moves with ``loc`` alone.
    """
    return _parts(loc, scale, size, other_loc, other_scale, other_size)[0]


def _parts(
    loc: Array, scale: Array, size: Array, other_loc: Array, other_scale: Array, other_size: Array
) -> tuple[Array, ...]:
    """The value, its two terms, and ``g``."""
    spread, gap = jnp.hypot(scale, other_scale), loc - other_loc
    a, b = (gap + scale * scale) / spread, (other_scale * other_scale - gap) / spread
    wide, constant = is_wide(loc, scale), other_scale == 0
    other_wide = is_wide(other_loc, other_scale) & ~constant
    large = jnp.abs(loc) > _MOST
    # Of a wide one g in one exponential: with E X alone it might overflow.
    exponent = 0.5 * (scale * scale - a * a) + jnp.where(large, loc, 0)
    g = jnp.where(large, 1, size) * jnp.exp(exponent) * math.exp(-0.5 * numerics.LOG_2PI)

    def mean(m: Array, s: Array, size: Array, some: Array) -> Array:
        large = jnp.abs(m) > _MOST
        m, s = jnp.where(some, m, 0), jnp.where(some, s, 0)
        return jnp.where(large, 1, size) * jnp.exp(0.5 * s * s + jnp.where(large, m, 0))

    def term(m: Array, s: Array, size: Array, z: Array, wide: Array) -> tuple[Array, ...]:
        distance, below = jnp.abs(z), z < 0
        beyond = g / (distance + hazard_excess(distance))
        whole, share = mean(m, s, size, ~wide | below), erf(z * math.sqrt(0.5))
        reduced = -2 * jnp.where(below, whole - beyond, beyond)
        return jnp.where(wide, reduced, whole * share), whole, share

    first, whole, share = term(loc, scale, size, a, wide)
    second, other, rest = term(other_loc, other_scale, other_size, b, other_wide)
    near = (whole - other) * share + other * (share + rest)
    return jnp.where(wide | other_wide, first + second, near), first, second, g


@reduced_distance.defjvp
def _reduced_distance_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # In a and b the two terms' derivatives are those of g, which cancel but for that of t.
    (_, scale, _, _, other_scale, _), (dloc, dscale, _, dother_loc, dother_scale, _) = (
        primals,
        tangents,
    )
    value, first, second, g = _parts(*primals)
    spread = jnp.hypot(scale, other_scale)
    change = first * (dloc + scale * dscale) + second * (dother_loc + other_scale * dother_scale)
    widening = (scale / spread) * dscale + (other_scale / spread) * dother_scale
    return value, change + 2 * g * widening
