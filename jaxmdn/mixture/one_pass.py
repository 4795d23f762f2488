"""The log-density of a mixture whose components know their pullback, with its derivative at once.

``log_prob(head(raw), y)`` then costs what the fused likelihoods do: value and derivative share the
responsibilities, and what is kept for the backward pass is the derivative itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.mixture.mixing import mix
from jaxmdn.typing import Array, Float


@jax.custom_jvp
def log_prob(
    logits: Float[Array, "... K"], components: Density, y: Float[Array, "... D"]
) -> Float[Array, "..."]:
    """``log sum_k softmax(logits)_k p_k(y)``, ``[...]``, all in one compute dtype."""
    parts = components.log_prob(y[..., None, :])
    if jax.default_backend() == "cpu":  # or the maximum and the sum would each compute them
        parts = jax.lax.optimization_barrier(parts)
    return numerics.logsumexp(numerics.log_normalize(logits) + parts)


@partial(log_prob.defjvp, symbolic_zeros=True)
@meshes.any_rank
def _log_prob_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (logits, components, y), (dlogits, dcomponents, dy) = primals, tangents
    parts = components.pullback(y)
    mixed = mix(logits, parts.log_prob, jnp.ones((), y.dtype), 0.0)
    loc, *shape = parts.pull(mixed.responsibilities)
    total: Any = 0
    for gradient, tangent, axes in (
        (mixed.logits_gradient, dlogits, 1),
        *((g, t, 2) for g, t in zip((loc, *shape), jax.tree.leaves(dcomponents), strict=True)),
        (-jnp.sum(loc, axis=-2), dy, 1),
    ):
        if not isinstance(tangent, SymbolicZero):
            total = total + jnp.sum(gradient * tangent, axis=tuple(range(-axes, 0)))
    return -mixed.nll, jnp.broadcast_to(-total, mixed.nll.shape)
