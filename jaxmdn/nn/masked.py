"""One network for all conditionals of a directed graph, by masks on its kernels.

A unit carries the set of outputs it may see. One unit feeds another if its set is a subset of the
other's; the input ``y_j`` carries ``{j}``, the inputs ``x`` the empty set, and the raw outputs of
output ``d`` its parents. So whatever reaches output ``d`` has passed through subsets of its parents
alone, and all conditionals ``p(y_d | x, y_parents(d))`` come of one forward pass. With the chain
rule's graph this is MADE (there, a set is a number: all outputs below it).

The sets of a layer's units cycle over the distinct sets of parents; one of them is empty, since
some output has no parents. Every output is thus reached by ``x`` and by its parents through units
of every layer; both also skip straight to the output layer.

References:
  Germain, Gregor, Murray and Larochelle (2015), MADE: masked autoencoder for distribution
  estimation, eq. 8-14.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn import numerics
from jaxmdn.heads import CategoricalHead
from jaxmdn.heads.graph import Graph
from jaxmdn.nn.network import activate
from jaxmdn.nn.outputs import AutoregressiveHead
from jaxmdn.typing import Array, Float, Num


@dataclasses.dataclass(frozen=True)
class MaskedNetwork:
    """The static part of the network: shapes, masks, and the pure function of its parameters.

    Parameters are a tuple of ``(kernel, bias)``, a pair per layer, the output layer last; ``dtype``
    is that of the operands of their products (None: their own).
    """

    in_features: int
    head: AutoregressiveHead
    hidden_features: tuple[int, ...]
    activation: str | Callable[[Array], Array]
    dtype: str | None = None

    def __post_init__(self) -> None:
        sets = distinct_sets(self.head.graph)
        for width in self.hidden_features:
            if width < len(sets):
                raise ValueError(
                    f"AutoregressiveMDN: hidden_features must be at least {len(sets)}, one unit "
                    f"for each distinct set of parents in the graph, got {width}."
                )

    def encode(self, y: Num[Array, "... D"]) -> Float[Array, "... E"]:
        """What the network sees of the outputs: numbers as they are, classes one-hot."""
        parts = []
        for d, width in enumerate(_encoded_widths(self.head)):
            part = y[..., d : d + 1]
            if width > 1:
                dtype = numerics.compute_dtype(y)
                part = jax.nn.one_hot(part[..., 0].astype(jnp.int32), width, dtype=dtype)
            parts.append(part)
        return jnp.concatenate(numerics.upcast(*parts), axis=-1)

    def hidden(
        self, params: Any, x: Float[Array, "... F"], seen: Float[Array, "... E"]
    ) -> tuple[Array, ...]:
        """What feeds the output layer: the last hidden units, ``x`` and the encoded outputs."""
        inputs: tuple[Array, ...] = (x, seen)
        for layer, mask in zip(params[:-1], self.masks[:-1], strict=True):
            inputs = (activate(self.activation, _masked(layer, mask, inputs, self.dtype)),)
        return (*inputs, x, seen) if self.hidden_features else inputs

    def output(
        self, params: Any, inputs: tuple[Array, ...], outputs: Sequence[int] | None = None
    ) -> Float[Array, "... P"]:
        """Raw outputs (those of some outputs only) from what :meth:`hidden` returns."""
        (kernel, bias), mask = params[-1], self.masks[-1]
        if outputs is not None:
            everything = np.arange(self.head.num_outputs)
            columns = np.concatenate([everything[self.head.slices[d]] for d in outputs])
            kernel, bias, mask = kernel[:, columns], bias[columns], mask[:, columns]
        return _masked((kernel, bias), mask, inputs, self.dtype)

    def raw(
        self, params: Any, x: Float[Array, "... F"], y: Num[Array, "... D"]
    ) -> Float[Array, "... P"]:
        """All outputs' raw outputs, each given its own parents' values in ``y``."""
        return self.output(params, self.hidden(params, x, self.encode(y)))

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """One boolean mask ``[in, out]`` per kernel."""
        return _masks(self.in_features, self.head, self.hidden_features)


def distinct_sets(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """The distinct sets of parents; one is empty, since some output has no parents."""
    return tuple(sorted(set(graph), key=lambda parents: (len(parents), parents)))


def _encoded_widths(head: AutoregressiveHead) -> tuple[int, ...]:
    return tuple(h.num_classes if isinstance(h, CategoricalHead) else 1 for h in head.heads)


@functools.lru_cache
def _masks(
    in_features: int, head: AutoregressiveHead, hidden_features: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
    sets = distinct_sets(head.graph)
    inputs: list[tuple[int, ...]] = [() for _ in range(in_features)]
    for d, width in enumerate(_encoded_widths(head)):
        inputs += [(d,)] * width
    outputs = [
        head.graph[d] for g in head.groups for d in g.outputs for _ in range(g.head.num_outputs)
    ]
    before, masks = inputs, []
    for width in hidden_features:
        units = [sets[i % len(sets)] for i in range(width)]
        masks.append(_subset(before, units, head.event_dim))
        before = units
    skip = inputs if hidden_features else []
    return (*masks, _subset([*before, *skip], outputs, head.event_dim))


def _subset(lower: Sequence[Any], upper: Sequence[Any], count: int) -> np.ndarray:
    """Entry ``[i, j]``: whether ``lower[i]`` is a subset of ``upper[j]``."""

    def members(sets: Sequence[tuple[int, ...]]) -> np.ndarray:
        table = np.zeros((len(sets), count), np.int32)
        for i, nodes in enumerate(sets):
            table[i, list(nodes)] = 1
        return table

    mask = members(lower) @ (1 - members(upper)).T == 0
    mask.flags.writeable = False  # shared by all networks of this shape
    return mask


def _masked(
    layer: Any, mask: np.ndarray, inputs: tuple[Array, ...], dtype: str | None
) -> Float[Array, "... H"]:
    """``concat(inputs) @ (mask * kernel) + bias``; the inputs' leading axes may differ.

    The products' operands have the ``dtype``; their sum is float32 at least.
    """
    kernel, total, *inputs = numerics.upcast(*layer, *inputs)  # type: ignore[assignment]
    wide = total.dtype
    if dtype is not None:
        kernel, *inputs = (part.astype(dtype) for part in (kernel, *inputs))  # type: ignore[assignment]
    kernel = jnp.where(mask, kernel, 0)
    start = 0
    for part in inputs:
        stop = start + part.shape[-1]
        total = total + jnp.matmul(part, kernel[start:stop], preferred_element_type=wide)
        start = stop
    return total


class MaskedLinear(nnx.Module):
    """The parameters of one layer; the masks stand in :class:`MaskedNetwork`."""

    def __init__(
        self,
        mask: np.ndarray,
        *,
        scale: float = 1.0,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        # Every unit starts with unit variance, over the inputs that it has.
        spread = scale / np.sqrt(np.maximum(mask.sum(axis=0), 1))
        draws = jax.random.normal(rngs.params(), mask.shape, jnp.float32)
        kernel = draws * jnp.asarray(mask * spread, jnp.float32)
        self.kernel = nnx.Param(kernel.astype(param_dtype))
        self.bias = nnx.Param(jnp.zeros(mask.shape[1], param_dtype))
