"""Poisson and negative binomial probabilities and their tails, for means and counts of any size.

The textbook forms subtract numbers of the size ``y log(y)`` from each other: in float32 nothing is
left of a probability at a count of a million. Here that is done on paper (Loader 2000). With
``d(t) = t - log(1 + t)``, Stirling's rest ``S`` and, for the negative binomial of mean ``m`` and
concentration ``r``, ``p = r / (r + m)``, ``q = 1 - p``,

    log P(y) = S(r + y) - S(r) - S(y) - log(2 pi y (1 + y / r)) / 2 - r d(t_1) - y d(t_2),
    t_1 = (y - m) / (r + m),  t_2 = r (m - y) / (y (r + m)),

without a difference of large numbers, up to ``r = inf``, the Poisson distribution. The tails are
integrals of log-concave functions of the log-odds ``s`` (the beta integral's variable),

    P(Y <= y) = P(y) (r + y) q int_0^inf exp(-g(s)) ds,   P(Y > y) the same with g(-s),
    g(s) = (r + y + 1) (log(1 + q (exp(s) - 1)) - q s) + p (m - y - 1) s,

cut where they are negligible and given to rounding by a few Gauss nodes; the smaller tail is the
one that is computed. A few terms are summed first where the integrand has a long, bent tail.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.special.elementary import centred_cumulant, legendre
from jaxmdn.special.elementary import log_gap as _gap
from jaxmdn.special.gamma import stirling_rest, stirling_slope
from jaxmdn.typing import Array, Float

# By the dtype's bytes: Gauss nodes, where an integrand exp(-g) is cut, terms summed before it.
_NODES, _CUT, _SHIFTS = {4: 14, 8: 32}, {4: 18.0, 8: 40.0}, {4: 4, 8: 12}
#: By the dtype's bytes: the concentration that stands for infinity.
_LIMIT = {4: 1e15, 8: 1e30}


def poisson_limit(mean: Float[Array, "..."]) -> Float[Array, "..."]:
    """The concentration at which the negative binomial is the Poisson distribution."""
    return jnp.full_like(mean, _LIMIT[mean.dtype.itemsize])


@jax.custom_jvp
def log_mass(y: Array, mean: Array, concentration: Array) -> Array:
    """``log P(Y = y)`` of the negative binomial, for whole ``y >= 0``; constant in ``y``.

    A mean of zero puts all mass on zero. NaN for a negative mean or concentration.
    """
    r = jnp.minimum(concentration, poisson_limit(concentration))
    positive, reachable = y > 0, mean > 0
    k, m = jnp.where(positive, y, 1), jnp.where(reachable, mean, 1)
    # 1 + t_2 = m (1 + k / r) / (k (1 + m / r))
    misfit = r * _gap(r + m, r + k, k - m) + k * _gap(k * (1 + m / r), m * (1 + k / r), m - k)
    rest = stirling_rest(r + k) - stirling_rest(r) - stirling_rest(k)
    above = rest - 0.5 * (numerics.LOG_2PI + jnp.log(k) + jnp.log1p(k / r)) - misfit
    value = jnp.where(positive, jnp.where(reachable, above, -jnp.inf), -r * jnp.log1p(mean / r))
    return jnp.where((mean >= 0) & (r > 0), value, jnp.nan)


@log_mass.defjvp
def _log_mass_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (y, mean, concentration), (_, dmean, dconcentration) = primals, tangents
    slope, slope_r = _slopes(y, mean, concentration)
    return log_mass(y, mean, concentration), slope * dmean + slope_r * dconcentration


def _slopes(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """Derivatives of ``log P(y)`` in the mean and in the concentration; zero out of reach."""
    finite = concentration < poisson_limit(concentration)
    r = jnp.where(finite, concentration, poisson_limit(concentration))
    reachable = (mean > 0) | (y == 0)
    m = jnp.where(mean > 0, mean, 1)
    slope = jnp.where(y == 0, -1, (y - m) / m) / (1 + mean / r)
    # S(r + y) - S(r): the derivatives, too, are taken of their own small numbers.
    rest = stirling_slope(r + y) - stirling_slope(r)
    slope_r = 0.5 * (y / r) / (r + y) + rest - _gap(r + mean, r + y, y - mean)
    return jnp.where(reachable, slope, 0), jnp.where(reachable & finite, slope_r, 0)


def _smaller_tail(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array, Array]:
    """Whether the upper tail is the smaller; it over ``P(y)``; its slope in ``r`` over ``P(y)``.

    The slope holds ``log P(y)`` fixed.
    """
    r = jnp.minimum(concentration, poisson_limit(concentration))
    total = r + mean
    p, q = r / total, mean / total
    upper = y + 1 > mean
    sign = jnp.where(upper, -1, 1).astype(y.dtype)
    # The incomplete beta function I_x(a, b), w = 1 - x.
    a, b = jnp.where(upper, y + 1, r), jnp.where(upper, r, y + 1)
    x, w = jnp.where(upper, q, p), jnp.where(upper, p, q)
    tilt = p * jnp.abs(mean - y - 1)
    front = q * (r + y)
    slope_front = (mean - y) / (r + y) / total

    # I_x(a, b) = term + I_x(a + 1, b), as often as it takes.
    shifts = _SHIFTS[y.dtype.itemsize]
    term, log_slope = front / a, slope_front - jnp.where(upper, 0, 1 / r)
    head, slope_head = jnp.zeros_like(term), jnp.zeros_like(term)
    for i in range(shifts):
        head, slope_head = head + term, slope_head + term * log_slope
        term = term * (x * ((a + b + i) / (a + i + 1)))
        climb = (mean - y - 1 - i) / (r + y + 1 + i) / total
        fall = mean / r / total + 1 / (r + y + 1 + i) - 1 / (r + i + 1)
        log_slope = log_slope + jnp.where(upper, climb, fall)
    bent = a < shifts
    steps = jnp.where(bent, shifts, 0).astype(y.dtype)
    front = jnp.where(bent, term * (a + shifts), front)
    slope_front = jnp.where(bent, log_slope + jnp.where(upper, 0, 1 / (r + shifts)), slope_front)
    a, tilt = a + steps, tilt + steps * w
    gap = mean - y - 1 - steps  # m - y' - 1 above, m - y - 1 - r' + r below

    width = jax.lax.stop_gradient(_width(tilt, a, a + b, x, w))
    nodes, weights = (jnp.asarray(v, y.dtype) for v in legendre(_NODES[y.dtype.itemsize]))
    sign_, p_, q_ = (v[..., None] for v in (sign, p, q))
    s = width[..., None] * nodes
    swap = q_ > p_
    power = (a + b)[..., None] * centred_cumulant(
        jnp.minimum(p_, q_), jnp.where(swap, -sign_, sign_) * s
    )
    values = weights * jnp.exp(-power - tilt[..., None] * s)
    # dg/dr = log(1 + X) - X / (1 + X) + gap / (r + m) X / (1 + X), X = q (exp(s) - 1)
    rise = q_ * jnp.expm1(sign_ * s)
    scale = p_ + q_ * jnp.exp(sign_ * s)
    bend = _gap(scale, jnp.ones_like(scale), -rise) + (gap / total)[..., None] * (rise / scale)
    tail = front * width * jnp.sum(values, axis=-1)
    slope_tail = slope_front * tail - front * width * jnp.sum(values * bend, axis=-1)
    none = jnp.zeros_like(head)
    head, slope_head = (jnp.where(bent, v, none) for v in (head, slope_head))
    return upper, head + tail, slope_head + slope_tail


def _width(tilt: Array, a: Array, n: Array, x: Array, w: Array) -> Array:
    """Where ``g(s) = n (log(1 + w (exp(s) - 1)) - w s) + tilt s`` has grown to the cut."""
    cut = _CUT[n.dtype.itemsize]
    bend = n * w * x
    # g(s) >= tilt s + bend s^2 / (2 + s), so that this start lies to the right.
    half = cut - 2 * tilt
    root = jnp.sqrt(half * half + 8 * cut * (tilt + bend))
    narrow = 4 * cut / jnp.where(half < 0, root - half, 1)
    s = jnp.where(half < 0, narrow, (half + root) / (2 * (tilt + bend)))
    log_w = jnp.where(w > 0.5, jnp.log1p(-jnp.where(w > 0.5, x, 0)), jnp.log(w))
    s = jnp.minimum(s, (cut - n * log_w) / a)  # g(s) >= a s + n log(w)
    swap = w > x
    sign, small = jnp.where(swap, -1, 1).astype(n.dtype), jnp.minimum(w, x)
    for _ in range(3):  # Newton's method on log g: exact for exponentials, one digit is enough
        grown = n * centred_cumulant(small, sign * s) + tilt * s
        rise = jnp.expm1(sign * s)
        slope = sign * bend * rise / (1 + small * rise) + tilt
        s = jnp.maximum(s - grown * jnp.log(grown / cut) / slope, 0.3 * s)
    return s


def _both(upper: Array, tail: Array) -> tuple[Array, Array]:
    tail = jnp.minimum(tail, 1)
    return jnp.where(upper, 1 - tail, tail), jnp.where(upper, tail, 1 - tail)


@jax.custom_jvp
def tails(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """``P(Y <= y)`` and ``P(Y > y)`` for whole ``y >= 0``; constant in ``y``."""
    upper, tail, _ = _smaller_tail(y, mean, concentration)
    return _both(upper, tail * jnp.exp(log_mass(y, mean, concentration)))


@tails.defjvp
def _tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (y, mean, concentration), (_, dmean, dconcentration) = primals, tangents
    upper, tail, slope = _smaller_tail(y, mean, concentration)
    mass = jnp.exp(log_mass(y, mean, concentration))
    change = mass * _rates(y, mean, concentration, upper, tail, slope, dmean, dconcentration)
    return _both(upper, tail * mass), (change, -change)


def _rates(
    y: Array,
    mean: Array,
    concentration: Array,
    upper: Array,
    tail: Array,
    slope: Array,
    dmean: Array,
    dconcentration: Array,
) -> Array:
    """The tangent of ``P(Y <= y)`` over ``P(y)``."""
    r = jnp.minimum(concentration, poisson_limit(concentration))
    _, slope_mass = _slopes(y, mean, concentration)
    in_r = jnp.where(upper, -1, 1) * (slope + tail * slope_mass)
    in_r = jnp.where(concentration < poisson_limit(concentration), in_r, 0)
    return in_r * dconcentration - (r + y) / (r + mean) * dmean


@jax.custom_jvp
def log_tails(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """``log P(Y <= y)`` and ``log P(Y > y)`` for whole ``y >= 0``; constant in ``y``."""
    upper, tail, _ = _smaller_tail(y, mean, concentration)
    direct = jnp.log(tail) + log_mass(y, mean, concentration)
    other = jnp.log1p(-jnp.minimum(jnp.exp(direct), 1))
    return jnp.where(upper, other, direct), jnp.where(upper, direct, other)


@log_tails.defjvp
def _log_tails_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (y, mean, concentration), (_, dmean, dconcentration) = primals, tangents
    upper, tail, slope = _smaller_tail(y, mean, concentration)
    values = log_tails(y, mean, concentration)
    change = _rates(y, mean, concentration, upper, tail, slope, dmean, dconcentration)
    # P(y) over the tails: the smaller one's without two logarithms of any size in between.
    mass = log_mass(y, mean, concentration)
    direct = jnp.where(tail > 0, 1 / jnp.where(tail > 0, tail, 1), 0)
    other = jnp.where(upper, values[0], values[1])
    other = jnp.where(other > -jnp.inf, jnp.exp(mass - jnp.maximum(other, -1e30)), 0)
    below, above = jnp.where(upper, other, direct), jnp.where(upper, direct, other)
    return values, (below * change, -above * change)


__all__ = ["log_mass", "log_tails", "poisson_limit", "tails"]
