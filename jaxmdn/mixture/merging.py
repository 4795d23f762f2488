"""Pooling: several mixtures (an ensemble of networks, say) as one exact density."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.batch import concatenate
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
