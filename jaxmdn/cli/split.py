"""Which rows are held back: at random, whole groups, or the last in time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.inputs import as_dates, require_columns, require_numeric
from jaxmdn.cli.reading import as_numbers


def held_back(
    count: int,
    share: float,
    seed: int,
    *,
    groups: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """Whether each row is held back, ``[N]``: about a share of them, at least 1, at most N - 2.

    Args:
      count: N.
      share: in (0, 1).
      seed: of the random choice.
      groups: a label for each row; rows of one group stay together.
      times: the last rows are held back, those of the same time together.
    """
    number = min(max(1, round(share * count)), count - 2)
    if times is not None:
        chosen = times >= np.sort(times)[count - number]
        if chosen.all():
            raise UsageError("--time: all rows have the same time; leave --time out.")
        return chosen
    rng = np.random.default_rng(abs(seed))
    if groups is None:
        return np.isin(np.arange(count), rng.permutation(count)[:number])
    names, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UsageError("--split-by: there is a single group; name a column with several values.")
    order = rng.permutation(len(names))
    enough = 1 + int(np.searchsorted(np.cumsum(sizes[order]), number))
    return np.isin(member, order[: min(enough, len(names) - 1)])


def group_labels(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """The labels in a column, as text; an empty cell is a group, too."""
    if name is None:
        return None
    require_columns(frame, [name], "--split-by")
    return frame[name].astype(str).to_numpy(str)


def times_of(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """The times in a column of dates or numbers."""
    if name is None:
        return None
    require_columns(frame, [name], "--time")
    times = as_dates(frame[name])
    if times is None:
        require_numeric(frame, name, "--time takes numbers, or dates such as 2024-12-31.")
        times = as_numbers(frame[name])
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise UsageError(f"--time {name}: data row {frame.index[bad[0]] + 1} has no time.")
    return times.to_numpy()


def row_weights(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """The weights in a column; raises ``UsageError`` for what is no weight."""
    if name is None:
        return None
    require_columns(frame, [name], "--weights")
    require_numeric(frame, name)
    values = as_numbers(frame[name]).to_numpy()
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad) or not (values > 0).any():
        row = int(bad[0]) if len(bad) else 0
        raise UsageError(
            f"--weights {name}: weights must be finite, at least 0 and not all 0, but data row "
            f"{frame.index[row] + 1} holds {frame[name].iloc[row]}."
        )
    return values
