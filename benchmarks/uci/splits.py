"""Folders of data in the layout of the published results, and their train and test parts.

data.txt               numbers, white space between them
index_features.txt     columns of the inputs
index_target.txt       column of the target
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmdn.train.targets import coarse_steps

LARGE = 20_000  # of more rows there are five splits, of fewer twenty


class Split(NamedTuple):
    """Rows to train on and rows to score.

    Attributes:
      x, y: ``[N, F]``, ``[N, 1]``.
      x_test, y_test: ``[M, F]``, ``[M, 1]``.
      repeated: which test rows have the inputs of a training row, ``[M]``.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    repeated: np.ndarray

    @property
    def cell(self) -> float | None:
        """The step of a coarse grid of targets, whose cells are scored; None: by the density."""
        return float(coarse_steps(np.concatenate([self.y, self.y_test]))[0]) or None


def find_sets(folder: Path) -> list[str]:
    """The sets in a folder."""
    found = sorted(path.parent.name for path in folder.glob("*/data.txt"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no set: no folder in it has a data.txt.")
    return found


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[N, F]`` and targets ``[N, 1]``."""
    table = np.loadtxt(folder / "data.txt")
    columns = np.loadtxt(folder / "index_features.txt").astype(int)
    target = np.loadtxt(folder / "index_target.txt").astype(int)
    return table[:, np.atleast_1d(columns)], table[:, np.atleast_1d(target)]


def num_splits(rows: int) -> int:
    """How many splits are published for so many rows."""
    return 5 if rows > LARGE else 20


def split(x: np.ndarray, y: np.ndarray, number: int) -> Split:
    """The published split of this number (Hernandez-Lobato and Adams 2015): nine tenths train."""
    generator = np.random.RandomState(1)
    for _ in range(number + 1):
        order = generator.choice(range(len(x)), len(x), replace=False)
    train, test = np.split(order, [round(0.9 * len(x))])
    known = {row.tobytes() for row in x[train]}
    repeated = np.array([row.tobytes() in known for row in x[test]])
    return Split(x[train], y[train], x[test], y[test], repeated)
