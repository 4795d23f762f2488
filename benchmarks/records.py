"""Records of a run: grouped by case, and what one says of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.cases import SWEEPS

Record = dict[str, Any]
Groups = list[tuple[str, dict[str, Record]]]


def milliseconds(record: Record | None) -> float | None:
    """Median time of a record, or None if it did not run."""
    return 1e3 * record["seconds"]["median"] if record and "seconds" in record else None


def by_case(records: list[Record]) -> Iterator[tuple[str, dict[str, Record]]]:
    """Group records by operation and case: ``(label, {contender: record})``."""
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        key = (record["operation"], record["case"])
        groups.setdefault(key, {})[record["contender"]] = record
    for (_, label), group in groups.items():
        yield label, group


def ratio(record: Record | None, own: Record | None) -> float | None:
    """A record's time divided by another's, if both ran."""
    time, base = milliseconds(record), milliseconds(own)
    return time / base if time and base else None


def rivals(group: dict[str, Record]) -> dict[str, float]:
    """How many times as long as jaxmdn baselines and peers took."""
    found = {
        name: ratio(record, group.get("jaxmdn"))
        for name, record in group.items()
        if record.get("kind") in ("peer", "baseline")
    }
    return {name: value for name, value in found.items() if value}


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


def is_of_families(report: dict[str, Any]) -> bool:
    """Whether a report comes from ``--families``."""
    return any("family" in record for record in report["measurements"])
