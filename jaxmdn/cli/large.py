"""Tables larger than memory: what their columns are a sample decides; rows stream from a file.

The table is read twice, in pieces. The first time a sample is drawn, of which all is made that
``jaxmdn fit`` makes of a whole table: columns, rows to hold back, baselines, scores, pictures. The
second time all rows that are not held back are written as numbers into files that
:class:`~jaxmdn.train.ShuffledBatches` reads in any order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmdn.cli import split, training
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.reading import PARQUET, PIECE, Format, read_pieces
from jaxmdn.cli.table import Table
from jaxmdn.cli.trained import is_known
from jaxmdn.heads import Head
from jaxmdn.train import Columns, FitResult, Moments, ShuffledBatches

SAMPLE = 100_000  # most rows of the sample
SHARE = 0.5  # of the machine's memory: a table that needs more is streamed
BYTES = {".gz": 20.0, **dict.fromkeys(PARQUET, 8.0)}  # in memory, for each in the file
CSV_BYTES = 6.0


def is_large(path: Path) -> bool:
    """Whether a table is likely to need more than :data:`SHARE` of the machine's memory."""
    if not hasattr(os, "sysconf") or not path.exists():
        return False
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return BYTES.get(path.suffix, CSV_BYTES) * size > SHARE * memory


def sample(path: str | Path, form: Format, seed: int) -> tuple[pd.DataFrame, int]:
    """At most :data:`SAMPLE` rows, each as likely as any other, and the number of all rows.

    Rows are kept with a probability that is halved, for those kept before too, whenever they
    have become too many.
    """
    rng, share, count = np.random.default_rng(abs(seed)), 1.0, 0
    kept: list[pd.DataFrame] = []
    for piece in read_pieces(path, form):
        count += len(piece)
        kept.append(piece[rng.random(len(piece)) < share])
        while sum(map(len, kept)) > SAMPLE:
            share /= 2
            kept = [part[rng.random(len(part)) < 0.5] for part in kept]
    return pd.concat(kept), count


def train(
    arguments: argparse.Namespace, head: Head, test: Table, rest: Table, columns: Columns
) -> FitResult:
    """Train on all rows of the file but those that are held back.

    Args:
      head: of the targets.
      test: the sample's rows that are held back from all training.
      rest: its other rows; a tenth of them stops the training.
      columns: what becomes of gaps and categories.
    """
    valid = rest.held_back(0.1, arguments.seed)
    held = rest.take(valid & is_known(columns, rest.prepared))
    folder = Path(arguments.out).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with Rows(folder) as rows:
        _store(rows, arguments, head, (test, rest.take(valid)), columns)
        batches = ShuffledBatches(
            *rows.parts[:2],
            weights=rows.parts[2] if arguments.weights else None,
            batch_size=arguments.batch_size or training.STREAM_BATCH,
            seed=abs(arguments.seed),
        )
        held_rows = training.rows_of(held, columns)
        return training.streamed(arguments, head, batches, held_rows, rows.maps(head))


class Stored:
    """A table of numbers in a file, of which stretches of rows are read, ``[N, ...]``."""

    def __init__(self, file: Any, like: np.ndarray) -> None:
        self.file, self.dtype, self.shape = file, like.dtype, (0, *like.shape[1:])

    def append(self, rows: np.ndarray) -> None:
        """Add rows to the end."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.shape = (self.shape[0] + len(rows), *self.shape[1:])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.file.seek(start * found[:1].nbytes)
        self.file.readinto(found.data)
        return found


class Rows(contextlib.ExitStack):
    """Inputs, targets and weights in files, with their moments.

    The files have no names: whatever ends the process, a kill too, nothing stays on the disk.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.parts: list[Stored] = []
        self.moments: list[Moments] = []

    def append(self, *parts: np.ndarray) -> None:
        """Add rows ``x [N, E]``, ``y [N, D]``, ``weights [N]``."""
        if not self.parts:
            files = [tempfile.TemporaryFile(dir=self.folder) for _ in parts]  # noqa: SIM115
            self.parts = [
                Stored(self.enter_context(own), a) for own, a in zip(files, parts, strict=True)
            ]
        for stored, part in zip(self.parts, parts, strict=True):
            stored.append(part)
        new = [Moments.of(part, parts[2]) for part in parts[:2]]
        old = self.moments or new[:0]
        self.moments = [a.merge(b) for a, b in zip(old, new, strict=True)] if old else new

    def maps(self, head: Head) -> tuple[Any, Any]:
        """What standardises inputs and targets, of all rows."""
        x, y = self.moments
        return x.standardizer(), y.standardizer(head.closure) if head.real_valued else None


def _store(
    rows: Rows,
    arguments: argparse.Namespace,
    head: Head,
    held: tuple[Table, ...],
    columns: Columns,
) -> None:
    """Store all rows of the file that are not held back, as numbers."""
    lost, table = 0, held[0]
    for piece in read_pieces(arguments.file, table.form):
        piece = piece[piece[table.targets.names].notna().all(axis=1)]
        piece = piece[~_is_held(piece, arguments, held)]
        prepared, y = table.inputs.prepare(piece), table.targets.values(piece)
        known = is_known(columns, prepared) & np.isfinite(y).all(axis=1)
        lost += len(piece) - int(known.sum())
        if not known.any():
            continue
        y = table.targets.whole(y[known])
        try:
            table.targets.check(head, np.resize(y, (PIECE, y.shape[1])))  # one compiled program
        except UsageError as error:
            ends = piece.index[0] + 1, piece.index[-1] + 1
            raise UsageError("between data rows {} and {}: {}".format(*ends, error)) from None
        weights = split.row_weights(piece[known], arguments.weights)
        x = np.asarray(columns(prepared[known]), np.float64)
        rows.append(x, y, np.ones(len(y), np.float32) if weights is None else weights)
    if not rows.parts:
        raise UsageError("no row is left to train on.")
    if lost:
        print(f"  note         {lost} rows left out: gaps or classes that the sample had none of")


def _is_held(
    piece: pd.DataFrame, arguments: argparse.Namespace, held: tuple[Table, ...]
) -> np.ndarray:
    """Whether rows are held back, as the sample's: by group, from a time on, or one by one."""
    groups = split.group_labels(piece, arguments.split_by)
    if groups is not None:
        return np.isin(groups, np.concatenate([part.groups for part in held]))
    times = split.times_of(piece, arguments.time)
    if times is not None:
        return times >= min(part.times.min() for part in held if part.times is not None)
    return piece.index.isin(np.concatenate([part.frame.index for part in held]))
