"""The class-conditional head: ``p(c | x) p(y | c, x)``, one mixture per class."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxmdn import checks, numerics
from jaxmdn.heads import links
from jaxmdn.heads.base import Head
from jaxmdn.mixture import Mixture
from jaxmdn.mixture.class_conditional import Labeled, joint_log_prob
from jaxmdn.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class ClassConditionalHead(Head):
    """Raw network outputs to ``p(c, y | x) = p(c | x) p(y | c, x)``.

    The class picks its own mixture parameters: the raw outputs are ``C`` class logits followed by
    ``C`` times the inner head's outputs. The density returned is a mixture (over classes) of
    mixtures; :mod:`jaxmdn.mixture` has the functions that take a class label.

    Args:
      num_classes: C.
      head: the head of the target given its class, for example a ``NormalHead``.

    In ``nll`` and ``fit`` a target is either ``Labeled(label, y)``, scored jointly, or a plain
    ``y``, scored by its class-marginal density.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.ClassConditionalHead(3, jaxmdn.NormalHead(2, 1))
    >>> density = head(jnp.zeros((5, head.num_outputs)))
    >>> jaxmdn.responsibilities(density, jnp.zeros((5, 1))).shape  # p(c | x, y)
    (5, 3)
    """

    num_classes: int
    head: Head

    def __post_init__(self) -> None:
        name = "ClassConditionalHead"
        checks.require_count(name, "num_classes", self.num_classes, minimum=2)
        links.use_python_numbers(self)
        if not isinstance(self.head, Head):
            raise TypeError(
                f"{name}: head must be a jaxmdn head, got {type(self.head).__name__}; "
                f"for example NormalHead(num_components=3, event_dim=1)."
            )

    @property
    def num_outputs(self) -> int:
        return self.num_classes * (1 + self.head.num_outputs)

    @property
    def event_dim(self) -> int:
        return self.head.event_dim

    def build(self, raw: Float[Array, "... P"]) -> Mixture:
        shapes = ((self.num_classes,), (self.num_classes, self.head.num_outputs))
        logits, inner = numerics.cut(raw, shapes)
        return Mixture(logits=logits, components=self.head.build(inner))

    def inverse(self, density: Mixture) -> Float[Array, "... P"]:
        inner = self.head.inverse(density.components)
        inner = inner.reshape(*inner.shape[:-2], self.num_classes * self.head.num_outputs)
        return jnp.concatenate([density.logits, inner], axis=-1)

    def log_prob(self, raw: Float[Array, "... P"], target: Any) -> Float[Array, "..."]:
        if isinstance(target, Labeled):
            return joint_log_prob(self.build(raw), target.label, target.y)
        return super().log_prob(raw, target)
