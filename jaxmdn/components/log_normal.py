"""The log-normal family: positive targets whose logarithm is normal."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxmdn import numerics
from jaxmdn.components.declare import family, positive, real
from jaxmdn.components.interval import PositiveDensity
from jaxmdn.components.normal import Normal
from jaxmdn.special.log_normals import is_wide, reduced_distance
from jaxmdn.special.normal import log_ndtr, ndtr
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family(name="lognormal")
class LogNormal(PositiveDensity):
    """A product of log-normal densities, ``log y_d ~ N(loc_d, scale_d^2)``.

    Attributes:
      loc: means of the logarithms (the logarithms of the medians), ``[..., K, D]``.
      scale: standard deviations of the logarithms, ``[..., K, D]``, positive.

    Sizes of one are allowed for K and D. Limits: the log-density at zero is ``-inf``; see also
    :class:`~jaxmdn.components.interval.IntervalDensity`.

    References:
      Johnson, Kotz and Balakrishnan (1994), Continuous Univariate Distributions 1, chapter 14.
    """

    loc: Parameter = real()
    scale: Parameter = positive()

    def _standardize(self, y: Array) -> Array:
        loc, scale, y = self._parameters(y)
        return numerics.standardize(jnp.log(y), loc, scale)

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        z = self._standardize(y)
        return -0.5 * (z * z + numerics.LOG_2PI) - jnp.log(self._parameters()[1]) - jnp.log(y)

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
        return jnp.exp(loc + jnp.where(upper, -scale, scale) * ndtri(q))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        noise = jax.random.normal(key, (*shape, *self.batch_shape, self.event_dim), loc.dtype)
        return self.drawn(jnp.exp(loc + scale * noise))

    def mean(self) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        return self._fill(jnp.exp(loc + 0.5 * scale**2))

    def variance(self) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        return self._fill(jnp.expm1(scale**2) * jnp.exp(2 * loc + scale**2))

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> LogNormal:
        return dataclasses.replace(self, loc=self.loc + jnp.log(scale))

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> LogNormal:
        spread = jnp.log1p(variance / mean**2)
        return cls(loc=jnp.log(mean) - 0.5 * spread, scale=jnp.sqrt(spread), **constants)

    # Each less the means of wide components, which a score does not need.
    def reduced_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``E|Y_d - y_d|``, reduced."""
        loc, scale, y = self._parameters(y)
        inside = (y > 0) & (y < jnp.inf)
        safe = jnp.where(inside, y, 1)
        point = jnp.log(safe), jnp.zeros_like(safe), safe
        value = reduced_distance(loc, scale, jnp.exp(loc), *point)
        wide = is_wide(loc, scale)
        log_mean = jnp.where(wide, 0, loc) + 0.5 * jnp.where(wide, 0, scale) ** 2
        return jnp.where(inside, value, jnp.abs(y) + jnp.where(wide, 0, jnp.exp(log_mean)))

    def own_reduced(self) -> Float[Array, "..."]:
        return self.mean_reduced(self)

    def mean_reduced(self, other: LogNormal) -> Float[Array, "..."]:
        """``E|Y_d - Y'_d|`` of two independent variables, reduced."""
        loc, scale, other_loc, other_scale = numerics.upcast(
            self.loc, self.scale, other.loc, other.scale
        )
        second = other_loc, other_scale, jnp.exp(other_loc)
        return reduced_distance(loc, scale, jnp.exp(loc), *second)
