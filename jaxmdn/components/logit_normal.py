"""The logit-normal family: bounded targets whose logit is normal."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from jaxmdn import meshes, numerics
from jaxmdn.components.declare import constant, family, positive, real
from jaxmdn.components.interval import BoundedDensity, check_bounds
from jaxmdn.components.normal import Normal
from jaxmdn.special.normal import log_ndtr, ndtr
from jaxmdn.typing import Array, Bool, Float, Key, Parameter

# Step of the trapezoidal rules for the moments, and where they end.
_STEP, _NORMAL_END, _LOGISTIC_END = 0.4, 9.2, 39.0
_MOMENT_STEPS = 16


@family
class LogitNormal(BoundedDensity):
    """A product of logit-normal densities, ``log(x / (1 - x)) ~ N(loc_d, scale_d^2)``.

    ``x = (y_d - lower) / (upper - lower)``.

    Attributes:
      loc: means (and medians) of the logits, ``[..., K, D]``.
      scale: standard deviations of the logits, ``[..., K, D]``, positive.
      lower, upper: the bounds (static).

    Sizes of one are allowed for K and D. Limits: the log-density at both bounds is ``-inf``, with
    derivatives of zero; for data on the bounds see :class:`~jaxmdn.components.Beta`. Mean and
    variance are integrated numerically, to 1e-12 in float64.

    References:
      Atchison and Shen (1980), Logistic-normal distributions: some properties and uses, eq. 1.1.
    """

    loc: Parameter = real()
    scale: Parameter = positive()
    lower: float = constant(0.0)
    upper: float = constant(1.0)

    def _standardize(self, y: Array) -> Array:
        loc, scale, y = self._parameters(y)
        x, rest = self.units(y)
        return numerics.standardize(jnp.log(x) - jnp.log(rest), loc, scale)

    def place(self) -> tuple[Array, Array]:
        loc, scale = self._parameters()
        return loc, scale

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        x, rest = self.units(y)
        z = self._standardize(y)
        jacobian = jnp.log(x) + jnp.log(rest) + math.log(self.width)
        return -0.5 * (z * z + numerics.LOG_2PI) - jnp.log(self._parameters()[1]) - jacobian

    def in_coordinate(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return Normal(loc=self.loc, scale=self.scale).marginal_log_prob(t)

    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        z = self._standardize(y)
        return ndtr(z), ndtr(-z)

    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        z = self._standardize(y)
        return log_ndtr(z), log_ndtr(-z)

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        loc, scale, q = self._parameters(q)
        logit = loc + jnp.where(upper, -scale, scale) * ndtri(q)
        return self.from_units(jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        noise = jax.random.normal(key, (*shape, *self.batch_shape, self.event_dim), loc.dtype)
        logit = loc + scale * noise
        return self.drawn(self.from_units(jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)))

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self.from_units(*_moments(*self._parameters())[:2]))

    def variance(self) -> Float[Array, "..."]:
        return self._fill(self.width**2 * _moments(*self._parameters())[2])

    @classmethod
    def from_moments(
        cls,
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        *,
        lower: float = 0.0,
        upper: float = 1.0,
        **constants: Any,
    ) -> LogitNormal:
        """The member with these moments; variances above 0.8 of the largest are taken as that."""
        check_bounds("LogitNormal.from_moments", lower, upper)
        width = upper - lower
        x, rest = (mean - lower) / width, (upper - mean) / width
        share = jnp.minimum(variance / (width**2 * x * rest), 0.8)  # of the largest for this mean
        goal = jnp.log(x) - jnp.log(rest), jnp.log(share) - jnp.log1p(-share)

        # Newton's method for the logits of the mean and of the share. In loc over the factor by
        # which the scale pulls the mean towards one half, each has nearly its own unknown.
        def reach(centre: Array, log_scale: Array) -> tuple[Array, Array]:
            below, above, spread = _moments(*_from_centre(centre, log_scale))
            reached = spread / (below * above)
            logit = jnp.log(below) - jnp.log(above)
            return logit, jnp.log(reached) - jnp.log(jnp.maximum(1 - reached, 1e-3))

        def step(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
            one, zero = jnp.ones_like(state[0]), jnp.zeros_like(state[0])
            values, (a, c) = jax.jvp(reach, state, (one, zero))
            _, (b, d) = jax.jvp(reach, state, (zero, one))
            e, f = goal[0] - values[0], goal[1] - values[1]
            scaled = a * d - b * c
            centre, log_scale = (d * e - b * f) / scaled, (a * f - c * e) / scaled
            return state[0] + jnp.clip(centre, -1, 1), state[1] + jnp.clip(log_scale, -0.5, 0.5)

        square = jnp.minimum(4 * share / (1 - share), jnp.log1p(share / (x * rest)))
        start = goal[0], 0.5 * jnp.log(square)
        centre, log_scale = meshes.fori_loop(0, _MOMENT_STEPS, step, start)
        loc, _ = _from_centre(centre, log_scale)
        return cls(loc=loc, scale=jnp.exp(log_scale), lower=lower, upper=upper, **constants)


def _from_centre(centre: Array, log_scale: Array) -> tuple[Array, Array]:
    scale = jnp.exp(log_scale)
    return centre * jnp.sqrt(1 + math.pi / 8 * scale**2), scale


def _moments(loc: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Mean of ``x = sigmoid(loc + scale z)``, its complement to one, and the variance of ``x``.

    By the trapezoidal rule, whose error is rounding for functions analytic in a strip: narrow
    densities over ``z``; wide ones by parts, as ``E[g(T)] = int g'(t) P(T > t) dt``. With the sign
    of ``loc`` taken off, nothing cancels.
    """
    loc, scale = jnp.broadcast_arrays(loc, scale)
    size, wide = jnp.abs(loc), scale > 1
    narrow, broad = jnp.where(wide, 1, scale), jnp.where(wide, scale, 1)

    nodes = np.arange(-_NORMAL_END, _NORMAL_END + _STEP, _STEP)
    bell = np.exp(-0.5 * nodes * nodes)
    z, weights = (jnp.asarray(v, loc.dtype) for v in (nodes, bell / np.sum(bell)))
    x = jax.nn.sigmoid(-(size[..., None] + narrow[..., None] * z))
    first = jnp.sum(weights * x, axis=-1)
    spread = jnp.sum(weights * (x - first[..., None]) ** 2, axis=-1)

    nodes = np.arange(-_LOGISTIC_END, _LOGISTIC_END + _STEP, _STEP)
    share = 1 / (1 + np.exp(-nodes))
    slope = _STEP * share * (1 - share)
    t, once, twice = (jnp.asarray(v, loc.dtype) for v in (nodes, slope, 2 * share * slope))
    tails = ndtr((-size[..., None] - t) / broad[..., None])
    mean, square = jnp.sum(once * tails, axis=-1), jnp.sum(twice * tails, axis=-1)

    small = jnp.where(wide, mean, first)
    variance = jnp.where(wide, square - mean * mean, spread)
    left = loc < 0
    return jnp.where(left, small, 1 - small), jnp.where(left, 1 - small, small), variance
