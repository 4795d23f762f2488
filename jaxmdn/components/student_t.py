"""Student's t family with learnt degrees of freedom: from the Cauchy distribution to the normal."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.declare import family, positive, real
from jaxmdn.components.location_scale import LocationScale
from jaxmdn.special import student as student_functions
from jaxmdn.special import student_distances
from jaxmdn.special.gamma import log_draw
from jaxmdn.typing import Array, Float, Key, Parameter


@family
class StudentT(LocationScale):
    """A product of t densities: ``(y_d - loc_d) / scale_d`` has ``df_d`` degrees of freedom.

    Attributes:
      loc: medians and modes, ``[..., K, D]``; means where ``df > 1``.
      scale: scales, ``[..., K, D]`` with size one allowed for K and D; the standard deviation is
        ``sqrt(df / (df - 2))`` times as large.
      df: degrees of freedom, positive, shaped as ``scale``; ``inf`` is the normal.

    Limits: the mean is NaN for ``df <= 1``; the variance is infinite for ``1 < df <= 2`` and NaN
    below. Everything is differentiable in all three parameters, samples included. Accurate from
    ``df = 0.1`` on; quantiles and samples of few degrees of freedom can overflow the dtype.

    References:
      Johnson, Kotz and Balakrishnan (1995), Continuous Univariate Distributions 2, chapter 28.
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)
    df: Parameter = positive(fixable=True)

    absolute_moments: ClassVar = True
    # From where on `student_distances` keeps its promise, with some room.
    least_df: ClassVar = 1.5

    def light(self) -> tuple[StudentT, Array]:
        """Members whose mean distances are exact, this one's but where the second is False."""
        light = self.df >= self.least_df
        return dataclasses.replace(self, df=jnp.where(light, self.df, 2)), light

    def _df(self, like: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.df.astype(like.dtype)

    def place(self) -> tuple[Array, Array]:
        loc, scale, _ = self._parameters()
        return loc, scale

    def standard_log_prob(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return student_functions.log_density(z, self._df(z))

    def continued(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        # A quadrature asks for thousands of them, none of which is out of all reach.
        z = self.standardize(y)
        value = student_functions.middle_log_density(z, self._df(z))
        return value - jnp.log(self.scale.astype(z.dtype))

    def standard_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return student_functions.tail(-z, self._df(z))

    def standard_log_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return student_functions.log_tail(-z, self._df(z))

    def standard_quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        return student_functions.quantile(p, self._df(p))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        key_normal, key_gamma = jax.random.split(key)
        full = (*shape, *self.batch_shape, self.event_dim)
        loc, scale, df = self._parameters()
        half = 0.5 * student_functions.bound_df(df)
        noise = jax.random.normal(key_normal, full, loc.dtype)
        log_gamma = log_draw(key_gamma, half, full)
        stretch = jnp.exp(0.5 * (jnp.log(half) - log_gamma))
        return self.drawn(loc + scale * (noise * stretch))

    def mean(self) -> Float[Array, "..."]:
        return self._fill(jnp.where(self.df > 1, self.loc, jnp.nan))

    def variance(self) -> Float[Array, "..."]:
        _, scale, df = self._parameters()
        inflation = 1 / (1 - 2 / jnp.where(df > 2, df, 3))
        infinite = jnp.where(df > 1, jnp.inf, jnp.nan)
        return self._fill(jnp.where(df > 2, scale**2 * inflation, infinite))

    @classmethod
    def from_moments(
        cls,
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        *,
        df: float = 5.0,
        **constants: Any,
    ) -> StudentT:
        """The member with these moments and ``df > 2`` degrees of freedom."""
        if not df > 2:
            raise ValueError(
                f"StudentT.from_moments: df must be above 2, for a finite variance; got {df}."
            )
        scale = jnp.sqrt((1 - 2 / df) * variance)
        return cls(loc=mean, scale=scale, df=jnp.full_like(scale, df), **constants)

    def absolute_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, df, y = self._parameters(y)
        return student_distances.mean_distance(y - loc, scale, df)

    def own_difference(self) -> Float[Array, "..."]:
        _, scale, df = self._parameters()
        return scale * student_distances.own_difference(df)

    def mean_difference(self, other: StudentT) -> Float[Array, "..."]:
        loc, scale, df, other_loc, other_scale, other_df = numerics.upcast(
            self.loc, self.scale, self.df, other.loc, other.scale, other.df
        )
        return student_distances.difference(loc - other_loc, (scale, other_scale), (df, other_df))
