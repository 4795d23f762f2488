"""The normal family with independent dimensions: isotropic, diagonal, tied.

One class serves all of them, because they differ only in which axes of ``scale`` have size one:
``[..., K, D]`` diagonal, ``[..., K, 1]`` isotropic, ``[..., 1, D]`` diagonal and tied across
components, ``[..., 1, 1]`` both.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr, ndtri

from jaxmdn import numerics
from jaxmdn.components.base import LocationDensity, others
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal(LocationDensity):
    """A product of univariate normals, ``prod_d N(y_d; loc_d, scale_d^2)``.

    Attributes:
      loc: means, ``[..., K, D]``.
      scale: standard deviations (not variances), ``[..., K, D]`` with size one allowed for K and D.

    References:
      Bishop (1994), Mixture Density Networks, eq. 23 (isotropic).
    """

    loc: Parameter
    scale: Parameter

    event_ranks: ClassVar = {"loc": 1, "scale": 1}

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, y = numerics.upcast(self.loc, self.scale, y)
        z = numerics.standardize(y, loc, scale)
        copies = loc.shape[-1] // scale.shape[-1]  # D where the scale is isotropic, else 1
        log_det = copies * jnp.sum(jnp.log(scale), axis=-1)
        normalizer = 0.5 * numerics.LOG_2PI * loc.shape[-1]
        return -0.5 * jnp.sum(z * z, axis=-1) - log_det - normalizer  # [..., D] -> [...]

    @classmethod
    def align(cls, densities: tuple[Normal, ...]) -> tuple[Normal, ...]:
        # Scales shared across dimensions (scale [..., 1]) meet full ones (scale [..., D]).
        width = max(density.scale.shape[-1] for density in densities)
        return tuple(
            dataclasses.replace(
                density, scale=jnp.broadcast_to(density.scale, (*density.scale.shape[:-1], width))
            )
            for density in densities
        )

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        noise = jax.random.normal(key, (*shape, *self.batch_shape, self.event_dim), self.dtype)
        return self.loc + self.scale * noise

    def variance(self) -> Float[Array, "..."]:
        return jnp.broadcast_to(self.scale**2, (*self.batch_shape, self.event_dim))

    def covariance(self) -> Float[Array, "..."]:
        return self.variance()[..., None] * jnp.eye(self.event_dim, dtype=self.dtype)

    def marginals(self) -> Normal:
        return self

    def _z(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, y = numerics.upcast(self.loc, self.scale, y)
        return numerics.standardize(y, loc, scale)

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return ndtr(self._z(y))

    def survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return ndtr(-self._z(y))

    def tail(self, y: Float[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        z = self._z(y)
        return ndtr(jnp.where(upper, -z, z))

    def log_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return log_ndtr(self._z(y))

    def log_survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return log_ndtr(-self._z(y))

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """Per-dimension quantile; p = 0 and 1 give -inf and inf, p outside [0, 1] NaN."""
        loc, scale, p = numerics.upcast(self.loc, self.scale, p)
        return loc + scale * ndtri(p)

    def marginal(self, dims: tuple[int, ...]) -> Normal:
        shared = self.scale.shape[-1] == 1  # isotropic, or the only dimension there is
        scale = self.scale if shared else self.scale[..., dims]
        return dataclasses.replace(self, loc=self.loc[..., dims], scale=scale)

    def condition(
        self, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Normal]:
        rest = self.marginal(others(dims, self.event_dim))
        return self.marginal(dims).log_prob(values), rest

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Normal:
        return dataclasses.replace(
            self, loc=shift + scale * self.loc, scale=jnp.abs(scale) * self.scale
        )
