"""Tables of the scores of all splits that ran."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = {
    "nll": "NLL",
    "nll_fresh": "NLL, no repeats",
    "rmse": "RMSE",
    "crps": "CRPS",
    "cde": "CDE loss",
    "coverage": "in 90 %",
    "width": "width",
    "seconds": "s a split",
}
LOWER = ("nll", "nll_fresh", "rmse", "crps", "cde")


def load(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Records by set and contender: ``FOLDER/SET/CONTENDER-SPLIT.json``."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["set"], {}).setdefault(record["contender"], []).append(record)
    return found


def published(path: Path | None) -> dict[tuple[str, str], tuple[float, str]]:
    """The best published mean by set and metric, with its method; other splits do not count."""
    best: dict[tuple[str, str], tuple[float, str]] = {}
    if path is None:
        return best
    with path.open() as file:
        for row in csv.DictReader(file):
            if "10-fold" in row.get("spread_kind", "") or "own" in row.get("source", ""):
                continue
            key, value = (row["dataset"], row["metric"]), float(row["mean"])
            if key not in best or value < best[key][0]:
                best[key] = (value, row["method"])
    return best


def table(records: dict[str, list[dict[str, Any]]], best: dict[str, tuple[float, str]]) -> str:
    """One set: a row a contender, mean and standard error over the splits, the best in bold."""
    columns = [
        name
        for name in COLUMNS
        if any(name in r["scores"] for rows in records.values() for r in rows)
    ]
    lines = ["| | splits | " + " | ".join(COLUMNS[name] for name in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    means = {name: {c: _column(rows, name) for c, rows in records.items()} for name in columns}
    for contender, rows in records.items():
        cells = []
        for name in columns:
            values = means[name][contender]
            leading = (
                name in LOWER
                and len(values)
                and values.mean()
                <= min(other.mean() for other in means[name].values() if len(other))
            )
            cells.append(_cell(values, bold=leading))
        lines.append(f"| {contender} | {len(rows)} | " + " | ".join(cells) + " |")
    if best:
        cells = [f"{best[name][0]:g} ({best[name][1]})" if name in best else "" for name in columns]
        lines.append("| best published | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(rows: Iterable[dict[str, Any]], name: str) -> np.ndarray:
    values = [row["scores"].get(name) for row in rows]
    return np.array([value for value in values if value is not None], float)


def _cell(values: np.ndarray, *, bold: bool) -> str:
    if not len(values):
        return ""
    text = f"{values.mean():.3f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"
    return f"**{text}**" if bold else text


def text(folder: Path, figures: Path | None) -> str:
    """All tables, as Markdown."""
    best, parts = published(figures), []
    for name, records in load(folder).items():
        known = {metric: value for (own, metric), value in best.items() if name.startswith(own)}
        cells = {r["scores"].get("cell") for rows in records.values() for r in rows} - {None}
        how = f"NLL of cells of width {max(cells):g}\n\n" if cells else ""
        parts.append(f"### {name}\n\n{how}{table(records, known)}\n")
    return "\n".join(parts)
