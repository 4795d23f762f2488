"""The normal family with full covariance, parameterised so that its likelihood needs no solve.

The parameter is the lower-triangular *whitening* matrix ``W``, the inverse of the covariance's
Cholesky factor: ``z = W (y - loc)`` is standard normal, ``precision = W^T W``,
``covariance = W^-1 W^-T``. Quadratic form and log-determinant both come from ``W`` itself, so they
can never disagree (a jitter added to one and not to the other is a classic bug).

Row ``d`` of ``W`` holds the regression of ``y_d`` on the dimensions before it, divided by the
conditional standard deviation ``1 / W_dd``: the leading block of ``W`` is the marginal of the
leading dimensions, and the rows are its sequential conditionals.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.base import Density, PerDimension, others
from jaxmdn.components.declare import family, parameter
from jaxmdn.components.normal import Normal
from jaxmdn.components.normal_density import NormalDensity
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


class CorrelatedNormal(PerDimension, NormalDensity):
    """Base of the normal families whose dimensions depend on each other."""

    def marginals(self) -> Normal:
        """The ``Normal`` whose dimensions are independent and have this one's marginals."""
        (wide,) = numerics.upcast_tree(self)  # float16 holds no variance beyond a scale of 256
        return Normal(loc=wide.loc, scale=jnp.sqrt(wide.variance()))

    def _each(self, function: str, *arrays: Array) -> Array:
        return getattr(self.marginals(), function)(*arrays)

    def jump(self, y: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """``P(Y_d < y_d)`` and ``P(Y_d = y_d)``, which is zero."""
        return self.marginals().jump(y)

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """Quantile of each dimension's marginal, ``[..., D]``."""
        return self.tail_quantile(p, jnp.zeros((), bool))

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The ``y`` with ``tail(y, upper) = q``, ``[..., D]``."""
        return self.marginals().tail_quantile(q, upper)


@family
class FullNormal(CorrelatedNormal):
    """Multivariate normal ``N(y; loc, W^-1 W^-T)``.

    Attributes:
      loc: means, ``[..., K, D]``.
      whitening_tril: lower-triangular ``W`` with positive diagonal, ``[..., K, D, D]`` (size one
        allowed for K: tied). Its strict upper triangle must be zero. It is the inverse of what
        other libraries call ``scale_tril``; see :meth:`from_scale_tril`, :meth:`from_covariance`.

    References:
      Williams (1996), Using Neural Networks to Model Conditional Multivariate Densities, eq. 4-6.
      Pourahmadi (1999), Joint mean-covariance models, for the reading of the rows.
    """

    loc: Parameter = parameter()
    whitening_tril: Parameter = parameter(rank=2)

    @classmethod
    def from_scale_tril(
        cls, loc: Float[Array, "... D"], scale_tril: Float[Array, "... D D"]
    ) -> FullNormal:
        """Build from the Cholesky factor of the covariance."""
        return cls(loc=loc, whitening_tril=numerics.invert_tril(scale_tril).astype(loc.dtype))

    @classmethod
    def from_covariance(
        cls, loc: Float[Array, "... D"], covariance: Float[Array, "... D D"]
    ) -> FullNormal:
        """Build from covariance matrices; NaN where one is not positive definite."""
        return cls.from_scale_tril(loc, jnp.linalg.cholesky(numerics.upcast(covariance)[0]))

    @property
    def scale_tril(self) -> Float[Array, "..."]:
        """The Cholesky factor of the covariance, ``[..., K, D, D]``."""
        return numerics.invert_tril(self.whitening_tril)

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, whitening, y = numerics.upcast(self.loc, self.whitening_tril, y)
        z = numerics.matvec(whitening, y - loc)
        log_diagonal = jnp.log(numerics.diagonal(whitening))
        normalizer = 0.5 * numerics.LOG_2PI * loc.shape[-1]
        return -0.5 * jnp.sum(z * z, axis=-1) + jnp.sum(log_diagonal, axis=-1) - normalizer

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, whitening = numerics.upcast(self.loc, self.whitening_tril)
        noise = jax.random.normal(key, (*shape, *self.batch_shape, self.event_dim), loc.dtype)
        if shape:  # many draws from each: invert once
            offset = numerics.matvec(numerics.invert_tril(whitening), noise)
        else:
            offset = numerics.solve_tril(whitening, noise)
        return (loc + offset).astype(self.dtype)

    def variance(self) -> Float[Array, "..."]:
        variance = jnp.sum(self.scale_tril**2, axis=-1)  # row norms of the factor
        return jnp.broadcast_to(variance, (*self.batch_shape, self.event_dim)).astype(self.dtype)

    def covariance(self) -> Float[Array, "..."]:
        factor = self.scale_tril
        covariance = jnp.einsum("...ij,...kj->...ik", factor, factor, precision="highest")
        event = (self.event_dim, self.event_dim)
        return jnp.broadcast_to(covariance, (*self.batch_shape, *event)).astype(self.dtype)

    def whitening(self) -> Float[Array, "..."]:
        return self.whitening_tril

    def square_root(self) -> Float[Array, "..."]:
        return self.scale_tril

    def innovations(
        self, y: Float[Array, "..."]
    ) -> tuple[Density, Float[Array, "..."], Float[Array, "..."] | None]:
        loc, whitening, y = numerics.upcast(self.loc, self.whitening_tril, y)
        diagonal = jnp.diagonal(whitening, axis1=-2, axis2=-1)
        family = Normal(loc=jnp.zeros_like(loc), scale=1 / diagonal)
        e = numerics.matvec(whitening, y - loc) / diagonal
        return family, e, jnp.tril(whitening, -1) / diagonal[..., None]

    def permute(self, order: tuple[int, ...]) -> FullNormal:
        """The same density with its dimensions in another order.

        The whitening factor of the new order is the lower-triangular factor of an orthogonal
        decomposition of the old one's permuted columns: ``W^T W`` is never formed, and nothing is
        inverted.
        """
        whitening = numerics.lower_factor(self.whitening_tril[..., order])
        return dataclasses.replace(
            self, loc=self.loc[..., order], whitening_tril=whitening.astype(self.dtype)
        )

    def marginal(self, dims: tuple[int, ...]) -> FullNormal:
        first = self.permute((*dims, *others(dims, self.event_dim)))
        size = len(dims)  # the leading block is the marginal of the leading dimensions
        return FullNormal(
            loc=first.loc[..., :size], whitening_tril=first.whitening_tril[..., :size, :size]
        )

    def condition(
        self, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], FullNormal]:
        size, ordered = len(dims), self.permute((*dims, *others(dims, self.event_dim)))
        loc, whitening, values = numerics.upcast(ordered.loc, ordered.whitening_tril, values)
        given = FullNormal(loc=loc[..., :size], whitening_tril=whitening[..., :size, :size])
        # The later rows of z = W (y - loc) with the first entries of y known.
        pull = numerics.matvec(whitening[..., size:, :size], values - given.loc)
        rest = whitening[..., size:, size:]
        shifted = loc[..., size:] - numerics.solve_tril(rest, pull)
        return given.log_prob(values), FullNormal(loc=shifted, whitening_tril=rest)

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> FullNormal:
        # W diag(1 / scale), its rows multiplied by the signs so that the diagonal stays positive.
        whitening = jnp.sign(scale)[:, None] * self.whitening_tril / scale
        return dataclasses.replace(self, loc=shift + scale * self.loc, whitening_tril=whitening)
