"""The normal family with low-rank plus diagonal covariance: ``F F^T + diag(scale^2)``.

Its log-density and the derivatives of that are in :mod:`jaxmdn.components.low_rank_density`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density, others
from jaxmdn.components.declare import family, parameter
from jaxmdn.components.full_normal import CorrelatedNormal, FullNormal
from jaxmdn.components.low_rank_density import log_prob, orthonormalize
from jaxmdn.typing import Array, Float, Key, Parameter


@family
class LowRankNormal(CorrelatedNormal):
    """Multivariate normal ``N(y; loc, factor factor^T + diag(scale^2))``.

    Attributes:
      loc: means, ``[..., K, D]``.
      factor: loadings in the target's unit, ``[..., K, D, r]`` (size one allowed for K: tied).
      scale: standard deviations of the independent part, ``[..., K, D]`` (likewise).

    References:
      Tipping and Bishop (1999), Probabilistic PCA, eq. 4-7; Woodbury (1950).
      Bjorck (1967), Solving linear least squares problems by Gram-Schmidt orthogonalization.
      Carlson (1973), Fast triangular formulation of the square root filter (``to_full``).
    """

    loc: Parameter = parameter()
    factor: Parameter = parameter(rank=2)
    scale: Parameter = parameter()

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return log_prob(*numerics.upcast(self.loc, self.scale, self.factor, y))

    @classmethod
    def align(cls, densities: tuple[LowRankNormal, ...]) -> tuple[LowRankNormal, ...]:
        # A column of zeros adds no covariance.
        rank = max(density.factor.shape[-1] for density in densities)
        return tuple(
            dataclasses.replace(density, factor=_pad_last(density.factor, rank))
            for density in densities
        )

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        key_latent, key_noise = jax.random.split(key)
        batch = (*shape, *self.batch_shape)
        loc, factor, scale = numerics.upcast(self.loc, self.factor, self.scale)
        latent = jax.random.normal(key_latent, (*batch, factor.shape[-1]), loc.dtype)
        noise = jax.random.normal(key_noise, (*batch, self.event_dim), loc.dtype)
        return (loc + numerics.matvec(factor, latent) + scale * noise).astype(self.dtype)

    def variance(self) -> Float[Array, "..."]:
        factor, scale = numerics.upcast(self.factor, self.scale)
        variance = jnp.sum(factor**2, axis=-1) + scale**2
        return jnp.broadcast_to(variance, (*self.batch_shape, self.event_dim)).astype(self.dtype)

    def covariance(self) -> Float[Array, "..."]:
        factor, scale = numerics.upcast(self.factor, self.scale)
        outer = jnp.einsum("...ij,...kj->...ik", factor, factor, precision="highest")
        total = outer + scale[..., None] ** 2 * jnp.eye(self.event_dim, dtype=scale.dtype)
        event = (self.event_dim, self.event_dim)
        return jnp.broadcast_to(total, (*self.batch_shape, *event)).astype(self.dtype)

    def to_full(self) -> FullNormal:
        """The same density as a :class:`FullNormal`: ``D^2`` numbers, no covariance formed.

        Row by row. ``root`` is a square root of the latent's covariance given the dimensions so
        far; ``r`` Givens rotations add the next dimension to it and give the standard deviation of
        that one. Nothing is inverted and nothing squared (Carlson 1973, square-root filtering).
        """
        factor, scale = numerics.upcast(self.factor, self.scale)
        D, rank = self.factor.shape[-2:]
        lead = jnp.broadcast_shapes(factor.shape[:-2], scale.shape[:-1])
        factor = jnp.moveaxis(jnp.broadcast_to(factor, (*lead, D, rank)), -2, 0)  # [D, ..., r]
        scale = jnp.moveaxis(jnp.broadcast_to(scale, (*lead, D)), -1, 0)  # [D, ...]
        unit = jnp.eye(D, dtype=factor.dtype)

        def step(state: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple, Array]:
            (root, latent), (loading, deviation, unit) = state, row
            load = jnp.einsum("...ij,...i->...j", root, loading, precision="highest")
            gain, columns = jnp.zeros_like(loading), []
            for j in range(rank):  # rotate load_j into the deviation
                length = _hypotenuse(deviation, load[..., j])
                cosine, sine = (part / length for part in (deviation, load[..., j]))
                cosine, sine, column = cosine[..., None], sine[..., None], root[..., j]
                columns.append(cosine * column - sine * gain)
                gain, deviation = sine * column + cosine * gain, length
            # The latent's mean is linear in the dimensions so far: latent [..., r, D] times y.
            pull = jnp.einsum("...r,...rd->...d", loading, latent, precision="highest")
            whitening = (unit - pull) / deviation[..., None]
            latent = latent + gain[..., :, None] * whitening[..., None, :]
            return (jnp.stack(columns, axis=-1), latent), whitening

        root = jnp.broadcast_to(jnp.eye(rank, dtype=factor.dtype), (*lead, rank, rank))
        start = (root, jnp.zeros((*lead, rank, D), factor.dtype))
        _, rows = meshes.scan(step, start, (factor, scale, unit))
        return FullNormal(loc=self.loc, whitening_tril=jnp.moveaxis(rows, 0, -2))

    def whitening(self) -> Float[Array, "..."]:
        return self.to_full().whitening_tril

    def square_root(self) -> Float[Array, "..."]:
        diagonal = self.scale[..., None] * jnp.eye(self.event_dim, dtype=self.dtype)
        lead = jnp.broadcast_shapes(self.factor.shape[:-2], diagonal.shape[:-2])
        parts = (jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (self.factor, diagonal))
        return jnp.concatenate(tuple(parts), axis=-1)

    def innovations(
        self, y: Float[Array, "..."]
    ) -> tuple[Density, Float[Array, "..."], Float[Array, "..."] | None]:
        return self.to_full().innovations(y)

    def marginal(self, dims: tuple[int, ...]) -> LowRankNormal:
        return dataclasses.replace(
            self,
            loc=self.loc[..., dims],
            factor=self.factor[..., dims, :],
            scale=self.scale[..., dims],
        )

    def condition(
        self, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], LowRankNormal]:
        given, rest = self.marginal(dims), self.marginal(others(dims, self.event_dim))
        loc, factor, scale, values = numerics.upcast(given.loc, given.factor, given.scale, values)
        # The latent given the values is normal with mean Q2 Q1^T z and covariance Q2 Q2^T, in the
        # orthonormal basis Q of the columns of [factor / scale; I].
        z = numerics.standardize(values, loc, scale)
        directions, _ = orthonormalize(numerics.divide(factor, scale[..., None]))
        basis = jnp.stack(directions, axis=-1)  # [..., D + r, r]
        top, bottom = basis[..., : len(dims), :], basis[..., len(dims) :, :]
        latent = numerics.matvec(
            bottom, jnp.einsum("...dr,...d->...r", top, z, precision="highest")
        )
        rest_loc, rest_factor = numerics.upcast(rest.loc, rest.factor)
        return given.log_prob(values), LowRankNormal(
            loc=rest_loc + numerics.matvec(rest_factor, latent),
            factor=jnp.einsum("...dr,...rs->...ds", rest_factor, bottom, precision="highest"),
            scale=rest.scale,
        )

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> LowRankNormal:
        return dataclasses.replace(
            self,
            loc=shift + scale * self.loc,
            factor=scale[:, None] * self.factor,
            scale=jnp.abs(scale) * self.scale,
        )


def _hypotenuse(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``sqrt(a^2 + b^2)``, which overflows only where the result does; ``a`` is positive."""
    peak = jax.lax.stop_gradient(jnp.maximum(jnp.abs(a), jnp.abs(b)))
    return peak * jnp.sqrt((a / peak) ** 2 + (b / peak) ** 2)


def _pad_last(array: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    """Append zeros to the last axis up to ``size`` entries."""
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])])
