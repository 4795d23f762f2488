"""Objectives: negative log-likelihoods of raw network outputs.

``nll(head, raw, y)`` takes raw outputs rather than a mixture so that a fused implementation can
serve it without any caller changing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import checks, numerics
from jaxmdn.components import Categorical
from jaxmdn.heads import Head
from jaxmdn.typing import Array, Bool, Float, Int

REDUCTIONS = ("mean", "sum", "none")


def _silence(mask: Array | None, tree: Any) -> Any:
    """Replace masked-out rows by zeros, so that what they hold (NaN, say) cannot leak."""
    if mask is None:
        return tree

    def silence(leaf: Array) -> Array:
        extra = leaf.ndim - mask.ndim
        if leaf.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"nll: with a mask, y must carry the mask's batch shape {list(mask.shape)}, "
                f"got {list(leaf.shape)}; broadcast it first."
            )
        return jnp.where(mask.reshape(mask.shape + (1,) * extra), leaf, jnp.zeros_like(leaf))

    return jax.tree.map(silence, tree)


def _kept(weights: Array | None, mask: Array | None) -> Array | None:
    """Which rows count: a weight of zero leaves a row's gradient out just as the mask does."""
    if weights is None:
        return mask
    return weights != 0 if mask is None else mask & (weights != 0)


def _check_rows(function: str, batch: tuple[int, ...], weights: Any, mask: Any) -> None:
    for name, value in (("weights", weights), ("mask", mask)):
        if value is None:
            continue
        checks.require_array(function, name, value)
        if value.shape != batch:
            raise ValueError(
                f"{function}: {name} must have one entry per row, shape {list(batch)}, "
                f"got {list(value.shape)}."
            )
    if weights is not None:
        checks.require_floating(function, "weights", weights)
    if mask is not None and mask.dtype != jnp.bool_:
        raise TypeError(
            f"{function}: mask must be boolean (True keeps the row), got {mask.dtype}; "
            f"pass real-valued row weights as weights=."
        )


def _reduce(
    values: Float[Array, "..."], weights: Array | None, mask: Array | None, reduction: str
) -> Float[Array, "..."]:
    count = jnp.ones_like(values) if weights is None else weights.astype(values.dtype)
    if mask is not None:
        count = jnp.where(mask, count, jnp.zeros_like(count))
    # A weight of zero silences its row even where the row's value is infinite.
    weighted = jnp.where(count == 0, 0, count * jnp.where(count == 0, 0, values))
    if reduction == "none":
        return weighted
    total = jnp.sum(weighted)
    if reduction == "sum":
        return total
    mass = jnp.sum(count)
    return jnp.where(mass == 0, 0, total / jnp.where(mass == 0, 1, mass))


@partial(jax.jit, static_argnames=("head", "reduction"))
def nll(
    head: Head,
    raw: Float[Array, "..."],
    y: Any,
    *,
    weights: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Negative log-likelihood of ``y`` under ``head(raw)``, in nats.

    ``-log p(y | x)``, averaged with the rows' weights: ``sum(w_i nll_i) / sum(w_i)``.

    Args:
      head: a head (static).
      raw: raw network outputs ``[..., P]``; bf16 and float16 are computed in float32.
      y: targets ``[..., D]`` (or what the head accepts, such as ``Labeled``).
      weights: nonnegative row weights ``[...]``; equal if absent. A weight of zero leaves a row
        out, in value and in the gradient of ``raw``.
      mask: boolean ``[...]``; False leaves a row out, whatever it holds (NaN included).
      reduction: ``"mean"``, ``"sum"`` or ``"none"`` (weighted rows ``[...]``; static).

    Returns:
      A scalar, or ``[...]`` for ``reduction="none"``. The mean over no rows (an empty batch, a
      mask that is False everywhere, zero weights) is 0 with a zero gradient.

    Raises:
      ValueError: on a wrong width, event size, batch shape or reduction.
      TypeError: on a wrong dtype.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.NormalHead(3, 1, min_scale=0.0, scale_link="exp")
    >>> round(float(jaxmdn.nll(head, jnp.zeros((4, 9)), jnp.zeros((4, 1)))), 4)
    0.9189

    References:
      Bishop (1994), Mixture Density Networks, eq. 29.
    """
    checks.require_option("nll", "reduction", reduction, REDUCTIONS)
    head.check_raw("nll", raw)
    batch = raw.shape[:-1]
    if mask is not None or weights is not None:
        leaves = [leaf.shape for leaf in jax.tree.leaves(y)]
        batch = checks.require_broadcastable("nll", raw=batch, y=leaves[-1][:-1])
        _check_rows("nll", batch, weights, mask)
        raw = jnp.broadcast_to(raw, (*batch, raw.shape[-1]))
    raw, y = _silence(_kept(weights, mask), numerics.upcast(raw)[0]), _silence(mask, y)
    return _reduce(-head.log_prob(raw, y), weights, mask, reduction)


@partial(jax.jit, static_argnames=("reduction",))
def categorical_nll(
    logits: Float[Array, "... C"],
    labels: Int[Array, "..."],
    *,
    weights: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Softmax cross-entropy ``-log softmax(logits)[label]``, in nats.

    Args:
      logits: ``[..., C]``.
      labels: class indices ``[...]`` in ``0 .. C - 1``; one out of range gives ``inf``.
      weights, mask, reduction: as in :func:`nll`.

    Raises:
      TypeError: if the labels are not integers. ValueError: if the leading axes differ.

    >>> import jax.numpy as jnp, jaxmdn
    >>> round(float(jaxmdn.categorical_nll(jnp.zeros((2, 4)), jnp.array([0, 3]))), 4)
    1.3863
    """
    name = "categorical_nll"
    checks.require_option(name, "reduction", reduction, REDUCTIONS)
    checks.require_floating(name, "logits", logits)
    checks.require_integer(name, "labels", labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name}: expected labels of shape {list(logits.shape[:-1])} (one class index per row "
            f"of logits {list(logits.shape)}), got {list(labels.shape)}."
        )
    _check_rows(name, labels.shape, weights, mask)
    logits, labels = _silence(_kept(weights, mask), logits), _silence(mask, labels)
    return _reduce(
        -Categorical(logits=logits).log_prob(labels[..., None]), weights, mask, reduction
    )


__all__ = ["REDUCTIONS", "categorical_nll", "nll"]
