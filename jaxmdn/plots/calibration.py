"""Do the predicted probabilities come true? The answer as a picture."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmdn.plots.style import BLACK, BLUE, ORANGE, axes


def pit_histogram(
    pit: Any, *, num_bins: int = 20, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Histogram of PIT values with the band a calibrated model stays in.

    Args:
      pit: PIT values, any shape, from :func:`jaxmdn.pit`.
      num_bins: number of equal bins on (0, 1).
      level: probability with which one bar of a calibrated model lies in the band (binomial).
    """
    ax = axes(ax)
    values = np.ravel(np.asarray(pit))
    counts, edges = np.histogram(values, bins=num_bins, range=(0.0, 1.0))
    centres = 0.5 * (edges[1:] + edges[:-1])
    ax.bar(centres, counts / len(values) * num_bins, width=0.92 / num_bins, color=BLUE)
    low, high = _binomial_band(len(values), 1.0 / num_bins, level)
    scale = num_bins / len(values)
    ends = low * scale, high * scale
    label = f"{level:.0%} band"
    ax.axhspan(*ends, color=ORANGE, alpha=0.25, lw=0, label=label, zorder=0)  # behind the bars
    ax.axhline(1.0, color=ORANGE, lw=1.2, ls="--", label="calibrated")
    ax.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    ax.set_ylim(0, 1.25 * max(counts.max() * scale, high * scale))
    ax.legend(frameon=False, loc="upper center", ncols=2)
    return ax


def reliability_curve(
    pit: Any, *, level: float = 0.95, name: str | None = None, ax: Axes | None = None
) -> Axes:
    """Share of targets below the predicted quantile, against that quantile's level.

    The curve of a calibrated model runs along the diagonal, inside the band. Above it the
    predicted quantiles are too high, below it too low; an S says too wide or too narrow.

    Args:
      pit: PIT values of one output, any shape, from :func:`jaxmdn.pit`.
      level: probability with which a calibrated model's point lies in the band (normal
        approximation of the binomial).
      name: a label for the curve, if several are drawn.
    """
    ax = axes(ax)
    values = np.sort(np.ravel(np.asarray(pit)))
    p = np.linspace(0.0, 1.0, 101)
    observed = np.searchsorted(values, p, side="right") / len(values)
    if not ax.lines:  # the first curve of these axes
        half = NormalDist().inv_cdf(0.5 + 0.5 * level) * np.sqrt(p * (1 - p) / len(values))
        low, high = np.clip(p - half, 0, 1), np.clip(p + half, 0, 1)
        ax.fill_between(p, low, high, color=ORANGE, alpha=0.25, lw=0, label=f"{level:.0%} band")
        ax.plot(p, p, "--", color=ORANGE, lw=1.2, label="calibrated")
    color, style = ((BLUE, "-"), (BLACK, "-."))[(len(ax.lines) - 1) % 2]
    ax.plot(p, observed, style, color=color, lw=1.4, label=name or "observed")
    ax.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="upper left")
    return ax


def _binomial_band(count: int, share: float, level: float) -> tuple[int, int]:
    """Central binomial interval, by cumulating the probabilities in logs."""
    k = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    cdf = np.cumsum(np.exp(log_choose + k * np.log(share) + (count - k) * np.log1p(-share)))
    low, high = np.searchsorted(cdf, [(1 - level) / 2, (1 + level) / 2])
    return int(low), int(high)
