"""A table's columns as inputs of a network: gaps filled and marked, categories spread out."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.train.data import as_arrays, is_missing

KNOWN = ("category", "object", "string", "str")  # dtypes of pandas that hold names of things


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """How a table with gaps and categories becomes numbers, ``[N, F] -> [N, E]``.

    A number stays as it is. Where it is missing, the column's median in training stands for it, and
    a second column says so (1 missing, 0 not) if the training rows had such gaps. A category
    becomes an indicator for each value met in training, so that the network's first layer holds an
    embedding of it; one that is missing or was never met is all zeros.

    Attributes:
      names: of the columns, where the training table had names; then a table is read by name.
      medians: ``[F]``, in the columns' own units; NaN for categories.
      gaps: which columns had gaps in training, ``[F]``.
      categories: for each column its values, as text; empty for numbers.
    """

    names: tuple[str, ...] | None
    medians: tuple[float, ...]
    gaps: tuple[bool, ...]
    categories: tuple[tuple[str, ...], ...]

    @classmethod
    def fit(
        cls,
        x: Any,
        weights: Any = None,
        *,
        categorical: Iterable[Any] = (),
        function: str = "Columns.fit",
    ) -> Columns:
        """Learn medians, gaps and categories from the rows to train on.

        Args:
          x: an array ``[N, F]`` or a pandas DataFrame.
          weights: ``[N]``; rows of weight zero do not count.
          categorical: columns that hold categories though they are numbers: their places, or names
            of a DataFrame's. Text and columns of pandas' type "category" do so anyway.
          function: the caller's name, for messages.

        Raises:
          ValueError: for a column that does not exist, or holds nothing.
        """
        names, parts = _names(x), _split(function, x)
        if np.shape(weights) == (len(parts[0]) if parts else 0,):
            parts = [part[np.asarray(weights) > 0] for part in parts]
        chosen = _chosen(function, categorical, names, len(parts))
        medians, gaps, categories = [], [], []
        for number, part in enumerate(parts):
            found: tuple[str, ...] = ()
            if number in chosen or _holds_names(part):
                labels = [_label(value) for value in np.asarray(part)]
                missing, median = "" in labels, np.nan
                found = tuple(sorted(set(labels) - {""}))
            else:
                values = _numbers(function, part, number, names)
                held = values[~np.isnan(values)]
                missing, median = len(held) < len(values), np.median(held) if len(held) else np.nan
            if not found and np.isnan(median):
                which = number if names is None else repr(names[number])
                raise ValueError(f"{function}: column {which} of x holds nothing; leave it out.")
            medians.append(float(median))
            gaps.append(missing)
            categories.append(found)
        return cls(
            names=names,
            medians=tuple(medians),
            gaps=tuple(gaps),
            categories=tuple(categories),
        )

    def __call__(self, x: Any, *, function: str = "Columns") -> Any:
        """The rows as numbers, ``[N, E]``; an array without anything to change as it is.

        A gap in a column that had none in training stays NaN: the network has not learnt what to
        make of it.
        """
        found = _names(x)
        if self.names is not None and found is not None:
            lacking = [name for name in self.names if name not in found]
            if lacking:
                raise ValueError(
                    f"{function}: x lacks the column {lacking[0]!r}; it needs {list(self.names)}."
                )
            x = x.iloc[:, [found.index(name) for name in self.names]]
        width = len(self.medians)
        if not self.changes:
            x = as_arrays(function, x, "x")
            if np.ndim(x) != 2 or x.shape[1] != width:
                shape = list(np.shape(x))
                raise ValueError(f"{function}: x must have shape [N, {width}], got {shape}.")
            return x
        return self.spread(self.codes(x, function=function)).astype(np.float64)

    def codes(self, x: Any, *, function: str = "Columns.codes") -> np.ndarray:
        """The table as numbers, ``[N, F]`` in float64: what exported programs take.

        Of a category its place in ``categories``, -1 for one that was never met; NaN what is
        missing. Columns are taken in the order of ``x``; ``__call__`` finds them by name.
        """
        parts = _split(function, x)
        if len(parts) != len(self.medians):
            raise ValueError(
                f"{function}: x must have {len(self.medians)} columns, got {len(parts)}."
            )
        out = np.empty((len(parts[0]) if parts else 0, len(parts)))
        for number, (part, known) in enumerate(zip(parts, self.categories, strict=True)):
            if known:
                place = {label: float(code) for code, label in enumerate(known)} | {"": np.nan}
                out[:, number] = [place.get(_label(value), -1.0) for value in np.asarray(part)]
            else:
                out[:, number] = _numbers(function, part, number, self.names)
        return out

    def spread(self, codes: Any) -> Any:
        """Gaps filled and marked, categories as indicators: ``[N, F] -> [N, E]``, of JAX too."""
        xp, out = (jnp if isinstance(codes, jax.Array) else np), []
        table = zip(self.medians, self.gaps, self.categories, strict=True)
        for number, (median, gap, known) in enumerate(table):
            own = codes[:, number]
            missing = xp.isnan(own)
            if known:
                out += [own == code for code in range(len(known))]
            else:
                out.append(xp.where(missing, median, own) if gap else own)
            if gap:
                out.append(missing)
        return xp.stack([part.astype(codes.dtype) for part in out], axis=1)

    def unseen(self, part: Any, number: int) -> list[str]:
        """The values of a table's column that its categories do not know; of numbers none."""
        known = self.categories[number]
        return sorted({_label(value) for value in np.asarray(part)} - {*known, ""}) if known else []

    @property
    def changes(self) -> bool:
        """Whether anything is filled or spread."""
        return any(self.gaps) or any(self.categories)

    @property
    def sources(self) -> np.ndarray:
        """The column of the table that each input comes from, ``[E]``."""
        widths = [
            (len(kinds) or 1) + gap for kinds, gap in zip(self.categories, self.gaps, strict=True)
        ]
        return np.repeat(np.arange(len(widths)), widths)

    def to_config(self) -> dict[str, Any]:
        """As JSON."""
        medians = [None if np.isnan(median) else median for median in self.medians]
        return dataclasses.asdict(self) | {"medians": medians}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Columns:
        """The inverse of :meth:`to_config`."""
        return cls(
            names=None if config["names"] is None else tuple(config["names"]),
            medians=tuple(np.nan if value is None else value for value in config["medians"]),
            gaps=tuple(config["gaps"]),
            categories=tuple(map(tuple, config["categories"])),
        )


def _names(x: Any) -> tuple[str, ...] | None:
    columns = getattr(x, "columns", None)
    return None if columns is None else tuple(map(str, columns))


def _split(function: str, x: Any) -> list[Any]:
    """The columns of a table."""
    if hasattr(x, "columns") and hasattr(x, "iloc"):
        return [x.iloc[:, number] for number in range(x.shape[1])]
    if hasattr(x, "ndim") and x.ndim == 2:
        return list(np.asarray(x).T)
    got = list(x.shape) if hasattr(x, "shape") else type(x).__name__
    raise ValueError(
        f"{function}: x must be an array [N, columns], got {got}; a single column is x[:, None]."
    )


def _chosen(
    function: str, categorical: Iterable[Any], names: tuple[str, ...] | None, count: int
) -> set[int]:
    """The places of the columns that are said to hold categories."""
    places = set()
    if isinstance(categorical, str):
        raise TypeError(f"{function}: categorical must be a sequence such as [{categorical!r}].")
    for column in categorical:
        if names is not None and str(column) in names:
            places.add(names.index(str(column)))
        elif isinstance(column, int | np.integer) and -count <= column < count:
            places.add(int(column) % count)
        else:
            known = f"0 to {count - 1}" if names is None else list(names)
            raise ValueError(f"{function}: categorical names column {column!r}; x has {known}.")
    return places


def _holds_names(part: Any) -> bool:
    """Whether a DataFrame's column holds categories by its type."""
    if not hasattr(part, "iloc"):
        return False
    if str(part.dtype) == "object":  # numbers and gaps may be among them
        return any(isinstance(value, str) for value in part)
    return str(part.dtype) in KNOWN


def _numbers(function: str, part: Any, number: int, names: tuple[str, ...] | None) -> np.ndarray:
    values = np.asarray(as_arrays(function, part, "x"), np.float64)
    bad = np.flatnonzero(np.isinf(values))
    if len(bad):
        which = number if names is None else repr(names[number])
        raise ValueError(
            f"{function}: x must be finite or missing, but row {bad[0]}, column {which} is "
            f"{values[bad[0]]}; drop or correct it first."
        )
    return values


def _label(value: Any) -> str:
    """A category as text, the same for 3, 3.0 and "3"; "" for one that is missing."""
    if isinstance(value, str):
        return value
    if is_missing(value) or value != value:
        return ""
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return str(int(float(value)))
    return str(value)
