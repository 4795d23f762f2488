"""Pallas kernels (Triton backend): NLL and gradient in one visit of the GPU's memory.

Two kernels share what a program does with a block of rows (:mod:`jaxmdn.kernels.triton_program`,
where the references to the derivations stand too):

- from raw outputs ``[N, P]``: a program for each block. Memory is read once, the gradient written
  once; the second loop over the dimensions finds its numbers in cache.
- with the output layer inside: raw outputs come from matrix products (each twice, as the second
  loop computes them again) and never exist as an array. At most ``PROGRAMS`` programs walk over
  the blocks; each keeps the gradient of ``hidden`` in registers and adds those of ``kernel`` and
  ``bias`` to sums of its own in memory, which XLA adds up afterwards. No program waits for
  another, and two runs add in the same order.

Tolerances promised, relative to float64, and for a gradient to its largest entry: 1e-5 for float32
(matrix products with ``precision="highest"``; their default is TF32), 2e-2 for bfloat16. Arithmetic
and sums are in float32; a gradient is rounded once, to the dtype of what it is the gradient of.
With float16 features or kernels the matrix products are float32: small gradients would underflow.

As in :mod:`jaxmdn.kernels.chunked` the gradient is computed in the forward pass, in the rule of a
``custom_jvp``; but a kernel cannot itself be differentiated, so that there are first derivatives
only.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from jaxmdn import numerics
from jaxmdn.kernels import chunked, linear
from jaxmdn.kernels.chunked import Batch, contract, is_zero, weighted_sum
from jaxmdn.kernels.linear import Layer
from jaxmdn.kernels.rows import has_closed_form
from jaxmdn.kernels.triton_program import (
    Inputs,
    LayerPlanes,
    Outputs,
    RawPlanes,
    locate,
    planes_of,
    plgpu,
    visit,
)
from jaxmdn.reductions import silence
from jaxmdn.typing import Array, Float

# Block sizes. From register counts of kernels compiled for sm_90a, not from timings.
ROWS_ENTRIES, MAX_ROWS = 2**11, 128  # of a plane [rows, K] of raw outputs
LINEAR_ENTRIES, MAX_LINEAR_ROWS = 2**14, 64  # of the gradient of hidden, [rows, H]
MIN_SIDE = 16  # of a matrix in a product
MAX_FEATURES = 256  # beyond, the sums no longer fit registers and compilation takes minutes
PROGRAMS = 132  # one on each multiprocessor of an H200


class Config(NamedTuple):
    """Static options.

    Attributes:
      head: a :class:`NormalHead` with isotropic or diagonal covariance.
      block_rows: rows in a block, a power of two; chosen by the shapes if None.
      num_warps: of a program; chosen if None.
      precision: of the matrix products, as in :func:`jax.numpy.matmul`.
      interpret: run the kernels in JAX's interpreter, on any device.
    """

    head: Any
    block_rows: int | None = None
    num_warps: int | None = None
    precision: Any = None
    interpret: bool = False


def rows_value(config: Config, raw: Float[Array, "N P"], batch: Batch) -> Float[Array, "N"]:
    """Return the NLL of each row, nats."""
    return _run_rows(config, raw, batch, with_raw=False, with_y=False).nll


def rows_gradient(
    config: Config, raw: Float[Array, "N P"], batch: Batch, *, with_y: bool = False
) -> tuple[Float[Array, "N"], Float[Array, "N P"], Float[Array, "N D"] | None]:
    """Return the NLL and the gradients of ``sum(coefficient * nll)`` in raw outputs and targets."""
    return _run_rows(config, raw, batch, with_raw=True, with_y=with_y)


def linear_value(config: Config, layer: Layer, batch: Batch) -> Float[Array, "N"]:
    """Return the NLL of each row, nats, for raw outputs ``hidden kernel + bias``."""
    return linear_gradient(config, layer, batch, with_hidden=False, with_parameters=False)[0]


def linear_gradient(
    config: Config,
    layer: Layer,
    batch: Batch,
    *,
    with_hidden: bool = True,
    with_parameters: bool = True,
    with_y: bool = False,
) -> tuple[Float[Array, "N"], Layer, Float[Array, "N D"] | None]:
    """Return the NLL and the gradients of ``sum(coefficient * nll)`` in layer and targets.

    What was not asked for is None. The gradients of the parameters are float32.
    """
    return _run_linear(config, layer, batch, with_hidden, with_parameters, with_y)


def weighted_nll(config: Config, source: Array | Layer, batch: Batch) -> Float[Array, ""]:
    """Return ``sum_i coefficient_i nll_i`` for raw outputs, or for the layer they come from.

    Raises:
      NotImplementedError: for a head, dtype or width that the kernels do not serve.
    """
    _check(config, source)
    if batch.y.shape[0] == 0:  # no program
        if isinstance(source, Layer):
            options = linear.Config(config.head, 1, config.precision)
            return linear.weighted_nll(options, source, batch)
        return chunked.weighted_nll(config.head, chunked.Blocks(1, 1), source, batch)
    return _weighted_nll(config, source, batch)


def rows_nll(config: Config, raw: Float[Array, "N P"], batch: Batch) -> Float[Array, "N"]:
    """Return ``nll_i`` of every row; the batch's coefficient is not used. Raises as above."""
    _check(config, raw)
    if raw.shape[0] == 0:
        return chunked.rows_nll(config.head, chunked.Blocks(1, 1), raw, batch)
    return _rows_nll(config, raw, batch._replace(coefficient=jnp.ones(1, jnp.float32)))


def _check(config: Config, source: Any) -> None:
    head, dtype = config.head, numerics.compute_dtype(*jax.tree.leaves(source))
    name = 'implementation="pallas_triton"'
    if not has_closed_form(head) or head.covariance not in ("isotropic", "diagonal"):
        raise NotImplementedError(
            f"{name} serves NormalHead with isotropic or diagonal covariance, got {head!r}; leave "
            f"implementation out."
        )
    if dtype != jnp.float32:
        raise NotImplementedError(
            f"{name} computes in float32, got {dtype}; cast to float32 or leave implementation out."
        )
    if isinstance(source, Layer) and source.hidden.shape[1] > MAX_FEATURES:
        raise NotImplementedError(
            f"{name} serves at most {MAX_FEATURES} hidden features, got {source.hidden.shape[1]}; "
            f"leave implementation out."
        )


@jax.custom_jvp
def _once(primals: tuple) -> tuple:
    """Return what the gradient is computed from, or raise where that is differentiated again."""
    return primals


@_once.defjvp
def _once_jvp(primals: tuple, tangents: tuple) -> tuple:
    raise NotImplementedError(
        'implementation="pallas_triton" has first derivatives only; use implementation='
        '"xla_chunked" or "xla" for higher ones.'
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weighted_nll(config: Config, source: Array | Layer, batch: Batch) -> Float[Array, ""]:
    value: Any = linear_value if isinstance(source, Layer) else rows_value
    return weighted_sum(value(config, source, batch), batch.coefficient)


@partial(_weighted_nll.defjvp, symbolic_zeros=True)
def _weighted_nll_jvp(config: Config, primals: tuple, tangents: tuple) -> tuple:
    (source, batch), (dsource, dbatch) = _once(primals), tangents
    with_y = not is_zero(dbatch.y)
    gradient: Any
    if isinstance(source, Layer):
        nll, gradient, y_gradient = linear_gradient(
            config,
            source,
            batch,
            with_hidden=not is_zero(dsource.hidden),
            with_parameters=not is_zero((dsource.kernel, dsource.bias)),
            with_y=with_y,
        )
        parts: list[tuple[Any, Any]] = list(zip(gradient, dsource, strict=True))
    else:
        nll, gradient, y_gradient = rows_gradient(config, source, batch, with_y=with_y)
        parts = [(gradient, dsource)]
    parts += [(y_gradient, dbatch.y), (silence(nll, batch.kept), dbatch.coefficient)]
    tangent = jnp.zeros((), nll.dtype)
    for part, change in parts:
        if part is not None:
            tangent = tangent + contract(part, change, nll.dtype)
    return weighted_sum(nll, batch.coefficient), tangent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rows_nll(config: Config, raw: Float[Array, "N P"], batch: Batch) -> Float[Array, "N"]:
    return rows_value(config, raw, batch)


@partial(_rows_nll.defjvp, symbolic_zeros=True)
def _rows_nll_jvp(config: Config, primals: tuple, tangents: tuple) -> tuple:
    (raw, batch), (draw, dbatch) = _once(primals), tangents
    with_y = not is_zero(dbatch.y)
    nll, gradient, y_gradient = rows_gradient(config, raw, batch, with_y=with_y)
    tangent = contract(gradient, draw, nll.dtype, keep_rows=True)
    if y_gradient is not None:
        tangent = tangent + contract(y_gradient, dbatch.y, nll.dtype, keep_rows=True)
    return nll, tangent


def _inputs(source: Any, batch: Batch) -> Inputs:
    kept = None if batch.kept is None else batch.kept.astype(jnp.int8)
    return Inputs(source, batch.y, batch.coefficient, kept)


def _outputs(batch: Batch, source: Any, *, with_y: bool) -> Outputs:
    nll = jax.ShapeDtypeStruct(batch.y.shape[:1], jnp.float32)
    return Outputs(nll, source, _like(batch.y) if with_y else None)


def _like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _padded(size: int, least: int = 1) -> int:
    return max(pl.next_power_of_2(size), least)


def _run_rows(config: Config, raw: Array, batch: Batch, *, with_raw: bool, with_y: bool) -> Outputs:
    head, width = config.head, _padded(config.head.num_components)
    block_rows = config.block_rows or max(min(ROWS_ENTRIES // width, MAX_ROWS), 1)

    def jaxmdn_rows(inputs: Inputs, *places: Any) -> None:
        out = Outputs(*places)
        block = locate(inputs, pl.program_id(0), block_rows, head, width)
        visit(head, RawPlanes(head, inputs.source, out.source, block), inputs, out, block)

    return pl.pallas_call(
        jaxmdn_rows,
        out_shape=_outputs(batch, _like(raw) if with_raw else None, with_y=with_y),
        grid=(pl.cdiv(raw.shape[0], block_rows),),
        compiler_params=plgpu.CompilerParams(num_warps=config.num_warps or 4),
        interpret=config.interpret,
    )(_inputs(raw, batch))


def _run_linear(
    config: Config,
    layer: Layer,
    batch: Batch,
    with_hidden: bool,
    with_parameters: bool,
    with_y: bool,
) -> Outputs:
    head, (num_rows, features) = config.head, layer.hidden.shape
    sides = _padded(features, MIN_SIDE), _padded(head.num_components, MIN_SIDE)
    block_rows = config.block_rows or max(min(LINEAR_ENTRIES // sides[0], MAX_LINEAR_ROWS), 16)
    blocks = pl.cdiv(num_rows, block_rows)
    programs = min(blocks, PROGRAMS)

    def jaxmdn_linear(inputs: Inputs, *places: Any) -> None:
        out, program = Outputs(*places), pl.program_id(0)

        def step(turn: Any, carry: Any) -> Any:
            block = locate(inputs, turn * programs + program, block_rows, head, sides[1])
            planes = LayerPlanes(
                head, inputs.source, out.source, block, config.precision, program, turn
            )
            visit(head, planes, inputs, out, block)
            if not config.interpret:
                plgpu.debug_barrier()  # another thread may read a sum next than wrote it
            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(pl.cdiv(blocks, programs)), step, ())

    half = layer.hidden.dtype == layer.kernel.dtype == jnp.bfloat16
    dtype = jnp.bfloat16 if half else jnp.float32
    kernel_planes = partial(planes_of, head, sides=sides)
    bias_planes = partial(planes_of, head, sides=sides[1:])
    source = Layer(
        layer.hidden.astype(dtype),
        kernel_planes(layer.kernel.astype(dtype)),
        bias_planes(layer.bias.astype(jnp.float32)),
    )
    places: list[Any] = [_like(layer.hidden) if with_hidden else None, None, None]
    if with_parameters:
        places[1:] = [
            jax.ShapeDtypeStruct((programs * len(planes), *planes.shape[1:]), jnp.float32)
            for planes in source[1:]
        ]
    out = pl.pallas_call(
        jaxmdn_linear,
        out_shape=_outputs(batch, Layer(*places), with_y=with_y),
        grid=(programs,),
        # One stage: prefetching would read a sum before the turn before has written it.
        compiler_params=plgpu.CompilerParams(num_warps=config.num_warps or 8, num_stages=1),
        interpret=config.interpret,
    )(_inputs(source, batch))
    if not with_parameters:
        return out

    def total(arrange: Any, array: Array, sums: Array) -> Array:
        """Add the programs' sums and put the planes back where they came from."""
        shape = jax.ShapeDtypeStruct(array.shape, sums.dtype)
        planes = jnp.sum(sums.reshape(programs, -1, *sums.shape[1:]), axis=0)
        return jax.linear_transpose(arrange, shape)(planes)[0]

    return out._replace(
        source=Layer(
            out.source.hidden,
            total(kernel_planes, layer.kernel, out.source.kernel),
            total(bias_planes, layer.bias, out.source.bias),
        )
    )
