"""What tables and plots read off the records: groups by case, curves along a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.cases import SWEEPS

Record = dict[str, Any]


def milliseconds(record: Record) -> float | None:
    """Median time of a record, or None if it did not run."""
    return 1e3 * record["seconds"]["median"] if "seconds" in record else None


def by_case(records: list[Record]) -> Iterator[tuple[str, dict[str, Record]]]:
    """Group records by operation and case: ``(label, {contender: record})``."""
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        key = (record["operation"], record["case"])
        groups.setdefault(key, {})[record["contender"]] = record
    for (_, label), group in groups.items():
        yield label, group


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log time over log size, over the last three sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0])


def curves(records: list[Record], sweep: str) -> dict[str, tuple[list[float], list[float]]]:
    """Sizes and median seconds by contender along one sweep."""
    size = SWEEPS[sweep][0]
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        if record["sweep"] == sweep and "seconds" in record:
            sizes, seconds = found.setdefault(record["contender"], ([], []))
            sizes.append(float(record[size]))
            seconds.append(record["seconds"]["median"])
    return found
