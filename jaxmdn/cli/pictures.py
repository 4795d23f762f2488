"""The pictures of a trained density, for ``fit`` and ``report``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxmdn import calibration, plots
from jaxmdn.inference import marginal
from jaxmdn.mixture import Mixture
from jaxmdn.train import EnsembleResult

NAMES = ("training", "components", "pit", "reliability", "predictions", "densities")
MOST_COMPONENTS = 20  # more are not drawn one by one


def draw(
    result: Any,
    density: Any,
    y: np.ndarray,
    targets: Sequence[str],
    rows: Sequence[int],
    classes: Sequence[str] = (),
) -> Iterator[tuple[str, Any]]:
    """Names of ``NAMES`` and figures, one after the other.

    Args:
      result: what ``fit`` or ``fit_ensemble`` returned.
      density, y: predictions ``[N]`` and targets ``[N, D]`` of rows that were held back.
      targets: names of the outputs.
      rows: the rows' numbers in the user's table, ``[N]``.
      classes: names of the classes, where the target is one of them.
    """
    yield "training", _training(result)
    if "mean_weight" in result.history:
        ax = plots.component_usage(result.history, best_epoch=result.best_epoch)
        yield "components", ax.figure
    if not classes:
        yield from _calibration(density, y, targets)
    yield "densities", _densities(density, y, targets, rows, classes)


def _training(result: Any) -> Any:
    if not isinstance(result, EnsembleResult):
        return plots.training_curve(result.history, best_epoch=result.best_epoch).figure
    figure, (ax,) = panels(1)
    for name, label, style in (
        ("out_of_fold_nll", "calibrated", "o-"),
        ("raw_nll", "before calibration", "s--"),
    ):
        color = plots.BLUE if style == "o-" else plots.ORANGE
        ax.plot(result.history["epochs"], result.history[name], style, color=color, label=label)
    ax.set(xlabel="epoch", ylabel="NLL of rows held out (nats)")
    ax.legend(frameon=False)
    return figure


def _calibration(density: Any, y: np.ndarray, targets: Sequence[str]) -> Iterator[tuple[str, Any]]:
    pit = np.asarray(calibration.pit(density, jnp.asarray(y), key=jax.random.key(0)))
    drawn = {name: panels(len(targets)) for name in ("pit", "reliability", "predictions")}
    for d, target in enumerate(targets):
        pit_ax, curve_ax, points_ax = (axes[d] for _, axes in drawn.values())
        bins = int(np.clip(len(y) // 15, 5, 20))
        plots.pit_histogram(pit[:, d], num_bins=bins, ax=pit_ax).set_title(target)
        plots.reliability_curve(pit[:, d], ax=curve_ax).set_title(target)
        plots.predicted_against_actual(density, y, dim=d, name=target, ax=points_ax)
    for name, (figure, _) in drawn.items():
        yield name, figure


def _densities(
    density: Any, y: np.ndarray, targets: Sequence[str], rows: Sequence[int], classes: Sequence[str]
) -> Any:
    """Of six rows."""
    chosen = np.linspace(0, len(y) - 1, min(6, len(y))).astype(int)
    figure, axes = panels(len(chosen))
    for row, ax in zip(chosen, axes, strict=True):
        single = density[row]
        if len(targets) > 1 and any(single.jumps):
            single = marginal(single, (0,))  # there is no density of all together to draw
        if single.event_dim == 1:
            value = float(y[row, 0])
            if single.discrete:
                plots.probabilities(
                    single, value=value, names=classes or None, ylabel=targets[0], ax=ax
                )
            else:
                few = not isinstance(single, Mixture) or single.num_components <= MOST_COMPONENTS
                plots.density(single, value=value, ylabel=targets[0], components=few, ax=ax)
        else:
            plots.contours(single, ax=ax, xlabel=targets[0], ylabel=targets[1])
            ax.plot(*y[row, :2], "k*", ms=9, label="observed")
        ax.set_title(f"data row {rows[row]}", fontsize=10)
    _legend_outside(figure, axes)
    return figure


def _legend_outside(figure: Any, axes: Sequence[Any]) -> None:
    """One legend above all panels, where it covers nothing."""
    handles, labels = axes[0].get_legend_handles_labels()
    for ax in axes:
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of so many axes, three beside each other."""
    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])
