"""Heads side by side: every output, or group of outputs, with a density of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components import Independent
from jaxmdn.heads.base import Head
from jaxmdn.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class IndependentHead(Head):
    """Raw network outputs to independent densities, ``p(y | x) = prod_g p_g(y_g | x)``.

    Every inner head has its own number of components and takes the next ``event_dim`` outputs of
    ``y [..., D]``; discrete and continuous ones may stand side by side (``y`` is then floating
    throughout). The raw outputs are those of the inner heads, one after the other.

    Args:
      heads: heads, one per output or group of outputs.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.IndependentHead((jaxmdn.NormalHead(5, 2), jaxmdn.CategoricalHead(3)))
    >>> density = head(jnp.zeros((4, head.num_outputs)))
    >>> jaxmdn.log_prob(density, jnp.array([0.5, -1.0, 2.0])).shape  # two numbers and a class
    (4,)
    """

    heads: Any  # a tuple

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        if not self.heads:
            raise ValueError("IndependentHead: heads is empty; pass one head per output.")
        for head in self.heads:
            if not isinstance(head, Head):
                raise TypeError(
                    f"IndependentHead: heads must be jaxmdn heads, got {type(head).__name__}; "
                    f"for example (NormalHead(3, 1), CategoricalHead(2))."
                )

    @property
    def num_outputs(self) -> int:
        return sum(head.num_outputs for head in self.heads)

    @property
    def event_dim(self) -> int:
        return sum(head.event_dim for head in self.heads)

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        """The outputs that each inner head describes."""
        ends = np.cumsum([head.event_dim for head in self.heads]).tolist()
        return tuple(
            tuple(range(end - head.event_dim, end))
            for head, end in zip(self.heads, ends, strict=True)
        )

    def build(self, raw: Float[Array, "... P"]) -> Independent:
        blocks = numerics.cut(raw, [(head.num_outputs,) for head in self.heads])
        parts = (head.build(block) for head, block in zip(self.heads, blocks, strict=True))
        return Independent(parts=tuple(parts), dims=self.dims)

    def inverse(self, density: Independent) -> Float[Array, "... P"]:
        blocks = [head.inverse(part) for head, part in zip(self.heads, density.parts, strict=True)]
        batch = density.batch_shape
        blocks = [jnp.broadcast_to(block, (*batch, block.shape[-1])) for block in blocks]
        return jnp.concatenate(blocks, axis=-1)
