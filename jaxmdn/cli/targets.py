"""What is to be predicted: ``price``, ``n:hurdle(base=poisson)``, ``kind:classes``."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.inputs import MOST, require_columns, require_finite, require_numeric, short
from jaxmdn.cli.reading import as_numbers, is_text
from jaxmdn.heads import CategoricalHead, FactorizedHead, Family, Head, NormalHead, family_names
from jaxmdn.train.standardize import unresolved
from jaxmdn.train.targets import check_targets

CLASSES = "classes"


@dataclasses.dataclass(frozen=True)
class Targets:
    """The target columns.

    Attributes:
      families: column -> its family as it was written; "" for one of real numbers.
      classes: the classes of a target that is one of them, as text; else empty.
    """

    families: dict[str, str]
    classes: list[str]

    @classmethod
    def of(cls, frame: pd.DataFrame, arguments: Sequence[str]) -> Targets:
        """The targets that ``--target`` names, checked against the table."""
        families = families_of(frame, arguments)
        require_columns(frame, families, "target")
        found: list[str] = []
        for name, family in families.items():
            if frame[name].isna().all():
                raise UsageError(f"the target column {name!r} is empty.")
            if family != CLASSES:
                _require_numbers(frame, name)
            elif len(families) > 1:
                raise UsageError(
                    f"--target {name}:classes must be the only target; fit the others by "
                    f"themselves, or in Python by ClassConditionalHead."
                )
            else:
                found = sorted(set(_labels(frame[name])) - {""})
            if frame[name].nunique() == 1:
                raise UsageError(
                    f"the target column {name!r} is constant; there is nothing to learn."
                )
        return cls(families, found)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self.families)

    def values(self, frame: pd.DataFrame) -> np.ndarray:
        """``[N, D]`` in float64; of classes their numbers. NaN where there is none."""
        if self.classes:
            place = {label: number for number, label in enumerate(self.classes)}
            return np.array([[place.get(label, np.nan)] for label in _labels(frame[self.names[0]])])
        for name in self.names:
            require_numeric(frame, name)
        return np.stack([as_numbers(frame[name]).to_numpy() for name in self.names], axis=1)

    def whole(self, y: np.ndarray) -> np.ndarray:
        """Values as the head takes them: classes as whole numbers."""
        return y.astype(np.int32) if self.classes else y

    def head(self, components: int, covariance: str | None, **floors: Any) -> Head:
        """The head that predicts them."""
        written = [family or "normal" for family in self.families.values()]
        if self.classes:
            return CategoricalHead(len(self.classes))
        if set(written) == {"normal"}:
            covariance = covariance or ("full" if len(written) > 1 else "diagonal")
            return NormalHead(components, len(written), covariance=covariance, **floors)
        if covariance not in (None, "diagonal"):
            raise UsageError("--covariance is for normal targets; leave one of them out.")
        return FactorizedHead([parse_family(own) for own in written], components, **floors)

    def check(self, head: Head, y: np.ndarray) -> None:
        """Raise ``UsageError`` for targets that the head cannot hold."""
        try:
            check_targets(head, y)
        except ValueError as error:
            raise UsageError(str(error)) from None
        fine = unresolved(y)
        if len(fine) and not head.density_shape.discrete:
            raise UsageError(
                f"the target {self.names[fine[0]]!r} varies little around a large value "
                f"({y[:, fine[0]].mean():.6g}), which 32-bit numbers cannot resolve; subtract a "
                f"constant from the column."
            )

    def describe(self) -> list[str]:
        """Lines for the user."""
        named = [f"{name}: {family}" if family else name for name, family in self.families.items()]
        lines = [f"targets      {', '.join(named)}"]
        return [*lines, *([f"classes      {', '.join(self.classes)}"] if self.classes else [])]


def families_of(frame: pd.DataFrame, arguments: Sequence[str]) -> dict[str, str]:
    """Target -> family of arguments such as ``price`` and ``price:lognormal``."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, colon, family = argument.rpartition(":")
        if argument in frame.columns or not colon:
            name, family = argument, ""
        elif family != CLASSES:
            parse_family(family, argument)
        if name in found:
            raise UsageError(f"the target column {name!r} is named twice.")
        found[name] = family
    return found


def parse_family(text: str, argument: str = "") -> Family:
    """``"gamma"``, ``"student_t(df=4)"``, ``"hurdle(base=gamma)"`` as a family."""
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", text.strip())
    name, inner = match.groups() if match else (text, None)
    if name not in family_names():
        close = difflib.get_close_matches(name, [*family_names(), CLASSES], 1) or ["lognormal"]
        raise UsageError(
            f"--target {argument}: there is no family {name!r}; for example "
            f"{argument.rpartition(':')[0]}:{close[0]}. Families: "
            f"{', '.join([*family_names(), CLASSES])}."
        )
    constants = {}
    for part in inner.split(",") if inner else []:
        key, _, value = (piece.strip() for piece in part.partition("="))
        constants[key] = _number(value)
    try:
        return Family(name, **constants)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--target {argument}: {error}") from None


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _require_numbers(frame: pd.DataFrame, name: str) -> None:
    column = frame[name]
    if types.is_bool_dtype(column) or not types.is_numeric_dtype(column):
        sample = column.dropna().iloc[0]
        numbers = as_numbers(column).notna() if is_text(column) else column.isna()
        odd = column[~numbers & column.notna()]
        remedy = f"If it is a class, pass --target {name}:{CLASSES}"
        if len(odd) and numbers.sum() >= MOST * column.notna().sum():
            remedy = f"If that stands for an empty cell, pass --missing {short(odd.iloc[0])}"
        require_numeric(frame, name, remedy)
        raise UsageError(
            f"the target column {name!r} holds truth values or text (such as {sample!r}); if it is "
            f"a class, pass --target {name}:{CLASSES}"
        )
    require_finite(as_numbers(column).to_frame(name), "or leave the cells empty")


def _labels(column: pd.Series) -> list[str]:
    """Classes as text, the same for 3 and 3.0; "" for one that is missing."""
    whole = types.is_float_dtype(column) and (column.dropna() % 1 == 0).all()
    return [
        "" if missing else str(int(value) if whole else value)
        for value, missing in zip(column, column.isna(), strict=True)
    ]
