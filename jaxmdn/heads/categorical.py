"""The softmax head: classification, and the class part of class-conditional densities."""

from __future__ import annotations

import dataclasses

from jaxmdn import checks, numerics
from jaxmdn.components import Categorical
from jaxmdn.heads import links
from jaxmdn.heads.base import Head
from jaxmdn.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class CategoricalHead(Head):
    """Raw network outputs to class probabilities, ``softmax(raw)``.

    Args:
      num_classes: C; targets are class indices ``y [..., 1]`` in ``0 .. C - 1``.
      min_weight: lower bound of every class probability, ``C min_weight < 1``. Default 0: off.

    >>> import jax.numpy as jnp, jaxmdn
    >>> density = jaxmdn.CategoricalHead(4)(jnp.zeros((2, 4)))
    >>> [round(float(value), 3) for value in jaxmdn.log_prob(density, jnp.array([[0], [3]]))]
    [-1.386, -1.386]

    See also :func:`jaxmdn.categorical_nll`, which takes logits and labels without a head.
    """

    num_classes: int
    min_weight: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        checks.require_count("CategoricalHead", "num_classes", self.num_classes, minimum=2)
        checks.require_number(
            "CategoricalHead", "min_weight", self.min_weight, lower=0.0, upper=1 / self.num_classes
        )
        links.use_python_numbers(self)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    @property
    def event_dim(self) -> int:
        return 1

    def build(self, raw: Float[Array, "... P"]) -> Categorical:
        return Categorical(logits=numerics.floor_log_weights(raw, self.min_weight))

    def inverse(self, density: Categorical) -> Float[Array, "... P"]:
        return numerics.unfloor_log_weights(density.logits, self.min_weight)
