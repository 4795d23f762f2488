"""Expectation maximisation in a network: natural-gradient steps of the raw outputs.

The likelihood's gradient in a location carries ``1 / scale^2``, and fades where a component is
wide; that in a scale is of order one. Divided by the Fisher information of the component, both
become steps in its own units, as those of EM are for a mixture without a network.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.heads import NormalHead
from jaxmdn.losses.objectives import Mask, Weights, rows
from jaxmdn.losses.reductions import reduce
from jaxmdn.typing import Array, Float


@partial(meshes.jit, static_argnames=("head", "damping", "reduction"))
def natural_em(
    head: NormalHead,
    raw: Float[Array, "... P"],
    y: Float[Array, "... D"],
    *,
    damping: float = 1e-3,
    weights: Weights = None,
    mask: Mask = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """The NLL, whose gradient in the raw outputs is replaced by the natural one of EM's surrogate.

    With responsibilities ``r_k`` held constant, the surrogate ``sum_k r_k log w_k p_k(y)`` has the
    score ``g`` in a component's parameters; its gradient here is ``(F + damping)^-1 g``, with the
    component's own Fisher information ``F`` (in raw outputs, through the link):

    - location: ``F = C^-1``, the step ``r_k (y - loc_k)``;
    - log-scale: ``F = 2`` a dimension, the step ``r_k (z^2 - 1) / 2``;
    - a row of the unit-triangular part of a full covariance: ``F`` is the covariance of the
      dimensions before it, in units of the row's variance;
    - logits keep their gradient, ``w_k - r_k``.

    Args:
      head: a :class:`~jaxmdn.NormalHead`: isotropic, diagonal or full, tied or not.
      raw: raw outputs ``[..., P]``.
      y: targets ``[..., D]``.
      damping: added to the Fisher information, so that a scale at its floor, where the link is
        flat, takes no endless step; nonnegative.
      weights, mask, reduction: as in :func:`jaxmdn.nll`.

    Returns:
      The NLL: a scalar, or ``[...]``. Its gradient is a direction, not a derivative: it is right in
      reverse mode and once.

    Raises:
      TypeError: for another head. NotImplementedError: for low-rank covariances.

    References:
      Amari (1998), Natural gradient works efficiently in learning; Xu and Jordan (1996), On
      convergence properties of the EM algorithm for Gaussian mixtures, eq. 5-7 (EM as a
      preconditioned gradient).
    """
    name = "natural_em"
    if not isinstance(head, NormalHead):
        raise TypeError(f"{name}: expected a NormalHead, got {type(head).__name__}.")
    if head.covariance == "low_rank":
        raise NotImplementedError(
            f'{name}: covariance="low_rank" has no closed Fisher information; use "full".'
        )
    checks.require_number(name, "damping", damping, lower=0.0)
    raw, y = rows(name, head, raw, y, weights, mask)
    step = jax.lax.stop_gradient(_step(head, raw, numerics.upcast(y)[0], damping))
    value = jax.lax.stop_gradient(-head.log_prob(raw, y))
    # Zero in value; in gradient minus the step.
    zero = jnp.sum(step * (jax.lax.stop_gradient(raw) - raw), axis=-1)
    return reduce(value + zero, weights, mask, reduction)


def _step(head: NormalHead, raw: Array, y: Array, damping: float) -> Float[Array, "... P"]:
    """The natural step of every raw output, uphill."""
    mixture = head.build(raw)
    components, (_, _, raw_scale, *shape) = mixture.components, head.split(raw)
    weights = mixture.weights()
    share = jnp.exp(numerics.log_normalize(mixture.joint_log_prob(y)))[..., None]  # [..., K, 1]
    link, slope = head.link.value_and_slope(raw_scale)
    scale = head.min_scale + link
    relative = slope / scale  # d log scale / d raw
    deviation = y[..., None, :] - components.loc
    if head.covariance == "full":
        z = numerics.matvec(components.whitening_tril, deviation)
        variance = components.variance()
    else:
        z = deviation / scale
        variance = jnp.broadcast_to(scale**2, deviation.shape)

    def pooled(values: Float[Array, "... K E"]) -> Array:
        """Over the components, where they share a shape."""
        return jnp.sum(values, axis=-2, keepdims=True) if head.tied else values

    # F^-1 g = C W^T z = deviation; damped in each dimension by its variance.
    location = share * deviation / (1 + damping * variance)
    score = pooled(share * (z**2 - 1))
    size = 2.0
    if head.covariance == "isotropic":
        score, size = jnp.sum(score, axis=-1, keepdims=True), 2.0 * head.event_dim
    width = relative * score / (size * relative**2 + damping)
    blocks = [_logit_step(head, raw, share[..., 0], weights), location, width]
    if shape:
        blocks.append(pooled(share * _row_steps(head, components, scale, z)))
    lead = raw.shape[:-1]
    return jnp.concatenate([block.reshape(*lead, -1) for block in blocks], axis=-1)


def _logit_step(head: NormalHead, raw: Array, share: Array, weights: Array) -> Array:
    """``r - w`` through the floor of the weights."""
    logits = head.split(raw)[0]

    def surrogate(logits: Array) -> Array:
        floored = numerics.log_normalize(numerics.floor_log_weights(logits, head.min_weight))
        return jnp.sum(share * floored)

    return jax.grad(surrogate)(logits)


def _row_steps(
    head: NormalHead, components: Any, scale: Array, z: Float[Array, "... K D"]
) -> Float[Array, "... K E"]:
    """``s_d z_d C_{<d}^-1 (loc - y)_{<d}`` for each row d of the unit-triangular part, packed.

    Row d of ``z`` is ``(u_d . delta) / s_d`` with ``u_dd = 1``: the score in ``u_dj`` is
    ``-z_d delta_j / s_d``, its information ``C_{<d} / s_d^2``, and
    ``C_{<d}^-1 delta_{<d} = sum_{i < d} W_i z_i``.
    """
    whitening = components.whitening_tril
    pulls = jnp.cumsum(whitening * z[..., None], axis=-2)  # row d: sum over i <= d
    before = jnp.concatenate([jnp.zeros_like(pulls[..., :1, :]), pulls[..., :-1, :]], axis=-2)
    steps = -(scale * z)[..., None] * before
    return numerics.pack_tril(steps)[..., head.edges]
