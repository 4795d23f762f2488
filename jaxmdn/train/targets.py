"""Targets against the support of their family, before training: which row, and what serves it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks
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


COARSE = 0.1  # steps of a grid, in standard deviations: 60 values within three of them


def grid_steps(y: Any) -> np.ndarray:
    """The step of the grid that each column of ``y [N, D]`` lies on, ``[D]``; 0 where it has none.

    A grid has three values or more, whose distances are whole multiples of the smallest, to within
    a thousandth.
    """
    steps = []
    for column in np.asarray(y, np.float64).T:
        gaps = np.diff(np.unique(column))
        multiples = gaps / gaps.min() if len(gaps) > 1 else np.array([0.5])
        on_grid = np.abs(multiples - np.round(multiples)).max() <= 1e-3
        steps.append(gaps.min() if on_grid else 0.0)
    return np.array(steps)


def coarse_steps(y: Any) -> np.ndarray:
    """The steps, ``[D]``, where they are above a tenth of the standard deviation of ``y [N, D]``.

    0 for others, and where values are not taken by two rows each, on average.
    """
    y = np.asarray(y, np.float64)
    repeated = np.array([2 * len(np.unique(column)) <= len(column) for column in y.T])
    steps = grid_steps(y)
    return np.where(repeated & (steps > COARSE * y.std(axis=0)), steps, 0.0)


def find_cells(function: str, head: Any, y: Any, target: str) -> np.ndarray | None:
    """The widths of the cells that targets are scored by, ``[D]``; None: by the density.

    Args:
      function: the caller's name, for messages.
      head: the head.
      y: targets ``[N, ..., D]`` in their own unit, or what the head accepts (``Labeled``).
      target: ``"density"`` or ``"grid"``.

    Raises:
      ValueError: for ``"grid"`` where a column lies on none.

    Warns:
      UserWarning: for ``"density"`` where a column lies on a coarse grid.
    """
    checks.require_option(function, "target", target, ("density", "grid"))
    if isinstance(y, Labeled) or not head.real_valued or any(own.step for own in head.support):
        if target == "grid":
            raise ValueError(
                f"{function}: target='grid' is for real targets and continuous components, got "
                f"{head!r}; pass target='density'."
            )
        return None
    rows = np.asarray(y, np.float64).reshape(-1, np.shape(y)[-1])
    steps = grid_steps(rows)
    if target == "grid":
        if not steps.all():
            raise ValueError(
                f"{function}: target='grid' needs targets on a grid, but column "
                f"{np.flatnonzero(steps == 0)[0]} of y has no common step of three values or more; "
                f"pass target='density'."
            )
        return steps
    coarse = np.flatnonzero(coarse_steps(rows))
    if len(coarse):
        warnings.warn(
            f"{function}: column {coarse[0]} of y lies on a grid of step {steps[coarse[0]]:g} "
            f"({len(np.unique(rows[:, coarse[0]]))} values): its density could rise without bound "
            f"at each of them. Pass target='grid' to train on the probabilities of cells.",
            stacklevel=3,
        )
    return None


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
