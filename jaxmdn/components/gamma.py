"""The gamma family: positive targets, from nearly exponential to nearly normal."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxmdn.components.declare import family, magnitude
from jaxmdn.components.interval import PositiveDensity
from jaxmdn.special import gamma as gamma_functions
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family
class Gamma(PositiveDensity):
    """A product of gamma densities, ``y_d^(a - 1) exp(-b y_d) b^a / Gamma(a)``.

    Attributes:
      concentration: shapes ``a``, ``[..., K, D]``, positive.
      rate: rates ``b`` (inverse scales), ``[..., K, D]``, positive; the mean is ``a / b``.

    Sizes of one are allowed for K and D. Limits: the log-density at zero is ``inf``, ``log(rate)``
    or ``-inf`` for a concentration below, at or above one. Made for concentrations from 1e-2 to 1e6
    and beyond; where it is below one, the tail above a target below ``1 / rate`` is accurate to
    rounding of one only.

    References:
      Johnson, Kotz and Balakrishnan (1994), Continuous Univariate Distributions 1, chapter 17.
    """

    concentration: Parameter = magnitude()
    rate: Parameter = magnitude()

    def _scaled(self, y: Array) -> tuple[Array, Array]:
        """``rate y``, kept within the dtype's range, and the concentration."""
        concentration, rate, y = self._parameters(y)
        return gamma_functions.bounded(rate * y), concentration

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        concentration, rate, y = self._parameters(y)
        return gamma_functions.log_density(y, concentration, rate)

    def limits(self) -> tuple[Array | float, Array | float]:
        concentration, rate = self._parameters()
        beside = jnp.where(concentration < 1, jnp.inf, -jnp.inf)
        return jnp.where(concentration == 1, jnp.log(rate), beside), -jnp.inf

    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return gamma_functions.tails(*self._scaled(y))

    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return gamma_functions.log_tails(*self._scaled(y))

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        concentration, rate, q = self._parameters(q)
        return gamma_functions.quantile(q, concentration, upper) / rate

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        concentration, rate = self._parameters()
        full = (*shape, *self.batch_shape, self.event_dim)
        draw = gamma_functions.log_draw(key, concentration, full)
        return self.drawn(jnp.exp(draw - jnp.log(rate)))

    def mean(self) -> Float[Array, "..."]:
        concentration, rate = self._parameters()
        return self._fill(concentration / rate)

    def variance(self) -> Float[Array, "..."]:
        concentration, rate = self._parameters()
        return self._fill(concentration / rate / rate)

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Gamma:
        return dataclasses.replace(self, rate=self.rate / scale)

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> Gamma:
        rate = mean / variance
        return cls(concentration=mean * rate, rate=rate, **constants)
