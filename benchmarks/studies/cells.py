"""A study's records: one JSON file that grows cell by cell, so that a run can be continued."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment

RESULTS = Path(__file__).parents[1] / "results" / "studies"

Cell = dict[str, Any]


def parser(name: str, summary: str | None, *, seeds: int) -> argparse.ArgumentParser:
    """The options that every study takes."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.studies.{name}", description=summary)
    made.add_argument("--data", type=Path, help="folder with uci/ and taxi/")
    made.add_argument("--seeds", type=int, default=seeds)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--report", action="store_true", help="train nothing: draw what is there")
    return made


def complete(
    path: Path, cells: Iterable[Cell], run: Callable[..., dict[str, Any] | None], *, report: bool
) -> list[Cell]:
    """The records of a file, after every cell that it lacks has been run.

    Args:
      path: of the records; written anew, whole, after every cell.
      cells: what to run, each the arguments of ``run``; those of a cell that returns None are
        passed over.
      run: returns what was measured.
      report: run nothing.

    Returns:
      A dictionary a cell: its arguments, what was measured, ``total_seconds``.
    """
    found = json.loads(path.read_text())["records"] if path.exists() else []
    if report:
        return found
    cells = list(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, 1):
        if any(cell.items() <= record.items() for record in found):
            continue
        start = time.perf_counter()
        measured = run(**cell)
        if measured is None:
            continue
        found.append(cell | measured | {"total_seconds": time.perf_counter() - start})
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**environment.describe(), "records": found}))
        part.replace(path)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in measured.items() if isinstance(v, float))
        print(f"{number}/{len(cells)} {' '.join(map(str, cell.values()))}: {shown}", flush=True)
    return found


def values(records: list[Cell], measured: str, /, **cell: Any) -> np.ndarray:
    """What was measured under a name in all records of a kind."""
    own = [r for r in records if cell.items() <= r.items()]
    return np.array([record[measured] for record in own if measured in record], float)


def show(numbers: np.ndarray, digits: int = 3) -> str:
    """Mean and standard error, as text; empty without numbers."""
    if not len(numbers):
        return ""
    text = f"{numbers.mean():.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {numbers.std(ddof=1) / len(numbers) ** 0.5:.{digits}f}"
    return text


def table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    """Markdown."""
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])
