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

    def joint(mixture: Mixture, share: Array) -> Array:
        log_weights = mixture.log_weights().astype(dtype) + jnp.log(share)[..., None]
        log_weights = jnp.broadcast_to(log_weights, (*batch, mixture.num_components))
        if not isinstance(mixture.components, Mixture):
            return log_weights
        return log_weights[..., None] + mixture.components.log_weights().astype(dtype)

    logits = [joint(mixture, share[..., i]) for i, mixture in enumerate(mixtures)]
    return _of_all(jnp.concatenate(logits, axis=-1), tuple(own.components for own in mixtures))


def _of_all(logits: Array, components: tuple[Density, ...]) -> Mixture:
    """The mixture of all components; of classes, each with all members' components of it."""
    if not isinstance(components[0], Mixture):
        return Mixture(logits=logits, components=concatenate(components))
    inner = _of_all(logits, tuple(own.components for own in components))
    return Mixture(logits=numerics.logsumexp(logits), components=inner)


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
      mixtures: mixtures of the same component family and D; K may differ. Or class-conditional
        densities of the same classes; independent densities of the same heads, which become the
        components of one mixture; or categorical densities, whose probabilities are averaged.
      weights: nonnegative pooling weights ``[..., M]``; equal if absent. They are normalised.

    Returns:
      A mixture with the sum of all K components; of categorical densities one of their kind. Of
      class-conditional ones, too, ``p(c, y) = sum_m weights_m p_m(c) p_m(y | c)``: the classes'
      probabilities are averaged, and each class has its components of all members.

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
    classes = {count for mixture in mixtures if (count := _num_classes(mixture)) is not None}
    if len(classes) > 1:
        raise ValueError(
            f"merge: every density must have the same classes, got {sorted(classes)} of them; "
            f"build them with the same head."
        )
    families = [_family(mixture) for mixture in mixtures]
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


def _num_classes(density: Any) -> int | None:
    if isinstance(density, Categorical):
        return density.num_classes
    classes = isinstance(density, Mixture) and isinstance(density.components, Mixture)
    return density.num_components if classes else None


def _family(density: Any) -> str:
    inner = getattr(density, "components", None)
    if isinstance(inner, Mixture):
        return f"classes of {_family(inner)}"
    return type(density if inner is None else inner).__name__


@meshes.jit
def pool(density: Any, weights: Float[Array, "M"] | None = None) -> Any:
    """Pool the densities along the first batch axis: ``p(y) = sum_m weights_m p_m(y)``.

    What :func:`merge` does for mixtures in a list, of networks that were mapped over.

    Args:
      density: any density of batch shape ``[M, ...]``.
      weights: nonnegative, ``[M]``; equal if absent. They are normalised.

    Returns:
      A mixture of batch shape ``[...]``: with ``M K`` components where ``density`` is a mixture of
      K components (in each class, if it has classes), else with M, each a density of its own. Class
      probabilities are averaged: a categorical density again.
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
    if not isinstance(moved, Mixture):
        return Mixture(logits=share, components=moved)
    inner, logits = moved.components, moved.log_weights() + share[..., None]  # [..., M, K]
    if not isinstance(inner, Mixture):
        return Mixture(logits=logits.reshape(*share.shape[:-1], -1), components=flatten(inner))

    def swap(leaf: Array, rank: int) -> Array:  # [..., M, C, K, event] -> [..., C, M, K, event]
        return jnp.swapaxes(leaf, -1 - rank, -2 - rank)

    inner = spread(inner).map_parameters(swap)
    logits = jnp.swapaxes(logits, -1, -2)[..., None] + inner.log_weights()
    logits = logits.reshape(*logits.shape[:-2], -1)
    own = Mixture(logits=logits, components=flatten(inner.components))
    return Mixture(logits=numerics.logsumexp(logits), components=own)
