"""Objectives: negative log-likelihoods of raw network outputs, or of what they are made from.

``nll(head, raw, y)`` takes raw outputs rather than a mixture, and ``linear_nll(head, hidden,
kernel, bias, y)`` the last hidden layer, so that the fused implementations in ``kernels`` can serve
them. Here the arguments are checked and brought to rows; ``implementation="xla"`` is the plain
composition that the others are held to.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Categorical
from jaxmdn.heads import Head
from jaxmdn.losses.kernels import chunked, dispatch, linear
from jaxmdn.losses.reductions import (
    REDUCTIONS,
    check_rows,
    coefficient,
    kept_rows,
    reduce,
    silence,
    silence_targets,
)
from jaxmdn.typing import Array, Bool, Float, Int


def _spread_target(function: str, y: Any, batch: tuple[int, ...]) -> Any:
    """Return targets that carry the whole batch shape: ``[*batch, ...]``."""
    if hasattr(y, "shape"):
        return jnp.broadcast_to(y, (*batch, y.shape[-1]))
    for leaf in jax.tree.leaves(y):
        if leaf.shape[: len(batch)] != batch:
            raise ValueError(
                f"{function}: every part of a structured target must carry the batch shape "
                f"{list(batch)}, got {list(leaf.shape)}; broadcast it first."
            )
    return y


@partial(meshes.jit, static_argnames=("head", "reduction", "implementation", "chunk_size"))
def nll(
    head: Head,
    raw: Float[Array, "..."],
    y: Any,
    *,
    weights: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "..."]:
    """Negative log-likelihood of ``y`` under ``head(raw)``, in nats.

    ``-log p(y | x)``, averaged with the rows' weights: ``sum(w_i nll_i) / sum(w_i)``.

    Args:
      head: a head (static).
      raw: raw network outputs ``[..., P]``; bf16 and float16 are computed in float32.
      y: targets ``[..., D]`` (or what the head accepts, such as ``Labeled``).
      weights: nonnegative row weights ``[...]``; equal if absent. A weight of zero leaves a row
        out, in value and in the gradient of ``raw``. A negative one is not refused, and makes its
        row less likely: the formula above holds, but is no average.
      mask: boolean ``[...]``; False leaves a row out, whatever it holds (NaN included).
      reduction: ``"mean"``, ``"sum"`` or ``"none"`` (weighted rows ``[...]``; static).
      implementation: ``"xla"``, the plain composition; ``"xla_chunked"``, value and gradient in
        one pass over blocks of rows (any head; hand-derived for :class:`NormalHead`);
        ``"pallas_triton"``, the same by a GPU kernel (:class:`NormalHead`, no low rank or graph, in
        float32 or less). None takes the fastest that serves on this device; not yet the kernel
        for full covariances, which was not measured.
      chunk_size: rows per block; chosen by head and device if absent.

    Returns:
      A scalar, or ``[...]`` for ``reduction="none"``. The mean over no rows (an empty batch, a
      mask that is False everywhere, zero weights) is 0 with a zero gradient.

    Raises:
      ValueError: on a wrong width, event size, batch shape, reduction or implementation.
      TypeError: on a wrong dtype. NotImplementedError: if the implementation cannot serve.

    Limits: forward mode and any order of differentiation work. Of rows that are spread over
    devices, on explicit or automatic axes, each device takes its own, by blocks; None takes
    ``"xla"`` where the number of devices in sight does not divide that of the rows.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.NormalHead(3, 1, min_scale=0.0, scale_link="exp")
    >>> round(float(jaxmdn.nll(head, jnp.zeros((4, 9)), jnp.zeros((4, 1)))), 4)
    0.9189

    References:
      Bishop (1994), Mixture Density Networks, eq. 29.
    """
    checks.require_option("nll", "reduction", reduction, REDUCTIONS)
    head.check_raw("nll", raw)
    _check_chunk_size("nll", chunk_size)
    dtype = numerics.compute_dtype(raw)
    implementation = dispatch.choose("nll", implementation, head, raw, dtype=dtype)
    batch = raw.shape[:-1]
    if mask is not None or weights is not None:
        batch = checks.require_broadcastable("nll", raw=batch, y=_batch_shape(y))
        check_rows("nll", batch, weights, mask)
        raw = jnp.broadcast_to(raw, (*batch, raw.shape[-1]))
        y = _spread_target("nll", y, batch)
    if implementation == "xla":
        kept = kept_rows(weights, mask)
        raw = silence(numerics.upcast(raw)[0], kept)
        y = silence_targets(head.support, y, kept)
        return reduce(-head.log_prob(raw, y), weights, mask, reduction)
    batch = jax.eval_shape(head.log_prob, raw, y).shape  # checks the target, too
    raw = jnp.broadcast_to(raw, (*batch, raw.shape[-1])).reshape(-1, raw.shape[-1])
    rows = _rows("nll", y, batch, weights, mask, reduction, dtype)
    blocks = chunked.choose_blocks(head, raw.shape[0], chunk_size, implementation)
    if reduction == "none":
        values = chunked.rows_nll(head, blocks, raw, rows).reshape(batch)
        return reduce(values, weights, mask, reduction)
    return chunked.weighted_nll(head, blocks, raw, rows)


@partial(
    meshes.jit, static_argnames=("head", "reduction", "precision", "chunk_size", "implementation")
)
def linear_nll(
    head: Head,
    hidden: Float[Array, "... H"],
    kernel: Float[Array, "H P"],
    bias: Float[Array, "P"],
    y: Any,
    *,
    weights: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    reduction: str = "mean",
    precision: Any = None,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """Negative log-likelihood with the output layer inside: ``nll(head, hidden @ kernel + bias)``.

    The raw outputs exist a block of rows at a time, forward and backward: beyond the gradient of
    ``hidden``, temporaries do not grow with the rows.

    Args:
      head: a head (static).
      hidden: last hidden features ``[..., H]``.
      kernel: ``[H, P]``, ``P = head.num_outputs``.
      bias: ``[P]``.
      y, weights, mask, reduction: as in :func:`nll`.
      precision: of the three matrix products, as in :func:`jax.numpy.matmul`; they accumulate in
        float32 at least. Their operands keep their dtype, so that bf16 features with a bf16 kernel
        use the hardware's bf16 units.
      chunk_size: rows per block; chosen by head and device if absent.
      implementation: ``"xla_chunked"`` (by blocks), ``"pallas_triton"`` (by blocks, all but the
        matrix products in a GPU kernel) or ``"xla"`` (the plain composition). None goes by blocks
        too, except on CPU where the raw outputs are so narrow that they are cheaper to store, and
        where rows may be spread over several devices whose number does not divide them, or the
        ``reduction`` is ``"none"``.

    Returns:
      As :func:`nll`; differentiable in ``hidden``, ``kernel``, ``bias``, ``y`` and ``weights``.

    Raises:
      As :func:`nll`.

    Limits: ``reduction="none"`` computes each block again in the backward pass, since a row's
    cotangent is only known then.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.NormalHead(3, 1, min_scale=0.0, scale_link="exp")
    >>> hidden, kernel, bias = jnp.ones((4, 2)), jnp.zeros((2, 9)), jnp.zeros(9)
    >>> round(float(jaxmdn.linear_nll(head, hidden, kernel, bias, jnp.zeros((4, 1)))), 4)
    0.9189
    """
    name = "linear_nll"
    checks.require_option(name, "reduction", reduction, REDUCTIONS)
    _check_layer(name, head, hidden, kernel, bias)
    _check_chunk_size(name, chunk_size)
    shape = (*hidden.shape[:-1], head.num_outputs)
    raw_shape = jax.ShapeDtypeStruct(shape, numerics.compute_dtype(hidden, kernel, bias))
    batch = jax.eval_shape(head.log_prob, raw_shape, y).shape  # checks the target, too
    check_rows(name, batch, weights, mask)
    layer = linear.Layer(hidden, kernel, bias)
    how = {"dtype": raw_shape.dtype, "linear": True, "by_device": reduction != "none"}
    chosen = dispatch.choose(name, implementation, head, hidden, **how)
    if chosen == "xla":
        kept = kept_rows(weights, mask)
        if kept is not None:  # or what they hold would reach the kernel's gradient
            spread = jnp.broadcast_to(hidden, (*batch, hidden.shape[-1]))
            layer = layer._replace(hidden=silence(spread, kept))
        raw = linear.raw_outputs(layer, precision)
        options = {"weights": weights, "mask": mask, "reduction": reduction}
        return nll(head, raw, y, implementation=implementation, **options)
    hidden = jnp.broadcast_to(hidden, (*batch, hidden.shape[-1])).reshape(-1, hidden.shape[-1])
    rows = _rows(name, y, batch, weights, mask, reduction, raw_shape.dtype)
    blocks = chunked.choose_blocks(head, hidden.shape[0], chunk_size, stored=False)
    config = linear.Config(head, blocks.gradient, precision, chosen)
    layer = layer._replace(hidden=hidden)
    if reduction == "none":
        return reduce(linear.rows_nll(config, layer, rows).reshape(batch), weights, mask, reduction)
    return linear.weighted_nll(config, layer, rows)


def _batch_shape(y: Any) -> tuple[int, ...]:
    return jax.tree.leaves(y)[-1].shape[:-1]


def _rows(
    function: str,
    y: Any,
    batch: tuple[int, ...],
    weights: Array | None,
    mask: Array | None,
    reduction: str,
    dtype: Any,
) -> chunked.Batch:
    """Bring targets, weights and mask to what the kernels take."""
    kept = kept_rows(weights, mask)
    ones = reduction == "none"  # weighted afterwards
    y = _spread_target(function, y, batch)
    return chunked.Batch(
        y=jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(batch) :]), y),
        coefficient=(
            jnp.ones(1, dtype) if ones else coefficient(dtype, batch, weights, mask, reduction)
        ),
        kept=None if kept is None else kept.reshape(-1),
    )


def _check_chunk_size(function: str, chunk_size: int | None) -> None:
    if chunk_size is not None:
        checks.require_count(function, "chunk_size", chunk_size)


def _check_layer(function: str, head: Head, hidden: Any, kernel: Any, bias: Any) -> None:
    for name, value in (("hidden", hidden), ("kernel", kernel), ("bias", bias)):
        checks.require_floating(function, name, value)
    expected = {"kernel": (*hidden.shape[-1:], head.num_outputs), "bias": (head.num_outputs,)}
    for name, value in (("kernel", kernel), ("bias", bias)):
        if value.shape != expected[name]:
            raise ValueError(
                f"{function}: {name} must have shape {list(expected[name])} for hidden features "
                f"{list(hidden.shape)} and {head!r}, got {list(value.shape)}."
            )


@partial(meshes.jit, static_argnames=("reduction",))
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
    if labels.ndim and labels.shape == logits.shape:
        raise ValueError(
            f"{name}: labels must be class indices of shape {list(logits.shape[:-1])}, got "
            f"{list(labels.shape)}; of one-hot rows pass jax.numpy.argmax(labels, axis=-1)."
        )
    checks.require_integer(name, "labels", labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name}: expected labels of shape {list(logits.shape[:-1])} (one class index per row "
            f"of logits {list(logits.shape)}), got {list(labels.shape)}."
        )
    check_rows(name, labels.shape, weights, mask)
    logits, labels = silence(logits, kept_rows(weights, mask)), silence(labels, mask)
    return reduce(-Categorical(logits=logits).log_prob(labels[..., None]), weights, mask, reduction)


__all__ = ["REDUCTIONS", "categorical_nll", "linear_nll", "nll"]
