"""Pooling: several mixtures (an ensemble of networks, say) as one exact density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.components.batch import concatenate, flatten, spread
from jaxmdn.mixture.mixture import Mixture, require_mixture
from jaxmdn.typing import Array, Float


@meshes.jit
def _merge(mixtures: tuple[Mixture, ...], weights: Array | None) -> Mixture:
    dtype = numerics.compute_dtype(*(mixture.logits for mixture in mixtures))
    count = len(mixtures)
    share = jnp.full((count,), 1.0 / count, dtype) if weights is None else weights.astype(dtype)
    batch = jnp.broadcast_shapes(share.shape[:-1], *(mixture.batch_shape for mixture in mixtures))
    logits = [
        jnp.broadcast_to(
            mixture.log_weights().astype(dtype) + jnp.log(share[..., i, None]),
            (*batch, mixture.num_components),
        )
        for i, mixture in enumerate(mixtures)
    ]
    components = concatenate(tuple(mixture.components for mixture in mixtures))
    return Mixture(logits=jnp.concatenate(logits, axis=-1), components=components)


def merge(mixtures: Sequence[Mixture], weights: Float[Array, "... M"] | None = None) -> Mixture:
    """Pool several mixtures into one: ``p(y) = sum_m weights_m p_m(y)``.

    This is how an ensemble of networks becomes a single exact density.

    Args:
      mixtures: mixtures of the same component family and D; K may differ.
      weights: nonnegative pooling weights ``[..., M]``; equal if absent. They are normalised.

    Returns:
      A mixture with the sum of all K components.

    Raises:
      ValueError: if there is none, or families, event sizes or batch shapes do not match.

    References:
      Lakshminarayanan et al. (2017), Deep ensembles, section 2.4.
    """
    mixtures = tuple(mixtures)
    if not mixtures:
        raise ValueError("merge: mixtures is empty; pass at least one mixture.")
    for mixture in mixtures:
        require_mixture("merge", mixture)
        if isinstance(mixture.components, Mixture):
            raise ValueError(
                "merge: the components are mixtures themselves (a class-conditional density); "
                "flatten each one first with jaxmdn.mixture.flatten_mixture."
            )
    families = [type(mixture.components).__name__ for mixture in mixtures]
    if any(family != families[0] for family in families):
        raise ValueError(
            f"merge: every mixture must have the same component family, got {families}; build "
            f"them with the same head, or convert the components first."
        )
    if len({mixture.event_dim for mixture in mixtures}) > 1:
        dims = [mixture.event_dim for mixture in mixtures]
        raise ValueError(f"merge: every mixture must have the same event dimension, got {dims}.")
    shapes = {f"mixtures[{i}]": mixture.batch_shape for i, mixture in enumerate(mixtures)}
    if weights is not None:
        checks.require_floating("merge", "weights", weights)
        checks.require_last_axis("merge", "weights", weights, len(mixtures), "number of mixtures")
        shapes["weights"] = weights.shape[:-1]
    checks.require_broadcastable("merge", **shapes)
    return _merge(mixtures, weights)


@meshes.jit
def pool(density: Any, weights: Float[Array, "M"] | None = None) -> Mixture:
    """Pool the densities along the first batch axis: ``p(y) = sum_m weights_m p_m(y)``.

    What :func:`merge` does for mixtures in a list, of networks that were mapped over.

    Args:
      density: any density of batch shape ``[M, ...]``.
      weights: nonnegative, ``[M]``; equal if absent. They are normalised.

    Returns:
      A mixture of batch shape ``[...]``: with ``M K`` components where ``density`` is a mixture of
      K components, else with M, each a density of its own.
    """
    if not isinstance(density, Density):
        raise TypeError(f"pool: expected a density, got {type(density).__name__}.")
    count = density.batch_shape[0]
    dtype = numerics.compute_dtype(density)
    share = jnp.ones(count, dtype) if weights is None else weights.astype(dtype)
    share = jnp.log(share / jnp.sum(share))

    def last(leaf: Array, rank: int) -> Array:  # [M, ..., event] -> [..., M, event]
        return jnp.moveaxis(leaf, 0, -1 - rank)

    moved = spread(density).map_parameters(last)
    share = jnp.broadcast_to(share, moved.batch_shape)
    if not isinstance(moved, Mixture) or isinstance(moved.components, Mixture):
        return Mixture(logits=share, components=moved)
    logits = moved.log_weights() + share[..., None]
    logits = logits.reshape(*logits.shape[:-2], -1)
    return Mixture(logits=logits, components=flatten(moved.components))
