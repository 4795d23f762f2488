"""Independent groups of dimensions, each with a density of its own.

``p(y) = prod_g p_g(y_g)``. The groups may be families with a batch shape ``[..., K]``: then this is
a family too, and a mixture of it a *joint* density whose outputs depend on each other through the
component they share. Or they may be mixtures: then the outputs are independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components.base import Density, PerDimension, UndefinedError, others
from jaxmdn.components.batch import spread
from jaxmdn.components.declare import register
from jaxmdn.components.support import Support
from jaxmdn.typing import Array, Bool, Float, Key, Num


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent(PerDimension, Density):
    """``p(y) = prod_g parts_g(y[dims_g])``.

    Attributes:
      parts: densities whose batch shapes broadcast.
      dims: for each part, the dimensions of ``y`` it describes, in its own order (static). Together
        they are ``0 .. D - 1``, each once.

    A target vector that holds whole numbers beside real ones holds both as floating-point numbers.
    """

    parts: tuple[Any, ...]
    dims: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})

    event_ranks: ClassVar = {}

    def map_parameters(self, function: Callable[[Array, int], Array]) -> Independent:
        return self._map(lambda part: part.map_parameters(function))

    def _map(self, function: Callable[[Any], Any]) -> Independent:
        return dataclasses.replace(self, parts=tuple(function(part) for part in self.parts))

    @property
    def support(self) -> tuple[Support, ...]:
        by_dim = {
            d: own
            for part, dims in zip(self.parts, self.dims, strict=True)
            for d, own in zip(dims, part.support, strict=True)
        }
        return tuple(by_dim[d] for d in range(self.event_dim))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(*(part.batch_shape for part in self.parts))

    @property
    def event_dim(self) -> int:
        return sum(map(len, self.dims))

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def join(self, values: list[Array]) -> Array:
        """Put the groups' values ``[..., len(dims_g)]`` in their places, ``[..., D]``."""
        if len({value.dtype for value in values}) > 1:
            values = list(numerics.upcast(*values))
        lead = jnp.broadcast_shapes(*(value.shape[:-1] for value in values))
        values = [jnp.broadcast_to(value, (*lead, value.shape[-1])) for value in values]
        order = [d for dims in self.dims for d in dims]
        joined = jnp.concatenate(values, axis=-1)
        return joined if order == sorted(order) else joined[..., np.argsort(order)]

    def apply(self, function: Callable[..., Array], *arrays: Array) -> Array:
        """``function(part, columns...)`` of every part, where per-dimension results ``[..., D]``.

        ``columns`` are the part's own of arrays ``[..., D]``.
        """
        return self.join([function(*group) for group in self._groups(*arrays)])

    def _groups(self, *arrays: Array) -> list[tuple[Any, ...]]:
        return [
            (part, *(array[..., np.array(dims)] for array in arrays))
            for part, dims in zip(self.parts, self.dims, strict=True)
        ]

    def _each(self, function: str, *arrays: Array) -> Array:
        return self.apply(lambda part, *columns: getattr(part, function)(*columns), *arrays)

    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        return _total([part.log_prob(columns) for part, columns in self._groups(y)])

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        keys = jax.random.split(key, len(self.parts))
        draws = [  # what a batch axis shares is drawn afresh
            spread(part, self.batch_shape).sample(key_part, shape)
            for part, key_part in zip(self.parts, keys, strict=True)
        ]
        return self.join(draws if self.discrete else [draw.astype(self.dtype) for draw in draws])

    def mean(self) -> Float[Array, "..."]:
        return self._each("mean")

    def variance(self) -> Float[Array, "..."]:
        return self._each("variance")

    def covariance(self) -> Float[Array, "..."]:
        blocks = [part.covariance() for part in self.parts]
        dtype = blocks[0].dtype
        event = (self.event_dim, self.event_dim)
        total = jnp.zeros((*self.batch_shape, *event), dtype)
        for block, dims in zip(blocks, self.dims, strict=True):
            rows, columns = np.ix_(dims, dims)
            total = total.at[..., rows, columns].set(block.astype(dtype))
        return total

    def quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.tail_quantile(p, jnp.zeros(p.shape, bool))

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        return self._each("tail_quantile", q, upper)

    def jump(self, y: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        pairs = (part.jump(columns) for part, columns in self._groups(y))
        below, at = (self.join(list(side)) for side in zip(*pairs, strict=True))
        return below, at

    @property
    def absolute_moments(self) -> bool:  # type: ignore[override]
        return all(part.absolute_moments for part in self.parts)

    def absolute_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._each("absolute_moment", y)

    def own_difference(self) -> Float[Array, "..."]:
        return self._each("own_difference")

    def mean_difference(self, other: Independent) -> Float[Array, "..."]:
        pairs = zip(self.parts, other.parts, strict=True)
        return self.join([own.mean_difference(its) for own, its in pairs])

    def marginals(self) -> Any:
        return _of(tuple(part.marginals() for part in self.parts), self.dims)

    def marginal(self, dims: tuple[int, ...]) -> Any:
        parts, places = [], []
        for part, own in zip(self.parts, self.dims, strict=True):
            kept = tuple(own.index(d) for d in dims if d in own)
            if kept:
                whole = kept == tuple(range(len(own)))
                parts.append(part if whole else part.marginal(kept))
                places.append(tuple(i for i, d in enumerate(dims) if d in own))
        return _of(tuple(parts), tuple(places))

    def condition(
        self, dims: tuple[int, ...], values: Num[Array, "..."]
    ) -> tuple[Float[Array, "..."], Any]:
        rest = others(dims, self.event_dim)
        evidence, parts, places = [], [], []
        for part, own in zip(self.parts, self.dims, strict=True):
            known = tuple(own.index(d) for d in dims if d in own)
            given = values[..., np.array([i for i, d in enumerate(dims) if d in own], int)]
            if len(known) == len(own):  # in the order of dims, which need not be the part's
                evidence.append(part.log_prob(given[..., np.argsort(known)]))
                continue
            if known:
                density, part = part.condition(known, given)
                evidence.append(density)
            parts.append(part)
            places.append(tuple(rest.index(d) for d in own if d in rest))
        return _total(evidence), _of(tuple(parts), tuple(places))

    def innovations(
        self, y: Float[Array, "..."]
    ) -> tuple[Density, Float[Array, "..."], Float[Array, "..."] | None]:
        families, errors, rows = zip(
            *(part.innovations(columns) for part, columns in self._groups(y)), strict=True
        )
        family = dataclasses.replace(self, parts=families)
        if all(block is None for block in rows):
            return family, self.join(list(errors)), None
        raise UndefinedError(
            "innovations: not defined for groups whose own dimensions depend on each other."
        )

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Independent:
        scale = jnp.broadcast_to(scale, shift.shape)
        return dataclasses.replace(
            self,
            parts=tuple(
                # Nothing but the identity is asked of a part that has no other map.
                part if set(part.closure) == {"none"} else part.affine(a, b)
                for part, a, b in self._groups(shift, scale)
            ),
        )

    @classmethod
    def align(cls, densities: tuple[Independent, ...]) -> tuple[Independent, ...]:
        by_group = zip(*(density.parts for density in densities), strict=True)
        groups = [type(parts[0]).align(tuple(parts)) for parts in by_group]
        return tuple(
            dataclasses.replace(density, parts=parts)
            for density, parts in zip(densities, zip(*groups, strict=True), strict=True)
        )


def _of(parts: tuple[Any, ...], dims: tuple[tuple[int, ...], ...]) -> Any:
    """The density of these parts: a single one in its own order is that part itself."""
    if dims == (tuple(range(len(dims[0]))),):
        return parts[0]
    return Independent(parts=parts, dims=dims)


def _total(terms: list[Array]) -> Float[Array, "..."]:
    first, *rest = numerics.upcast(*terms)
    return sum(rest, start=first)
