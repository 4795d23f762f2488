"""What one program of the GPU kernels does with its block of rows (Pallas, Triton backend).

The equations are those of :mod:`jaxmdn.mixture.mixing` (responsibilities, logits); the components'
are a covariance's own (``triton_diagonal``, ``triton_full``). A program holds all that belongs to a
few rows at once: logits ``[R, K]``, locations ``[R, K, D]`` and so on, as they adjoin each other
in memory. So memory is read once, in the order it lies in, and the gradient written once.

Triton wants powers of two: K and D are padded and the padding masked, and so is the last block. A
row that is not kept is never loaded: zeros stand for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
      bias: ``[P]``, or None: added to every row's raw outputs.
    """

    raw: Any
    y: Any
    coefficient: Any
    kept: Any
    bias: Any


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


class Block(NamedTuple):
    """A program's rows ``[R]``, and which of them lie inside the arrays and which are loaded."""

    inputs: Inputs
    rows: Array
    inside: Array
    loaded: Array

    def raw(self, column: Array, mask: Array, other: Any = 0) -> Array:
        """Return columns ``[1, ...]`` of the raw outputs; ``other`` for what is masked."""
        raw = self._read(self.inputs.raw, column, mask, other)
        if self.inputs.bias is None:
            return raw
        bias = plgpu.load(self.inputs.bias.at[column], mask=mask, other=0).astype(jnp.float32)
        return raw + jnp.where(over(self.loaded, column.ndim), bias, 0)

    def y(self, column: Array, mask: Array) -> Array:
        """Return columns of the targets; zeros for what is masked."""
        return self._read(self.inputs.y, column, mask, 0)

    def _read(self, array: Any, column: Array, mask: Array, other: Any) -> Array:
        place = (over(self.rows, column.ndim), column)
        mask = over(self.loaded, column.ndim) & mask
        other = jnp.asarray(other).astype(array.dtype)
        return plgpu.load(array.at[place], mask=mask, other=other).astype(jnp.float32)

    def write(self, array: Any, column: Array, mask: Array, value: Array) -> None:
        """Store ``value`` in the rows' columns ``[1, ...]``, in the array's dtype."""
        place = (over(self.rows, column.ndim), column)
        mask = over(self.inside, column.ndim) & mask
        plgpu.store(array.at[place], value.astype(array.dtype), mask=mask)


# From a block to its components' log-densities ``[R, K]`` and a function that writes, for given
# responsibilities, the gradient of all but the logits.
Components = Callable[[NormalHead, Sides, Block, Outputs], tuple[Array, Callable[[Array], None]]]


def over(x: Array, rank: int) -> Array:
    """Return ``x [R]`` as ``[R, 1, ...]``."""
    return x[(slice(None), *[None] * (rank - 1))]


def span(axis: int, size: int, rank: int) -> Array:
    """Return ``0 .. size - 1`` along one of ``rank`` axes."""
    shape = [1] * rank
    if axis >= rank:
        return jnp.zeros(shape, jnp.int32)
    shape[axis] = size
    return jax.lax.broadcasted_iota(jnp.int32, tuple(shape), axis)


def visit(
    components: Components,
    head: NormalHead,
    sides: Sides,
    number: Any,
    inputs: Inputs,
    out: Outputs,
) -> None:
    """Write a block's NLL, and its gradient where there is a place for it."""
    rows = number * sides.rows + jax.lax.iota(jnp.int32, sides.rows)
    inside = loaded = rows < inputs.y.shape[0]
    if inputs.kept is not None:
        loaded = loaded & (plgpu.load(inputs.kept.at[rows], mask=inside, other=0) != 0)
    block = Block(inputs, rows, inside, loaded)
    log_prob, write_gradient = components(head, sides, block, out)
    column = span(1, sides.components, 2)
    alive = column < head.num_components
    logits = block.raw(column, alive)
    every = 0 * rows if inputs.coefficient.shape[0] == 1 else rows
    coefficient = plgpu.load(inputs.coefficient.at[every], mask=loaded, other=0)
    coefficient = coefficient.astype(jnp.float32)
    nll, r, logits_gradient = mix(head, logits, log_prob, alive, coefficient)
    plgpu.store(out.nll.at[rows], nll, mask=inside)
    if out.raw is not None:
        block.write(out.raw, column, alive, logits_gradient)
        write_gradient(r)


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
