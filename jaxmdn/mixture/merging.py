"""Pooling: several mixtures (an ensemble of networks, say) as one exact density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Independent
from jaxmdn.components.base import Density
from jaxmdn.components.batch import concatenate, flatten, spread
from jaxmdn.components.categorical import Categorical
from jaxmdn.mixture.mixture import Mixture, require_mixture
from jaxmdn.typing import Array, Float


@meshes.jit
def _merge(mixtures: tuple[Mixture, ...], weights: Array | None) -> Mixture:
    dtype = numerics.compute_dtype(*(mixture.logits for mixture in mixtures))
    count = len(mixtures)
    share = (
        jnp.full((count,), 1.0 / count, dtype)
        if weights is None
        else jnp.asarray(weights).astype(dtype)
    )
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


@meshes.jit
def _merge_independent(densities: tuple[Independent, ...], weights: Array | None) -> Mixture:
    wide = [
        density.map_parameters(lambda leaf, rank: jnp.expand_dims(leaf, -1 - rank))
        for density in densities
    ]
    components = concatenate(tuple(wide))
    dtype = numerics.compute_dtype(*jax.tree.leaves(densities))
    logits = jnp.zeros((len(densities),), dtype) if weights is None else jnp.log(weights)
    shape = jnp.broadcast_shapes(logits.shape, components.batch_shape)
    return Mixture(logits=jnp.broadcast_to(logits.astype(dtype), shape), components=components)


@meshes.jit
def _merge_classes(densities: tuple[Categorical, ...], weights: Array | None) -> Categorical:
    logits = numerics.upcast(*(density.logits for density in densities))
    dtype = logits[0].dtype
    share = jnp.ones(len(densities), dtype) if weights is None else weights
    share = numerics.log_normalize(jnp.log(share.astype(dtype)))
    parts = [numerics.log_normalize(own) + share[..., m, None] for m, own in enumerate(logits)]
    return Categorical(logits=numerics.logsumexp(jnp.stack(jnp.broadcast_arrays(*parts)), axis=0))


def merge(mixtures: Sequence[Any], weights: Float[Array, "... M"] | None = None) -> Any:
    """Pool several mixtures into one: ``p(y) = sum_m weights_m p_m(y)``.

    This is how an ensemble of networks becomes a single exact density.

    Args:
      mixtures: mixtures of the same component family and D; K may differ. Or independent densities
        of the same heads, which become the components of one mixture. Or categorical densities,
        whose probabilities are averaged.
      weights: nonnegative pooling weights ``[..., M]``; equal if absent. They are normalised.

    Returns:
      A mixture with the sum of all K components; of categorical densities one of their kind.

    Raises:
      ValueError: if there is none, or families, event sizes or batch shapes do not match.

    References:
      Lakshminarayanan et al. (2017), Deep ensembles, section 2.4.
    """
    if isinstance(mixtures, Density):
        raise TypeError(
            f"merge: mixtures must be a sequence of them, got one {type(mixtures).__name__}; pass "
            f"[first, second, ...]."
        )
    mixtures = tuple(mixtures)
    if not mixtures:
        raise ValueError("merge: mixtures is empty; pass at least one mixture.")
    merging = next(
        (
            merging
            for kind, merging in ((Independent, _merge_independent), (Categorical, _merge_classes))
            if all(isinstance(mixture, kind) for mixture in mixtures)
        ),
        _merge,
    )
    kinds = {jax.tree.structure(mixture) for mixture in mixtures}
    for mixture in () if merging is not _merge and len(kinds) == 1 else mixtures:
        require_mixture("merge", mixture)
        if isinstance(mixture.components, Mixture):
            raise ValueError(
                "merge: the components are mixtures themselves (a class-conditional density); "
                "flatten each one first with jaxmdn.mixture.flatten_mixture."
            )
    classes = [mixture.num_classes for mixture in mixtures if isinstance(mixture, Categorical)]
    if len(set(classes)) > 1:
        raise ValueError(
            f"merge: every density must have the same classes, got {classes} of them; build them "
            f"with the same head."
        )
    families = [type(getattr(mixture, "components", mixture)).__name__ for mixture in mixtures]
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
    return merging(mixtures, weights)


@meshes.jit
def pool(density: Any, weights: Float[Array, "M"] | None = None) -> Any:
    """Pool the densities along the first batch axis: ``p(y) = sum_m weights_m p_m(y)``.

    What :func:`merge` does for mixtures in a list, of networks that were mapped over.

    Args:
      density: any density of batch shape ``[M, ...]``.
      weights: nonnegative, ``[M]``; equal if absent. They are normalised.

    Returns:
      A mixture of batch shape ``[...]``: with ``M K`` components where ``density`` is a mixture of
      K components, else with M, each a density of its own. Class probabilities are averaged: a
      categorical density again.
    """
    if not isinstance(density, Density):
        raise TypeError(f"pool: expected a density, got {type(density).__name__}.")
    count = density.batch_shape[0] if density.batch_shape else 0
    if count == 0 or (weights is not None and jnp.shape(weights) != (count,)):
        raise ValueError(
            f"pool: expected a density of batch shape [M, ...] and weights [M], got "
            f"{list(density.batch_shape)} and {None if weights is None else jnp.shape(weights)}."
        )
    dtype = numerics.compute_dtype(density)
    share = jnp.ones(count, dtype) if weights is None else jnp.asarray(weights, dtype)
    share = jnp.log(share / jnp.sum(share))
    if isinstance(density, Categorical):
        log_probs = numerics.log_normalize(numerics.upcast(density.logits)[0])
        lead = (count, *(1,) * (log_probs.ndim - 1))
        return Categorical(logits=numerics.logsumexp(log_probs + share.reshape(lead), axis=0))

    def last(leaf: Array, rank: int) -> Array:  # [M, ..., event] -> [..., M, event]
        return jnp.moveaxis(leaf, 0, -1 - rank)

    moved = spread(density).map_parameters(last)
    share = jnp.broadcast_to(share, moved.batch_shape)
    if not isinstance(moved, Mixture) or isinstance(moved.components, Mixture):
        return Mixture(logits=share, components=moved)
    logits = moved.log_weights() + share[..., None]
    logits = logits.reshape(*logits.shape[:-2], -1)
    return Mixture(logits=logits, components=flatten(moved.components))
