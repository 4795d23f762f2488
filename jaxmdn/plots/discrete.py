"""Probabilities of counts and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxmdn.inference import quantile
from jaxmdn.losses import log_prob
from jaxmdn.plots.style import BLACK, BLUE, axes

MOST_BARS = 200


def probabilities(
    density: Any,
    *,
    value: float | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    ylabel: str = "y",
) -> Axes:
    """Bars of ``P(Y = y)`` of one count or class.

    Args:
      density: discrete, with D = 1 and no batch axes (``density[0]`` picks a row). Counts are drawn
        from the 0.1 % to the 99.9 % quantile, in at most 200 bars.
      value: what the target turned out to be, marked above its bar.
      names: of classes.
      ax: where to draw; a new figure if absent.
      ylabel: the target's name.

    Raises:
      ValueError: for several densities, several outputs, or one that has no steps.
    """
    ax = axes(ax)
    support = density.support[0]
    if density.batch_shape or density.event_dim != 1 or not support.step:
        raise ValueError(
            f"plots.probabilities: expected one discrete density with D = 1, got batch shape "
            f"{list(density.batch_shape)}, D = {density.event_dim} and {support.kind!r}; pick a "
            f"row with density[i], an output with jaxmdn.marginal; of real numbers take "
            f"plots.density."
        )
    if support.kind == "classes":
        low, high = support.lower, support.upper
    else:
        low, high = np.ravel(np.asarray(quantile(density, [0.001, 0.999])))
    stride = support.step * max(1, round((high - low) / support.step / MOST_BARS))
    y = np.arange(low, high + 0.5 * support.step, stride)
    values = np.exp(np.asarray(log_prob(density, jnp.asarray(y, density.dtype)[:, None])))
    ax.bar(y, values, width=0.8 * stride, color=BLUE)
    if value is not None:
        top = values[np.abs(y - value) <= 0.5 * stride].sum() + 0.03 * values.max()
        ax.plot([value], [top], "v", color=BLACK, ms=7, label="observed", zorder=5)
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0)
    if names is not None:
        ax.set_xticks(y, names, rotation=0 if sum(map(len, names)) < 40 else 90)
    ax.set(xlabel=ylabel, ylabel="probability", ylim=(0, 1.1 * max(values.max(), 1e-12)))
    return ax
