"""A user's table: read, understood, and turned into numbers.

Every decision is explained in a line for the user. The encoding is plain data (JSON), so that a
saved model can encode a new table in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from jaxmdn.cli.errors import UsageError
from jaxmdn.heads import family_names

MIN_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How the columns of a table become numbers.

    Attributes:
      numeric: names of the numeric input columns, in order.
      categorical: input column -> its categories, each an indicator (0 or 1).
      targets: names of the target columns.
      dropped: column -> why it is not used.
    """

    numeric: list[str]
    categorical: dict[str, list[str]]
    targets: list[str]
    dropped: dict[str, str]

    @property
    def num_features(self) -> int:
        return len(self.numeric) + sum(len(names) for names in self.categorical.values())

    def inputs(self, frame: pd.DataFrame) -> np.ndarray:
        """Inputs ``[N, F]``, in float64; a category never seen in training is all zeros."""
        columns = [frame[name].to_numpy(np.float64)[:, None] for name in self.numeric]
        for name, categories in self.categorical.items():
            values = frame[name].astype(str).to_numpy()
            columns.append((values[:, None] == np.asarray(categories)).astype(np.float64))
        return np.concatenate(columns, axis=1)

    def outputs(self, frame: pd.DataFrame) -> np.ndarray:
        """Targets ``[N, D]``."""
        return frame[self.targets].to_numpy(np.float64)

    def describe(self) -> list[str]:
        """Lines that say what is used and what is not."""
        lines = [f"targets      {', '.join(self.targets)}"]
        if self.numeric:
            lines.append(f"numeric      {', '.join(self.numeric)}")
        for name, categories in self.categorical.items():
            lines.append(f"categorical  {name}: {', '.join(categories)}")
        lines += [f"dropped      {name}: {reason}" for name, reason in self.dropped.items()]
        return lines

    def to_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def add_format(add: Any) -> None:
    """Add the options that say how a CSV file is written."""
    add("--sep", default=",", help="column separator (default: comma)")
    add("--decimal", default=".", metavar="CHAR", help="decimal mark (default: point)")


def read_table(path: str | Path, separator: str = ",", decimal: str = ".") -> pd.DataFrame:
    """Read a CSV file, or raise ``UsageError`` with one line that says what is wrong."""
    if len(decimal) != 1 or decimal == separator:
        raise UsageError(
            f"--decimal must be a single character other than the separator, got {decimal!r}."
        )
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no file {path}; check the name and the folder.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a CSV file.")
    try:
        frame = pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path} is empty; it must have a header line and rows.") from None
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path} cannot be read as a CSV table: {reason}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise UsageError(f"{path} has two columns named {repeated[0]!r}; rename one.")
    if len(frame) == 0:
        raise UsageError(f"{path} has a header but no rows.")
    return frame


def require_columns(frame: pd.DataFrame, names: list[str], what: str) -> None:
    """Raise ``UsageError`` unless every name is a column."""
    for name in names:
        if name not in frame.columns:
            shown = ", ".join(frame.columns[:20]) + (", ..." if frame.shape[1] > 20 else "")
            close = difflib.get_close_matches(name, frame.columns, 1, 0.6) or [
                column for column in frame.columns if column.lower() == name.lower()
            ]
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if frame.shape[1] == 1:
                hint = " There is a single column: if the separator is not a comma, pass --sep."
            raise UsageError(f"there is no {what} column {name!r}; the columns are: {shown}.{hint}")


def require_finite(frame: pd.DataFrame, names: list[str], remedy: str) -> None:
    """Raise ``UsageError`` naming the first empty or infinite cell."""
    bad = np.zeros((len(frame), len(names)), bool)
    for i, name in enumerate(names):
        column = frame[name]
        bad[:, i] = column.isna()
        if types.is_numeric_dtype(column):
            bad[:, i] |= ~np.isfinite(column.to_numpy(np.float64, na_value=np.nan))
    if bad.any():
        row, column_index = np.argwhere(bad)[0]
        raise UsageError(
            f"{bad.sum()} cell(s) in {bad.any(axis=1).sum()} row(s) are empty, NaN or infinite; "
            f"the first is column {names[column_index]!r} in data row {row + 1}; affected are: "
            f"{', '.join(names[i] for i in np.flatnonzero(bad.any(axis=0)))}"
            f". {remedy}"
        )


def families_of(frame: pd.DataFrame, targets: list[str]) -> dict[str, str]:
    """Target -> family of arguments such as ``price`` and ``price:lognormal``."""
    found: dict[str, str] = {}
    for argument in targets:
        name, colon, family = argument.rpartition(":")
        if argument in frame.columns or not colon:
            name, family = argument, "normal"
        elif family not in family_names():
            close = difflib.get_close_matches(family, family_names(), 1) or ["lognormal"]
            raise UsageError(
                f"--target {argument}: there is no family {family!r}; for example "
                f"{name}:{close[0]}. Families: {', '.join(family_names())}."
            )
        if name in found:
            raise UsageError("a target column is named twice.")
        found[name] = family
    return found


def row_weights(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """The weights in a column; raises ``UsageError`` for what is no weight."""
    if name is None:
        return None
    require_columns(frame, [name], "--weights")
    require_numeric(frame, [name])
    values = frame[name].to_numpy(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad) or not (values > 0).any():
        row = int(bad[0]) if len(bad) else 0
        raise UsageError(
            f"--weights {name}: weights must be finite, at least 0 and not all 0, but data row "
            f"{row + 1} holds {frame[name].iloc[row]}."
        )
    return values


def detect(
    frame: pd.DataFrame,
    targets: list[str],
    drop: list[str],
    max_categories: int,
    weights: str | None = None,
) -> Encoding:
    """Decide what each column is; raises ``UsageError`` where nothing sensible is possible."""
    require_columns(frame, targets, "target")
    require_columns(frame, drop, "--drop")
    if weights in targets:
        raise UsageError(f"column {weights!r} is named by both --target and --weights.")
    for name in targets:
        if name in drop:
            raise UsageError(f"column {name!r} is named by both --target and --drop.")
    for name in targets:
        column = frame[name]
        if column.isna().all():
            raise UsageError(f"the target column {name!r} is empty.")
        if not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
            sample = column.dropna().iloc[0]
            if re.fullmatch(r"[-+]?\d+,\d+", str(sample)):
                raise UsageError(
                    f"the target column {name!r} holds numbers such as {sample!r}; if that is a "
                    f"decimal comma, pass --decimal ,"
                )
            raise UsageError(
                f"the target column {name!r} holds text or truth values (such as {sample!r}); "
                f"this command predicts numbers. In Python, CategoricalHead predicts classes."
            )
    dropped = dict.fromkeys(drop, "left out with --drop")
    if weights is not None:
        dropped[weights] = "row weights"
    numeric: list[str] = []
    categorical: dict[str, list[str]] = {}
    for name in frame.columns:
        if name in targets or name in dropped:
            continue
        column = frame[name]
        values = column.dropna()
        if len(values) == 0:
            dropped[name] = "it is empty"
        elif values.nunique() == 1 and not column.isna().any():
            dropped[name] = f"it is constant ({values.iloc[0]})"
        elif _counts_rows(column):
            dropped[name] = "it only numbers the rows"
        elif types.is_numeric_dtype(column):
            numeric.append(name)
        elif values.nunique() <= max_categories:
            categorical[name] = sorted(values.astype(str).unique())
        else:
            dropped[name] = (
                f"text with {values.nunique()} distinct values (more than {max_categories})"
            )
    encoding = Encoding(numeric, categorical, targets, dropped)
    if encoding.num_features == 0:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise UsageError(
            f"no input column is left: {reasons or 'the table has nothing but targets'}."
        )
    remedy = "Fill in or delete those rows, or leave columns out with --drop."
    require_finite(frame, [*targets, *numeric, *categorical], remedy)
    if len(frame) < MIN_ROWS:
        raise UsageError(f"the table has {len(frame)} row(s); at least {MIN_ROWS} are needed.")
    for name in targets:
        if frame[name].nunique() == 1:
            raise UsageError(f"the target column {name!r} is constant; there is nothing to learn.")
    return encoding


def require_numeric(frame: pd.DataFrame, names: list[str]) -> None:
    """Raise ``UsageError`` naming the first cell of a numeric column that is text."""
    for name in names:
        if types.is_numeric_dtype(frame[name]):
            continue
        text = pd.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
        if text.any():
            row = int(np.flatnonzero(text)[0])
            raise UsageError(
                f"column {name!r} must be numeric, but data row {row + 1} holds "
                f"{frame[name].iloc[row]!r}."
            )


def _counts_rows(column: pd.Series) -> bool:
    if not types.is_integer_dtype(column) or len(column) < 3:
        return False
    steps = np.diff(column.to_numpy())
    return bool((steps == 1).all()) and column.iloc[0] in (0, 1)
