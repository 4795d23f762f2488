"""The head of normal mixtures: isotropic, diagonal, full and low-rank covariance.

Raw outputs are laid out in blocks, each flattened row by row:

| block | shape | parameter |
|---|---|---|
| weights | ``K`` | logits, through the weight floor |
| loc | ``K x D`` | identity |
| scale | ``K`` isotropic, else ``K x D`` | ``min_scale + scale_link(raw)`` |
| shape | full: ``K x D (D - 1) / 2``, or ``K x E``; low rank: ``K x D x r`` | see below |

With ``tied=True`` the scale and shape blocks have one component, shared by all.

Full covariance: the whitening factor is ``W = diag(1 / scale) (unit lower triangular)``, so
``scale_d`` is the conditional standard deviation of ``y_d`` given the dimensions before it, and the
raw numbers below the diagonal are (minus) regression coefficients. With a ``graph`` of E edges,
row ``d`` has those of its parents alone, in increasing order: the other entries of ``W`` are zero,
and ``y_d`` given the dimensions before it depends on its parents only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, numerics
from jaxmdn.components import FullNormal, LowRankNormal, Normal
from jaxmdn.components.base import Density
from jaxmdn.heads import links
from jaxmdn.heads.base import Head
from jaxmdn.heads.graph import Graph, chain, topological_order, validate
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Float

COVARIANCES = ("isotropic", "diagonal", "full", "low_rank")


@dataclasses.dataclass(frozen=True)
class NormalHead(Head):
    """Raw network outputs to a mixture of K normals over ``y [..., D]``.

    Args:
      num_components: K.
      event_dim: D; a scalar target has ``event_dim=1``.
      covariance: ``"isotropic"``, ``"diagonal"`` (default), ``"full"`` or ``"low_rank"``.
      rank: r, the number of factors of ``"low_rank"``.
      graph: with ``"full"``, each dimension's parents (:mod:`jaxmdn.heads.graph`), which come
        before it: ``((), (0,), (1,))`` makes ``y_2`` independent of ``y_0`` given ``y_1``, within
        each component. Default: all dimensions before it.
      tied: share scale and correlation parameters across components.
      scale_link: a :mod:`jaxmdn.heads.links` link, or its name; ``"softplus"`` by default.
        ``DampedExp(reg)`` or ``Bounded(lower, upper)`` also bound the scale above.
      min_scale: added to the link's value: no scale can fall below it. In the target's unit
        (standardise the target, as ``fit`` does, or set it). Default 1e-3.
      min_weight: lower bound of every mixing coefficient; ``K min_weight < 1``. The upper bound is
        then ``1 - (K - 1) min_weight``. Default 0: off.

    Raises:
      ValueError, TypeError: on impossible configuration, naming the argument.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.NormalHead(num_components=8, event_dim=2, covariance="full")
    >>> head.num_outputs
    48
    >>> mixture = head(jnp.zeros((5, head.num_outputs)))
    >>> jaxmdn.log_prob(mixture, jnp.zeros((5, 2))).shape
    (5,)

    References:
      Bishop (1994), Mixture Density Networks; Williams (1996) for full covariance; Wermuth (1980),
      Linear recursive equations, covariance selection, and path analysis, for the graph.
    """

    num_components: int
    event_dim: int = 1
    covariance: str = dataclasses.field(default="diagonal", kw_only=True)
    rank: int = dataclasses.field(default=1, kw_only=True)
    tied: bool = dataclasses.field(default=False, kw_only=True)
    scale_link: links.Link | str = dataclasses.field(default="softplus", kw_only=True)
    min_scale: float = dataclasses.field(default=1e-3, kw_only=True)
    min_weight: float = dataclasses.field(default=0.0, kw_only=True)
    graph: Sequence[Sequence[int]] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        name = "NormalHead"
        checks.require_count(name, "num_components", self.num_components)
        checks.require_count(name, "event_dim", self.event_dim)
        checks.require_option(name, "covariance", self.covariance, COVARIANCES)
        checks.require_count(name, "rank", self.rank)
        checks.require_option(name, "tied", self.tied, (True, False))
        checks.require_number(name, "min_scale", self.min_scale, lower=0.0)
        upper = 1.0 / self.num_components
        checks.require_number(name, "min_weight", self.min_weight, lower=0.0, upper=upper)
        links.use_python_numbers(self)
        object.__setattr__(self, "scale_link", links.resolve(self.scale_link))
        links.require_positive(name, self.link, self.min_scale)
        if self.covariance == "low_rank" and self.rank > self.event_dim:
            raise ValueError(
                f"{name}: rank must be at most event_dim ({self.event_dim}), got {self.rank}; "
                f'use covariance="full" for an unrestricted covariance.'
            )
        if self.graph is not None:
            object.__setattr__(self, "graph", self._checked_graph(self.graph))

    def _checked_graph(self, graph: Sequence[Sequence[int]]) -> Graph:
        name = "NormalHead"
        if self.covariance != "full":
            raise ValueError(
                f'{name}: graph needs covariance="full", got "{self.covariance}"; its dimensions '
                f"are tied by a whitening factor, whose zeros the graph gives."
            )
        valid = validate(graph, num_outputs=self.event_dim, function=name)
        late = [(p, d) for d, parents in enumerate(valid) for p in parents if p > d]
        if late:
            parent, child = late[0]
            raise ValueError(
                f"{name}: graph must have parents before their children in the order of the "
                f"outputs, but output {parent} is a parent of output {child}; reorder the target's "
                f"columns, for example y[..., {list(topological_order(valid))}]."
            )
        return valid

    @property
    def link(self) -> links.Link:
        """``scale_link`` as a link."""
        return links.resolve(self.scale_link)

    @property
    def edges(self) -> np.ndarray:
        """Where the entries of a full covariance's shape block stand in the packed lower part."""
        rows = chain(self.event_dim) if self.graph is None else self.graph
        places = [numerics.tril_size(d) + p for d, row in enumerate(rows) for p in row]
        return np.array(places, np.int32)

    def spread_edges(self, shape: Float[Array, "... E"]) -> Float[Array, "... T"]:
        """Put zeros where the graph has no edge: the packed strict lower part, row by row."""
        if self.graph is None:
            return shape
        places = tuple(self.edges.tolist())
        return numerics.spread(shape, places, numerics.tril_size(self.event_dim))

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the raw blocks, in order (see the table in the module's docstring)."""
        K, D = self.num_components, self.event_dim
        shared = 1 if self.tied else K
        scale = (shared, 1 if self.covariance == "isotropic" else D)
        blocks: tuple[tuple[int, ...], ...] = ((K,), (K, D), scale)
        if self.covariance == "full":
            count = numerics.tril_size(D) if self.graph is None else sum(map(len, self.graph))
            blocks += ((shared, count),)
        elif self.covariance == "low_rank":
            blocks += ((shared, D, self.rank),)
        return blocks

    @property
    def num_outputs(self) -> int:
        return sum(math.prod(block) for block in self.blocks)

    def split(self, raw: Float[Array, "... P"]) -> list[Float[Array, "..."]]:
        """Cut raw outputs into :attr:`blocks`."""
        return numerics.cut(raw, self.blocks)

    def build(self, raw: Float[Array, "... P"]) -> Mixture:
        logits, loc, raw_scale, *shape = self.split(raw)
        scale = self.min_scale + self.link(raw_scale)
        components: Density
        if self.covariance == "full":
            unit = numerics.unpack_unit_tril(self.spread_edges(shape[0]), self.event_dim)
            whitening = numerics.divide(unit, scale[..., None])
            components = FullNormal(loc=loc, whitening_tril=whitening)
        elif self.covariance == "low_rank":
            components = LowRankNormal(loc=loc, factor=shape[0], scale=scale)
        else:
            components = Normal(loc=loc, scale=scale)
        logits = numerics.floor_log_weights(logits, self.min_weight)
        return Mixture(logits=logits, components=components)

    def inverse(self, density: Mixture) -> Float[Array, "... P"]:
        components = density.components
        expected = {"full": FullNormal, "low_rank": LowRankNormal}.get(self.covariance, Normal)
        if not isinstance(components, expected):
            raise TypeError(
                f'NormalHead.inverse: covariance="{self.covariance}" needs components of '
                f"{expected.__name__}, got {type(components).__name__}."
            )
        shape = []
        if isinstance(components, FullNormal):
            scale = 1.0 / jnp.diagonal(components.whitening_tril, axis1=-2, axis2=-1)
            packed = numerics.pack_tril(components.whitening_tril * scale[..., None])
            shape = [packed[..., self.edges]]
            foreign = np.delete(np.arange(packed.shape[-1]), self.edges)
            beyond = jnp.any(packed[..., foreign] != 0, axis=-1, keepdims=True)
            scale = jnp.where(beyond, jnp.nan, scale)  # no raw outputs of this graph give it
        elif isinstance(components, LowRankNormal):
            scale, shape = components.scale, [components.factor]
        else:
            scale = components.scale
        parts = [
            numerics.unfloor_log_weights(density.logits, self.min_weight),
            components.loc,
            self.link.inverse(scale - self.min_scale),
            *shape,
        ]
        batch = density.batch_shape
        flat = []
        for part, block in zip(parts, self.blocks, strict=True):
            part = jnp.broadcast_to(part, (*batch, *block))
            flat.append(part.reshape(*batch, math.prod(block)))
        return jnp.concatenate(flat, axis=-1)
