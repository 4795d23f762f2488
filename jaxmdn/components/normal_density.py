"""What all normal families share, whatever form their covariance has."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxmdn.components.base import Density, PerDimension
from jaxmdn.components.support import REAL, Support
from jaxmdn.typing import Array, Bool, Float, Parameter


class NormalDensity(Density):
    """Base of ``Normal``, ``FullNormal`` and ``LowRankNormal``: means ``loc [..., K, D]``."""

    loc: Parameter

    domain: ClassVar[Support] = REAL
    most_modes: ClassVar[int] = 1

    @property
    def event_dim(self) -> int:
        return self.loc.shape[-1]

    @abc.abstractmethod
    def whitening(self) -> Float[Array, "..."]:
        """Lower-triangular ``W`` with ``W (y - loc)`` standard normal, ``[..., K, D, D]``."""

    @abc.abstractmethod
    def square_root(self) -> Float[Array, "..."]:
        """A matrix ``M`` with ``covariance = M M^T``, ``[..., K, D, M]``."""

    def mean(self) -> Float[Array, "..."]:
        """Mean, ``batch_shape + [D]``."""
        return jnp.broadcast_to(self.loc, (*self.batch_shape, self.event_dim))


class CorrelatedNormal(PerDimension, NormalDensity):
    """Base of the normal families whose dimensions depend on each other."""

    @abc.abstractmethod
    def marginals(self) -> Any:
        """The ``Normal`` whose dimensions are independent and have this one's marginals."""

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
