"""The normal family with independent dimensions: isotropic, diagonal, tied.

One class serves all of them, because they differ only in which axes of ``scale`` have size one:
``[..., K, D]`` diagonal, ``[..., K, 1]`` isotropic, ``[..., 1, D]`` diagonal and tied across
components, ``[..., 1, 1]`` both.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxmdn import numerics
from jaxmdn.components.declare import family, positive, real
from jaxmdn.components.location_scale import LocationScale
from jaxmdn.components.normal_density import NormalDensity
from jaxmdn.components.normal_pullback import Pullback
from jaxmdn.components.normal_pullback import normal as normal_pullback
from jaxmdn.special.normal import erf, log_ndtr, ndtr
from jaxmdn.typing import Array, Float, Key, Parameter


@family
class Normal(LocationScale, NormalDensity):
    """A product of univariate normals, ``prod_d N(y_d; loc_d, scale_d^2)``.

    Attributes:
      loc: means, ``[..., K, D]``.
      scale: standard deviations (not variances), ``[..., K, D]`` with size one allowed for K and D.

    References:
      Bishop (1994), Mixture Density Networks, eq. 23 (isotropic).
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)

    absolute_moments: ClassVar = True
    has_pullback: ClassVar = True

    def pullback(self, y: Float[Array, "..."]) -> Pullback:
        """Log-densities of the components ``[..., K]`` at ``y [..., D]`` with their derivatives."""
        return normal_pullback(self.loc, self.scale, y)

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, y = numerics.upcast(self.loc, self.scale, y)
        if loc.shape[-1] == 1:  # XLA's loops are slow where the last axis has length one
            z = numerics.standardize(y[..., 0], loc[..., 0], scale[..., 0])
            return self.standard_log_prob(z) - jnp.log(scale[..., 0])
        z = numerics.standardize(y, loc, scale)
        copies = loc.shape[-1] // scale.shape[-1]  # D where the scale is isotropic, else 1
        log_det = copies * jnp.sum(jnp.log(scale), axis=-1)
        normalizer = 0.5 * numerics.LOG_2PI * loc.shape[-1]
        return -0.5 * jnp.sum(z * z, axis=-1) - log_det - normalizer  # [..., D] -> [...]

    def standard_log_prob(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return -0.5 * z * z - 0.5 * numerics.LOG_2PI

    def standard_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return ndtr(z)

    def standard_log_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return log_ndtr(z)

    def standard_quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        return ndtri(p)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        noise = jax.random.normal(key, (*shape, *self.batch_shape, self.event_dim), loc.dtype)
        return (loc + scale * noise).astype(self.dtype)

    def whitening(self) -> Float[Array, "..."]:
        inverse = numerics.divide(jnp.ones((), self.dtype), self.scale)
        return inverse[..., None] * jnp.eye(self.event_dim, dtype=self.dtype)

    def square_root(self) -> Float[Array, "..."]:
        return self.scale[..., None] * jnp.eye(self.event_dim, dtype=self.dtype)

    def absolute_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, y = self._parameters(y)
        return _mean_distance(y - loc, scale)

    def own_difference(self) -> Float[Array, "..."]:
        return 2.0 / math.sqrt(math.pi) * self._parameters()[1]

    def mean_difference(self, other: Normal) -> Float[Array, "..."]:
        loc, scale, other_loc, other_scale = numerics.upcast(
            self.loc, self.scale, other.loc, other.scale
        )
        wide, narrow = jnp.maximum(scale, other_scale), jnp.minimum(scale, other_scale)
        spread = wide * jnp.sqrt(1.0 + numerics.divide(narrow, wide) ** 2)
        return _mean_distance(loc - other_loc, spread)


def _mean_distance(shift: Array, scale: Array) -> Array:
    """``E|X|`` for ``X ~ N(shift, scale^2)``: ``2 s phi(m / s) + m erf(m / (s sqrt 2))``."""
    z = numerics.divide(shift, scale)
    density = jnp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return 2.0 * scale * density + shift * erf(z / math.sqrt(2.0))
