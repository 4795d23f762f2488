"""The Weibull family: times to failure, wind speeds; every function elementary."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components.declare import family, magnitude, positive
from jaxmdn.components.interval import PositiveDensity
from jaxmdn.special.elementary import polynomial
from jaxmdn.special.gamma import log_gamma
from jaxmdn.special.sides import log_rest
from jaxmdn.typing import Array, Bool, Float, Key, Parameter

# By the dtype's bytes: from which exponent on exp is continued by its tangent. In float32 the
# largest number is exp(88): exp(24) is left for the factors of the derivatives, and so is exp(369).
_STEEP = {4: 64.0, 8: 340.0}
_MOMENT_STEPS = 8


@family
class Weibull(PositiveDensity):
    """A product of Weibull densities, ``P(Y_d > y_d) = exp(-(y_d / scale_d)^k)``.

    Attributes:
      concentration: shapes ``k``, ``[..., K, D]``, positive.
      scale: the quantiles of level ``1 - 1 / e``, ``[..., K, D]``, positive.

    Sizes of one are allowed for K and D. Limits: the log-density at zero is ``inf``,
    ``-log(scale)`` or ``-inf`` for a concentration below, at or above one. Where ``(y / scale)^k``
    exceeds ``exp(64)`` (``exp(340)`` in float64) it is continued by its tangent in ``log y``, so
    that the log-density and its derivatives stay finite.

    References:
      Johnson, Kotz and Balakrishnan (1994), Continuous Univariate Distributions 1, chapter 21.
    """

    concentration: Parameter = magnitude()
    scale: Parameter = positive(in_unit=True)

    def _hazards(self, y: Array) -> tuple[Array, Array]:
        """The logarithm of the cumulative hazard ``(y / scale)^k``, and itself."""
        return _hazards(*self._parameters(y))[1:]

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return _log_density(*self._parameters(y))

    def in_coordinate(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        concentration, scale = self._parameters()
        exponent = concentration * (t - jnp.log(scale))
        return jnp.log(concentration) + exponent - jnp.exp(exponent)

    def limits(self) -> tuple[Array | float, Array | float]:
        concentration, scale = self._parameters()
        beside = jnp.where(concentration < 1, jnp.inf, -jnp.inf)
        return jnp.where(concentration == 1, -jnp.log(scale), beside), -jnp.inf

    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        _, hazard = self._hazards(y)
        return -numerics.expm1(-hazard), jnp.exp(-hazard)

    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        exponent, hazard = self._hazards(y)
        # log(1 - exp(-h)) = log(h) - h / 2 + ... for small h
        small = exponent < -20
        log_cdf = log_rest(-jnp.where(small, 1, hazard))
        return jnp.where(small, exponent - 0.5 * hazard, log_cdf), -hazard

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        concentration, scale, q = self._parameters(q)
        hazard = -jnp.where(upper, jnp.log(q), jnp.log1p(-q))
        return scale * jnp.exp(jnp.log(hazard) / concentration)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        concentration, scale = self._parameters()
        full = (*shape, *self.batch_shape, self.event_dim)
        log_exponential = jnp.log(-jnp.log(numerics.uniform(key, full, scale.dtype)))
        return self.drawn(scale * jnp.exp(log_exponential / concentration))

    def mean(self) -> Float[Array, "..."]:
        concentration, scale = self._parameters()
        return self._fill(scale * jnp.exp(log_gamma(1 + 1 / concentration)))

    def variance(self) -> Float[Array, "..."]:
        concentration, scale = self._parameters()
        log_mean = jnp.log(scale) + log_gamma(1 + 1 / concentration)
        return self._fill(jnp.expm1(_log_moment_ratio(1 / concentration)) * jnp.exp(2 * log_mean))

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Weibull:
        return dataclasses.replace(self, scale=scale * self.scale)

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> Weibull:
        goal = jnp.log(jnp.log1p(variance / mean**2))

        # The logarithm of the ratio is nearly a power of 1 / k, of degree two to one.
        def step(_: Any, log_u: Array) -> Array:
            def ratio(log_u: Array) -> Array:
                return jnp.log(_log_moment_ratio(jnp.exp(log_u)))

            value, slope = jax.jvp(ratio, (log_u,), (jnp.ones_like(log_u),))
            return log_u + (goal - value) / slope

        log_u = meshes.fori_loop(0, _MOMENT_STEPS, step, 0.5 * (goal - math.log(math.pi**2 / 6)))
        u = jnp.exp(log_u)
        return cls(concentration=1 / u, scale=mean / jnp.exp(log_gamma(1 + u)), **constants)


def _hazards(concentration: Array, scale: Array, y: Array) -> tuple[Array, Array, Array]:
    """``log(y / scale)``, the logarithm of the cumulative hazard, and itself."""
    above = (y - scale) / scale
    near = jnp.abs(above) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, above, 0)), jnp.log(y) - jnp.log(scale))
    exponent = concentration * log_ratio
    steep = _STEEP[y.dtype.itemsize]
    gentle = jnp.exp(jnp.minimum(exponent, steep))
    tangent = math.exp(steep) * (1 + (exponent - steep))
    return log_ratio, exponent, jnp.where(exponent < steep, gentle, tangent)


@jax.custom_jvp
def _log_density(concentration: Array, scale: Array, y: Array) -> Array:
    _, exponent, hazard = _hazards(concentration, scale, y)
    return jnp.log(concentration) - jnp.log(y) + exponent - hazard


@_log_density.defjvp
def _log_density_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # In y the exponent's k / y and the logarithm's 1 / y would cancel for k close to one.
    (k, scale, y), (dk, dscale, dy) = primals, tangents
    log_ratio, exponent, _ = _hazards(k, scale, y)
    steep = _STEEP[y.dtype.itemsize]
    rate = jnp.exp(jnp.minimum(exponent, steep))  # the derivative of the hazard in the exponent
    change = ((k - 1) - k * rate) / y * dy + k * (rate - 1) / scale * dscale
    return _log_density(k, scale, y), change + (1 / k + (1 - rate) * log_ratio) * dk


# zeta(k) without its first three terms, for k = 2, 3, ...: sums and Euler and Maclaurin's formula.
_FIRST, _LAST, _TERMS = 4, 60, {4: 12, 8: 28}
_ZETA = [
    sum(n**-k for n in range(_FIRST, _LAST))
    + _LAST ** (1.0 - k) / (k - 1)
    + 0.5 * _LAST**-k
    + k / 12 * _LAST ** (-k - 1.0)
    - k * (k + 1) * (k + 2) / 720 * _LAST ** (-k - 3.0)
    for k in map(float, range(2, 2 + max(_TERMS.values())))
]


def _log_moment_ratio(u: Array) -> Array:
    """``log(Gamma(1 + 2 u) / Gamma(1 + u)^2)``, which is ``pi^2 u^2 / 6`` near zero.

    It is the sum of ``log(1 + (u / n)^2 / (1 + 2 u / n))`` over all ``n``, of which all but the
    first three are summed as a power series.
    """
    near = u < 0.6
    small, large = jnp.where(near, u, 0.5), jnp.where(near, 1, u)
    total = jnp.zeros_like(small)
    for n in range(1, _FIRST):
        total = total + jnp.log1p((small / n) ** 2 / (1 + 2 * small / n))
    count = _TERMS[u.dtype.itemsize]
    terms = [(-1) ** k * (2**k - 2) / k * _ZETA[k - 2] for k in range(2, 2 + count)]
    series = small * small * polynomial(small, terms)
    return jnp.where(near, total + series, log_gamma(1 + 2 * large) - 2 * log_gamma(1 + large))
