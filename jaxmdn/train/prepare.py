"""From the caller's unit to the network's, and what can be said of the rows on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes
from jaxmdn.heads import Head, in_units
from jaxmdn.mixture.class_conditional import Labeled
from jaxmdn.train.data import Rows
from jaxmdn.train.standardize import Standardizer, TreeStandardizer, unresolved
from jaxmdn.train.targets import refuse_constant
from jaxmdn.typing import Array

Map = Standardizer | TreeStandardizer


def input_map(function: str, rows: Rows) -> Map | None:
    """What standardises the inputs; None where there is nothing that it would apply to.

    Of a single array every column is a feature; one of whole numbers ``[N]`` holds indices. Of a
    pytree the floating leaves of two axes or more have features, along the last axis.
    """
    x = rows.x
    if not isinstance(x, jax.Array | np.ndarray):
        parts = {}
        for path, leaf in jax.tree.leaves_with_path(x):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1:
                parts[jax.tree_util.keystr(path)] = Standardizer.fit(leaf, _shared(rows, leaf))
        return TreeStandardizer(parts) if parts else None
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if not floating and x.ndim == 1:
        return None
    if x.ndim != 2 and not (floating and x.ndim > 2):
        raise ValueError(
            f"{function}: to standardise, x must have shape [N, F], got {list(x.shape)}; reshape "
            f"it (a single feature is x[:, None]), or pass standardize_x=False."
        )
    return Standardizer.fit(x, _shared(rows, x))


def _shared(rows: Rows, leaf: Any) -> np.ndarray:
    """The weights as far as a leaf has their axes: ``[N, T]`` for ``[N, T, F]``, else ``[N]``."""
    weights = np.asarray(rows.weights, np.float64)
    while weights.ndim > 1 and weights.shape != leaf.shape[:-1][: weights.ndim]:
        weights = weights.sum(axis=-1)
    return weights


def target_map(function: str, head: Head, rows: Rows) -> Standardizer | None:
    """What standardises the targets; None for a density whose targets have no unit."""
    if not head.real_valued:
        return None
    targets = rows.y.y if isinstance(rows.y, Labeled) else rows.y
    checks.require_floating(function, "y", targets)
    checks.require_last_axis(function, "y", targets, head.event_dim, "event dimension D")
    y_map = Standardizer.fit(targets, rows.weights, closure=head.closure)
    refuse_constant(function, targets)
    fine = unresolved(targets)
    if len(fine):
        warnings.warn(
            f"{function}: column {fine[0]} of y varies little around a large value, more finely "
            f"than {jnp.result_type(float)} resolves; result.log_prob is exact, but predict's "
            f"densities are rounded. Subtract a constant from the column first.",
            stacklevel=3,
        )
    return y_map


def map_targets(y_map: Callable[[Any], Any] | None, y: Any) -> Any:
    """Targets in the network's unit."""
    if y_map is None:
        return y
    return y._replace(y=y_map(y.y)) if isinstance(y, Labeled) else y_map(y)


def standardized(rows: Rows, x_map: Map | None, y_map: Standardizer | None) -> Rows:
    """Rows in the network's unit, on the device."""
    return _mapped(rows, x_map, y_map).on_device()


def on_host(rows: Rows, x_map: Map | None, y_map: Standardizer | None, dtype: Any) -> Rows:
    """The same as NumPy arrays, those that are mapped in a dtype: for threads without JAX."""
    maps = (one and partial(one.on_host, dtype=dtype) for one in (x_map, y_map))
    return _mapped(rows, *maps)


def _mapped(rows: Rows, x_map: Any, y_map: Any) -> Rows:
    x = rows.x if x_map is None else x_map(rows.x)
    return Rows(x, map_targets(y_map, rows.y), rows.weights)


def mean_log_det(y_map: Standardizer | None, head: Head, rows: Rows | None) -> float:
    """What brings the mean NLL of rows in the network's unit back to the targets' own."""
    if y_map is None or rows is None:
        return 0.0
    if not any(own.atoms for own in head.support):
        return y_map.log_det
    y, weights = rows.flat_targets
    y = meshes.whole(y.y if isinstance(y, Labeled) else y)
    each = y_map.log_det_at(head.support, np.asarray(y, np.float64) * y_map.scale + y_map.shift)
    return float(np.average(each, weights=np.asarray(meshes.whole(weights))))


def start_from(rows: Rows, model: Any, key: Array) -> None:
    """Let a network start as the targets' marginal density, in units of their size; in place."""
    y, weights = rows.flat_targets
    if (head := in_units(model.head, y, weights)) != model.head:
        model.head = head
    model.initialize(key, y, weights=weights)
