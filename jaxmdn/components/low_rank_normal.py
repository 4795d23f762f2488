"""The normal family with low-rank plus diagonal covariance: ``F F^T + diag(scale^2)``.

With ``A = F / scale`` and ``M = I + A^T A`` (only ``r x r``), Woodbury's identity gives the
log-determinant. The quadratic form is *not* taken from Woodbury's difference, which cancels when
the factor dominates, but from the equal minimum over the latent ``u``,

    z = (y - loc) / scale,   u = M^-1 A^T z,   (y - loc)^T C^-1 (y - loc) = |u|^2 + |z - A u|^2,

a sum of squares that an error in ``u`` can only touch to second order.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components.base import Density
from jaxmdn.components.normal import Normal
from jaxmdn.typing import Array, Float, Key, Parameter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankNormal(Density):
    """Multivariate normal ``N(y; loc, factor factor^T + diag(scale^2))``.

    Attributes:
      loc: means, ``[..., K, D]``.
      factor: loadings in the target's unit, ``[..., K, D, r]`` (size one allowed for K: tied).
      scale: standard deviations of the independent part, ``[..., K, D]`` (likewise).

    References:
      Tipping and Bishop (1999), Probabilistic PCA, eq. 4-7; Woodbury (1950).
    """

    loc: Parameter
    factor: Parameter
    scale: Parameter

    event_ranks: ClassVar = {"loc": 1, "factor": 2, "scale": 1}

    @property
    def event_dim(self) -> int:
        return self.loc.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        return self.loc.dtype

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, factor, scale, y = numerics.upcast(self.loc, self.factor, self.scale, y)
        z = numerics.standardize(y, loc, scale)  # [..., D]
        loading = factor / scale[..., None]  # [..., D, r]
        transposed = jnp.swapaxes(loading, -1, -2)  # [..., r, D]
        capacitance = jnp.eye(loading.shape[-1], dtype=loading.dtype) + jnp.einsum(
            "...ij,...kj->...ik", transposed, transposed, precision="highest"
        )
        root = jnp.linalg.cholesky(capacitance)  # [..., r, r]
        root_inverse = numerics.invert_tril(root)
        half = numerics.matvec(root_inverse, numerics.matvec(transposed, z))
        latent = numerics.matvec(jnp.swapaxes(root_inverse, -1, -2), half)  # [..., r]
        residual = z - numerics.matvec(loading, latent)
        quadratic = jnp.sum(latent**2, axis=-1) + jnp.sum(residual**2, axis=-1)
        log_det = jnp.sum(jnp.log(scale), axis=-1) + jnp.sum(
            jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1
        )
        return -0.5 * quadratic - log_det - 0.5 * numerics.LOG_2PI * loc.shape[-1]

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        key_latent, key_noise = jax.random.split(key)
        batch = (*shape, *self.batch_shape)
        latent = jax.random.normal(key_latent, (*batch, self.factor.shape[-1]), self.dtype)
        noise = jax.random.normal(key_noise, (*batch, self.event_dim), self.dtype)
        return self.loc + numerics.matvec(self.factor, latent) + self.scale * noise

    def mean(self) -> Float[Array, "..."]:
        return jnp.broadcast_to(self.loc, (*self.batch_shape, self.event_dim))

    def variance(self) -> Float[Array, "..."]:
        variance = jnp.sum(self.factor**2, axis=-1) + self.scale**2
        return jnp.broadcast_to(variance, (*self.batch_shape, self.event_dim))

    def covariance(self) -> Float[Array, "..."]:
        outer = jnp.einsum("...ij,...kj->...ik", self.factor, self.factor, precision="highest")
        diagonal = self.scale[..., None] ** 2 * jnp.eye(self.event_dim, dtype=self.dtype)
        event = (self.event_dim, self.event_dim)
        return jnp.broadcast_to(outer + diagonal, (*self.batch_shape, *event))

    def marginals(self) -> Normal:
        return Normal(loc=self.loc, scale=jnp.sqrt(self.variance()))

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().quantile(p)

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().cdf(y)

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> LowRankNormal:
        return dataclasses.replace(
            self,
            loc=shift + scale * self.loc,
            factor=scale[:, None] * self.factor,
            scale=jnp.abs(scale) * self.scale,
        )
