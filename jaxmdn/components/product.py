"""Families whose dimensions are independent: what follows from one dimension, for all of them.

A subclass says what happens in one dimension (``marginal_log_prob``, ``cdf``, ``quantile``,
moments, a sampler), elementwise; the joint density, the covariance, marginals and conditionals
follow. Any parameter may have size one for the dimensions (shared by all of them), for the
components (tied), or for both.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components.base import Density, others
from jaxmdn.typing import Array, Float

ProductT = TypeVar("ProductT", bound="ProductDensity")


class ProductDensity(Density):
    """Base of the families ``p(y) = prod_d p_d(y_d)`` with parameters ``[..., K, D]``.

    To write one: fields of shape ``[..., K, D]`` listed in ``event_ranks`` with rank one,
    ``marginal_log_prob``, ``sample``, and of ``mean``, ``variance``, ``cdf``, ``survival``,
    ``quantile`` and the rest whatever there is. ``absolute_moment``, ``own_difference`` and
    ``mean_difference`` go together (``absolute_moments = True``) and make the CRPS exact.
    """

    #: Which maps of ``y`` stay in the family: ``"affine"`` (on the real line), ``"scale"`` (for
    #: positive ``y``; ``affine`` takes a shift of 0, a positive scale), ``"none"`` (no change).
    closed_under: ClassVar[str] = "affine"

    @property
    def event_dim(self) -> int:
        return max(getattr(self, name).shape[-1] for name in self.event_ranks)

    @property
    def dtype(self) -> np.dtype:
        return getattr(self, next(iter(self.event_ranks))).dtype

    @property
    def closure(self) -> tuple[str, ...]:
        return (self.closed_under,) * self.event_dim

    @classmethod
    def from_moments(
        cls: type[ProductT],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        **constants: Any,
    ) -> ProductT:
        """The member with these moments ``[..., K, D]``, or the nearest that the family has.

        ``constants`` fix what two moments leave open (degrees of freedom, bounds). Finite for every
        finite mean inside the support and every positive variance.
        """
        raise TypeError(f"from_moments: not defined for {cls.__name__}.")

    def log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.sum(self.marginal_log_prob(y), axis=-1)  # [..., D] -> [...]

    def covariance(self) -> Float[Array, "..."]:
        # Selected, not multiplied: the variance may be infinite.
        variance = self.variance()
        diagonal = jnp.eye(self.event_dim, dtype=bool)
        return jnp.where(diagonal, variance[..., None], jnp.zeros((), variance.dtype))

    def marginals(self: ProductT) -> ProductT:
        return self

    def innovations(
        self, y: Float[Array, "..."]
    ) -> tuple[Density, Float[Array, "..."], Float[Array, "..."] | None]:
        return self, y, None

    def marginal(self: ProductT, dims: tuple[int, ...]) -> ProductT:
        def pick(parameter: Array, _: int) -> Array:
            shared = parameter.shape[-1] == 1  # by all dimensions, or the only one there is
            return parameter if shared else parameter[..., dims]

        return self.map_parameters(pick)

    def condition(
        self: ProductT, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], ProductT]:
        rest = self.marginal(others(dims, self.event_dim))
        return self.marginal(dims).log_prob(values), rest

    @classmethod
    def align(cls, densities: tuple[Any, ...]) -> tuple[Any, ...]:
        # A parameter shared across dimensions (size one) meets one that is written out.
        widths = {
            name: max(getattr(density, name).shape[-1] for density in densities)
            for name in cls.event_ranks
        }
        return tuple(
            dataclasses.replace(
                density,
                **{
                    name: jnp.broadcast_to(parameter, (*parameter.shape[:-1], width))
                    for name, width in widths.items()
                    for parameter in (getattr(density, name),)
                },
            )
            for density in densities
        )

    def _fill(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """Broadcast per-dimension values to ``batch_shape + [D]``, in the parameters' dtype."""
        return jnp.broadcast_to(values, (*self.batch_shape, self.event_dim)).astype(self.dtype)

    def _parameters(self, *arrays: Array) -> tuple[Array, ...]:
        """Every parameter, in the order of the fields, and arrays, in the compute dtype."""
        return numerics.upcast(*(getattr(self, name) for name in self.event_ranks), *arrays)
