"""The output layer inside the loss: raw outputs exist one block of rows at a time.

With ``raw = hidden kernel + bias`` and ``G = c dL/draw`` (a block at a time, from :mod:`rows`):

    dL/dhidden = G kernel^T,     dL/dkernel = hidden^T G,     dL/dbias = sum_i G_i.

All three products of the output layer are done while a block's raw outputs and ``G`` are in cache;
neither ever exists as an ``[N, P]`` array, forward or backward. What the forward pass leaves behind
is the gradient itself: ``[N, H]`` for ``hidden``, and the size of the parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.heads import Head
from jaxmdn.losses.kernels.chunked import (
    Batch,
    block_dtype,
    contract,
    fold,
    is_zero,
    num_blocks,
    put,
    take,
    take_batch,
)
from jaxmdn.losses.kernels.devices import by_rows
from jaxmdn.losses.kernels.dispatch import rows_of
from jaxmdn.losses.kernels.rows import real_leaves
from jaxmdn.losses.reductions import silence, silence_targets, weighted_sum
from jaxmdn.typing import Array, Float


class Layer(NamedTuple):
    """What the raw outputs are made of: ``hidden [..., H]``, ``kernel [H, P]``, ``bias [P]``."""

    hidden: Float[Array, "... H"]
    kernel: Float[Array, "H P"]
    bias: Float[Array, "P"]


class Config(NamedTuple):
    """Static options.

    Attributes:
      head: the head.
      chunk_size: rows per block.
      precision: of the matrix products.
      implementation: of a block, as in :func:`jaxmdn.losses.kernels.dispatch.rows_of`.
    """

    head: Head
    chunk_size: int
    precision: Any
    implementation: str = "xla_chunked"


def product(a: Array, b: Array, precision: Any, dtype: Any = None) -> Array:
    """Return ``a @ b``, accumulated in float32 at least; rounded to ``dtype`` if given."""
    dtype = numerics.compute_dtype(a, b) if dtype is None else dtype
    return jnp.matmul(a, b, precision=precision, preferred_element_type=dtype)


def _wider(a: Any, b: Any) -> Any:
    """Return the dtype with more bits: a gradient is rounded no further than what it belongs to."""
    return a if jnp.finfo(a).bits >= jnp.finfo(b).bits else b


def raw_outputs(layer: Layer, precision: Any) -> Float[Array, "... P"]:
    """Return ``hidden kernel + bias``."""
    raw = product(layer.hidden, layer.kernel, precision)
    return raw + layer.bias.astype(raw.dtype)


def _block(config: Config, layer: Layer, kept: Any, start: Any, size: int) -> tuple[Array, Array]:
    """Return the block's hidden features (silenced where not kept), raw outputs without bias."""
    hidden = silence(take(layer.hidden, start, size), kept)
    return hidden, product(hidden, layer.kernel, config.precision)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_nll(config: Config, layer: Layer, batch: Batch) -> Float[Array, ""]:
    """Return ``sum_i coefficient_i nll_i``."""

    def all_blocks(rows: tuple[Array, Batch], shared: tuple[Array, Array]) -> tuple[tuple, Array]:
        layer, batch = Layer(rows[0], *shared), rows[1]

        def step(sums: Array, block: Any, start: Any, size: int) -> Array:
            y, coefficient, kept = take_batch(config.head, batch, start, size)
            raw = _block(config, layer, kept, start, size)[1]
            nll = rows_of(config.implementation).value(config.head, raw, y, kept, layer.bias)
            return put(sums, weighted_sum(coefficient.astype(nll.dtype), nll)[None], block)

        num_rows = layer.hidden.shape[0]
        blocks = num_blocks(num_rows, config.chunk_size)
        sums = jnp.zeros(blocks, numerics.compute_dtype(*layer))
        return (), jnp.sum(fold(step, sums, num_rows, config.chunk_size))

    return by_rows(all_blocks, (layer.hidden, batch), (layer.kernel, layer.bias))[1]


@partial(weighted_nll.defjvp, symbolic_zeros=True)
@meshes.any_rank
def _weighted_nll_jvp(config: Config, primals: tuple, tangents: tuple) -> tuple:
    (layer, batch), (dlayer, dbatch) = primals, tangents
    dtype, stored = numerics.compute_dtype(*layer), _wider(layer.hidden.dtype, layer.kernel.dtype)
    # Rounded by the product itself, which spares a pass over a float32 array as long as the rows.
    alike = layer.hidden.dtype == layer.kernel.dtype
    back_dtype = block_dtype(layer.hidden.dtype) if alike else None
    with_hidden = not is_zero(dlayer.hidden)
    with_parameters = not is_zero((dlayer.kernel, dlayer.bias))
    with_y = not is_zero(dbatch.y)
    with_rows = not is_zero(dbatch.coefficient)

    def all_blocks(rows: tuple[Array, Batch], shared: tuple[Array, Array]) -> Any:
        layer, batch = Layer(rows[0], *shared), rows[1]
        num_rows = layer.hidden.shape[0]

        def step(carry: Any, block: Any, start: Any, size: int) -> Any:
            nll, sums, total, y_gradient = carry
            y, coefficient, kept = take_batch(config.head, batch, start, size)
            hidden, raw = _block(config, layer, kept, start, size)
            part = rows_of(config.implementation).gradient(
                config.head, raw, y, coefficient, kept, layer.bias, dtype=stored, with_y=with_y
            )
            factor = jnp.concatenate(part.raw, axis=-1)
            hidden_gradient, kernel_gradient, bias_gradient = total
            if with_hidden:
                back = product(factor, layer.kernel.T, config.precision, back_dtype)
                hidden_gradient = put(hidden_gradient, back, start)
            if with_parameters:
                kernel_gradient = kernel_gradient + product(hidden.T, factor, config.precision)
                bias_gradient = bias_gradient + jnp.sum(factor, axis=0, dtype=dtype)
            y_gradient = [
                put(buffer, gradient, start)
                for buffer, gradient in zip(y_gradient, silence(part.y, kept), strict=True)
            ]
            if nll is not None:
                nll = put(nll, part.nll, start)
            value = weighted_sum(coefficient.astype(part.nll.dtype), part.nll)
            sums = put(sums, value[None], block)
            return nll, sums, (hidden_gradient, kernel_gradient, bias_gradient), y_gradient

        total = (
            jnp.zeros(layer.hidden.shape, block_dtype(layer.hidden.dtype)) if with_hidden else None,
            jnp.zeros(layer.kernel.shape, dtype) if with_parameters else None,
            jnp.zeros(layer.bias.shape, dtype) if with_parameters else None,
        )
        real = real_leaves(batch.y) if with_y else []
        y_gradient = [jnp.zeros(y.shape, block_dtype(y.dtype)) for y in real]
        nll = jnp.zeros(num_rows, dtype) if with_rows else None
        sums = jnp.zeros(num_blocks(num_rows, config.chunk_size), dtype)
        carry = (nll, sums, total, y_gradient)
        nll, sums, (hidden, *parameters), y_gradient = fold(
            step, carry, num_rows, config.chunk_size
        )
        return (nll, hidden, y_gradient), (jnp.sum(sums), parameters)

    (nll, hidden, y_gradient), (value, parameters) = by_rows(
        all_blocks, (layer.hidden, batch), (layer.kernel, layer.bias)
    )
    tangent = jnp.zeros_like(value)
    for gradient, change in zip((hidden, *parameters), dlayer, strict=True):
        if gradient is not None:
            tangent = tangent + contract(gradient, change, value.dtype)
    for gradient, dy in zip(y_gradient, real_leaves(dbatch.y)):  # noqa: B905 (empty if not asked)
        tangent = tangent + contract(gradient, dy, value.dtype)
    if nll is not None:
        tangent = tangent + contract(silence(nll, batch.kept), dbatch.coefficient, nll.dtype)
    return value, tangent


def rows_nll(config: Config, layer: Layer, batch: Batch) -> Float[Array, "N"]:
    """Return ``nll_i`` of every row.

    A row's cotangent is only known backward, so a block is computed again there: the raw outputs
    of one block exist at a time in both directions.
    """

    @jax.checkpoint
    def block(layer: Layer, batch: Batch) -> Float[Array, "n"]:
        silent = layer._replace(hidden=silence(layer.hidden, batch.kept))
        raw = raw_outputs(silent, config.precision)
        y = silence_targets(config.head.support, batch.y, batch.kept)
        return rows_of(config.implementation).value(config.head, raw, y)

    def step(start: Any, size: int) -> Array:
        part = jax.tree.map(lambda leaf: take(leaf, start, size), batch)
        return block(layer._replace(hidden=take(layer.hidden, start, size)), part)

    num_rows, size = layer.hidden.shape[0], config.chunk_size
    full, rest = divmod(num_rows, size)
    parts = []
    if full:
        parts.append(jax.lax.map(lambda i: step(i * size, size), jnp.arange(full)).reshape(-1))
    if rest:
        parts.append(step(full * size, rest))
    return jnp.concatenate(parts) if parts else jnp.zeros(0, numerics.compute_dtype(*layer))
