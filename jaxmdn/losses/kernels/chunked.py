"""NLL and gradient from raw outputs, a block of rows at a time.

The loop writes each block of the gradient straight to its place in the result. On a CPU a block
and all that is computed from it stay in cache; anywhere, temporaries do not grow with the rows.

Both public functions are ``custom_jvp``: ``weighted_nll`` gives ``sum_i c_i nll_i`` and computes
``c_i d nll_i / d raw_i`` in the forward pass; ``rows_nll`` gives ``nll_i``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmdn import meshes, numerics
from jaxmdn.heads import Head
from jaxmdn.losses.kernels.devices import by_rows
from jaxmdn.losses.kernels.dispatch import rows_of
from jaxmdn.losses.kernels.rows import real_leaves
from jaxmdn.losses.reductions import silence, silence_targets, weighted_sum
from jaxmdn.typing import Array, Bool, Float

# On CPU as many raw outputs as this are one block, which XLA spreads over its threads: what is
# computed from them fits into what the C library's allocator keeps (32 MB), so that no page is
# fetched anew. Of more, a block is a megabyte or two, so that it stays in cache.
WHOLE_ENTRIES = 2**22
BLOCK_ENTRIES = 2**18
# Elsewhere a block must be worth its launches: a gigabyte of float32.
LARGE_ENTRIES = 2**28


class Blocks(NamedTuple):
    """Static options of a loop over blocks.

    Attributes:
      value, gradient: rows per block, when the value alone is wanted and when its gradient is too.
      implementation: of a block, as in :func:`jaxmdn.losses.kernels.dispatch.rows_of`.
    """

    value: int
    gradient: int
    implementation: str = "xla_chunked"


def choose_blocks(
    head: Head,
    num_rows: int,
    chunk_size: int | None,
    implementation: str = "xla_chunked",
    *,
    stored: bool = True,
) -> Blocks:
    """Return the rows per block: ``chunk_size``, or what suits head and device if that is None.

    ``stored`` says whether all raw outputs are in memory anyway: if not, they should not be.
    A symbolic number of rows (``jax.export``) is one block: how many others are left is not known.
    """
    if not isinstance(num_rows, int):
        return Blocks(num_rows, num_rows, implementation)
    if chunk_size is not None:
        return Blocks(chunk_size, chunk_size, implementation)
    if jax.default_backend() != "cpu":
        fitting = LARGE_ENTRIES // head.num_outputs
        if implementation == "pallas_triton":  # sets nothing aside
            fitting = num_rows
        size = max(min(fitting, num_rows), 1)
        return Blocks(size, size, implementation)
    whole = max(num_rows, 1)
    if stored and num_rows * head.num_outputs <= WHOLE_ENTRIES:
        return Blocks(whole, whole, implementation)
    entries = BLOCK_ENTRIES if stored else BLOCK_ENTRIES // 2
    size = 2 ** max(entries // head.num_outputs, 1).bit_length()
    return Blocks(whole if head.event_dim == 1 else size, size, implementation)


class Batch(NamedTuple):
    """What comes with the rows.

    Attributes:
      y: targets ``[N, ...]`` (a pytree).
      coefficient: ``[N]`` or ``[1]``: what each row's NLL is multiplied by.
      kept: ``[N]`` boolean, or None; a row that is False is replaced, whatever it holds.
    """

    y: Any
    coefficient: Float[Array, "#N"]
    kept: Bool[Array, "N"] | None = None


def take(array: Array, start: Array | int, size: int) -> Array:
    """Rows ``start .. start + size - 1``; an array with one row is shared by all."""
    return array if array.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(array, start, size)


def take_batch(
    head: Head, batch: Batch, start: Array | int, size: int
) -> tuple[Any, Array, Array | None]:
    """Return the block's targets (replaced where not kept), coefficients and ``kept``."""
    y, coefficient, kept = jax.tree.map(lambda leaf: take(leaf, start, size), batch)
    return silence_targets(head.support, y, kept), coefficient, kept


def block_dtype(dtype: Any) -> Any:
    """Return the dtype in which blocks are written one by one.

    On CPU, XLA has no bf16 of its own and would convert a whole buffer at every block (20 times
    slower); there the buffer is float32, and is converted once.
    """
    narrow = jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow and jax.default_backend() == "cpu" else dtype


def put(buffer: Array, block: Array, start: Array | int, column: int = 0) -> Array:
    """Write a block into a buffer at a row and a column, in the buffer's dtype."""
    index = (start, column, *(0,) * buffer.ndim)[: buffer.ndim]
    return jax.lax.dynamic_update_slice(buffer, block.astype(buffer.dtype), index)


def fold(
    step: Callable[[Any, Array | int, Array | int, int], Any],
    carry: Any,
    num_rows: int,
    chunk_size: int,
) -> Any:
    """Fold ``step(carry, block, start, size)`` over blocks of rows, then over what remains."""
    full, rest = divmod(num_rows, chunk_size)
    if full > 1:
        carry = meshes.fori_loop(
            0, full, lambda i, carry: step(carry, i, i * chunk_size, chunk_size), carry
        )
    elif full == 1:
        carry = step(carry, 0, 0, chunk_size)
    return step(carry, full, full * chunk_size, rest) if rest else carry


def num_blocks(num_rows: int, chunk_size: int) -> int:
    """How many blocks :func:`fold` visits."""
    return -(-num_rows // chunk_size)


def is_zero(tangent: Any) -> bool:
    """Whether a tangent tree is zero by construction."""
    return all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangent))


def contract(gradient: Array, tangent: Any, dtype: Any, *, keep_rows: bool = False) -> Array:
    """Return ``sum(gradient * tangent)``, over all axes or all but the first."""
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(gradient.shape[:1] if keep_rows else (), dtype)
    product = gradient.astype(dtype) * tangent.astype(dtype)
    return jnp.sum(product, axis=tuple(range(int(keep_rows), product.ndim)))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def weighted_nll(
    head: Head, blocks: Blocks, raw: Float[Array, "N P"], batch: Batch
) -> Float[Array, ""]:
    """Return ``sum_i coefficient_i nll_i``."""

    def all_blocks(rows: tuple[Array, Batch], _: Any) -> tuple[tuple, Array]:
        raw, batch = rows

        def total(start: Array | int, size: int) -> Array:
            y, coefficient, kept = take_batch(head, batch, start, size)
            nll = rows_of(blocks.implementation).value(head, take(raw, start, size), y, kept)
            return weighted_sum(coefficient.astype(nll.dtype), nll)

        def step(sums: Array, block: Array | int, start: Array | int, size: int) -> Array:
            return put(sums, total(start, size)[None], block)

        num_rows = raw.shape[0]
        if num_blocks(num_rows, blocks.value) == 1:  # collecting one costs GPUs two launches
            return (), total(0, num_rows)
        sums = jnp.zeros(num_blocks(num_rows, blocks.value), numerics.compute_dtype(raw))
        return (), jnp.sum(fold(step, sums, num_rows, blocks.value))

    return by_rows(all_blocks, (raw, batch))[1]


@partial(weighted_nll.defjvp, symbolic_zeros=True)
@meshes.any_rank
def _weighted_nll_jvp(head: Head, blocks: Blocks, primals: tuple, tangents: tuple) -> tuple:
    (raw, batch), (draw, dbatch) = primals, tangents
    with_y = not is_zero(dbatch.y)
    with_rows = not is_zero(dbatch.coefficient)
    (nll, raw_gradient, y_gradient), total = _gradient(
        head, blocks, raw, batch, with_y=with_y, with_rows=with_rows
    )
    tangent = contract(raw_gradient, draw, total.dtype)
    for gradient, dy in zip(y_gradient, real_leaves(dbatch.y)):  # noqa: B905 (empty if not asked)
        tangent = tangent + contract(gradient, dy, total.dtype)
    if nll is not None:
        tangent = tangent + contract(silence(nll, batch.kept), dbatch.coefficient, nll.dtype)
    return total, tangent


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def rows_nll(
    head: Head, blocks: Blocks, raw: Float[Array, "N P"], batch: Batch
) -> Float[Array, "N"]:
    """Return ``nll_i`` of every row; the batch's coefficient is not used."""

    def all_blocks(rows: tuple[Array, Batch], _: Any) -> tuple[Array, tuple]:
        raw, batch = rows

        def step(out: Array, block: Array | int, start: Array | int, size: int) -> Array:
            y, _, kept = take_batch(head, batch, start, size)
            nll = rows_of(blocks.implementation).value(head, take(raw, start, size), y, kept)
            return put(out, nll, start)

        out = jnp.zeros(raw.shape[:1], numerics.compute_dtype(raw))
        return fold(step, out, raw.shape[0], blocks.value), ()

    return by_rows(all_blocks, (raw, batch))[0]


@partial(rows_nll.defjvp, symbolic_zeros=True)
@meshes.any_rank
def _rows_nll_jvp(head: Head, blocks: Blocks, primals: tuple, tangents: tuple) -> tuple:
    (raw, batch), (draw, dbatch) = primals, tangents
    with_y = not is_zero(dbatch.y)
    (nll, raw_gradient, y_gradient), _ = _gradient(
        head, blocks, raw, batch, with_y=with_y, with_rows=True
    )
    assert nll is not None
    tangent = contract(raw_gradient, draw, nll.dtype, keep_rows=True)
    for gradient, dy in zip(y_gradient, real_leaves(dbatch.y)):  # noqa: B905 (empty if not asked)
        tangent = tangent + contract(gradient, dy, nll.dtype, keep_rows=True)
    return nll, tangent


def _gradient(
    head: Head, blocks: Blocks, raw: Array, batch: Batch, *, with_y: bool, with_rows: bool
) -> tuple[tuple[Array | None, Array, Any], Array]:
    """Return ``nll [N]`` (or None) and the gradients of raw and y; and the rows' weighted sum."""

    def all_blocks(rows: tuple[Array, Batch], _: Any) -> Any:
        raw, batch = rows
        num_rows, dtype, stored = raw.shape[0], numerics.compute_dtype(raw), block_dtype(raw.dtype)
        count = num_blocks(num_rows, blocks.gradient)

        def step(carry: Any, block: Array | int, start: Array | int, size: int) -> Any:
            nll, sums, raw_gradient, y_gradient = carry
            y, coefficient, kept = take_batch(head, batch, start, size)
            part = rows_of(blocks.implementation).gradient(
                head, take(raw, start, size), y, coefficient, kept, dtype=stored, with_y=with_y
            )
            if count == 1:  # one pass, which XLA spreads over its threads
                raw_gradient = jnp.concatenate(part.raw, axis=1)
            else:
                column = 0
                for gradient in part.raw:
                    raw_gradient = put(raw_gradient, gradient, start, column)
                    column += gradient.shape[1]
            y_gradient = [
                put(buffer, gradient, start)
                for buffer, gradient in zip(y_gradient, silence(part.y, kept), strict=True)
            ]
            if nll is not None:
                nll = put(nll, part.nll, start)
            total = weighted_sum(coefficient.astype(part.nll.dtype), part.nll)
            return nll, put(sums, total[None], block), raw_gradient, y_gradient

        nll = jnp.zeros((num_rows,), dtype) if with_rows else None
        real = real_leaves(batch.y) if with_y else []
        y_gradient = [jnp.zeros(y.shape, block_dtype(y.dtype)) for y in real]
        carry = (nll, jnp.zeros(count, dtype), jnp.zeros(raw.shape, stored), y_gradient)
        nll, sums, *gradients = fold(step, carry, num_rows, blocks.gradient)
        return (nll, *gradients), jnp.sum(sums)

    return by_rows(all_blocks, (raw, batch))
