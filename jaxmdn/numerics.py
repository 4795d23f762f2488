"""Stable primitives: the few places where floating point needs care, written once.

Each is right in value *and* in gradient at the edges that mixtures reach: weights of exactly zero
(``-inf`` logits), densities that underflow, scales at their floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.typing import Array, Float, Int, Key, Num

LOG_2PI = math.log(2.0 * math.pi)


def compute_dtype(*arrays: Any) -> Any:
    """The dtype of log-densities and accumulators: the arguments' own, at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.float32
        for array in arrays:
            if jnp.issubdtype(array.dtype, jnp.floating):
                dtype = jnp.promote_types(dtype, array.dtype)
        return dtype


def upcast(*arrays: Array) -> tuple[Array, ...]:
    """Cast all arrays to their common compute dtype (see :func:`compute_dtype`)."""
    dtype = compute_dtype(*arrays)
    return tuple(jnp.asarray(array).astype(dtype) for array in arrays)


def upcast_tree(*trees: Any) -> tuple[Any, ...]:
    """Cast all floating leaves of the trees to their common compute dtype."""
    real = [leaf for leaf in jax.tree.leaves(trees) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = compute_dtype(*real)

    def cast(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, trees)


def logsumexp(a: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Return ``log(sum(exp(a)))`` along ``axis``.

    Where every entry is ``-inf`` the value is ``-inf`` and the gradient zero (plain autodiff of the
    textbook formula gives NaN there); a single ``-inf`` entry contributes nothing to either.
    ``+inf`` gives ``+inf``, NaN gives NaN.

    >>> import jax, jax.numpy as jnp
    >>> jax.grad(logsumexp)(jnp.array([-jnp.inf, -jnp.inf])).tolist()
    [0.0, 0.0]
    """
    if a.shape[axis] == 1:
        return jnp.squeeze(jnp.where(a == -jnp.inf, -jnp.inf, a), axis)
    peak = finite_peak(a, axis)
    total = jnp.sum(jnp.exp(a - peak), axis=axis)
    empty = total == 0
    value = jnp.log(jnp.where(empty, jnp.ones_like(total), total)) + jnp.squeeze(peak, axis)
    return jnp.where(empty, -jnp.inf, value)


def finite_peak(a: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """The largest entry where it is finite, else 0, as a constant: what may be subtracted first."""
    peak = jax.lax.stop_gradient(jnp.max(a, axis=axis, keepdims=True, initial=-jnp.inf))
    return jnp.where(jnp.isfinite(peak), peak, jnp.zeros_like(peak))


def log_normalize(logits: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Return log-weights that sum to one: ``logits - logsumexp(logits)``.

    Rows whose logits are all ``-inf`` stay ``-inf`` with a zero gradient. The largest logit is
    subtracted before the rest, so that a constant added to all of them costs no accuracy.
    """
    if logits.shape[-1] == 1:
        return jnp.where(logits == -jnp.inf, logits, logits - logits)
    shifted, log_total = log_normalizer(logits)
    return shifted - log_total


def log_normalizer(logits: Float[Array, "... K"]) -> tuple[Array, Array]:
    """Return ``[..., K]`` and ``[..., 1]``, whose difference are the log-weights of above.

    Whoever needs one of the log-weights subtracts last.
    """
    shifted = logits - finite_peak(logits)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True)
    return shifted, jnp.log(jnp.where(total == 0, jnp.ones_like(total), total))


def silent_product(weights: Float[Array, "..."], values: Float[Array, "..."]) -> Array:
    """Return ``weights * values`` in which a weight of zero silences even ``inf``.

    A weight that is NaN is no weight of zero: it gives NaN.
    """
    dead = weights == 0
    return jnp.where(dead, 0, weights * jnp.where(dead, jnp.zeros_like(values), values))


def weighted_sum(weights: Float[Array, "..."], values: Float[Array, "..."], axis: int) -> Array:
    """Return ``sum(weights * values, axis)`` in which a weight of zero silences even ``inf``."""
    return jnp.sum(silent_product(weights, values), axis=axis)


@jax.custom_jvp
def expm1(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``exp(x) - 1`` with the derivative ``exp(x)``, which JAX takes from the value plus one."""
    return jnp.expm1(x)


expm1.defjvps(lambda dx, _, x: jnp.exp(x) * dx)


def uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Float[Array, "..."]:
    """Uniform numbers inside (0, 1): the middles of the ``1 / eps`` cells that JAX's begin.

    JAX draws zero with probability eps (1e-7 in float32). Moved to the smallest number that is not
    zero it would stand for a quantile 1e-38 from the end, which no sample of any size should reach.
    """
    return jax.random.uniform(key, shape, dtype) + 0.5 * float(jnp.finfo(dtype).eps)


def cut(raw: Float[Array, "... P"], shapes: Sequence[tuple[int, ...]]) -> list[Float[Array, "..."]]:
    """Raw outputs as arrays ``[..., *shape]``, one after another.

    A split, whose transpose joins. That of slices adds padded arrays, and XLA may compute each
    gradient again for every column of the sum: half of the time, or four fifths.
    """
    sizes = [math.prod(shape) for shape in shapes]
    parts = jax.lax.split(raw, sizes, axis=raw.ndim - 1)
    lead = raw.shape[:-1]
    return [part.reshape(*lead, *shape) for part, shape in zip(parts, shapes, strict=True)]


def inverse_softplus(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``x`` with ``log(1 + e^x) = y`` for ``y > 0``; ``y = 0`` gives ``-inf``.

    >>> import jax, jax.numpy as jnp
    >>> round(float(jax.nn.softplus(inverse_softplus(jnp.float32(1e-6)))), 12)
    1e-06
    """
    return y + jnp.log(-jnp.expm1(-y))


def floor_log_weights(logits: Float[Array, "... K"], min_weight: float) -> Float[Array, "... K"]:
    """Return log-weights of ``min_weight + (1 - K min_weight) softmax(logits)``.

    Mixing with the uniform distribution keeps every weight in
    ``[min_weight, 1 - (K - 1) min_weight]``: none can die and none can reach one. With
    ``min_weight = 0`` the logits are returned as they are (unnormalised).
    """
    if min_weight == 0.0:
        return logits
    share = 1.0 - logits.shape[-1] * min_weight
    floor = jnp.full_like(logits, math.log(min_weight))
    return jnp.logaddexp(floor, math.log(share) + log_normalize(logits))


def unfloor_log_weights(log_weights: Float[Array, "... K"], min_weight: float) -> Array:
    """Invert :func:`floor_log_weights` up to an additive constant; NaN below the floor."""
    if min_weight == 0.0:
        return log_weights
    share = 1.0 - log_weights.shape[-1] * min_weight
    return jnp.log((jnp.exp(log_normalize(log_weights)) - min_weight) / share)


@jax.custom_jvp
def standardize(y: Array, loc: Array, scale: Array) -> Array:
    """Return ``z = (y - loc) / scale``, elementwise with broadcasting.

    The derivative is written as ``dz = (dy - dloc - z dscale) / scale``: autodiff of a division
    forms ``1 / scale^2``, which overflows float32 below 1e-19 and turns a zero cotangent (the
    responsibility of a component far away) into NaN.
    """
    return (y - loc) / scale


@standardize.defjvp
def _standardize_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y, loc, scale = primals
    dy, dloc, dscale = tangents
    z = standardize(y, loc, scale)
    return z, (dy - dloc - z * dscale) / scale


def divide(numerator: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return ``numerator / scale``, with the derivative of :func:`standardize`."""
    return standardize(numerator, jnp.zeros_like(scale), scale)


def tril_size(dim: int) -> int:
    """Number of entries strictly below the diagonal of a ``dim x dim`` matrix."""
    return dim * (dim - 1) // 2


def unpack_unit_tril(packed: Float[Array, "... T"], dim: int) -> Float[Array, "... D D"]:
    """Return the unit lower-triangular matrix whose strict lower part, row by row, is ``packed``.

    >>> import jax.numpy as jnp
    >>> unpack_unit_tril(jnp.array([2.0, 3.0, 4.0]), 3).tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 4.0, 1.0]]
    """
    below = spread(packed, tuple(np.flatnonzero(np.tri(dim, k=-1)).tolist()), dim * dim)
    return below.reshape(*packed.shape[:-1], dim, dim) + jnp.eye(dim, dtype=packed.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def spread(
    values: Float[Array, "... E"], places: tuple[int, ...], size: int
) -> Float[Array, "... size"]:
    """Return ``size`` numbers: the values at their places, zeros elsewhere."""
    # A gather from [values, 0] by a constant index: one pass, no scatter.
    index = np.full(size, len(places))
    index[list(places)] = np.arange(len(places))
    zero = jnp.zeros((*values.shape[:-1], 1), values.dtype)
    return jnp.concatenate([values, zero], axis=-1)[..., index]


@spread.defjvp
def _spread_jvp(
    places: tuple[int, ...], size: int, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    # Added to zeros, which reverse mode turns into picking: of a gather it makes a scatter.
    (change,) = tangents
    zeros = jnp.zeros((*change.shape[:-1], size), change.dtype)
    index = np.asarray(places, np.int32)
    return spread(primals[0], places, size), zeros.at[..., index].add(change, unique_indices=True)


@jax.custom_jvp
def diagonal(matrix: Float[Array, "... D D"]) -> Float[Array, "... D"]:
    """Return the diagonal; reverse mode makes a mask of its derivative, not a scatter."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


diagonal.defjvps(
    lambda change, _, matrix: jnp.sum(
        jnp.where(np.eye(matrix.shape[-1], dtype=bool), change, 0), axis=-1
    )
)


def pack_tril(matrix: Float[Array, "... D D"]) -> Float[Array, "... T"]:
    """Return the entries strictly below the diagonal, row by row (inverts the unpacking)."""
    rows, columns = np.tril_indices(matrix.shape[-1], -1)
    return matrix[..., rows, columns]


def invert_tril(matrix: Float[Array, "... D D"]) -> Float[Array, "... D D"]:
    """Return the inverse of lower-triangular matrices, batched."""
    (matrix,) = upcast(matrix)
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return jax.lax.linalg.triangular_solve(matrix, identity, left_side=True, lower=True)


def lower_factor(matrix: Float[Array, "... M D"]) -> Float[Array, "... D D"]:
    """Return the lower-triangular ``W`` with positive diagonal and ``W^T W = matrix^T matrix``.

    The matrix has at least as many rows as columns.
    """
    (matrix,) = upcast(matrix)
    # A = Q R with the columns reversed gives A = (Q J) (J R J), and J R J is lower triangular.
    upper = jnp.linalg.qr(matrix[..., ::-1], mode="r")
    lower = upper[..., ::-1, ::-1]
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    return jnp.tril(lower * jnp.where(diagonal < 0, -1, 1)[..., None].astype(lower.dtype))


def triangular(root: Float[Array, "... D M"]) -> tuple[Array, Array]:
    """``Q [..., M, D]`` and the scale factor ``S`` (positive diagonal) with ``root = S Q^T``."""
    basis, upper = jnp.linalg.qr(jnp.swapaxes(root, -1, -2))
    sign = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1, 1).astype(upper.dtype)
    return basis * sign[..., None, :], jnp.tril(jnp.swapaxes(upper * sign[..., None], -1, -2))


def solve_tril(matrix: Float[Array, "... D D"], y: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Solve ``matrix x = y`` for lower-triangular matrices, batched."""
    matrix, y = upcast(matrix, y)
    lead = jnp.broadcast_shapes(matrix.shape[:-2], y.shape[:-1])
    matrix = jnp.broadcast_to(matrix, (*lead, *matrix.shape[-2:]))
    y = jnp.broadcast_to(y, (*lead, y.shape[-1]))[..., None]
    return jax.lax.linalg.triangular_solve(matrix, y, left_side=True, lower=True)[..., 0]


matvec = partial(jnp.einsum, "...ij,...j->...i", precision="highest")
matvec.__doc__ = "Batched matrix-vector product in full precision (never TF32 or bf16 passes)."


def take_along(array: Num[Array, "..."], index: Int[Array, "..."], axis: int) -> Num[Array, "..."]:
    """Pick one entry along a negative ``axis`` for each batch position; the axis disappears.

    The axes of ``array`` before ``axis`` broadcast against ``index`` (so an index of shape
    ``[S, N]`` draws ``S`` times from ``N`` rows); the axes after it are carried along. An axis of
    size one is shared by every index, and so is one that is not there.
    """
    trailing = -axis - 1
    array = array.reshape((1,) * (-axis - array.ndim) + array.shape)
    if array.shape[axis] == 1:
        picked = jnp.squeeze(array, axis)
        lead = jnp.broadcast_shapes(index.shape, picked.shape[: picked.ndim - trailing])
        return jnp.broadcast_to(picked, (*lead, *picked.shape[picked.ndim - trailing :]))
    rank = max(array.ndim, index.ndim + 1 + trailing)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    lead_ones = (1,) * (rank - index.ndim - 1 - trailing)
    index = index.reshape(lead_ones + index.shape + (1,) * (trailing + 1))
    return jnp.squeeze(jnp.take_along_axis(array, index, axis=axis, mode="promise_in_bounds"), axis)
