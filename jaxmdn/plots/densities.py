"""Densities: one conditional on an input, one by itself, one over a plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Ellipse

from jaxmdn.inference import hdr_intervals, hdr_threshold, quantile
from jaxmdn.losses import log_prob
from jaxmdn.mixture import Mixture, component_log_prob
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.plots.style import BLACK, BLUE, ORANGE, axes, is_heavy, look

MANY = 20  # more components than these are a tangle


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
    ax = axes(ax)
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


def fan_chart(
    predict: Callable[[Any], Any],
    x: Any,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    data: tuple[Any, Any] | None = None,
    dim: int = 0,
    ax: Axes | None = None,
    xlabel: str = "x",
    ylabel: str = "y",
) -> Axes:
    """Median and central intervals of ``p(y | x)`` along one input, with data over them.

    Args:
      predict: maps inputs ``[N, 1]`` to a density (``FitResult.predict``, a model).
      x: increasing inputs ``[X]``.
      levels: probabilities of the intervals; darker is narrower.
      data: points ``(x [N], y [N])``.
      dim: which output to show.
    """
    ax = axes(ax)
    x, levels = np.asarray(x), sorted(levels, reverse=True)
    mixture = predict(jnp.asarray(x)[:, None])
    p = np.array([0.5, *((1 + sign * q) / 2 for q in levels for sign in (-1, 1))])
    median, *bounds = np.asarray(quantile(mixture, p))[..., dim]
    shades = np.linspace(0.18, 0.55, len(levels))
    for i, (level, shade) in enumerate(zip(levels, shades, strict=True)):
        low, high = bounds[2 * i : 2 * i + 2]
        ax.fill_between(x, low, high, color=BLUE, alpha=shade, lw=0, label=f"{level:.0%}")
    ax.plot(x, median, color=BLACK, lw=1.4, label="median")
    if data is not None:
        points = (np.ravel(np.asarray(part)) for part in data)
        ax.plot(*points, ".", color=ORANGE, markersize=4, alpha=0.8, mew=0, label="data")
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(x[0], x[-1]))
    ax.legend(frameon=False, fontsize="small", ncols=2)
    return ax


def density(
    mixture: Any,
    y: Any = None,
    *,
    level: float | None = 0.9,
    components: bool | None = None,
    value: float | None = None,
    ax: Axes | None = None,
    ylabel: str = "y",
) -> Axes:
    """One univariate density, its weighted components and its highest-density region.

    Args:
      mixture: a density with ``D = 1`` and no batch axes (``mixture[0]`` picks a row).
      y: grid ``[Y]``; by default from the 0.1 % to the 99.9 % quantile and a little beyond, on a
        logarithmic axis if both are positive and the latter is 30 times the median or more.
      level: probability of the highest-density region; None leaves it out.
      components: whether to draw the components; None: of a mixture of at most 20.
      value: what the target turned out to be, drawn as a line.
      ylabel: the target's name and unit.
    """
    ax = axes(ax)
    if mixture.batch_shape or mixture.event_dim != 1:
        raise ValueError(
            f"plots.density: expected one density with D = 1, got batch shape "
            f"{list(mixture.batch_shape)} and D = {mixture.event_dim}; pick a row with "
            f"mixture[i]."
        )
    if isinstance(mixture, Mixture):
        mixture = flatten_mixture(mixture)
    if y is None:
        ends = np.ravel(quantile(mixture, [0.001, 0.5, 0.999]))
        margin = 0.1 * (ends[2] - ends[0])
        y = np.linspace(ends[0] - margin, ends[2] + margin, 1001)
        if is_heavy(ends):
            y = np.geomspace(ends[0] / 1.2, 1.2 * ends[2], 1001)
            ax.set_xscale("log")
    points = jnp.asarray(y, mixture.dtype)[:, None]
    total = np.exp(np.asarray(log_prob(mixture, points)))
    highest = ax.get_ylim()[1] if ax.lines else 0.0  # of a density drawn before
    if level is not None:
        region = hdr_intervals(mixture, level)
        intervals = zip(np.asarray(region.lower), np.asarray(region.upper), strict=True)
        inside = np.zeros(len(y), bool)
        for low, high in intervals:  # unused slots hold NaN, which is nowhere
            inside |= (y >= low) & (y <= high)
            ax.plot([low, high], [0, 0], color=BLUE, lw=4, solid_capstyle="butt", clip_on=False)
        label = f"{level:.0%} highest-density region"
        ax.fill_between(y, 0, total, where=inside, color=BLUE, alpha=0.25, lw=0, label=label)
    if components is None:
        components = getattr(mixture, "num_components", 0) <= MANY
    if components and isinstance(mixture, Mixture):
        parts = np.exp(np.asarray(component_log_prob(mixture, points))) * np.asarray(
            mixture.weights()
        )
        for k, part in enumerate(parts.T):
            style, color = look(k, beside_others=True)
            ax.plot(y, part, style, color=color, lw=1.0, label="components" if k == 0 else None)
    ax.plot(y, total, color=BLUE, lw=1.8, label="density")
    if value is not None:
        ax.axvline(float(value), color=BLACK, lw=1.2, ls=":", label="observed")
    ax.set(xlabel=ylabel, ylabel="density", xlim=(y[0], y[-1]))
    ax.set_ylim(0, max(highest, 1.06 * total.max()))
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
    ax.legend(fontsize="small", frameon=False, ncols=2, **above)  # where it covers nothing
    return ax


def contours(
    mixture: Any,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    dims: tuple[int, int] = (0, 1),
    components: bool = True,
    data: Any = None,
    seed: int = 0,
    ax: Axes | None = None,
    xlabel: str = "y[0]",
    ylabel: str = "y[1]",
) -> Axes:
    """Highest-density regions of two outputs, with an ellipse for each component.

    An ellipse is its component's set of points one standard deviation from the mean; its line is
    as strong as the component's weight.

    Args:
      mixture: a density with ``D >= 2`` and no batch axes.
      levels: probabilities of the regions; their thresholds come from 4,000 samples (``seed``).
      dims: which two outputs.
      components: whether to draw the ellipses.
      data: points ``[N, D]`` over it.
    """
    ax = axes(ax)
    if mixture.batch_shape or mixture.event_dim < 2:
        raise ValueError(
            f"plots.contours: expected one density with D >= 2, got batch shape "
            f"{list(mixture.batch_shape)} and D = {mixture.event_dim}; pick a row with "
            f"mixture[i]."
        )
    pair = flatten_mixture(mixture).marginal(tuple(dims))
    ends = np.asarray(quantile(pair, [0.002, 0.998]))
    low, high = ends[0] - 0.12 * np.ptp(ends, axis=0), ends[1] + 0.12 * np.ptp(ends, axis=0)
    grid = [np.linspace(low[i], high[i], 200).astype(pair.dtype) for i in (0, 1)]
    mesh = np.stack(np.meshgrid(*grid), axis=-1)
    values = np.asarray(log_prob(pair, jnp.asarray(mesh)))
    levels = sorted(levels, reverse=True)
    key = jax.random.key(seed)
    heights = [float(hdr_threshold(pair, q, key=key, num_samples=4000).value) for q in levels]
    shades = _blues(len(levels))
    ax.contourf(*grid, values, levels=[*heights, np.inf], colors=shades)
    lines = ax.contour(
        *grid, values, levels=heights, colors=BLUE, linewidths=1.0, linestyles="solid"
    )
    ax.clabel(lines, fmt=dict(zip(heights, (f"{q:.0%}" for q in levels), strict=True)), fontsize=8)
    if data is not None:
        points = np.asarray(data)[:, list(dims)]
        ax.plot(*points.T, ".", color=BLACK, markersize=2.0, alpha=0.5, mew=0)
    if components:
        _ellipses(ax, pair)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return ax


def _blues(count: int) -> list[tuple[float, float, float]]:
    """Shades of blue, from pale to strong."""
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    return [tuple(1 - share * (1 - blue)) for share in np.linspace(0.2, 0.55, count)]


def _ellipses(ax: Axes, pair: Mixture) -> None:
    weights = np.asarray(pair.weights())
    means, covariances = (
        np.asarray(part) for part in (pair.components.mean(), pair.components.covariance())
    )
    for weight, center, covariance in zip(weights, means, covariances, strict=True):
        variances, axes_ = np.linalg.eigh(np.asarray(covariance, np.float64))
        width, height = 2 * np.sqrt(np.maximum(variances, 0))
        angle = np.degrees(np.arctan2(axes_[1, 0], axes_[0, 0]))
        strength = float(np.clip(weight / weights.max(), 0.15, 1))
        ellipse = Ellipse(center, width, height, angle=angle, fill=False, ls="--", lw=1.2)
        ellipse.set(edgecolor=ORANGE, alpha=strength)
        ax.add_patch(ellipse)
        ax.plot(*center, "+", color=ORANGE, alpha=strength, markersize=6)
