"""Which columns of a table are inputs, and how they become numbers.

Every decision is a line for the user. What was decided is plain data (JSON), so that a saved model
reads a new table in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.reading import UNITS, as_numbers, is_text

# Of dates; the first that reads a whole column, unless another reads it otherwise.
DATES = (
    "ISO8601", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%d.%m.%y",
    "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M",
    "%d %b %Y", "%d %B %Y", "%b %d, %Y",
)  # fmt: skip
LIKE_A_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}.*|\d{4}-\d\d|\d{1,2} \w+ \d{4}|\w+ \d.*")
LIKE_A_KEY = re.compile(r"(?i)(.*[_ .-])?(id|key|uuid|index|nr|no|row|unnamed: 0)|.*[a-z]ID")
COMMAS = re.compile(r"[-+]?(\d+([.,]\d{3})*,\d+|\d{1,3}(,\d{3})+\.\d+)")  # numbers of some country
MOST = 0.8  # of a column's cells are numbers: then it is a column of numbers


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input columns of a table, in its order.

    Attributes:
      kinds: column -> "number", "category", or of dates their format.
      dropped: column -> why it is no input.
    """

    kinds: dict[str, str]
    dropped: dict[str, str]

    @property
    def categories(self) -> list[str]:
        """The columns that hold categories."""
        return [name for name, kind in self.kinds.items() if kind == "category"]

    def prepare(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The input columns: numbers in float64 (dates in days since 1970), categories as text."""
        require_columns(frame, self.kinds, "input")
        return pd.DataFrame(
            {name: _prepare(frame[name], kind) for name, kind in self.kinds.items()},
            index=frame.index,
        )

    def describe(self) -> list[str]:
        """Lines that say what is used and what is not."""
        numbers = [name for name, kind in self.kinds.items() if kind == "number"]
        lines = [f"numeric      {', '.join(numbers)}"] if numbers else []
        for name, kind in self.kinds.items():
            if kind not in ("number", "category"):
                lines.append(f"date         {name}: in days, read as {kind}")
        if self.categories:
            lines.append(f"categorical  {', '.join(self.categories)}")
        return [*lines, *(f"dropped      {name}: {why}" for name, why in self.dropped.items())]


def detect(
    frame: pd.DataFrame,
    others: Mapping[str, str],
    *,
    keep: Iterable[str] = (),
    categorical: Iterable[str] = (),
    max_categories: int = 20,
) -> Inputs:
    """Decide what each column is.

    Args:
      frame: the table.
      others: columns that are no inputs, and why ("" for targets, which need no word).
      keep: columns that are inputs though they look like keys.
      categorical: columns that hold categories though they are numbers, or many.
      max_categories: most values of a category that was not named.

    Raises:
      UsageError: where a column is ambiguous, or no input is left.
    """
    kinds, dropped = {}, {name: why for name, why in others.items() if why}
    for name in frame.columns:
        if name in others:
            continue
        kind = "category" if name in categorical else _kind(frame[name])
        reason = None if name in keep else _reason(frame[name], kind)
        if kind == "category" and not reason and name not in (*keep, *categorical):
            distinct = frame[name].nunique()
            if distinct > max_categories:
                reason = f"text with {distinct} distinct values (more than {max_categories})"
        if reason:
            dropped[name] = reason
        else:
            kinds[name] = kind
    if not kinds:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise UsageError(
            f"no input column is left: {reasons or 'the table has nothing but targets'}."
        )
    found = Inputs(kinds, dropped)
    require_finite(found.prepare(frame))
    return found


def require_columns(frame: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Raise ``UsageError`` unless every name is a column."""
    for name in names:
        if name not in frame.columns:
            shown = ", ".join(frame.columns[:20]) + (", ..." if frame.shape[1] > 20 else "")
            close = difflib.get_close_matches(name, frame.columns, 1, 0.6) or [
                column for column in frame.columns if column.lower() == name.lower()
            ]
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if frame.shape[1] == 1:
                hint = " There is a single column: is it another separator? Pass --sep."
            raise UsageError(f"there is no {what} column {name!r}; the columns are: {shown}.{hint}")


def require_numeric(frame: pd.DataFrame, name: str, remedy: str = "") -> None:
    """Raise ``UsageError`` naming the first cell of a column that is no number."""
    column = frame[name]
    bad = np.flatnonzero(as_numbers(column).isna() & column.notna())
    if not len(bad):
        return
    cell = column.iloc[bad[0]]
    if COMMAS.fullmatch(str(cell).strip(UNITS)):
        remedy = (
            "If that is a decimal comma, pass --decimal , and if it is between thousands, "
            "--thousands ,"
        )
    raise UsageError(
        f"column {name!r} must be numeric, but {len(bad)} of its cells are not, the first in data "
        f"row {frame.index[bad[0]] + 1}: {short(cell)}. {remedy}".rstrip()
    )


def short(cell: Any) -> str:
    """A cell as it is shown, cut where it is long."""
    return repr(cell if len(str(cell)) <= 40 else f"{str(cell)[:40]}...")


def require_finite(
    frame: pd.DataFrame, remedy: str = "leave its cells empty, or --drop it"
) -> None:
    """Raise ``UsageError`` naming the first infinite number."""
    for name in frame.columns:
        if types.is_float_dtype(frame[name]):
            bad = np.flatnonzero(np.isinf(frame[name]))
            if len(bad):
                raise UsageError(
                    f"column {name!r} is infinite in {len(bad)} row(s), the first data row "
                    f"{frame.index[bad[0]] + 1}; correct it, {remedy}."
                )


def _kind(column: pd.Series) -> str:
    """ "number", "category", or the format of dates; "" where that is not to be told."""
    if types.is_datetime64_any_dtype(column):
        return "ISO8601"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    if types.is_numeric_dtype(column) or types.is_bool_dtype(column):
        return "number"
    held = column.dropna()
    if held.map(lambda value: isinstance(value, bool)).all():
        return "number"
    if not held.map(lambda value: isinstance(value, (str, numbers.Number))).all():
        return "objects"
    text = held.astype(str)
    commas = text.str.strip(UNITS).str.fullmatch(COMMAS)
    if (commas | ~_odd(text)).mean() >= MOST:
        odd = [short(cell) for cell in text[_odd(text)][:1]]
        require_numeric(
            column.to_frame(), str(column.name),
            f"If that stands for an empty cell, pass --missing {''.join(odd)}; else --categorical "
            f"{column.name}, or --drop {column.name}.",
        )  # fmt: skip
        return "number"
    if not text.str.fullmatch(LIKE_A_DATE).all():
        return "category"
    found = {form: days for form in DATES if (days := _days(held, form)).notna().all()}
    readings = {tuple(days) for days in found.values()}
    if len(readings) > 1:
        return "ambiguous: " + " or ".join(found)
    return next(iter(found)) if found else "category"


def _odd(text: pd.Series) -> pd.Series:
    return pd.to_numeric(text, errors="coerce").isna()


def _reason(column: pd.Series, kind: str) -> str | None:
    """Why a column is no input; None if it is one."""
    name, values = str(column.name), column.dropna()
    if kind == "objects":
        return f"it holds {type(values.iloc[0]).__name__} objects"
    if kind.startswith("ambiguous: "):
        example = values.iloc[0]
        return f"dates such as {example} are {kind}; write them as 2024-12-31"
    if len(values) == 0:
        return "it is empty"
    if values.nunique() == 1 and len(values) == len(column):
        return f"it is constant ({values.iloc[0]})"
    if types.is_integer_dtype(column) and len(column) > 2:
        place = column.to_numpy(np.int64) - np.asarray(column.index)
        if (place == place[0]).all() and place[0] in (0, 1):
            return "it only numbers the rows"
        if LIKE_A_KEY.fullmatch(name) and values.is_unique:
            return f"it seems to be a key (--keep {name} makes it an input)"
    return None


def _prepare(column: pd.Series, kind: str) -> pd.Series:
    if kind == "category":
        return column.astype(object).where(column.notna(), None)
    if kind != "number":
        days = _days(column, kind)
        bad = np.flatnonzero(days.isna() & column.notna())
        if len(bad):
            raise UsageError(
                f"column {column.name!r} holds dates ({kind}), but data row "
                f"{column.index[bad[0]] + 1} is {column.iloc[bad[0]]!r}; correct the cell, or "
                f"leave it empty."
            )
        return days
    if is_text(column):
        column = column.map(lambda value: float(value) if isinstance(value, bool) else value)
        require_numeric(column.to_frame(), str(column.name), "Correct the cell, or empty it.")
    return as_numbers(column)


def _days(column: pd.Series, form: str) -> pd.Series:
    """Days since 1970-01-01, with their parts; NaN for what is no date of this format."""
    if not types.is_datetime64_any_dtype(column):
        column = column.astype(object).map(lambda value: value if isinstance(value, str) else None)
    times = pd.to_datetime(column, format=form, errors="coerce", utc=True)
    return (times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)


def as_dates(column: pd.Series) -> pd.Series | None:
    """Days since 1970 of a column of dates; None for one that holds none."""
    kind = _kind(column)
    if kind in ("number", "category", "objects") or kind.startswith("ambiguous"):
        return None
    return _days(column, kind)
