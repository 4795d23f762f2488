"""Row weights, masks and reductions: which rows count, and for how much.

A row that is left out (False in the mask, or of weight zero) must leave no trace in value or
gradient, whatever it holds: its inputs are replaced *before* anything is computed from them, raw
outputs by zeros and targets by a point well inside the support, since zero times a derivative that
is NaN or infinite is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, numerics
from jaxmdn.components.support import Support
from jaxmdn.typing import Array, Float

REDUCTIONS = ("mean", "sum", "none")


def silence(tree: Any, mask: Array | None) -> Any:
    """Replace masked-out rows by zeros, so that what they hold (NaN, say) cannot leak."""
    if mask is None:
        return tree

    def zero(leaf: Array) -> Array:
        shape = mask.shape + (1,) * (leaf.ndim - mask.ndim)
        return jnp.where(mask.reshape(shape), leaf, jnp.zeros_like(leaf))

    return jax.tree.map(zero, tree)


def silence_targets(support: Sequence[Support], y: Any, kept: Array | None) -> Any:
    """Replace the targets of rows that are left out by a point inside the support.

    Whatever goes along with targets ``[..., D]`` in a structured target (labels ``[...]``) becomes
    zero.
    """
    if kept is None:
        return y
    points = np.array([own.inside for own in support])

    def fill(leaf: Array) -> Array:
        if leaf.ndim == kept.ndim:
            return silence(leaf, kept)
        return jnp.where(kept[..., None], leaf, jnp.asarray(points, leaf.dtype))

    return jax.tree.map(fill, y)


def kept_rows(weights: Array | None, mask: Array | None) -> Array | None:
    """Which rows count: a weight of zero leaves a row's gradient out just as the mask does."""
    if weights is None:
        return mask
    return weights != 0 if mask is None else mask & (weights != 0)


def check_rows(function: str, batch: tuple[int, ...], weights: Any, mask: Any) -> None:
    """Raise unless weights and mask have one entry per row, of the right kind."""
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


def _count(dtype: Any, batch: tuple[int, ...], weights: Any, mask: Any) -> Array:
    """Return what each row counts for, ``batch`` or a single one if all count the same."""
    if weights is None and mask is None:
        return jnp.ones((), dtype)
    count = jnp.ones(batch, dtype) if weights is None else weights.astype(dtype)
    return count if mask is None else jnp.where(mask, count, jnp.zeros_like(count))


def coefficient(
    dtype: Any, batch: tuple[int, ...], weights: Any, mask: Any, reduction: str
) -> Float[Array, "#N"]:
    """Return ``c`` with ``reduction(nll) = sum_i c_i nll_i``, flat; one number if all are equal."""
    count = _count(dtype, batch, weights, mask).reshape(-1)
    if reduction != "mean":
        return count
    mass = jnp.sum(count) * (math.prod(batch) if count.shape == (1,) else 1)
    return jnp.where(mass == 0, 0, count / jnp.where(mass == 0, 1, mass))


def reduce(
    values: Float[Array, "..."], weights: Array | None, mask: Array | None, reduction: str
) -> Float[Array, "..."]:
    """Return the weighted mean or sum of the rows' values, or the weighted values themselves."""
    factor = coefficient(values.dtype, values.shape, weights, mask, reduction)
    if reduction != "none":
        return weighted_sum(factor, values.reshape(-1))
    # A weight of zero silences its row even where the row's value is infinite.
    return numerics.silent_product(factor, values.reshape(-1)).reshape(values.shape)


def weighted_sum(factor: Float[Array, "#n"], values: Float[Array, "n"]) -> Float[Array, ""]:
    """Return ``sum(factor * values)`` where a factor of zero silences even ``inf``."""
    if factor.shape == (1,):  # shared: multiplied once
        return numerics.silent_product(factor[0], jnp.sum(values))
    return numerics.weighted_sum(factor, values, -1)
