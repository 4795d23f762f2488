"""A block of rows on a GPU: :mod:`rows`' two functions as one kernel (Pallas, Triton backend).

XLA makes several kernels of an NLL and its gradient, each of which reads the raw outputs or writes
arrays of their size; here they are read once and the gradient is written once
(:mod:`~jaxmdn.losses.kernels.triton_program` says how they are laid out). On an H100 that takes
a quarter of the time, and nine tenths of what a copy could; full covariances are not measured yet.

Tolerances promised, relative to float64, and for a gradient to its largest entry: 1e-5 for float32,
2e-2 for bfloat16. Arithmetic and sums are in float32; a gradient is rounded once. The kernel itself
cannot be differentiated: higher derivatives are those of :mod:`rows`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxmdn import numerics
from jaxmdn.heads import NormalHead
from jaxmdn.losses.kernels import rows
from jaxmdn.losses.kernels.rows import Gradient
from jaxmdn.losses.kernels.triton_diagonal import diagonal
from jaxmdn.losses.kernels.triton_full import full
from jaxmdn.losses.kernels.triton_program import Inputs, Outputs, Sides, plgpu, visit
from jaxmdn.typing import Array, Bool, Float

# Numbers of one kind [R, K, D] in a program, for float32; twice as many for half of the bytes. With
# four warps the best of a sweep on an H100, or within 3 % of it, at every shape but the smallest.
ENTRIES, NUM_WARPS = 2**9, 4
# Of full covariances' factors [R, K, D, D]. Where one row has more, twice the warps share them: 116
# registers a thread at K = 8, D = 32, at most 242 and none spilled up to 2^14 (ptxas 12.9, sm_90a).
FACTOR_ENTRIES = 2**11
# Below, the value alone is a matter of launching, and XLA's launch is the shorter.
FEWEST_ENTRIES = 2**24


def value(
    head: NormalHead,
    raw: Float[Array, "n P"],
    y: Any,
    kept: Bool[Array, "n"] | None = None,
    bias: Float[Array, "P"] | None = None,
) -> Float[Array, "n"]:
    """Return the NLL of each row, nats."""
    if raw.size < FEWEST_ENTRIES:
        return rows.value(head, raw, y, kept, bias)
    return _value(head, raw, y, kept, bias)


def gradient(
    head: NormalHead,
    raw: Float[Array, "n P"],
    y: Any,
    coefficient: Float[Array, "#n"],
    kept: Bool[Array, "n"] | None = None,
    bias: Float[Array, "P"] | None = None,
    *,
    dtype: Any,
    with_y: bool = False,
) -> Gradient:
    """Return the NLL of each row and the gradient of ``sum(coefficient * nll)``."""
    out = _gradient(head, jnp.dtype(dtype), with_y, raw, y, coefficient, kept, bias)
    return Gradient(out.nll, (out.raw,), (out.y,) if with_y else ())


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value(head: NormalHead, raw: Array, y: Array, kept: Array | None, bias: Array | None) -> Array:
    return _run(head, Inputs(raw, y, jnp.ones(1, jnp.float32), kept, bias)).nll


@_value.defjvp
def _value_jvp(head: NormalHead, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (raw, y, kept, bias), (draw, dy, _, dbias) = primals, tangents
    ones = jnp.ones(1, jnp.float32)
    out = _gradient(head, jnp.dtype(jnp.float32), True, raw, y, ones, kept, bias)
    by_y, draw, dy = numerics.upcast(out.y, draw, dy)
    draw = draw if bias is None else draw + dbias.astype(draw.dtype)
    return out.nll, jnp.sum(out.raw * draw, axis=-1) + jnp.sum(by_y * dy, axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _gradient(
    head: NormalHead,
    dtype: Any,
    with_y: bool,
    raw: Array,
    y: Array,
    coefficient: Array,
    kept: Array | None,
    bias: Array | None,
) -> Outputs:
    return _run(head, Inputs(raw, y, coefficient, kept, bias), dtype, with_y=with_y)


@_gradient.defjvp
def _gradient_jvp(
    head: NormalHead, dtype: Any, with_y: bool, primals: tuple, tangents: tuple
) -> tuple:
    *varying, kept, bias = primals

    def plain(raw: Array, y: Array, coefficient: Array, bias: Array | None) -> Outputs:
        found = rows.gradient(head, raw, y, coefficient, kept, bias, dtype=dtype, with_y=with_y)
        whole = jnp.concatenate(found.raw, axis=-1)
        return Outputs(found.nll, whole, found.y[0].astype(y.dtype) if with_y else None)

    return jax.jvp(plain, (*varying, bias), (*tangents[:3], tangents[4]))


def sides(head: NormalHead, dtype: Any) -> Sides:
    """Return the shape of a program's arrays: few rows, so that they fit its registers."""
    components = pl.next_power_of_2(head.num_components)
    dims = pl.next_power_of_2(head.event_dim)
    rows = ENTRIES * (4 // jnp.dtype(dtype).itemsize) // (components * dims)
    if whole(head):
        rows = min(rows, FACTOR_ENTRIES // (components * dims**2))
    return Sides(max(rows, 1), components, dims)


def whole(head: NormalHead) -> bool:
    """Whether there are factors; with one dimension a full covariance is a diagonal one."""
    return head.covariance == "full" and head.event_dim > 1


def _run(head: NormalHead, inputs: Inputs, dtype: Any = None, *, with_y: bool = False) -> Outputs:
    """Start the kernel; with a dtype for the raw outputs' gradient, for that too."""
    raw, y = inputs.raw, inputs.y
    num_rows, shape = raw.shape[0], sides(head, raw.dtype)
    out_shape = Outputs(
        jax.ShapeDtypeStruct((num_rows,), jnp.float32),
        None if dtype is None else jax.ShapeDtypeStruct(raw.shape, dtype),
        jax.ShapeDtypeStruct(y.shape, y.dtype) if with_y else None,
    )
    if num_rows == 0:  # no program
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), out_shape)
    if inputs.kept is not None:
        inputs = inputs._replace(kept=inputs.kept.astype(jnp.int8))

    components = full if whole(head) else diagonal
    large = whole(head) and shape.components * shape.dims**2 > FACTOR_ENTRIES

    def jaxmdn_rows(inputs: Inputs, *places: Any) -> None:
        visit(components, head, shape, pl.program_id(0), inputs, Outputs(*places))

    return pl.pallas_call(
        jaxmdn_rows,
        out_shape=out_shape,
        grid=(pl.cdiv(num_rows, shape.rows),),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS * (1 + large)),
        interpret=interpreted(),
    )(inputs)


def interpreted() -> bool:
    """Whether JAX's interpreter runs the kernels: where there is no GPU."""
    return jax.default_backend() != "gpu"
