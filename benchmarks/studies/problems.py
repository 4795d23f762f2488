"""The problems of the studies: rows to train on, rows to score, a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmdn
from benchmarks.uci import splits

UCI = {"boston": "bostonHousing", "concrete": "concrete", "energy": "energy"}
# Greater New York without trips that left it; degrees.
BOX = ((-74.04, -73.75), (40.62, 40.86))


class Problem(NamedTuple):
    """Rows and a head.

    Attributes:
      x, y, x_test, y_test: ``[N, F]``, ``[N, D]``.
      head: what to train.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    head: Any


def load(name: str, data: Path | None, seed: int) -> Problem:
    """One problem; ``seed`` draws the rows or the split."""
    if name == "inverse":
        problem = jaxmdn.datasets.InverseProblem()
        keys = jax.random.split(jax.random.key(seed), 2)
        rows = [*problem.sample(keys[0], 4000), *problem.sample(keys[1], 5000)]
        return Problem(*map(np.asarray, rows), jaxmdn.NormalHead(5, 1))
    if data is None:
        raise SystemExit(f"the problem {name!r} needs --data DIR.")
    if name == "taxi":
        return _taxi(data / "taxi" / "nyc_traffic_a.csv", seed)
    own = splits.split(*splits.read(data / "uci" / UCI[name]), seed)
    return Problem(own.x, own.y, own.x_test, own.y_test, jaxmdn.NormalHead(5, 1))


def _trips(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs ``[N, 5]``, drop-offs ``[N, 2]`` and fares ``[N, 1]`` of the trips in the box."""
    table = np.loadtxt(path, delimiter=",")
    fare, weekday, hour, lon, lat, *ends, _ = table.T
    inside = np.ones(len(table), bool)
    for values, (low, high) in zip((lon, lat, *ends), (*BOX, *BOX), strict=True):
        inside &= (values >= low) & (values <= high)
    turn = 2 * np.pi * hour / 24
    x = np.column_stack([lon, lat, np.cos(turn), np.sin(turn), weekday >= 6])[inside]
    return x, np.column_stack(ends)[inside], fare[inside, None]


def _taxi(path: Path, seed: int) -> Problem:
    """Where a trip ends, from where and when it began: two outputs with many modes."""
    x, y, _ = _trips(path)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:4000], order[4000:9000]
    head = jaxmdn.NormalHead(10, 2, covariance="full", min_scale=1e-2)
    return Problem(x[train], y[train], x[test], y[test], head)


def taxi_fares(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a trip costs, from where and when it began and where it ends."""
    x, ends, fares = _trips(path)
    return np.concatenate([x, ends], axis=1), fares
