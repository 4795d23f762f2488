"""How the training went: losses and the use of the components, by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxmdn.plots.style import BLACK, BLUE, ORANGE, axes, look

MAX_LABELS = 10  # more lines in a legend than this are not read


def training_curve(
    history: Mapping[str, Any], *, best_epoch: int | None = None, ax: Axes | None = None
) -> Axes:
    """NLL against epoch, training and validation, with the epoch whose parameters were kept."""
    ax = axes(ax)
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


def component_usage(
    history: Mapping[str, Any], *, best_epoch: int | None = None, ax: Axes | None = None
) -> Axes:
    """Average mixing coefficient of each component against epoch, largest first in the legend.

    A line that falls to zero and stays there is a component that died.

    Args:
      history: ``FitResult.history``, whose ``mean_weight`` is ``[epochs, K]``.
      best_epoch: the epoch whose parameters were kept.

    Raises:
      ValueError: if the history has no component weights (a head without components).
    """
    if "mean_weight" not in history:
        raise ValueError(
            "component_usage: history has no 'mean_weight'; fit records it for heads whose density "
            "is a mixture."
        )
    ax = axes(ax)
    weights = np.asarray(history["mean_weight"])
    order = np.argsort(-weights[-1])
    for rank, k in enumerate(order):
        style, color = look(rank)
        label = f"component {k}" if rank < MAX_LABELS else None
        ax.plot(weights[:, k], style, color=color, lw=1.4, label=label)
    if best_epoch is not None:
        ax.axvline(best_epoch, color=BLACK, lw=0.8, ls=":", label=f"kept: epoch {best_epoch}")
    ax.set(xlabel="epoch", ylabel="average mixing coefficient", xlim=(0, max(len(weights) - 1, 1)))
    ax.set_ylim(0, min(1.0, 1.1 * weights.max()))
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
