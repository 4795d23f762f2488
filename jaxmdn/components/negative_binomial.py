"""The negative binomial family: counts that vary more than Poisson's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn.components.counts import CountDensity
from jaxmdn.components.declare import family, magnitude
from jaxmdn.components.poisson import draw_poisson
from jaxmdn.special import counts as count_functions
from jaxmdn.special.gamma import log_draw
from jaxmdn.typing import Array, Float, Key, Parameter

# The range of concentrations that moments ask for.
_LEAST, _MOST = 1e-2, 1e8


@family
class NegativeBinomial(CountDensity):
    """A product of negative binomial distributions by mean and concentration.

    ``P(Y = y) = Gamma(y + r) / (Gamma(r) y!) (r / (r + m))^r (m / (r + m))^y``: a Poisson variable
    whose rate is gamma distributed with mean ``m`` and shape ``r``.

    Attributes:
      rate: means ``m``, ``[..., K, D]`` with size one allowed for K and D; not negative.
      concentration: ``r``, shaped alike, positive; the variance is ``m + m^2 / r``. Large ones, and
        ``inf``, give the Poisson distribution.

    Accurate to the dtype for concentrations from 1e-2 to infinity, in value and in derivatives; at
    1e-2 tails beyond counts of 1e7 are off by up to 4e-12 of themselves.

    References:
      Loader (2000), Fast and accurate computation of binomial probabilities; Lawless (1987),
      Negative binomial and mixed Poisson regression, eq. 1.1.
    """

    rate: Parameter = magnitude()
    concentration: Parameter = magnitude(fixable=True)

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> NegativeBinomial:
        """The member with these moments; nearly Poisson where the variance is below the mean."""
        mean = jnp.maximum(mean, float(jnp.finfo(mean.dtype).tiny))
        ratio = jnp.maximum((variance - mean) / mean / mean, 1 / _MOST)
        return cls(rate=mean, concentration=jnp.maximum(1 / ratio, _LEAST))

    def log_mass(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return count_functions.log_mass(y, *self._parameters())

    def tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return count_functions.tails(y, *self._parameters())

    def log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return count_functions.log_tails(y, *self._parameters())

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        mean, concentration = jax.lax.stop_gradient(self._parameters())
        key_rate, key_count = jax.random.split(key)
        r = jnp.minimum(concentration, count_functions.limit(concentration))
        log_gamma = log_draw(key_rate, r, shape)
        return draw_poisson(key_count, mean * jnp.exp(log_gamma - jnp.log(r)))

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self.rate)

    def variance(self) -> Float[Array, "..."]:
        mean, concentration = self._parameters()
        return self._fill(mean + mean * (mean / concentration))
