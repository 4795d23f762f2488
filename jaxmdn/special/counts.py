"""Poisson and negative binomial probabilities and their tails, for means and counts of any size.

The textbook forms subtract numbers of the size ``y log(y)`` from each other: in float32 nothing is
left of a probability at a count of a million. Poisson's probabilities are those of the gamma
distribution,

    P(y) = m^y exp(-m) / Gamma(y) / y,  P(Y <= y) = Q(y + 1, m),

and those of the negative binomial of mean ``m`` and concentration ``r`` those of the beta
distribution, ``p = r / (r + m)``, ``q = 1 - p``:

    P(y) = p^r q^y / B(r, y) / y,  P(Y <= y) = I_p(r, y + 1).

The latter has a limit, Poisson, for large ``r``, where its derivative in ``r`` falls like ``r^-2``
while those in the first shape and in ``p`` fall like ``1 / r``: it is written for the two together.
With the integral of the beta distribution in the log-odds, as a function of ``r``,

    P(Y <= y) = P(y) (r + y) q int_0^inf exp(-g(s)) ds,   P(Y > y) the same with g(-s),
    g(s) = (r + y + 1) (log(1 + q (exp(s) - 1)) - q s) + p (m - y - 1) s,
    dg/dr = log(1 + X) - X / (1 + X) + (m - y - 1) / (r + m) X / (1 + X),  X = q (exp(s) - 1).

The smaller tail is the one that is computed, with its relative accuracy, whatever ``r`` (which is
why :func:`jaxmdn.special.beta.tails`, whose choice is another next to the ends, does not serve).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.special import beta, gamma
from jaxmdn.special.elementary import log_gap
from jaxmdn.special.gamma import stirling_slope
from jaxmdn.special.sides import complete, log_complete, log_side
from jaxmdn.typing import Array

# By the dtype's bytes: terms of I_x(a, b) = term + I_x(a + 1, b) that are summed first where a is
# below their number: the integrand's bent tail is then that of a distribution of this shape.
_SHIFTS = {4: 4, 8: 12}
# By the dtype's bytes: the concentration that stands for infinity, where y / r is no longer seen
# beside one for any count; and a mean that stands for zero, whose quotients do not underflow.
_LIMIT, _LEAST = {4: 1e15, 8: 1e30}, {4: 1e-30, 8: 1e-250}


def _reachable(y: Array, mean: Array, log_mass: Array, log_zero: Array) -> Array:
    """The log-mass of a positive ``y`` at a positive mean, that of zero, and what lies outside."""
    value = jnp.where(y > 0, jnp.where(mean > 0, log_mass, -jnp.inf), log_zero)
    return jnp.where(mean >= 0, value, jnp.nan)


def _positive(mean: Array) -> Array:
    return mean + jnp.where(mean > 0, 0, _LEAST[mean.dtype.itemsize]).astype(mean.dtype)


def _log_both(mean: Array, lower: Array, log: Array) -> tuple[Array, Array]:
    below, above = log_complete(lower, log)
    return jnp.where(mean == 0, 0, below), jnp.where(mean == 0, -jnp.inf, above)


def poisson_log_mass(y: Array, mean: Array) -> Array:
    """``log P(Y = y)`` of the Poisson distribution, for whole ``y >= 0``; constant in ``y``.

    A mean of zero puts all mass on zero. NaN for a negative mean.
    """
    k, m = jnp.where(y > 0, y, 1), jnp.where(mean > 0, mean, 1)
    return _reachable(y, mean, gamma.log_kernel(m, k) - jnp.log(k), -mean)


def _poisson_sides(y: Array, mean: Array) -> tuple[Array, Array]:
    m, a = jnp.where(mean >= 0, _positive(mean), jnp.nan), y + 1
    return ~gamma.is_lower(m, a), log_side(gamma.side, (m,), (a,))


def poisson_tails(y: Array, mean: Array) -> tuple[Array, Array]:
    """``P(Y <= y)`` and ``P(Y > y)`` for whole ``y >= 0``; constant in ``y``."""
    return complete(*_poisson_sides(y, mean))


def poisson_log_tails(y: Array, mean: Array) -> tuple[Array, Array]:
    """Logarithms of :func:`poisson_tails`."""
    return _log_both(mean, *_poisson_sides(y, mean))


def limit(concentration: Array) -> Array:
    """The concentration that stands for infinity: the negative binomial is Poisson's."""
    return jnp.full_like(concentration, _LIMIT[concentration.dtype.itemsize])


@jax.custom_jvp
def log_mass(y: Array, mean: Array, concentration: Array) -> Array:
    """``log P(Y = y)`` of the negative binomial, for whole ``y >= 0``; constant in ``y``.

    A mean of zero puts all mass on zero. NaN for a negative mean or concentration.
    """
    r = jnp.minimum(concentration, limit(concentration))
    k, m = jnp.where(y > 0, y, 1), jnp.where(mean > 0, mean, 1)
    p, q = r / (r + m), m / (r + m)
    above = beta.kernel_of_gap(p, q, r, k, p * (k - m)) - jnp.log(k)
    value = _reachable(y, mean, above, -r * jnp.log1p(mean / r))
    return jnp.where(r > 0, value, jnp.nan)


@log_mass.defjvp
def _log_mass_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (y, mean, concentration), (_, dmean, dconcentration) = primals, tangents
    slope, slope_r = _slopes(y, mean, concentration)
    return log_mass(y, mean, concentration), slope * dmean + slope_r * dconcentration


def _slopes(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """Derivatives of ``log P(y)`` in the mean and in the concentration; zero out of reach.

    ``(y - m) / m / (1 + m / r)``, and with Stirling's rest ``S`` and ``t = (y - m) / (r + m)``
    ``y / r / (r + y) / 2 + S'(r + y) - S'(r) - (t - log(1 + t))``.
    """
    finite = concentration < limit(concentration)
    r = jnp.where(finite, concentration, limit(concentration))
    reachable = (mean > 0) | (y == 0)
    m = jnp.where(mean > 0, mean, 1)
    slope = jnp.where(y == 0, -1, (y - m) / m) / (1 + mean / r)
    rest = stirling_slope(r + y) - stirling_slope(r)
    slope_r = 0.5 * (y / r) / (r + y) + rest - log_gap(r + mean, r + y, y - mean)
    return jnp.where(reachable, slope, 0), jnp.where(reachable & finite, slope_r, 0)


def _smaller_tail(y: Array, mean: Array, r: Array, upper: Array) -> tuple[Array, Array]:
    """The smaller tail over ``P(y)``, and its derivative in ``r`` over ``P(y)``, at fixed ``P(y)``.

    The terms of ``I_x(a, b) = x^a w^b / (a B(a, b)) + I_x(a + 1, b)`` over ``P(y)`` are
    ``front / a``, ``front x (a + b) / (a (a + 1))``, ...; with each goes its logarithmic
    derivative. What is left is ``front`` times the integral, at ``a`` and ``y`` (upper) or ``r``
    (lower) that have moved up by as many steps.
    """
    total = r + mean
    p, q = r / total, mean / total
    a, b = jnp.where(upper, y + 1, r), jnp.where(upper, r, y + 1)
    x, w = jnp.where(upper, q, p), jnp.where(upper, p, q)
    front, slope_front = q * (r + y), (mean - y) / (r + y) / total
    shifts = _SHIFTS[y.dtype.itemsize]

    def add(i: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        head, slope_head, term, log_slope = state
        i = i.astype(y.dtype)
        climb = (mean - y - 1 - i) / (r + y + 1 + i) / total
        fall = mean / r / total + 1 / (r + y + 1 + i) - 1 / (r + i + 1)
        next_term = term * (x * ((a + b + i) / (a + i + 1)))
        next_slope = log_slope + jnp.where(upper, climb, fall)
        return head + term, slope_head + term * log_slope, next_term, next_slope

    zero = jnp.zeros_like(x + y)
    state = (zero, zero, zero + front / a, zero + slope_front - jnp.where(upper, 0, 1 / r))
    head, slope_head, term, log_slope = meshes.fori_loop(0, shifts, add, state)
    bent = a < shifts
    steps = jnp.where(bent, shifts, 0).astype(y.dtype)
    front = jnp.where(bent, term * (a + shifts), front)
    slope_front = jnp.where(bent, log_slope + jnp.where(upper, 0, 1 / (r + shifts)), slope_front)
    slope = p * jnp.abs(mean - y - 1) + steps * w
    shift = (mean - y - 1 - steps) / total  # m - y' - 1 above, m - y - 1 - r' + r below
    sign = jnp.where(upper, -1, 1).astype(y.dtype)

    def bend(s: Array) -> Array:
        rise = q * jnp.expm1(sign * s)
        scale = p + q * jnp.exp(sign * s)
        return log_gap(scale, jnp.ones_like(scale), -rise) + shift * (rise / scale)

    integral, bent_integral = beta.tilted_integral(x, w, slope, a + b + steps, bend)
    slope_tail = front * (slope_front * integral - bent_integral)
    some = bent.astype(y.dtype)
    return some * head + front * integral, some * slope_head + slope_tail


@jax.custom_jvp
def _log_side(y: Array, mean: Array, concentration: Array) -> Array:
    """The logarithm of the smaller tail: the upper one if ``y + 1 > mean``."""
    r = jnp.minimum(concentration, limit(concentration))
    tail, _ = _smaller_tail(y, mean, r, y + 1 > mean)
    return jnp.log(tail) + log_mass(y, mean, concentration)


@_log_side.defjvp
def _log_side_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # d P(Y <= y) / dm = -P(y) (r + y) / (r + m)
    (y, mean, concentration), (_, dmean, dconcentration) = primals, tangents
    finite, upper = concentration < limit(concentration), y + 1 > mean
    r = jnp.minimum(concentration, limit(concentration))
    tail, slope = _smaller_tail(y, mean, r, upper)
    value = jnp.log(tail) + log_mass(y, mean, concentration)
    safe = jnp.maximum(tail, float(jnp.finfo(tail.dtype).tiny))
    in_r = jnp.where(finite, slope / safe + _slopes(y, mean, concentration)[1], 0)
    in_mean = jnp.where(upper, 1, -1) * ((r + y) / (r + mean)) / safe
    return value, in_r * dconcentration + in_mean * dmean


def tails(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """``P(Y <= y)`` and ``P(Y > y)`` for whole ``y >= 0``; constant in ``y``."""
    mean = _positive(mean)
    return complete(y + 1 <= mean, _log_side(y, mean, concentration))


def log_tails(y: Array, mean: Array, concentration: Array) -> tuple[Array, Array]:
    """``log P(Y <= y)`` and ``log P(Y > y)`` for whole ``y >= 0``; constant in ``y``."""
    positive = _positive(mean)
    log = _log_side(y, positive, concentration)
    return _log_both(mean, y + 1 <= positive, log)
