"""Pictures of conditional densities. Every function draws into an ``Axes`` and returns it.

Needs matplotlib (``pip install 'jaxmdn[plot]'``). Colours come from the Okabe-Ito palette and the
perceptually uniform ``viridis``, so that they survive colour blindness and grey printing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn.mixture import log_prob, mean, variance

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
except ImportError as error:
    raise ImportError(
        "jaxmdn.plots needs matplotlib; install it with: pip install 'jaxmdn[plot]'."
    ) from error

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def _axes(ax: Axes | None) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")
    return ax


def conditional_density(
    predict: Callable[[Any], Any],
    x: Any,
    y: Any,
    *,
    data: tuple[Any, Any] | None = None,
    ax: Axes | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
    colorbar: bool = True,
) -> Axes:
    """Heat map of ``p(y | x)`` for one input and one output, with data over it.

    Args:
      predict: maps inputs ``[N, 1]`` to a density with ``D = 1`` (``FitResult.predict``, a model).
      x, y: grids ``[X]`` and ``[Y]``, equally spaced.
      data: points ``(x [N], y [N])`` to draw over the map.
      ax: where to draw; a new figure if absent.
    """
    ax = _axes(ax)
    x, y = np.asarray(x), np.asarray(y)
    density = predict(jnp.asarray(x)[:, None])
    values = np.exp(np.asarray(log_prob(density, jnp.asarray(y)[:, None, None])))  # [Y, X]
    # Sharp ridges would leave broad ones black: a square-root scale, saturated at the top.
    norm = PowerNorm(0.5, vmin=0.0, vmax=float(np.quantile(values, 0.995)) or 1.0)
    mesh = ax.pcolormesh(
        x, y, values, shading="nearest", cmap="viridis", norm=norm, rasterized=True
    )
    if data is not None:
        points_x, points_y = (np.ravel(np.asarray(part)) for part in data)
        ax.plot(points_x, points_y, ".", color="white", markersize=2.0, alpha=0.6, mew=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    if colorbar:
        ax.figure.colorbar(mesh, ax=ax, label=f"p({ylabel} | {xlabel})", extend="max")
    return ax


def training_curve(
    history: Mapping[str, Any], *, best_epoch: int | None = None, ax: Axes | None = None
) -> Axes:
    """NLL against epoch, training and validation, with the epoch whose parameters were kept."""
    ax = _axes(ax)
    curves = (("train_nll", "training", BLUE, "-"), ("valid_nll", "validation", ORANGE, "--"))
    finite = []
    for name, label, color, style in curves:
        values = np.asarray(history[name])
        if np.isfinite(values).any():
            ax.plot(np.arange(len(values)), values, style, color=color, label=label, lw=1.4)
            finite.append(values[np.isfinite(values)])
    if best_epoch is not None:
        ax.axvline(best_epoch, color=BLACK, lw=0.8, ls=":", label=f"kept: epoch {best_epoch}")
    if finite:
        # The first epochs start far above the rest: show where the curves settle.
        pooled = np.concatenate(finite)
        low, high = pooled.min(), np.quantile(pooled, 0.97)
        margin = 0.08 * max(high - low, 1e-6)
        ax.set_ylim(low - margin, high + 2 * margin)
    ax.set(xlabel="epoch", ylabel="NLL per example (nats)")
    ax.legend(frameon=False)
    return ax


def pit_histogram(
    pit: Any, *, num_bins: int = 20, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Histogram of PIT values with the band a calibrated model stays in.

    Args:
      pit: PIT values, any shape, from :func:`jaxmdn.pit`.
      num_bins: number of equal bins on (0, 1).
      level: probability with which one bar of a calibrated model lies in the band (binomial).
    """
    ax = _axes(ax)
    values = np.ravel(np.asarray(pit))
    counts, edges = np.histogram(values, bins=num_bins, range=(0.0, 1.0))
    centres = 0.5 * (edges[1:] + edges[:-1])
    ax.bar(centres, counts / len(values) * num_bins, width=0.92 / num_bins, color=BLUE)
    low, high = _binomial_band(len(values), 1.0 / num_bins, level)
    scale = num_bins / len(values)
    ax.axhspan(low * scale, high * scale, color=ORANGE, alpha=0.25, lw=0, label=f"{level:.0%} band")
    ax.axhline(1.0, color=ORANGE, lw=1.2, ls="--", label="calibrated")
    ax.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    ax.set_ylim(0, 1.25 * max(counts.max() * scale, high * scale))
    ax.legend(frameon=False, loc="upper center", ncols=2)
    return ax


def predicted_against_actual(
    mixture: Any, y: Any, *, dim: int = 0, name: str = "y", ax: Axes | None = None
) -> Axes:
    """Actual values against predicted means, with bars of one predicted standard deviation.

    Args:
      mixture: predictive densities, batch shape ``[N]``.
      y: actual values ``[N, D]``.
      dim: which output to show.
      name: its name, for the labels.
    """
    ax = _axes(ax)
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
