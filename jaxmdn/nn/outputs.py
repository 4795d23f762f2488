"""What an autoregressive model says of its outputs: a head each, and the graph between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components.base import Density
from jaxmdn.heads import Head, IndependentHead, in_units
from jaxmdn.heads.graph import chain, validate
from jaxmdn.typing import Array, Float


class Group(NamedTuple):
    """Outputs with one and the same head; their raw outputs lie side by side.

    Attributes:
      head: the head.
      outputs: which outputs.
      start: where their raw outputs begin.
    """

    head: Head
    outputs: tuple[int, ...]
    start: int

    def block(self, raw: Float[Array, "... P"]) -> Float[Array, "... G p"]:
        """The group's raw outputs, one row per output."""
        width = self.head.num_outputs
        part = raw[..., self.start : self.start + len(self.outputs) * width]
        return part.reshape(*raw.shape[:-1], len(self.outputs), width)


@dataclasses.dataclass(frozen=True)
class AutoregressiveHead(Head):
    """One univariate head per output, and the graph between the outputs (static).

    What ``AutoregressiveMDN.head`` is. Each output's raw outputs depend on the values of its
    parents, so that ``head(raw)``, the conditionals side by side, is the joint density only where
    the raw outputs were computed. They are laid out by groups of outputs with equal heads.

    Args:
      heads: one head of event size one per output, or a single head for every output of the graph.
      graph: each output's parents; None is the chain rule in the order of the outputs.
    """

    heads: Any
    graph: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        name = "AutoregressiveMDN"
        heads, graph = self.heads, self.graph
        if isinstance(heads, Head):
            if graph is None:
                raise ValueError(
                    f"{name}: a single head needs a graph that says for how many outputs; pass "
                    f"graph=jaxmdn.heads.graph.chain(D), or one head per output."
                )
            graph = validate(graph, function=name)
            heads = (heads,) * len(graph)
        if not isinstance(heads, Sequence) or not all(isinstance(head, Head) for head in heads):
            raise TypeError(
                f"{name}: heads must be jaxmdn heads, one per output, got {heads!r}; for example "
                f"[jaxmdn.NormalHead(5, 1), jaxmdn.NormalHead(5, 1)]."
            )
        if not heads:
            raise ValueError(f"{name}: heads must have one head per output, got none.")
        for output, head in enumerate(heads):
            if head.event_dim != 1:
                raise ValueError(
                    f"{name}: every head must have event_dim 1, one head per output, but that of "
                    f"output {output} has event_dim {head.event_dim}; split it, or use MDN."
                )
        graph = chain(len(heads)) if graph is None else graph
        object.__setattr__(self, "heads", tuple(heads))
        object.__setattr__(self, "graph", validate(graph, num_outputs=len(heads), function=name))

    @property
    def num_outputs(self) -> int:
        return sum(head.num_outputs for head in self.heads)

    @property
    def event_dim(self) -> int:
        return len(self.heads)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The outputs by their head, in the order of the raw outputs."""
        groups, start = [], 0
        for head in dict.fromkeys(self.heads):
            outputs = tuple(d for d, other in enumerate(self.heads) if other == head)
            groups.append(Group(head, outputs, start))
            start += len(outputs) * head.num_outputs
        return tuple(groups)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each output's raw outputs lie."""
        starts = {
            output: group.start + i * group.head.num_outputs
            for group in self.groups
            for i, output in enumerate(group.outputs)
        }
        return tuple(slice(starts[d], starts[d] + h.num_outputs) for d, h in enumerate(self.heads))

    def each(
        self, function: Callable[[Head, Array, Any], Array], raw: Float[Array, "... P"], *trees: Any
    ) -> Float[Array, "... D"]:
        """``function(head, raw [..., G, p], *[..., G])`` a group, back in the outputs' order."""
        values: list[Array] = []
        order: list[int] = []
        for group in self.groups:
            picked = (tree[..., list(group.outputs)] for tree in trees)
            values.append(function(group.head, group.block(raw), *picked))
            order += group.outputs
        if len(values) == 1:
            return values[0]
        values = list(numerics.upcast(*values))
        return jnp.concatenate(values, axis=-1)[..., np.argsort(order)]

    @property
    def columns(self) -> np.ndarray:
        """Positions of the raw outputs, output by output."""
        return np.concatenate([np.arange(part.start, part.stop) for part in self.slices])

    def build(self, raw: Float[Array, "... P"]) -> Density:
        return IndependentHead(self.heads).build(raw[..., self.columns])

    def inverse(self, density: Any) -> Float[Array, "... P"]:
        return IndependentHead(self.heads).inverse(density)[..., np.argsort(self.columns)]


@in_units.register
def _autoregressive(head: AutoregressiveHead, y: Any, weights: Any = None) -> AutoregressiveHead:
    return dataclasses.replace(head, heads=in_units(IndependentHead(head.heads), y, weights).heads)
