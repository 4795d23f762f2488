"""Targets against the support of their family, before training: which row, and what serves it."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn.components.support import Support
from jaxmdn.heads import CategoricalHead, ClassConditionalHead
from jaxmdn.mixture.class_conditional import Labeled


def check_targets(head: Any, y: Any, function: str = "fit") -> None:
    """Raise for the first row that the head's family cannot hold.

    Args:
      head: the head.
      y: targets ``[N, ..., D]`` in their own unit, or what the head accepts (``Labeled``).
      function: the caller's name, for messages.

    Raises:
      ValueError: for a class that does not exist, a target outside the support or on an open edge
        of it, an angle beyond ``2 pi`` (degrees, it seems), a number beyond the device's floats.
    """
    if isinstance(y, Labeled):
        if isinstance(head, ClassConditionalHead):
            labels = np.asarray(y.label).reshape(len(y.label), -1)
            _refuse(function, labels, (labels < 0) | (labels >= head.num_classes), head.num_classes)
        y = y.y
    targets = np.asarray(y)
    most = float(jnp.finfo(jnp.result_type(float)).max)
    large = np.abs(targets.astype(np.float64)) > most
    outside = large | ~np.asarray(head.in_support(np.where(large, 0, targets)))
    if isinstance(head, CategoricalHead):
        _refuse(function, targets, outside, head.num_classes)
    circles = np.array([own.kind == "circle" for own in head.support])
    outside |= circles & (np.abs(targets) > 2.001 * math.pi)
    bad = np.argwhere(outside)
    if len(bad):
        row, *_, column = bad[0]
        value = float(targets[tuple(bad[0])])
        advice = _advice(head.support[column], value)
        if large[tuple(bad[0])]:
            advice = f"It is beyond {most:.2g}, the largest float of the device: divide the column."
        raise ValueError(
            f"{function}: y has {len(np.unique(bad[:, 0]))} row(s) outside the support of "
            f"{head!r}, the first of them row {row}: column {column} is {value}. {advice}"
        )


def refuse_constant(function: str, targets: Any) -> None:
    """Raise for a column of targets ``[N, ..., D]`` that is the same in every row."""
    targets = np.asarray(targets).reshape(-1, np.shape(targets)[-1])
    constant = np.flatnonzero((targets == targets[:1]).all(axis=0))
    if len(constant) and len(targets) > 1:
        raise ValueError(
            f"{function}: column {constant[0]} of y is constant; there is nothing to learn. Leave "
            f"it out, or train by jaxmdn.train.fit with standardize_y=False."
        )


def _advice(own: Support, value: float) -> str:
    """Which family serves a value that this one does not."""
    if own.kind == "circle":
        return (
            "Angles are in radians, from -pi to pi or from 0 to 2 pi: pass numpy.deg2rad(y) for "
            "degrees."
        )
    if own.step:
        return (
            f"Values are {own.lower:g}, {own.lower + own.step:g}, ... up to {own.upper:g}: choose "
            f"a continuous family, or correct the rows."
        )
    if value in (own.lower, own.upper) and own.kind == "positive":
        return (
            "The density there is zero or infinite: Family('hurdle', base=...) gives zeros a "
            "probability of their own."
        )
    if value in (own.lower, own.upper):
        return (
            f"The density there is zero or infinite: Family('truncated_normal', "
            f"lower={own.lower:g}, upper={own.upper:g}) holds values on a bound."
        )
    if own.kind == "interval":
        return "Choose wider bounds (lower, upper), or correct the rows."
    return "Choose a family of the real line, such as 'normal', or correct the rows."


def _refuse(function: str, labels: np.ndarray, bad: np.ndarray, count: int) -> None:
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{function}: class labels must be whole numbers from 0 to {count - 1}, but row "
            f"{place[0]} is {labels[place]}; number the classes from 0."
        )


__all__ = ["check_targets", "refuse_constant"]
