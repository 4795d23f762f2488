"""The batch axes of densities: picking, joining and merging positions, for every family alike.

All of it goes through ``map_parameters(function)``, which hands each parameter over with the number
of its trailing event axes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes, numerics
from jaxmdn.typing import Array

DensityT = TypeVar("DensityT", bound=Any)


def spread(density: DensityT, shape: tuple[int, ...] | None = None) -> DensityT:
    """Write out every parameter over the whole batch shape (or ``shape``)."""
    shape = density.batch_shape if shape is None else shape

    def full(leaf: Array, rank: int) -> Array:
        return jnp.broadcast_to(leaf, (*shape, *leaf.shape[leaf.ndim - rank :]))

    return density.map_parameters(full)


def index(density: DensityT, where: Any) -> DensityT:
    """The densities at some positions of the batch: ``where`` as of an array of its shape."""
    batch = density.batch_shape
    traced = any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(where))
    numbers = (jnp if traced else np).arange(math.prod(batch)).reshape(batch)[where]

    return spread(density).map_parameters(lambda leaf, rank: _pick(leaf, numbers, rank))


@partial(meshes.jit, static_argnums=2)
def _pick(leaf: Array, numbers: Array, rank: int) -> Array:
    return leaf.reshape(-1, *leaf.shape[leaf.ndim - rank :])[numbers]


def flatten(density: DensityT) -> DensityT:
    """Merge the last two batch axes, ``[..., C, K] -> [..., C * K]``."""
    *lead, outer, inner = density.batch_shape

    def merge(leaf: Array, rank: int) -> Array:
        return leaf.reshape(*lead, outer * inner, *leaf.shape[leaf.ndim - rank :])

    return spread(density).map_parameters(merge)


def concatenate(densities: tuple[DensityT, ...]) -> DensityT:
    """Join densities of one family along their last batch axis."""
    densities = type(densities[0]).align(densities)
    lead = jnp.broadcast_shapes(*(density.batch_shape[:-1] for density in densities))
    full = [spread(density, (*lead, density.batch_shape[-1])) for density in densities]
    ranks = densities[0].map_parameters(lambda leaf, rank: rank)
    return jax.tree.map(_join, ranks, *full)


def _join(rank: int, *arrays: Array) -> Array:
    if len({array.dtype for array in arrays}) > 1:
        arrays = numerics.upcast(*arrays)
    # A parameter that dimensions share (size one) meets one that is written out.
    events = [array.shape[array.ndim - rank :] for array in arrays]
    event = jnp.broadcast_shapes(*events)
    full = [jnp.broadcast_to(a, (*a.shape[: a.ndim - rank], *event)) for a in arrays]
    return jnp.concatenate(full, axis=-1 - rank)
