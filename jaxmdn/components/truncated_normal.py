"""The normal family restricted to an interval, which may lie far out in the normal's tail."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxmdn import meshes, numerics
from jaxmdn.components.declare import constant, family, positive, real
from jaxmdn.components.interval import BoundedDensity, check_bounds
from jaxmdn.special.normal import erf, half_moment, ndtr
from jaxmdn.special.sides import log_complete, nearer_side
from jaxmdn.typing import Array, Bool, Float, Key, Parameter

_TAIL_STEPS, _POLISH_STEPS, _MOMENT_STEPS = 3, 3, 40
# Scales beyond which exp(-r^2 / 2) is zero in every dtype.
_FARTHEST = 1e3


@family
class TruncatedNormal(BoundedDensity):
    """A product of normal densities restricted to ``lower <= y_d <= upper``.

    Attributes:
      loc: means of the normals before the restriction, ``[..., K, D]``; they may lie outside.
      scale: their standard deviations, ``[..., K, D]``, positive.
      lower, upper: the bounds (static); ``-inf`` or ``inf`` for none.

    Sizes of one are allowed for K and D. Limits: the log-density is finite at both bounds, so that
    data on them do no harm. Relative accuracy however far ``loc`` is from the interval.

    References:
      Johnson, Kotz and Balakrishnan (1994), Continuous Univariate Distributions 1, section 13.10.1.
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)
    lower: float = constant(0.0)
    upper: float = constant(math.inf)

    closed: ClassVar[bool] = True

    # Everything is counted from the mode, the point of the interval next to loc:
    # log p(y) = -((y - mode) / scale) ((y - loc) + (mode - loc)) / (2 scale) - log J - log(scale).

    def _mode(self, left: Array | float, right: Array | float) -> Array:
        loc = self._parameters()[0]
        return jnp.where(loc < left, left, jnp.where(loc > right, right, loc))

    def _fall(self, y: Array, mode: Array) -> Array:
        loc, scale, y, mode = self._parameters(y, mode)
        step = numerics.divide(y - mode, scale)
        return -0.5 * step * numerics.divide((y - loc) + (mode - loc), scale)

    def _gaps(self, mode: Array, left: Array | float, right: Array | float) -> tuple[Array, Array]:
        """Distances of the mode from both ends, in scales."""
        scale = self._parameters()[1]

        def gap(high: Array | float, low: Array | float) -> Array:
            for end in (high, low):
                if isinstance(end, float) and math.isinf(end):
                    return jnp.full(mode.shape, jnp.inf, mode.dtype)
            return numerics.divide(jnp.asarray(high - low), scale)

        return gap(mode, left), gap(right, mode)

    def _log_mass(self, left: Array | float, right: Array | float) -> tuple[Array, Array]:
        """The mode of an interval and ``log J``, its mass over that of the density at the mode."""
        loc, scale = self._parameters()
        mode = self._mode(left, right)
        before, after = self._gaps(mode, left, right)
        outside = (loc < left) | (loc > right)
        offset = jnp.abs(numerics.divide(mode - loc, scale))
        length = jnp.where(loc < left, after, before)
        beside = half_moment(jnp.where(outside, offset, 0), jnp.where(outside, length, 1))
        root = math.sqrt(0.5)
        around = math.sqrt(0.5 * math.pi) * (erf(root * before) + erf(root * after))
        return mode, jnp.log(jnp.where(outside, beside, around))

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        mode, log_mass = self._log_mass(self.lower, self.upper)
        return self._fall(y, mode) - log_mass - jnp.log(self._parameters()[1])

    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        mode, log_mass = self._log_mass(self.lower, self.upper)

        def log_tail(left: Array | float, right: Array | float) -> Array:
            nearest, log_part = self._log_mass(left, right)
            return self._fall(nearest, mode) + log_part - log_mass

        below, above = log_tail(self.lower, y), log_tail(y, self.upper)
        # Of the larger one nothing but rounding is left where it is nearly all.
        lower = below < above
        return log_complete(lower, jnp.where(lower, below, above))

    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        below, above = self.inner_log_tails(y)
        return jnp.exp(below), jnp.exp(above)

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        loc, scale, q = self._parameters(q)
        under, over = jnp.where(upper, 1 - q, q), jnp.where(upper, q, 1 - q)
        mode = self._mode(self.lower, self.upper)
        before, after = self._gaps(mode, self.lower, self.upper)
        left = loc < self.lower  # so that the density falls, from the lower bound on
        outside = left | (loc > self.upper)

        # Outside: from the mode, until the cumulative hazard of the whole tail is what it must be.
        near, far = jnp.where(left, under, over), jnp.where(left, over, under)
        offset = jnp.where(outside, jnp.abs(mode - loc) / scale, 1)
        tail = half_moment(offset, jnp.full_like(offset, jnp.inf))
        length = jnp.where(outside, jnp.where(left, after, before), 1)
        part = half_moment(offset, length)
        # What is left of the tail: beyond the other bound, and the share that is asked for there.
        short = jnp.minimum(length, _FARTHEST)
        beyond = half_moment(offset + short, jnp.full_like(offset, jnp.inf))
        beyond = jnp.exp(-short * (offset + 0.5 * short)) * beyond
        goal = jnp.where(
            near < 0.5,
            -jnp.log1p(-jnp.minimum(near, 0.5) * part / tail),
            -jnp.log((beyond + far * part) / tail),
        )
        start = 2 * goal / (1 / tail + jnp.sqrt(1 / tail**2 + 2 * goal))

        def step(_: Any, r: Array) -> Array:
            rest = half_moment(offset + r, jnp.full_like(r, jnp.inf))
            hazard = offset * r + 0.5 * r * r + jnp.log(tail / rest)
            return jnp.maximum(r - (hazard - goal) * rest, 0.1 * r)

        r = meshes.fori_loop(0, _TAIL_STEPS, step, start)
        beside = mode + jnp.where(left, r, -r) * scale

        # Inside: by the normal's own quantile, from the nearer end.
        a, b = jnp.where(outside, 1, before), jnp.where(outside, 1, after)
        left_out, right_out = ndtr(-a), ndtr(-b)
        total = 0.5 * (erf(a * math.sqrt(0.5)) + erf(b * math.sqrt(0.5)))
        below, above = left_out + under * total, right_out + over * total
        z = ndtri(jnp.minimum(jnp.minimum(below, above), 0.5))
        z = jnp.where(below < above, z, -z)
        y = jnp.clip(jnp.where(outside, beside, loc + scale * z), self.lower, self.upper)

        # Polished by Newton's method on the logarithm of the smaller tail.
        nearest, side = nearer_side(q, upper)
        small, log_p = ~side, jnp.log(nearest)

        def polish(_: Any, y: Array) -> Array:
            below, above = self.inner_log_tails(y)
            value = jnp.where(small, below, above)
            step = (value - log_p) * jnp.exp(value - self.marginal_log_prob(y))
            step = jnp.where(jnp.isfinite(step), jnp.where(small, -step, step), 0)
            return jnp.clip(y + jnp.clip(step, -scale, scale), self.lower, self.upper)

        return meshes.fori_loop(0, _POLISH_STEPS, polish, y)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        full = (*shape, *self.batch_shape, self.event_dim)
        dtype = self._parameters()[0].dtype
        return self.drawn(self.quantile(numerics.uniform(key, full, dtype)))

    def _moments(self) -> tuple[Array, Array]:
        """Mean and variance, from the moments of the distance to the mode."""
        loc, scale = self._parameters()
        mode = self._mode(self.lower, self.upper)
        before, after = self._gaps(mode, self.lower, self.upper)
        left, right = loc < self.lower, loc > self.upper
        offset = jnp.abs(numerics.divide(mode - loc, scale))
        none = jnp.zeros_like(offset)
        above = jnp.where(right, 0, offset), jnp.where(right, none, after)
        below = jnp.where(left, 0, offset), jnp.where(left, none, before)
        mass, first, second = (
            half_moment(*above, power) + (-1) ** power * half_moment(*below, power)
            for power in range(3)
        )
        return mode + scale * first / mass, scale**2 * (second / mass - (first / mass) ** 2)

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self._moments()[0])

    def variance(self) -> Float[Array, "..."]:
        return self._fill(self._moments()[1])

    @classmethod
    def from_moments(
        cls,
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        *,
        lower: float = 0.0,
        upper: float = math.inf,
        **constants: Any,
    ) -> TruncatedNormal:
        """A member with these moments, or near: the mean first, the variance as far as it goes.

        The scale stays below ten standard deviations, so that ``loc`` stays close.
        """
        check_bounds("TruncatedNormal.from_moments", lower, upper, finite=False)
        deviation = jnp.sqrt(variance)

        def make(loc: Array, scale: Array) -> TruncatedNormal:
            return cls(loc=loc, scale=scale, lower=lower, upper=upper, **constants)

        def step(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
            loc, scale = state
            reached, spread = make(loc, scale)._moments()
            # d mean / d loc = variance / scale^2
            shift = jnp.clip(scale**2 / spread * (mean - reached), -2 * scale, 2 * scale)
            grown = scale * jnp.clip((variance / spread) ** 0.5, 0.8, 1.25)
            return loc + shift, jnp.minimum(grown, 10 * deviation)

        return make(*meshes.fori_loop(0, _MOMENT_STEPS, step, (mean, deviation)))
