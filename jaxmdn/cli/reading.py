"""A user's file as a table: separators, decimal marks, encodings, units; what is wrong with it."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from jaxmdn.cli.errors import UsageError

SEPARATORS = (",", ";", "\t", "|")
PARQUET = (".parquet", ".pq")
PIECE = 50_000  # rows of a piece of a large table
UNITS = " \u00a0\u202f$€£¥%"  # around a number, they are left out


@dataclasses.dataclass(frozen=True)
class Format:
    """How a text file holds a table; what is None is found out, or is as usual.

    Attributes:
      sep: column separator; None: the one that cuts the header into most names.
      decimal: decimal mark; None: a point.
      thousands: mark between thousands.
      encoding: of the text; None: UTF-8.
      missing: what stands for an empty cell beside "", "NA", "NaN", "null", "None".
    """

    sep: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    missing: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, arguments: Any, before: Format | None = None) -> Format:
        """What was asked for on the command line; the rest as ``before``."""
        own = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)}
        return dataclasses.replace(before or cls(), **{k: v for k, v in own.items() if v})


def add_format(add: Any, otherwise: str = "") -> None:
    """Add the options that say how a text file holds a table."""
    add("--sep", help=f"column separator, or 'tab' ({otherwise or 'default: found in the header'})")
    add("--decimal", metavar="CHAR", help=f"decimal mark ({otherwise or 'default: a point'})")
    add("--thousands", metavar="CHAR", help="mark between thousands, such as ,")
    add("--encoding", metavar="NAME", help=f"such as latin-1 ({otherwise or 'default: utf-8'})")
    add(
        "--missing", action="append", default=[], metavar="TEXT",
        help="what else stands for an empty cell, such as '?'; repeatable",
    )  # fmt: skip


def read_table(path: str | Path, form: Format | None = None) -> pd.DataFrame:
    """Read a CSV or Parquet file; ``UsageError`` says in one line what is wrong with it.

    Lines that are empty are left out. Columns of text that are numbers with a unit around them
    (``$12.30``, ``5 %``) become numbers.
    """
    return next(read_pieces(path, form, None))


def read_pieces(
    path: str | Path, form: Format | None = None, rows: int | None = PIECE
) -> Iterator[pd.DataFrame]:
    """The same so many rows at a time (None: all at once); the index counts on."""
    path, form, count = Path(path), form or Format(), 0
    if not path.exists():
        raise UsageError(f"there is no file {path}; check the name and the folder.")
    if path.is_dir() and path.suffix not in PARQUET:
        raise UsageError(f"{path} is a folder; name a CSV or Parquet file.")
    for frame in (_parquet if path.suffix in PARQUET else _csv)(path, form, rows):
        frame.columns = pd.Index([str(name).strip() for name in frame.columns])
        repeated = frame.columns[frame.columns.duplicated()]
        if len(repeated):
            raise UsageError(f"{path} has two columns named {repeated[0]!r}; rename one.")
        frame = frame.dropna(how="all").reset_index(drop=True)
        frame.index += count
        for name in frame.columns:
            if is_text(frame[name]):
                frame[name] = _without_units(frame[name], form)
        count += len(frame)
        if len(frame):
            yield frame
    if count == 0:
        raise UsageError(f"{path} has a header but no rows.")


def is_text(column: pd.Series) -> bool:
    """Whether a column holds text, or text among other things."""
    return types.is_string_dtype(column) or types.is_object_dtype(column)


def as_numbers(column: pd.Series) -> pd.Series:
    """Numbers as float64; what is no number NaN."""
    if types.is_numeric_dtype(column):
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan), index=column.index)
    return pd.to_numeric(column, errors="coerce").astype(np.float64)


def _parquet(path: Path, form: Format, rows: int | None) -> Iterator[pd.DataFrame]:
    try:
        if rows is None:
            yield pd.read_parquet(path)
            return
        from pyarrow.parquet import ParquetFile

        inside = sorted(own for own in path.rglob("*.*") if own.suffix in PARQUET)
        for file in inside if path.is_dir() else [path]:
            with ParquetFile(file, buffer_size=2**20) as table:
                for batch in table.iter_batches(rows, use_threads=False):
                    yield batch.to_pandas()
    except ImportError:
        raise UsageError(f"{path}: Parquet needs pyarrow; pip install pyarrow.") from None
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{path} cannot be read as a Parquet table: {reason}") from None


def _csv(path: Path, form: Format, rows: int | None) -> Iterator[pd.DataFrame]:
    with _text(path, form.encoding) as text:
        lines = [line for line in itertools.islice(text, 100) if line.strip()]
        text.seek(0)
        options, reader = _options(path, lines, form), None
        try:
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    reader = reader or pd.read_csv(text, **options, iterator=True)
                    frame = reader.read(rows)
                yield frame
        except StopIteration:
            return
        except pd.errors.ParserWarning:
            raise UsageError(
                f"{path} has rows with more cells than its first line has names, by separator "
                f"{options['sep']!r}; is there text above the header, or another --sep?"
            ) from None
        except (pd.errors.ParserError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"{path} cannot be read as a CSV table by separator {options['sep']!r}: {reason}"
            ) from None


def _options(path: Path, lines: list[str], form: Format) -> dict[str, Any]:
    """How pandas is to read a text that begins so."""
    if not lines:
        raise UsageError(f"{path} is empty; it must have a header line and rows.")
    sep = {"tab": "\t", "\\t": "\t"}.get(form.sep or "", form.sep) or max(
        SEPARATORS, key=lambda own: len(_cells(lines[0], own))
    )
    decimal = form.decimal or "."
    if len(decimal) != 1 or decimal == sep:
        raise UsageError(
            f"--decimal must be a single character other than the separator, got {decimal!r} and "
            f"{sep!r}; --sep sets the latter."
        )
    if len(sep) != 1 or form.thousands == decimal:  # a quoted cell may hold the separator
        raise UsageError("--sep must be one character, and --thousands other than --decimal.")
    names = [name.strip() for name in _cells(lines[0], sep)]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise UsageError(f"{path} has two columns named {repeated[0]!r}; rename one.")
    if len(lines) > 1 and all(re.fullmatch(r"[-+]?[\d.,eE]+", name) for name in names):
        raise UsageError(f"{path} has only numbers in its first line; a header must name columns.")
    return {
        "sep": sep, "decimal": decimal, "thousands": form.thousands, "na_values": form.missing,
        "skipinitialspace": True, "index_col": False, "low_memory": False,
    }  # fmt: skip


def _text(path: Path, encoding: str | None) -> io.TextIOWrapper:
    """The file as text, all of which can be decoded."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rb") as file:
        start = file.read(2)
    if start == b"PK":
        raise UsageError(f"{path} is a spreadsheet or an archive; save the table as CSV.")
    if start in (b"\xff\xfe", b"\xfe\xff"):
        encoding = encoding or "utf-16"
    encoding, line = encoding or "utf-8-sig", 1
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        with read(path, "rb") as file:
            while data := file.read(2**20):
                decoder.decode(data)
                line += data.count(b"\n")
        decoder.decode(b"", final=True)
    except LookupError:
        raise UsageError(f"--encoding {encoding}: there is no such encoding.") from None
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise UsageError(
            f"{path} is no {error.encoding} text: line {line} holds the byte "
            f"0x{error.object[error.start]:02x}; pass --encoding, such as latin-1 or cp1252."
        ) from None
    return read(path, "rt", encoding=encoding)


def _cells(line: str, sep: str) -> list[str]:
    return next(csv.reader([line], delimiter=sep, skipinitialspace=True))


def _without_units(column: pd.Series, form: Format) -> pd.Series:
    """The numbers of a column of text, if all of it is numbers with units around them."""
    text = column.map(lambda value: value.strip() if isinstance(value, str) else value)
    held = text.dropna().astype(str).str.strip(UNITS)
    if form.thousands:
        held = held.str.replace(form.thousands, "", regex=False)
    if form.decimal:
        held = held.str.replace(form.decimal, ".", regex=False)
    numbers = pd.to_numeric(held, errors="coerce")
    if len(held) and numbers.notna().all():
        return numbers.astype(np.float64).reindex(column.index)
    return text
