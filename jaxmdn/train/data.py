"""Rows on their way to the device: checked, split, cut into batches."""

from __future__ import annotations

import datetime
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.typing import Array, Float, Int, Key


class Rows(NamedTuple):
    """Inputs, targets and row weights, all with the same leading axis N.

    Attributes:
      x: an array ``[N, ...]`` or a pytree of such arrays.
      y: targets ``[N, D]``, or ``[N, T, D]`` of sequences, or what the head accepts (``Labeled``).
      weights: nonnegative, an entry for each target: ``[N]``, or ``[N, T]``.
    """

    x: Any
    y: Any
    weights: Any

    @property
    def size(self) -> int:
        """N."""
        return self.weights.shape[0]

    @property
    def flat_targets(self) -> tuple[Any, Any]:
        """Targets ``[M, D]`` and their weights ``[M]``, those of sequences one after another."""
        rank = self.weights.ndim
        y = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[rank:]), self.y)
        return y, self.weights.reshape(-1)

    def take(self, index: Any) -> Rows:
        """The rows at ``index``."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def counted(self) -> tuple[Rows, np.ndarray]:
        """The rows of which anything has a weight, and their places."""
        counts = np.asarray(self.weights).reshape(self.size, -1).any(axis=1)
        places = np.flatnonzero(counts)
        return (self if counts.all() else self.take(places)), places

    def on_device(self) -> Rows:
        """The same rows as JAX arrays, in JAX's own precision."""
        return jax.device_put(self)  # `asarray` compiles for each shape


def make_rows(function: str, x: Any, y: Any, weights: Any) -> Rows:
    """Bundle and check: equal row counts, at least one row, finite values, usable weights.

    Raises:
      ValueError: naming the argument and the first offending row and column.
    """
    x, y = as_arrays(function, x, "x"), as_arrays(function, y, "y")
    counts = {}
    for name, tree in (("x", x), ("y", y)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            label = name + jax.tree_util.keystr(path)
            if leaf.ndim == 0:
                raise ValueError(f"{function}: {label} must have a leading row axis, got a scalar.")
            counts[label] = leaf.shape[0]
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {rows}" for name, rows in counts.items())
        raise ValueError(f"{function}: x and y must have the same number of rows, got {listed}.")
    if count == 0:
        raise ValueError(f"{function}: x and y have no rows; pass at least one.")
    weights = _weights(function, weights, jax.tree.leaves(y)[-1].shape[:-1] or (count,))
    y = _without_left_out(y, weights > 0)
    for name, tree in (("x", x), ("y", y)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            _require_finite(function, name + jax.tree_util.keystr(path), leaf)
    return Rows(x, y, weights)


def _weights(function: str, weights: Any, batch: tuple[int, ...]) -> np.ndarray:
    """Weights as floats, one for each target; truth values are a mask."""
    weights = np.ones(batch, np.float32) if weights is None else np.asarray(weights)
    if weights.shape not in (batch, batch[:1]):
        kinds = f"{list(batch[:1])}, one per row" + (f", or {list(batch)}" if batch[1:] else "")
        raise ValueError(f"{function}: weights must have shape {kinds}, got {list(weights.shape)}.")
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(np.float32)
    own = jax.dtypes.canonicalize_dtype(weights.dtype)
    weights = weights.astype(jnp.promote_types(own, jnp.float32))
    _require_finite(function, "weights", weights)
    if np.any(weights < 0) or not np.any(weights > 0):
        raise ValueError(f"{function}: weights must be nonnegative and not all zero.")
    weights = weights.reshape(weights.shape + (1,) * (len(batch) - weights.ndim))
    return np.broadcast_to(weights, batch)


def _without_left_out(y: Any, counted: np.ndarray) -> Any:
    """Targets of weight zero may hold anything: they become a copy of the first that counts."""
    if counted.all():
        return y
    first = np.unravel_index(np.argmax(counted), counted.shape)

    def fill(leaf: Any) -> Any:
        where = counted.reshape(counted.shape + (1,) * (leaf.ndim - counted.ndim))
        return (jnp if isinstance(leaf, jax.Array) else np).where(where, leaf, leaf[first])

    return jax.tree.map(fill, y)


def as_arrays(function: str, tree: Any, name: str) -> Any:
    """Turn the leaves of a pytree (lists and tables count as leaves) into numeric arrays.

    JAX arrays stay on their device; everything else becomes NumPy, in its own precision. Columns of
    several types (whole numbers, truth values, nullable ones) become float64, what is missing NaN.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return meshes.whole(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, jnp.floating):
            return array
        for place, value in np.ndenumerate(array):
            if not isinstance(value, numbers.Real | np.bool_) and not is_missing(value):
                raise _not_numeric(function, name, value, place, getattr(leaf, "columns", None))
        numeric = [np.nan if is_missing(value) else float(value) for value in array.flat]
        return np.asarray(numeric, np.float64).reshape(array.shape)

    return jax.tree.map(convert, tree, is_leaf=lambda node: isinstance(node, list))


def is_missing(value: Any) -> bool:
    """What tables put where there is no number: None, and the singletons of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _not_numeric(function: str, name: str, value: Any, place: tuple, columns: Any) -> TypeError:
    """The error for a table's first value that is no number."""
    where = ""
    if len(place) > 1:
        where = f" in column {place[1] if columns is None else columns[place[1]]!r}"
    kind, remedy = type(value).__name__, "encode text columns as numbers first."
    if isinstance(value, np.datetime64 | np.timedelta64 | datetime.date | datetime.timedelta):
        remedy = "turn times into numbers first, as seconds or days since one of them."
    found = f"{kind} {str(value)!r}{where}"
    return TypeError(f"{function}: {name} must be numeric, got {found}; {remedy}")


def _require_finite(function: str, name: str, array: Any) -> None:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array, np.float64)))
    if len(bad):
        row, *column = bad[0]
        place = f"row {row}" + (f", column {', '.join(map(str, column))}" if column else "")
        value = np.asarray(array, np.float64)[tuple(bad[0])]
        raise ValueError(
            f"{function}: {name} must be finite, but {place} is {value} "
            f"({len(np.unique(bad[:, 0]))} rows are affected); drop or impute them first."
        )


def split_rows(function: str, rows: Rows, share: float, key: Key[Array, ""]) -> tuple[Rows, Rows]:
    """Cut off a random ``share`` of the rows (at least one) for validation."""
    if not 0.0 < share < 1.0:
        raise ValueError(
            f"{function}: validation must be a share in (0, 1), a tuple (x, y), or None; "
            f"got {share!r}."
        )
    count = max(1, round(share * rows.size))
    if count >= rows.size:
        raise ValueError(
            f"{function}: {rows.size} row(s) leave nothing to train on after a validation share of "
            f"{share:g}; pass more rows or validation=None."
        )
    order = np.asarray(jax.random.permutation(key, rows.size))
    return rows.take(order[count:]), rows.take(order[:count])


@jax.jit
def concatenate(first: Rows, second: Rows) -> Rows:
    """All rows of both."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, second)


def batch_indices(
    order: Int[Array, "N"], batch_size: int
) -> tuple[Int[Array, "S B"], Float[Array, "S B"]]:
    """Cut an order of rows into ``S`` batches; the last is filled up with others that count zero.

    Those are the first of the order, not one again and again: batch norms see them.
    """
    shape = -(-order.shape[0] // batch_size), batch_size
    counts = np.arange(shape[0] * batch_size) < order.shape[0]
    return jnp.resize(order, shape), jnp.asarray(counts.reshape(shape), jnp.float32)
