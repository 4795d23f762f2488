"""What every density is: an immutable pytree of parameters with a handful of methods.

A *component family* is a density whose batch shape is ``[..., K]``; it knows nothing of mixing.
A :class:`~jaxmdn.mixture.Mixture` is a density whose batch shape is ``[...]``. Both are the same
kind of thing, so a mixture can itself be a component: that is all a class-conditional density is.

To add a family: subclass :class:`Density`, list in ``event_ranks`` how many trailing axes of each
parameter belong to one component's event, write the methods, and add a line to the contract test.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.typing import Array, Bool, Float, Int, Key, Num, Parameter

DensityT = TypeVar("DensityT", bound="Density")
ClassT = TypeVar("ClassT", bound=type)


def register(cls: ClassT) -> ClassT:
    """Register a frozen dataclass as a pytree whose structure differs from every other class's.

    ``jax.tree_util.register_dataclass`` (JAX 0.10 to 0.12) makes structures that compare equal for
    any two classes with as many fields. Their hashes differ, so that caches keep them apart most of
    the time; where the hashes happen to share a bucket, a function compiled for one family is run
    for another, and the result is wrong without a word.
    """
    fields = dataclasses.fields(cls)
    static = tuple(field.name for field in fields if field.metadata.get("static"))
    names = tuple(field.name for field in fields if field.name not in static)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(instance: Any) -> tuple[tuple, tuple]:
        children = tuple(getattr(instance, name) for name in names)
        return children, tuple(getattr(instance, name) for name in static)

    def flatten_with_keys(instance: Any) -> tuple[tuple, tuple]:
        children, constants = flatten(instance)
        return tuple(zip(keys, children, strict=True)), constants

    def unflatten(constants: tuple, children: Iterable) -> Any:
        arrays = dict(zip(names, children, strict=True))
        return cls(**arrays, **dict(zip(static, constants, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class Density(abc.ABC):
    """Base of every component family and of ``Mixture``.

    The methods are the unchecked internals; users call the checked, jit-compiled functions of the
    same names (``jaxmdn.log_prob(density, y)`` and so on). A family leaves out what it does not
    have: calling it raises ``TypeError``.
    """

    #: Parameter name -> number of trailing axes that describe one event (``loc [..., D]`` -> 1).
    event_ranks: ClassVar[Mapping[str, int]]

    @property
    def discrete(self) -> bool:
        """Whether targets are integers (class indices, counts) rather than real numbers."""
        return False

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
        return np.broadcast_shapes(*shapes)

    @property
    @abc.abstractmethod
    def event_dim(self) -> int:
        """The size D of the last axis of a target."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """The parameters' dtype."""

    @abc.abstractmethod
    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """Log-density in nats at ``y [..., D]``, broadcasting against the batch shape."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        """Draw ``shape + batch_shape + [D]`` values."""

    def mean(self) -> Float[Array, "..."]:
        """Mean, ``batch_shape + [D]``."""
        raise self._undefined("mean")

    def variance(self) -> Float[Array, "..."]:
        """Per-dimension variance, ``batch_shape + [D]``."""
        raise self._undefined("variance")

    def covariance(self) -> Float[Array, "..."]:
        """Covariance matrix, ``batch_shape + [D, D]``."""
        raise self._undefined("covariance")

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Distribution function of each dimension's marginal, ``[..., D]``."""
        raise self._undefined("cdf")

    def survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y_d > y_d)``, ``[..., D]``; families override this where ``1 - cdf`` cancels."""
        return 1.0 - self.cdf(y)

    def tail(self, y: Float[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        """``survival(y)`` where ``upper``, else ``cdf(y)``; families that can evaluate one only."""
        return jnp.where(upper, self.survival(y), self.cdf(y))

    @property
    def jumps(self) -> tuple[bool, ...]:
        """For each dimension, whether its distribution function has jumps."""
        return (self.discrete,) * self.event_dim

    def jump(self, y: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """``P(Y_d < y_d)`` and ``P(Y_d = y_d)``, ``[..., D]`` each, ``y`` in the compute dtype."""
        at_most = self.cdf(y)
        below = self.cdf(jnp.ceil(y) - 1) if self.discrete else at_most  # by whole numbers
        return below, at_most - below

    def log_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the distribution function, ``[..., D]``."""
        return jnp.log(self.cdf(y))

    def log_survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the survival function, ``[..., D]``."""
        return jnp.log(self.survival(y))

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """Quantile of each dimension's marginal, ``[..., D]``."""
        raise self._undefined("quantile")

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The ``y`` with ``tail(y, upper) = q``; families override this where ``1 - q`` rounds."""
        most = 1 - float(jnp.finfo(q.dtype).eps)
        return self.quantile(jnp.where(upper, jnp.where(q > 0, jnp.minimum(1 - q, most), 1), q))

    def in_support(self, y: Num[Array, "..."]) -> Bool[Array, "..."]:
        """Whether the density may be positive at ``y``, per dimension; False for NaN."""
        return jnp.isfinite(y)

    @property
    def closure(self) -> tuple[str, ...]:
        """For each dimension, the maps of ``y`` that stay in the family.

        ``"affine"``: shift and scale; ``"scale"``: a positive scale; ``"none"``.
        """
        return ("affine",) * self.event_dim

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log-density of each dimension's marginal, ``[..., D]``."""
        raise self._undefined("marginal_log_prob")

    def innovations(
        self, y: Float[Array, "..."]
    ) -> tuple[Density, Float[Array, "..."], Float[Array, "..."] | None]:
        """What each dimension adds to those before it: ``p(y_d | y_<d) = family_d(e_d)``.

        Returns a family of independent dimensions, the innovations ``e_d = y_d + sum_{e<d} B_de
        y_e + const`` ``[..., D]``, and ``B [..., D, D]``, strictly lower triangular (None if zero).
        """
        raise self._undefined("innovations")

    def given_before(self, y: Float[Array, "..."]) -> tuple[Density, Float[Array, "..."]]:
        """Independent dimensions, and where to ask them, for ``p(y_d | y_<d)`` at these ``y``."""
        family, innovations, _ = self.innovations(y)
        return family, innovations

    @property
    def absolute_moments(self) -> bool:
        """Whether the family has the three mean distances below, which make its CRPS exact."""
        return False

    def absolute_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``E|Y_d - y_d|`` of each dimension, ``[..., D]``."""
        raise self._undefined("absolute_moment")

    def own_difference(self) -> Float[Array, "..."]:
        """``E|Y_d - Y'_d|`` of two independent draws, ``[..., D]``, broadcast or not."""
        raise self._undefined("own_difference")

    def mean_difference(self: DensityT, other: DensityT) -> Float[Array, "..."]:
        """``E|Y_d - Y'_d|`` of this and an independent density of its family, ``[..., D]``."""
        raise self._undefined("mean_difference")

    def marginals(self) -> Density:
        """The density whose dimensions are independent and have this one's marginals."""
        raise self._undefined("marginals")

    def marginal(self, dims: tuple[int, ...]) -> Density:
        """The density of the dimensions ``dims``, in that order."""
        raise self._undefined("marginal")

    def condition(
        self, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Density]:
        """Log-density of the dimensions ``dims`` at ``values``, and the density of the others.

        ``values [..., len(dims)]``; the others, at least one, keep their order.
        """
        raise self._undefined("condition")

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Density:
        """The density of ``shift + scale * y`` (elementwise, ``scale`` nonzero)."""
        raise self._undefined("affine")

    def _undefined(self, what: str) -> TypeError:
        return TypeError(f"{what}: not defined for {type(self).__name__}.")

    def __getitem__(self: DensityT, index: Any) -> DensityT:
        """The densities at some positions of the batch: ``index`` as of an array of its shape.

        Indexing the leaves instead goes wrong without a word where positions share a parameter.
        """
        batch = self.batch_shape
        traced = any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(index))
        numbers = (jnp if traced else np).arange(math.prod(batch)).reshape(batch)[index]

        def pick(parameter: Array, rank: int) -> Array:
            event = ((1,) * rank + parameter.shape)[-rank:]
            full = jnp.broadcast_to(parameter, (*batch, *event))
            return full.reshape(-1, *event)[numbers]

        return self.map_parameters(pick)

    __iter__ = None  # a density is no sequence: without this, Python would index it from zero on

    def take(self: DensityT, index: Int[Array, "..."], axis: int = -1) -> DensityT:
        """Pick one entry along a batch axis (negative) at every other batch position."""
        return self.map_parameters(
            lambda parameter, rank: numerics.take_along(parameter, index, axis - rank)
        )

    @classmethod
    def align(cls, densities: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give densities of this family parameters of equal event shapes, so that they can join."""
        return densities

    @classmethod
    def join(cls: type[DensityT], densities: tuple[DensityT, ...]) -> DensityT:
        """Join densities of this family along their last batch axis."""
        densities = cls.align(densities)
        lead = np.broadcast_shapes(*(density.batch_shape[:-1] for density in densities))

        def along(name: str, rank: int) -> Array:
            parts = []
            for density in densities:
                parameter = getattr(density, name)
                event = parameter.shape[parameter.ndim - rank :]
                parts.append(jnp.broadcast_to(parameter, (*lead, density.batch_shape[-1], *event)))
            if len({part.dtype for part in parts}) > 1:
                parts = list(numerics.upcast(*parts))
            return jnp.concatenate(parts, axis=-1 - rank)

        joined = {name: along(name, rank) for name, rank in cls.event_ranks.items()}
        return dataclasses.replace(densities[0], **joined)  # type: ignore[type-var]

    def flatten(self: DensityT) -> DensityT:
        """Merge the last two batch axes, ``[..., C, K] -> [..., C * K]``."""
        batch = self.batch_shape

        def merge(parameter: Array, rank: int) -> Array:
            event = parameter.shape[parameter.ndim - rank :]
            full = jnp.broadcast_to(parameter, (*batch, *event))
            return full.reshape(*batch[:-2], batch[-2] * batch[-1], *event)

        return self.map_parameters(merge)


class LocationDensity(Density):
    """Base of the continuous families with a location ``loc [..., K, D]`` that is their mean."""

    loc: Parameter

    @property
    def event_dim(self) -> int:
        return self.loc.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        return self.loc.dtype

    def mean(self) -> Float[Array, "..."]:
        return jnp.broadcast_to(self.loc, (*self.batch_shape, self.event_dim))

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().cdf(y)

    def survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().survival(y)

    def tail(self, y: Float[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().tail(y, upper)

    def log_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().log_cdf(y)

    def log_survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().log_survival(y)

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().quantile(p)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        return self.marginals().tail_quantile(q, upper)

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.marginals().marginal_log_prob(y)


def others(dims: tuple[int, ...], event_dim: int) -> tuple[int, ...]:
    """Return the dimensions that are not among ``dims``, in order."""
    return tuple(d for d in range(event_dim) if d not in dims)


def concatenate(densities: tuple[Any, ...]) -> Any:
    """Join densities of one family along their last batch axis."""
    return type(densities[0]).join(densities)
