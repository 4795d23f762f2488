"""The table to train on: what its columns are, and its rows, those that are held back too."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from jaxmdn.cli import split
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.inputs import Inputs, detect, require_columns
from jaxmdn.cli.reading import Format
from jaxmdn.cli.targets import Targets

MIN_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with all targets, those of a series in the order of time.

    Attributes:
      frame: the columns of the file; the index counts its data rows from 0.
      y: targets ``[N, D]``; of a class its number.
      weights, groups, times: one for each row, or None.
      inputs, targets: which columns they are.
      form: how the file is written.
      notes: lines about rows that were left out, for the user.
    """

    frame: pd.DataFrame
    y: np.ndarray
    weights: np.ndarray | None
    groups: np.ndarray | None
    times: np.ndarray | None
    inputs: Inputs
    targets: Targets
    form: Format
    notes: list[str]

    @classmethod
    def of(cls, frame: pd.DataFrame, arguments: argparse.Namespace, form: Format) -> Table:
        """A file's rows by the options of ``jaxmdn fit``; ``UsageError`` for what is wrong."""
        if len(frame) < MIN_ROWS:
            raise UsageError(f"the table has {len(frame)} row(s); at least {MIN_ROWS} are needed.")
        targets = Targets.of(frame, arguments.target)
        inputs = _inputs(arguments, frame, targets)
        known = frame[targets.names].notna().all(axis=1)
        if known.sum() < MIN_ROWS:
            raise UsageError(
                f"the table has {known.sum()} row(s) with targets; at least {MIN_ROWS} are needed."
            )
        notes = [f"{(~known).sum()} rows lack a target: left out"] if not known.all() else []
        frame = frame[known]
        repeated = int(frame.duplicated().sum())
        notes += [f"{repeated} rows repeat others: the scores may flatter"] if repeated else []
        table = cls(
            frame,
            targets.values(frame),
            split.row_weights(frame, arguments.weights),
            split.group_labels(frame, arguments.split_by),
            split.times_of(frame, arguments.time),
            inputs,
            targets,
            form,
            notes,
        )
        times = table.times  # neighbours in time become neighbours in the table
        return table if times is None else table.take(np.argsort(times, kind="stable"))

    def take(self, rows: np.ndarray) -> Table:
        """Some rows, by number or by a mask."""
        own = {name: getattr(self, name) for name in ("y", "weights", "groups", "times")}
        parts: Any = {name: None if part is None else part[rows] for name, part in own.items()}
        frame = self.frame[rows] if rows.dtype == bool else self.frame.iloc[rows]
        return dataclasses.replace(self, frame=frame, **parts)

    def held_back(self, share: float, seed: int) -> np.ndarray:
        """Whether each row is held back, ``[N]``; see :func:`jaxmdn.cli.split.held_back`."""
        return split.held_back(len(self.y), share, seed, groups=self.groups, times=self.times)

    @property
    def prepared(self) -> pd.DataFrame:
        """The input columns: numbers, and categories as text."""
        return self.inputs.prepare(self.frame)

    def describe(self) -> list[str]:
        """Lines that say what is used and what is not."""
        notes = [f"note         {line}" for line in self.notes]
        return [*self.targets.describe(), *self.inputs.describe(), *notes]


def _inputs(arguments: argparse.Namespace, frame: pd.DataFrame, targets: Targets) -> Inputs:
    """The columns that neither the targets nor an option takes."""
    roles = [("--drop", name, "left out with --drop") for name in arguments.drop]
    for option, name, why in (
        ("--weights", arguments.weights, "row weights"),
        ("--split-by", arguments.split_by, "keeps rows together"),
        ("--time", arguments.time, "orders the rows"),
    ):
        roles += [(option, name, why)] if name else []
    others = dict.fromkeys(targets.names, "")
    for option in ("keep", "categorical"):
        require_columns(frame, getattr(arguments, option), f"--{option}")
    for option, name, why in roles:
        require_columns(frame, [name], option)
        if name in targets.names:
            raise UsageError(f"column {name!r} is named by both --target and {option}.")
        if name not in arguments.keep or option in ("--drop", "--weights"):
            others[name] = why
    return detect(
        frame, others, keep=arguments.keep, categorical=arguments.categorical,
        max_categories=arguments.max_categories,
    )  # fmt: skip
