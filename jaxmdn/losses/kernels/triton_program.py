"""What one program of the GPU kernels does with its block of rows (Pallas, Triton backend).

The equations are those of :mod:`jaxmdn.mixture.mixing` (responsibilities, logits) and
:mod:`jaxmdn.components.normal_pullback` (log-density, pullback); here is how they are laid out. A
program holds all that belongs to a few rows at once: logits ``[R, K]``, locations and raw scales
``[R, K, D]``, as they adjoin each other in memory; with one dimension that axis is left out. So
memory is read once, in the order it lies in, and the gradient written once.

Triton wants powers of two: K and D are padded and the padding masked, and so is the last block. A
row that is not kept is never loaded: zeros stand for it.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.heads import NormalHead
from jaxmdn.typing import Array

with warnings.catch_warnings():  # deprecated from JAX 0.11 on, which its successor needs
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas import triton as plgpu


class Inputs(NamedTuple):
    """What a kernel reads.

    Attributes:
      raw: raw outputs ``[N, P]``.
      y: targets ``[N, D]``.
      coefficient: ``[N]`` or ``[1]``.
      kept: ``[N]``, or None.
    """

    raw: Any
    y: Any
    coefficient: Any
    kept: Any


class Outputs(NamedTuple):
    """What a kernel writes; None where nobody asked.

    Attributes:
      nll: ``[N]``.
      raw: gradient of the raw outputs ``[N, P]``.
      y: gradient of the targets ``[N, D]``.
    """

    nll: Any
    raw: Any
    y: Any


class Sides(NamedTuple):
    """The powers of two: rows in a block, components, dimensions."""

    rows: int
    components: int
    dims: int


def span(sides: Sides, axis: int, size: int) -> Array:
    """Return ``0 .. size - 1`` along an axis of ``[R, K, D]``, or of ``[R, K]`` where D = 1."""
    rank = 2 if sides.dims == 1 else 3
    shape = [1] * rank
    if axis >= rank:
        return jnp.zeros(shape, jnp.int32)
    shape[axis] = size
    return jax.lax.broadcasted_iota(jnp.int32, tuple(shape), axis)


def visit(head: NormalHead, sides: Sides, number: Any, inputs: Inputs, out: Outputs) -> None:
    """Write a block's NLL, and its gradient where there is a place for it."""
    K, D = head.num_components, head.event_dim
    isotropic, rows = (
        head.covariance == "isotropic",
        number * sides.rows + jax.lax.iota(jnp.int32, sides.rows),
    )
    inside = loaded = rows < inputs.y.shape[0]
    if inputs.kept is not None:
        loaded = loaded & (plgpu.load(inputs.kept.at[rows], mask=inside, other=0) != 0)

    def over_rows(x: Array) -> Array:
        return x[:, None] if sides.dims == 1 else x[:, None, None]

    def over_dims(x: Array) -> Array:
        return x if sides.dims == 1 else x[:, :, None]

    row, here, there = over_rows(rows), over_rows(loaded), over_rows(inside)
    component, dim = span(sides, 1, sides.components), span(sides, 2, sides.dims)
    live = (component < K) & (dim < D)
    # Of a scale that components or dimensions share there is one column.
    of, along = span(sides, 1, 1), span(sides, 2, 1)
    of = of if head.tied else component
    along = along if isotropic else dim
    scales = (of < K) & (along < D)
    loc_index = K + D * component + dim
    scale_index = K + K * D + (1 if isotropic else D) * of + along

    def read(array: Any, index: Array, mask: Array) -> Array:
        return plgpu.load(array.at[row, index], mask=here & mask, other=0).astype(jnp.float32)

    def write(array: Any, index: Array, mask: Array, value: Array) -> None:
        plgpu.store(array.at[row, index], value.astype(array.dtype), mask=there & mask)

    raw_scale, slope = head.link.value_and_slope(read(inputs.raw, scale_index, scales))
    scale = jnp.where(scales, raw_scale + head.min_scale, 1.0)
    z = (read(inputs.y, dim, dim < D) - read(inputs.raw, loc_index, live)) / scale
    each = jnp.where(live, -0.5 * z * z - jnp.log(scale), 0.0)
    log_prob = (each if sides.dims == 1 else jnp.sum(each, axis=2)) - 0.5 * D * numerics.LOG_2PI

    columns = jax.lax.broadcasted_iota(jnp.int32, (1, sides.components), 1)
    place, alive = (rows[:, None], columns), columns < K
    logits = plgpu.load(inputs.raw.at[place], mask=loaded[:, None] & alive, other=0)
    every = 0 * rows if inputs.coefficient.shape[0] == 1 else rows
    coefficient = plgpu.load(inputs.coefficient.at[every], mask=loaded, other=0)
    nll, r, logits_gradient = mix(
        head, logits.astype(jnp.float32), log_prob, alive, coefficient.astype(jnp.float32)
    )
    plgpu.store(out.nll.at[rows], nll, mask=inside)
    if out.raw is None:
        return
    value = logits_gradient.astype(out.raw.dtype)
    plgpu.store(out.raw.at[place], value, mask=inside[:, None] & alive)
    r = over_dims(r)
    rz = r * z  # before anything else: a far component has r = 0, and z^2 may be infinite
    loc_gradient = -rz / scale
    write(out.raw, loc_index, live, loc_gradient)
    change = jnp.where(live, r - rz * z, 0.0)
    if isotropic and sides.dims > 1:
        change = jnp.sum(change, axis=2, keepdims=True)
    change = change / scale * slope
    if head.tied:
        change = jnp.sum(change, axis=1, keepdims=True)
    write(out.raw, scale_index, scales, change)
    if out.y is not None:
        write(out.y, dim, dim < D, -jnp.sum(loc_gradient, axis=1, keepdims=True))


def mix(
    head: NormalHead, logits: Array, log_prob: Array, live: Array, coefficient: Array
) -> tuple[Array, Array, Array]:
    """Return what :func:`jaxmdn.mixture.mixing.mix` does, for planes with padding."""
    lowest = 0.5 * float(jnp.finfo(jnp.float32).min)
    log_prob = jnp.where(live, log_prob, -jnp.inf)
    logits = jnp.where(live, logits, -jnp.inf)
    empty = jnp.max(logits, axis=1, keepdims=True) == -jnp.inf
    # No jnp.maximum: between a number and NaN, this backend's takes the number.
    finite = jnp.where(live & (logits < lowest), lowest, logits)
    shifted = finite - jnp.max(finite, axis=1, keepdims=True)
    weight = jnp.exp(shifted)
    total_weight = jnp.sum(weight, axis=1, keepdims=True)
    p = weight / total_weight
    share = 1.0 - head.num_components * head.min_weight
    pi = head.min_weight + share * p
    joint = log_prob + (shifted if head.min_weight == 0.0 else jnp.log(pi))
    peak = jnp.max(joint, axis=1, keepdims=True)
    peak = jnp.where(jnp.abs(peak) < jnp.inf, peak, 0.0)
    density = jnp.exp(joint - peak)
    total = jnp.sum(density, axis=1, keepdims=True)
    dead = (total == 0) | (peak < 0.5 * lowest)
    if head.min_weight == 0.0:
        dead = dead | empty
    total = jnp.where(dead, 1.0, total)
    coefficient = jnp.where(dead, 0.0, coefficient[:, None])
    r = density * (coefficient / total)
    nll = -(peak + jnp.log(total))
    if head.min_weight == 0.0:
        nll = nll + jnp.log(total_weight)
        logits_gradient = p * coefficient - r
    else:
        q = r * (share * p / pi)
        logits_gradient = jnp.where(empty, 0.0, p * jnp.sum(q, axis=1, keepdims=True) - q)
    return jnp.sum(jnp.where(dead, jnp.inf, nll), axis=1), r, logits_gradient
