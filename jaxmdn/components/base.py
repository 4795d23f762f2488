"""What every density is: an immutable pytree of parameters with a handful of methods.

A *component family* is a density whose batch shape is ``[..., K]``; it knows nothing of mixing.
A :class:`~jaxmdn.mixture.Mixture` is a density whose batch shape is ``[...]``. Both are the same
kind of thing, so a mixture can itself be a component: that is all a class-conditional density is.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components import batch
from jaxmdn.components.support import REAL, Support
from jaxmdn.typing import Array, Bool, Float, Int, Key, Num

DensityT = TypeVar("DensityT", bound="Density")


class UndefinedError(TypeError, AttributeError):
    """A density was asked for what its family does not have (a mean of classes, say)."""


class Density(abc.ABC):
    """Base of every component family and of ``Mixture``.

    The methods are the unchecked internals; users call the checked, jit-compiled functions of the
    same names (``jaxmdn.log_prob(density, y)`` and so on). A family leaves out what it does not
    have: asking for it raises ``TypeError``.
    """

    #: Parameter name -> number of trailing axes that describe one event (``loc [..., D]`` -> 1).
    event_ranks: ClassVar[Mapping[str, int]]
    #: Where each dimension may lie, and how many there are; properties where that depends.
    domain: ClassVar[Support] = dataclasses.replace(REAL, closed_under="none")
    event_size: ClassVar[int] = 1
    #: How many modes a mixture over one dimension may have for each of its components.
    most_modes: ClassVar[int] = 2
    #: Whether the family has the mean distances that make its CRPS exact (``scoring/crps.py``).
    absolute_moments: ClassVar[bool] = False
    #: Whether a tail on the whole line may fall like a power: its quadrature takes more nodes.
    power_tails: ClassVar[bool] = True
    #: Whether it has a ``pullback(y)``, by which mixtures are differentiated in one pass.
    has_pullback: ClassVar[bool] = False

    @property
    def event_dim(self) -> int:
        """The size D of the last axis of a target."""
        return self.event_size

    @property
    def dtype(self) -> np.dtype:
        """The parameters' dtype."""
        return getattr(self, next(iter(self.event_ranks))).dtype

    @property
    def support(self) -> tuple[Support, ...]:
        """Where each of the D dimensions may lie."""
        return (self.domain,) * self.event_dim

    @abc.abstractmethod
    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Log-density in nats at ``y [..., D]``, broadcasting against the batch shape."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        """Draw ``shape + batch_shape + [D]`` values."""

    def __getattr__(self, name: str) -> Any:
        raise UndefinedError(f"{name}: not defined for {type(self).__name__}.")

    @property
    def discrete(self) -> bool:
        """Whether targets are integers (class indices, counts) rather than real numbers."""
        return all(own.discrete for own in self.support)

    @property
    def jumps(self) -> tuple[bool, ...]:
        """For each dimension, whether its distribution function has jumps."""
        return tuple(own.discrete or bool(own.atoms) for own in self.support)

    @property
    def closure(self) -> tuple[str, ...]:
        """For each dimension, the maps of ``y`` that stay in the family."""
        return tuple(own.closed_under for own in self.support)

    def in_support(self, y: Num[Array, "..."]) -> Bool[Array, "..."]:
        """Whether the density may be positive at ``y [..., D]``, per dimension."""
        if len(set(self.support)) == 1:
            return self.support[0].contains(y)
        inside = [own.contains(y[..., d]) for d, own in enumerate(self.support)]
        return jnp.stack(inside, axis=-1)

    def map_parameters(self: DensityT, function: Callable[[Array, int], Array]) -> DensityT:
        """Apply ``function(parameter, event_rank)`` to every parameter."""
        changes = {
            name: function(getattr(self, name), rank) for name, rank in self.event_ranks.items()
        }
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast shape of all parameters' leading axes."""
        shapes = [
            getattr(self, name).shape[: getattr(self, name).ndim - rank]
            for name, rank in self.event_ranks.items()
        ]
        return jnp.broadcast_shapes(*shapes)

    def __getitem__(self: DensityT, index: Any) -> DensityT:
        """The densities at some positions of the batch: ``index`` as of an array of its shape.

        Indexing the leaves instead goes wrong without a word where positions share a parameter.
        """
        return batch.index(self, index)

    __iter__ = None  # a density is no sequence: without this, Python would index it from zero on

    def take(self: DensityT, index: Int[Array, "..."], axis: int = -1) -> DensityT:
        """Pick one entry along a batch axis (negative) at every other batch position."""
        return self.map_parameters(lambda leaf, rank: numerics.take_along(leaf, index, axis - rank))

    @classmethod
    def align(cls, densities: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give densities of this family parameters of equal event shapes, so that they can join.

        Raises:
          ValueError: where they differ in a constant, such as a bound.
        """
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata.get("static"):
                values = sorted({str(getattr(density, field.name)) for density in densities})
                if len(values) > 1:
                    raise ValueError(
                        f"{cls.__name__}: components of one mixture need equal {field.name}, got "
                        f"{' and '.join(values)}; make them alike first."
                    )
        return densities

    def given_before(self, y: Float[Array, "..."]) -> tuple[Density, Float[Array, "..."]]:
        """Independent dimensions, and where to ask them, for ``p(y_d | y_<d)`` at these ``y``."""
        family, innovations, _ = self.innovations(y)
        return family, innovations


class PerDimension:
    """Functions of each dimension's marginal, ``[..., D]``, all by the same way: ``_each``."""

    @abc.abstractmethod
    def _each(self, function: str, *arrays: Array) -> Array:
        """The per-dimension function of this name."""

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Log-density of each dimension's marginal."""
        return self._each("marginal_log_prob", y)

    def cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y_d <= y_d)``."""
        return self._each("cdf", y)

    def survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y_d > y_d)``, without cancellation."""
        return self._each("survival", y)

    def tail(self, y: Num[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        """``survival(y)`` where ``upper``, else ``cdf(y)``."""
        return self._each("tail", y, upper)

    def log_cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the distribution function."""
        return self._each("log_cdf", y)

    def log_survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the survival function."""
        return self._each("log_survival", y)


def others(dims: tuple[int, ...], event_dim: int) -> tuple[int, ...]:
    """Return the dimensions that are not among ``dims``, in order."""
    return tuple(d for d in range(event_dim) if d not in dims)
