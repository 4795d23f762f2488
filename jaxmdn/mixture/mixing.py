"""What every mixture shares: from component log-densities to the NLL and the gradient's weights.

With ``p = softmax(logits)``, weights ``pi = m + (1 - K m) p`` (``m`` is ``min_weight``) and
component log-densities ``l_k``, the negative log-likelihood of a row is

    L = -log sum_k pi_k exp(l_k),        r_k = pi_k exp(l_k) / sum_j pi_j exp(l_j).

``r`` are the responsibilities. The derivatives (Bishop 1994, eq. 32-40, here with the floor):

    dL/dl_k = -r_k,
    dL/dlogits_k = p_k sum_j q_j - q_k,   q_k = r_k (1 - K m) p_k / pi_k      (m = 0: p_k - r_k),

the second because ``d log pi_k / d logits_j = (1 - K m) p_k (delta_kj - p_j) / pi_k``. A family
then only needs the derivative of its own ``l_k``, multiplied by ``r_k``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.typing import Array, Float


class Mixed(NamedTuple):
    """What a row's components add up to.

    Attributes:
      nll: ``[...]``, nats; ``inf`` where every component has underflowed.
      responsibilities: ``[..., K]``, times the row's coefficient; 0 where ``nll`` is ``inf``.
      logits_gradient: ``[..., K]``, likewise.
    """

    nll: Float[Array, "..."]
    responsibilities: Float[Array, "... K"]
    logits_gradient: Float[Array, "... K"]


def mix(
    logits: Float[Array, "... K"],
    component_log_prob: Float[Array, "... K"],
    coefficient: Float[Array, "..."],
    min_weight: float,
) -> Mixed:
    """Return the rows' NLL and the gradient of ``coefficient * nll`` (see the module's equations).

    Args:
      logits: ``[..., K]``, unnormalised.
      component_log_prob: ``[..., K]``, nats.
      coefficient: ``[...]`` or ``[1]``; every derivative is multiplied by it.
      min_weight: the floor ``m`` of every weight (static).
    """
    if logits.shape[-1] == 1:
        return _of_one(logits, component_log_prob, coefficient)
    # XLA on CPU fuses these loops well as long as the largest logit is used in the subtraction
    # alone (11 ms against 24 at N, K, D = 65536, 32, 1): hence finite stand-ins for -inf, whose
    # share underflows to zero, and a maximum of their own for rows that have no weight at all.
    lowest = 0.5 * float(jnp.finfo(logits.dtype).min)
    empty = jnp.max(logits, axis=-1, keepdims=True) == -jnp.inf
    finite = jnp.maximum(logits, lowest)
    # The largest goes first: a constant added to all logits costs no accuracy.
    largest = jnp.max(finite, axis=-1, keepdims=True)
    shifted = finite - jax.lax.stop_gradient(largest)
    weight = jnp.exp(shifted)
    total_weight = jnp.sum(weight, axis=-1, keepdims=True)
    if min_weight == 0.0:
        joint = shifted + component_log_prob
    else:
        share = 1.0 - logits.shape[-1] * min_weight
        p = weight / total_weight
        pi = min_weight + share * p
        joint = jnp.log(pi) + component_log_prob
    peak = numerics.finite_peak(joint)
    density = jnp.exp(joint - peak)
    total = jnp.sum(density, axis=-1, keepdims=True)
    dead = (total == 0) | (peak < 0.5 * lowest)  # no component reaches the target
    if min_weight == 0.0:
        dead = dead | empty
    total = jnp.where(dead, 1, total)
    coefficient = jnp.where(dead, 0, coefficient[..., None])
    responsibilities = density * (coefficient / total)
    log_total = peak + jnp.log(total)
    if min_weight == 0.0:
        log_total = log_total - jnp.log(total_weight)
        logits_gradient = weight * (coefficient / total_weight) - responsibilities
    else:
        q = responsibilities * (share * p / pi)
        logits_gradient = p * jnp.sum(q, axis=-1, keepdims=True) - q
        logits_gradient = jnp.where(empty, 0, logits_gradient)
    return Mixed(jnp.where(dead, jnp.inf, -log_total)[..., 0], responsibilities, logits_gradient)


def _of_one(logits: Array, log_prob: Array, coefficient: Array) -> Mixed:
    """A single component has the weight one, whatever its logit, unless that is ``-inf`` or NaN."""
    log_prob = log_prob + numerics.log_normalize(logits)
    dead = log_prob == -jnp.inf
    responsibilities = jnp.where(dead, 0, coefficient[..., None])
    return Mixed(-log_prob[..., 0], responsibilities, jnp.zeros_like(logits))
