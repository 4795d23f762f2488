"""Which rows are held out together: folds of rows, of groups, of stretches of time."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmdn import checks


def assign_folds(
    num_rows: int,
    num_folds: int,
    *,
    groups: Any = None,
    ordered: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Return the fold of each row, ``[N]``, integers in ``0 .. num_folds - 1``.

    Args:
      num_rows: N.
      num_folds: how many, at most N (or the number of groups).
      groups: a label for each row, ``[N]``: rows with the same label are held out together. The
        largest groups are dealt first, each to the fold that is smallest so far.
      ordered: folds are stretches of neighbouring rows, as for a series in time.
      seed: of the random deal.

    Raises:
      ValueError: for more folds than rows or groups, for both options at once, or labels of another
        length.

    >>> [int(fold) for fold in assign_folds(6, 2, ordered=True)]
    [0, 0, 0, 1, 1, 1]
    >>> folds = assign_folds(5, 2, groups=["a", "b", "a", "c", "b"])
    >>> bool(folds[0] == folds[2]), bool(folds[1] == folds[4])
    (True, True)
    """
    checks.require_count("assign_folds", "num_folds", num_folds, minimum=2)
    if groups is not None and ordered:
        raise ValueError("assign_folds: groups and ordered exclude each other; pass one of them.")
    names = np.arange(num_rows) if groups is None else np.asarray(groups)
    if names.shape != (num_rows,):
        raise ValueError(
            f"assign_folds: groups must have shape [{num_rows}], a label for each row, got "
            f"{list(names.shape)}."
        )
    _, member, size = np.unique(names, return_inverse=True, return_counts=True)
    if num_folds > len(size):
        what = "rows" if groups is None else "groups"
        raise ValueError(f"assign_folds: {len(size)} {what} do not make {num_folds} folds.")
    if ordered:
        return np.arange(num_rows) * num_folds // num_rows
    order = np.random.default_rng(seed).permutation(len(size))
    if groups is None:
        fold = np.empty(num_rows, np.int64)
        fold[order] = np.arange(num_rows) % num_folds
        return fold
    order = order[np.argsort(-size[order], kind="stable")]
    filled, chosen = np.zeros(num_folds), np.empty(len(size), np.int64)
    for group in order:
        chosen[group] = np.argmin(filled)
        filled[chosen[group]] += size[group]
    return chosen[member]
