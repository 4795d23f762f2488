"""What became of the components: which died, which sit at their scale's floor."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components import FullNormal, Independent
from jaxmdn.components.base import Density
from jaxmdn.heads import ClassConditionalHead, Head, IndependentHead
from jaxmdn.mixture import Mixture
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.typing import Array


class ComponentWarning(UserWarning):
    """A component of a trained mixture is dead, or its scale sits at its floor."""


class ComponentReport(NamedTuple):
    """Use of each component over a set of inputs (class-conditional heads: class by class).

    The components of an ``IndependentHead`` are counted through, one output after another.


    Attributes:
      mean_weight: ``[K]`` (or ``[C, K]``), the average mixing coefficient.
      max_weight: the largest mixing coefficient anywhere.
      floor_share: share of the inputs at which some scale is within 5 % of ``min_scale``.
    """

    mean_weight: np.ndarray
    max_weight: np.ndarray
    floor_share: np.ndarray

    def messages(self, head: Head, *, threshold: float = 1e-3) -> list[str]:
        """Sentences about dead components and floored scales; empty if all is well."""
        parts = head.heads if isinstance(head, IndependentHead) else (head,)
        floor = max(getattr(_inner(part), "min_weight", 0.0) for part in parts)
        lines = []
        dead = np.argwhere(self.max_weight < max(threshold, 2 * floor))
        if len(dead):
            lines.append(
                f"{_name(dead)} died: weight below {max(threshold, 2 * floor):g} at every input; "
                f"fewer components, or min_weight > 0, would serve."
            )
        floored = np.argwhere(self.floor_share > 0.01)
        if len(floored):
            worst = float(self.floor_share.max())
            lines.append(
                f"{_name(floored)} sit at the scale's floor (up to {worst:.0%} of the inputs); the "
                f"target may hold repeated values: check it, or raise min_scale."
            )
        return lines

    def warn(self, head: Head) -> None:
        """Issue each message as a :class:`ComponentWarning`."""
        for line in self.messages(head):
            warnings.warn(line, ComponentWarning, stacklevel=3)


def _name(indices: np.ndarray) -> str:
    plural = "components" if len(indices) > 1 else "component"
    return f"{plural} " + ", ".join("/".join(str(i) for i in row) for row in indices)


def _inner(head: Head) -> Head:
    while isinstance(head, ClassConditionalHead):
        head = head.head
    return head


def mean_weights(density: Density, rows: Array) -> Array | None:
    """Mixing coefficients averaged over a batch with row weights ``rows [N, ...]``: ``[K]``.

    Class-conditional densities count every class's components, ``[C K]``. None for densities that
    are no mixtures.
    """
    if not isinstance(density, Mixture):
        return None
    weights, rows = numerics.upcast(flatten_mixture(density).weights(), rows)
    leading = tuple(range(rows.ndim))
    return jnp.sum(rows[..., None] * weights, axis=leading) / jnp.sum(rows)


def component_statistics(head: Head, density: Density, rows: Array) -> Any:
    """Sums over a batch for a :class:`ComponentReport`: weights, their largest, floored rows, rows.

    ``rows [N, ...]`` is 1 for rows that count and 0 for others. None for heads without components.
    """
    if isinstance(head, IndependentHead) and isinstance(density, Independent):
        pairs = zip(head.heads, density.parts, strict=True)
        found = [component_statistics(part, own, rows) for part, own in pairs]
        found = [jax.tree.map(jnp.ravel, part) for part in found if part is not None]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found) if found else None
    if not isinstance(density, Mixture):
        return None
    mixture: Any = density
    while isinstance(mixture.components, Mixture):
        mixture = mixture.components
    weights = mixture.weights()  # [N, ..., (C,) K]
    leading = tuple(range(rows.ndim))
    mask = rows.reshape(rows.shape + (1,) * (weights.ndim - rows.ndim))
    floored, floor = jnp.zeros_like(weights, bool), getattr(_inner(head), "min_scale", 0.0)
    units = np.array(getattr(_inner(head), "units", (1.0,) * mixture.event_dim))
    for scale in _scales(mixture.components, units) if floor > 0 else ():
        floored = floored | jnp.any(scale <= 1.05 * floor, axis=-1)
    return (
        jnp.sum(mask * weights, axis=leading),
        jnp.max(jnp.where(mask > 0, weights, 0), axis=leading),
        jnp.sum(mask * floored.astype(mask.dtype), axis=leading),
        jnp.sum(mask * jnp.ones_like(weights), axis=leading),
    )


def _scales(components: Density, units: np.ndarray) -> list[Array]:
    """What a head keeps above its floor of the components, ``[..., K, D]``, in ``units [D]``."""
    if isinstance(components, Independent):
        parts = zip(components.parts, components.dims, strict=True)
        return [scale for part, own in parts for scale in _scales(part, units[np.array(own)])]
    if isinstance(components, FullNormal):
        return [1.0 / jnp.diagonal(components.whitening_tril, axis1=-2, axis2=-1)]
    base = getattr(components, "base", None)  # of a family with extra zeros
    if base is not None:
        return _scales(base, units)
    scale = getattr(components, "scale", None)
    if scale is None:
        return []
    own: Any = components
    metadata = {field.name: field.metadata for field in dataclasses.fields(own)}
    in_unit = metadata["scale"].get("in_unit") and not (units == 1).all()
    return [scale / jnp.asarray(units, scale.dtype) if in_unit else scale]


def combine(statistics: Any) -> ComponentReport:
    """Fold per-batch statistics (leading axis: batches) into a report."""
    total, largest, floored, count = jax.device_get(statistics)
    return ComponentReport(
        mean_weight=total.sum(0) / count.sum(0),
        max_weight=largest.max(0),
        floor_share=floored.sum(0) / count.sum(0),
    )
