"""What one program of the GPU kernels does with its block of rows (Pallas, Triton backend).

The equations are those of :mod:`jaxmdn.kernels.mixing` (responsibilities, logits) and
:mod:`jaxmdn.kernels.normal` (log-density, pullback); here is how they are laid out. A program holds
a block of rows, and of their raw outputs one *plane* ``[rows, K]`` at a time: the logits, or
``loc`` or the raw scale of one dimension. A first loop over the dimensions adds up the
log-densities, :func:`mix` makes responsibilities of them, a second loop writes the planes of the
gradient. Where planes come from and where their gradients go is the business of
:class:`RawPlanes` and :class:`LayerPlanes`; :mod:`jaxmdn.kernels.triton` starts the programs.

Triton wants powers of two: K (and H) are padded and the padding masked, and so is the last block.
A row that is not kept is never loaded: zeros stand for it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.heads import NormalHead
from jaxmdn.typing import Array

with warnings.catch_warnings():  # deprecated from JAX 0.11 on, which its successor needs
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas import triton as plgpu

TILE = 64  # hidden features in one matrix product
UNROLLED = 2  # up to this many dimensions stay in registers from the first loop to the second
LOGITS, LOC, SCALE = range(3)


class Inputs(NamedTuple):
    """What a kernel reads.

    Attributes:
      source: raw outputs ``[N, P]``, or a ``Layer`` of hidden features ``[N, H]`` and the planes
        (see :func:`planes_of`) of kernel ``[J, Hp, Kp]`` and bias ``[J, Kp]``.
      y: targets ``[N, D]``.
      coefficient: ``[N]`` or ``[1]``.
      kept: ``[N]``, or None.
    """

    source: Any
    y: Any
    coefficient: Any
    kept: Any


class Outputs(NamedTuple):
    """What a kernel writes; None where nobody asked.

    Attributes:
      nll: ``[N]``.
      source: gradient of the inputs' source; of kernel and bias one sum for each program,
        ``[programs J, ...]``.
      y: gradient of the targets ``[N, D]``.
    """

    nll: Any
    source: Any
    y: Any


class Block(NamedTuple):
    """Where a program stands.

    Attributes:
      rows: row numbers ``[R]``.
      inside: ``[R]``, the rows that exist.
      loaded: ``[R]``, those of them that are kept.
      component: ``[1, Kp]``.
      live: ``[1, Kp]``, the components that exist.
    """

    rows: Array
    inside: Array
    loaded: Array
    component: Array
    live: Array


def locate(inputs: Inputs, number: Any, block_rows: int, head: NormalHead, width: int) -> Block:
    """Return the block of that number, with planes of ``width`` components."""
    rows = number * block_rows + jax.lax.iota(jnp.int32, block_rows)
    inside = loaded = rows < inputs.y.shape[0]
    if inputs.kept is not None:
        loaded = loaded & (plgpu.load(inputs.kept.at[rows], mask=inside, other=0) != 0)
    component = span(width, 1)
    return Block(rows, inside, loaded, component, component < head.num_components)


def span(size: int, axis: int) -> Array:
    """Return ``0 .. size - 1`` along one of two axes."""
    shape = (size, 1) if axis == 0 else (1, size)
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def columns(head: NormalHead, part: int, d: Any, component: Any) -> Any:
    """Return the columns of the raw outputs that make up a plane."""
    K, D = head.num_components, head.event_dim
    if part == LOGITS:
        return component
    if part == LOC:
        return K + D * component + d
    width = 1 if head.covariance == "isotropic" else D
    return K + K * D + width * (0 * component if head.tied else component) + d


def planes_of(head: NormalHead, array: Array, sides: tuple[int, ...]) -> Array:
    """Return ``[..., P]`` as planes ``[J, ..., Kp]``, padded with zeros to ``sides``."""
    K, D = head.num_components, head.event_dim
    last = 1 if head.covariance == "isotropic" else D
    order = [(LOGITS, 0), *((LOC, d) for d in range(D)), *((SCALE, d) for d in range(last))]
    index = np.stack([columns(head, part, d, np.arange(K)) for part, d in order])
    planes = jnp.moveaxis(array[..., index], -2, 0)
    padding = [(0, side - size) for side, size in zip(sides, planes.shape[1:], strict=True)]
    return jnp.pad(planes, [(0, 0), *padding])


class RawPlanes:
    """Planes of raw outputs in memory, and of their gradient."""

    def __init__(self, head: NormalHead, raw: Any, gradient: Any, block: Block) -> None:
        self.head, self.raw, self.gradient, self.block = head, raw, gradient, block

    def read(self, part: int, d: Any) -> Array:
        """Return a plane; one that all components share is ``[R, 1]``."""
        index, live = self._place(part, d)
        mask = self.block.loaded[:, None] & live
        return plgpu.load(self.raw.at[index], mask=mask, other=0).astype(jnp.float32)

    def start(self) -> Any:
        """Return what the gradient is collected in while the planes go by: nothing."""
        return ()

    def write(self, state: Any, part: int, d: Any, gradient: Array) -> Any:
        """Store the gradient of a plane."""
        index, live = self._place(part, d)
        if live.shape[1] != gradient.shape[1]:
            gradient = jnp.sum(gradient, axis=1, keepdims=True)
        mask = self.block.inside[:, None] & live
        plgpu.store(self.gradient.at[index], gradient.astype(self.gradient.dtype), mask=mask)
        return state

    def finish(self, state: Any) -> None:
        """Store what was collected."""

    def _place(self, part: int, d: Any) -> tuple[tuple[Array, Array], Array]:
        shared = part == SCALE and self.head.tied
        component = span(1, 1) if shared else self.block.component
        index = columns(self.head, part, d, component)
        return (self.block.rows[:, None], index), component < self.head.num_components


class LayerPlanes:
    """Planes ``hidden kernel + bias``; their gradient goes into those of the three at once."""

    def __init__(
        self,
        head: NormalHead,
        layer: Any,
        gradient: Any,
        block: Block,
        precision: Any,
        program: Any,
        turn: Any,
    ) -> None:
        self.head, self.block, self.layer, self.gradient = head, block, layer, gradient
        self.first = program * layer.bias.shape[0]  # this program's own sums begin here
        self.again = turn > 0
        self.dot = partial(
            jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32
        )
        self.tile = min(layer.kernel.shape[1], TILE)
        self.tiles = range(layer.kernel.shape[1] // self.tile)

    def read(self, part: int, d: Any) -> Array:
        """Return a plane."""
        j = self._plane(part, d)
        raw = self.layer.bias[j, :][None, :]
        for t in self.tiles:
            raw = raw + self.dot(self._hidden(t), self._kernel(j, t), (((1,), (0,)), ((), ())))
        return raw

    def start(self) -> Any:
        """Return the gradient of ``hidden`` so far: tiles of zeros."""
        shape = (self.block.rows.shape[0], self.tile)
        wanted = self.gradient.hidden is not None
        return [jnp.zeros(shape, jnp.float32) for _ in self.tiles if wanted]

    def write(self, state: Any, part: int, d: Any, gradient: Array) -> Any:
        """Add what the gradient of a plane contributes to all three."""
        j = self._plane(part, d)
        factor = gradient.astype(self.layer.kernel.dtype)
        if self.gradient.kernel is not None:
            lanes = jax.lax.iota(jnp.int32, gradient.shape[1])
            self._add(self.gradient.bias.at[self.first + j, lanes], jnp.sum(gradient, axis=0))
            for t in self.tiles:
                change = self.dot(self._hidden(t), factor, (((0,), (0,)), ((), ())))
                index = (self.first + j, t * self.tile + span(self.tile, 0), self.block.component)
                self._add(self.gradient.kernel.at[index], change)
        turned = (((1,), (1,)), ((), ()))
        return [s + self.dot(factor, self._kernel(j, t), turned) for t, s in enumerate(state)]

    def finish(self, state: Any) -> None:
        """Store the gradient of ``hidden``."""
        for t, total in enumerate(state):
            index, live = self._place(t)
            mask = self.block.inside[:, None] & live
            total = total.astype(self.gradient.hidden.dtype)
            plgpu.store(self.gradient.hidden.at[index], total, mask=mask)

    def _plane(self, part: int, d: Any) -> Any:
        return (0, 1 + d, 1 + self.head.event_dim + d)[part]

    def _place(self, t: int) -> tuple[tuple[Array, Array], Array]:
        features = t * self.tile + span(self.tile, 1)
        return (self.block.rows[:, None], features), features < self.layer.hidden.shape[1]

    def _hidden(self, t: int) -> Array:
        # Loaded again for every product: to hold all of it would take the registers of the sums.
        index, live = self._place(t)
        mask = self.block.loaded[:, None] & live
        return plgpu.load(self.layer.hidden.at[index], mask=mask, other=0)

    def _kernel(self, j: Any, t: int) -> Array:
        index = (j, t * self.tile + span(self.tile, 0), self.block.component)
        return plgpu.load(self.layer.kernel.at[index])

    def _add(self, place: Any, change: Array) -> None:
        """Add to a sum that nothing has initialised before this program's first block."""
        again = jnp.broadcast_to(self.again, change.shape)
        plgpu.store(place, plgpu.load(place, mask=again, other=0) + change)


def visit(
    head: NormalHead, planes: RawPlanes | LayerPlanes, inputs: Inputs, out: Outputs, block: Block
) -> None:
    """Write a block's NLL, and its gradient where there is a place for it."""
    dim, isotropic = head.event_dim, head.covariance == "isotropic"
    rows, inside, loaded, component, live = block

    def scale_and_slope(d: Any) -> tuple[Array, Array]:
        scale, slope = head.link.value_and_slope(planes.read(SCALE, d))
        return jnp.where(live, scale + head.min_scale, 1.0), slope

    shared = scale_and_slope(0) if isotropic else None

    def standardized(d: Any) -> tuple[Array, Array, Array]:
        scale, slope = shared or scale_and_slope(d)
        y = plgpu.load(inputs.y.at[rows, d], mask=loaded, other=0).astype(jnp.float32)
        return (y[:, None] - planes.read(LOC, d)) / scale, scale, slope

    if dim <= UNROLLED:
        standardized = functools.cache(standardized)

    def add(d: Any, total: Array) -> Array:
        z, scale, _ = standardized(d)
        total = total - 0.5 * z * z
        return total if isotropic else total - jnp.log(scale)

    zeros = jnp.zeros((rows.shape[0], component.shape[1]), jnp.float32)
    log_prob = loop(dim, add, zeros) - 0.5 * dim * numerics.LOG_2PI
    if shared is not None:
        log_prob = log_prob - dim * jnp.log(shared[0])
    every = 0 * rows if inputs.coefficient.shape[0] == 1 else rows
    coefficient = plgpu.load(inputs.coefficient.at[every], mask=loaded, other=0)
    logits = planes.read(LOGITS, 0)
    nll, r, logits_gradient = mix(head, logits, log_prob, live, coefficient.astype(jnp.float32))
    plgpu.store(out.nll.at[rows], nll, mask=inside)
    if not jax.tree.leaves((out.source, out.y)):
        return

    def put(d: Any, carry: Any) -> Any:
        state, total = carry
        z, scale, slope = standardized(d)
        rz = r * z  # before anything else: a far component has r = 0, and z^2 may be infinite
        loc_gradient = -rz / scale
        state = planes.write(state, LOC, d, loc_gradient)
        if out.y is not None:
            y_gradient = -jnp.sum(loc_gradient, axis=1)
            plgpu.store(out.y.at[rows, d], y_gradient.astype(out.y.dtype), mask=inside)
        change = r - rz * z
        if isotropic:
            return state, total + change
        return planes.write(state, SCALE, d, change / scale * slope), total

    state = planes.write(planes.start(), LOGITS, 0, logits_gradient)
    state, total = loop(dim, put, (state, zeros))
    if shared is not None:
        state = planes.write(state, SCALE, 0, total / shared[0] * shared[1])
    planes.finish(state)


def loop(dim: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Fold ``step(d, carry)`` over the dimensions; few of them while tracing."""
    if dim > UNROLLED:
        return jax.lax.fori_loop(np.int32(0), np.int32(dim), step, carry)
    for d in range(dim):
        carry = step(d, carry)
    return carry


def mix(
    head: NormalHead, logits: Array, log_prob: Array, live: Array, coefficient: Array
) -> tuple[Array, Array, Array]:
    """Return what :func:`jaxmdn.kernels.mixing.mix` does, for planes with padding."""
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
