"""Predictions beside what came."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmdn.mixture import mean, variance
from jaxmdn.plots.style import BLUE, ORANGE, axes, is_heavy


def predicted_against_actual(
    mixture: Any, y: Any, *, dim: int = 0, name: str = "y", ax: Axes | None = None
) -> Axes:
    """Actual values against predicted means, with bars of one predicted standard deviation.

    Positive values of which the largest is 30 times the median or more get logarithmic axes.

    Args:
      mixture: predictive densities, batch shape ``[N]``.
      y: actual values ``[N, D]``.
      dim: which output to show.
      name: its name, for the labels.
    """
    ax = axes(ax)
    actual = np.asarray(y)[:, dim]
    predicted = np.asarray(mean(mixture))[:, dim]
    deviation = np.sqrt(np.asarray(variance(mixture))[:, dim])
    shown = np.random.default_rng(0).permutation(len(actual))[:500]  # more would be a blot
    ax.errorbar(
        predicted[shown], actual[shown], xerr=deviation[shown], fmt="o", ms=2.5, color=BLUE,
        ecolor=BLUE, elinewidth=0.6, alpha=0.45, mew=0,
    )  # fmt: skip
    low, high = actual.min(), actual.max()
    ax.plot([low, high], [low, high], "--", color=ORANGE, lw=1.2, label="actual = predicted")
    ax.set(xlabel=f"predicted {name}: mean and standard deviation", ylabel=f"actual {name}")
    if is_heavy(actual) and (predicted > 0).all():
        ax.set(xscale="log", yscale="log")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0)
    return ax
