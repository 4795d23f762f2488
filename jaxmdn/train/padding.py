"""Rows filled up to a power of two, so that tables of any length share a few compiled programs."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxmdn.components import batch

FEWEST, MOST = 16, 2**14  # rows: below, all tables are one program; above, each has its own


def size(count: int) -> int:
    """How many rows so many become.

    >>> [size(n) for n in (1, 16, 17, 1000, 20_000)]
    [16, 16, 32, 1024, 20000]
    """
    return count if count > MOST else max(FEWEST, 1 << max(count - 1, 0).bit_length())


def fill(tree: Any) -> tuple[int, Any]:
    """How many rows a pytree has, and the same with the last row repeated, in NumPy.

    Traced arrays, those on several devices and those without rows stay as they are.
    """
    leaves = jax.tree.leaves(tree)
    counts = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in leaves}
    own = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if any(isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) > 1 for leaf in own):
        return min(counts), tree
    if len(counts) != 1 or 0 in counts or size(min(counts)) in counts:
        return min(counts, default=0), tree
    count = counts.pop()
    index = np.minimum(np.arange(size(count)), count - 1)
    return count, jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def cut(found: Any, count: int) -> Any:
    """The first rows of an array or a density, cut on the host: nothing is compiled for it.

    ``jax.numpy.asarray`` of a new shape would be.
    """
    if isinstance(found, jax.Array):
        return found if found.shape[0] == count else jax.device_put(np.asarray(found)[:count])
    if found.batch_shape[0] == count:
        return found
    return batch.spread(found).map_parameters(lambda leaf, rank: cut(leaf, count))
