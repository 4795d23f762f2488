"""What all normal families share, whatever form their covariance has."""

from __future__ import annotations

import abc
from typing import ClassVar

import jax.numpy as jnp

from jaxmdn.components.base import Density
from jaxmdn.components.support import REAL, Support
from jaxmdn.typing import Array, Float, Parameter


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
