"""``fit_ensemble``: from a table to one calibrated density, with nothing to choose.

Every network is trained on all folds but one; the rows of that one tell when to stop, how
over-confident the networks are and what each kind is worth. The same networks then predict
together, as one exact mixture.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxmdn.heads import Head, in_units
from jaxmdn.inference.widening import has_scales
from jaxmdn.mixture import Labeled
from jaxmdn.train.columns import Columns
from jaxmdn.train.data import Rows, make_rows
from jaxmdn.train.ensemble_result import EnsembleResult
from jaxmdn.train.folds import assign_folds
from jaxmdn.train.linear import LEAST_WEIGHT, fit_linear, hold_out
from jaxmdn.train.prepare import mean_log_det
from jaxmdn.train.recipe import Recipe, resolve
from jaxmdn.train.room import make_room
from jaxmdn.train.run import Calibrated, Run
from jaxmdn.train.spread import own_devices
from jaxmdn.train.standardize import Standardizer, to_unit
from jaxmdn.train.targets import check_targets, find_cells, grid_steps, refuse_constant
from jaxmdn.train.watch import Callback, Interrupts, check_callbacks
from jaxmdn.typing import Array, ArrayLike, Float


def fit_ensemble(
    x: Any,
    y: Any,
    head: Head | None = None,
    *,
    weights: Float[ArrayLike, "N"] | None = None,
    categorical: Iterable[Any] = (),
    groups: Any = None,
    ordered: bool = False,
    target: str = "density",
    recipe: Recipe | None = None,
    effort: str = "default",
    callbacks: Callback | Sequence[Callback] = (),
    mesh: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> EnsembleResult:
    """Train an ensemble on a table and return one calibrated density for each row.

    Networks of several kinds (arms) are trained on all folds but one, all of them at once in one
    compiled program; the rows held out choose the number of epochs, the temperatures and the arms'
    weights. Nothing else is chosen, and the same networks then predict together. Where rows are few
    a linear model (ridge regression) is one more arm, with the weight that held-out rows give it;
    below a twentieth it is left out.

    Args:
      x: inputs ``[N, F]``, an array or a pandas DataFrame; what is missing is NaN. See
        :class:`Columns` for what becomes of gaps and categories.
      y: targets ``[N, D]``.
      head: what to predict; None: a mixture of five Student-t components for each row. With
        components that have a location and a scale, temperatures act on the scales; with others
        (gamma, counts, classes) the arms' weights alone are fitted.
      weights: nonnegative row weights ``[N]``; rows of weight zero are left out altogether.
      categorical: columns of ``x`` that are categories though they are numbers, by place or name;
        text and columns of pandas' type "category" are so anyway.
      groups: a label for each row; rows with the same label are held out together.
      ordered: hold out stretches of neighbouring rows, as for a series in time.
      target: ``"grid"``: train, calibrate and score by the probabilities of cells, as in
        :func:`jaxmdn.train.fit`; ``"density"`` warns where the grid is coarse.
      recipe: the numbers of the training; None: those of ``effort``, which counts only then.
      effort: ``"fast"``, ``"default"`` or ``"best"``.
      callbacks: ``callback(cycle, record)``, or several, called after every cycle; one that returns
        "stop" ends the training. ``record`` holds what the history gets.
      mesh: devices of this process (``jax.make_mesh``), whatever the axes: the networks are spread
        over as many of them as divide their number. None: over all that the process has.
      seed: seeds folds, networks and shuffling.
      progress: show a progress bar.

    Returns:
      An :class:`EnsembleResult`: ``predict(x)``, ``log_prob(x, y)``, ``uncertainty(x)``,
      ``importance(x, y)``, ``out_of_fold``. Ctrl-C ends the training with a warning and the last
      cycle's result (before the end of the first it raises).

    Raises:
      ValueError: for rows that do not match or are not finite, a constant target, and targets
        outside the head's support.
      FloatingPointError: when the rows held out have no finite NLL.

    >>> import jax.numpy as jnp, jaxmdn
    >>> x = jnp.linspace(-1, 1, 60)[:, None]
    >>> recipe = jaxmdn.train.Recipe(folds=2, cycles=(1,), hidden_features=(8,))
    >>> result = jaxmdn.train.fit_ensemble(x, 3.0 * x, recipe=recipe, progress=False)
    >>> jaxmdn.mean(result.predict(x)).shape, result.num_networks
    ((60, 1), 4)

    References:
      Lakshminarayanan et al. (2017), Deep ensembles; Huang et al. (2017), Snapshot ensembles, for
      the cycles; Guo et al. (2017) for the temperature.
    """
    recipe = resolve("fit_ensemble", recipe, effort)
    callbacks = check_callbacks("fit_ensemble", callbacks)
    devices = own_devices("fit_ensemble", mesh)
    if isinstance(y, Labeled):
        raise TypeError("fit_ensemble: expected y [N, D], got Labeled; use jaxmdn.train.fit.")
    make_room()
    columns = Columns.fit(x, weights, categorical=categorical, function="fit_ensemble")
    everything = make_rows("fit_ensemble", columns(x, function="fit_ensemble"), y, weights)
    if not hasattr(everything.y, "shape") or everything.y.ndim != 2:
        got = list(everything.y.shape) if hasattr(everything.y, "shape") else type(y).__name__
        column = "y.to_frame()" if hasattr(y, "to_frame") else "y[:, None]"
        raise ValueError(
            f"fit_ensemble: y must be an array [N, columns], got {got}; "
            f"a single column is {column}."
        )
    rows, counted = everything.counted()
    groups = None if groups is None else np.asarray(groups)[counted]
    head = recipe.head(rows.y.shape[1]) if head is None else head
    check_targets(head, rows.y, "fit_ensemble")
    cells = find_cells("fit_ensemble", head, rows.y, target)
    x_map = Standardizer.fit(rows.x, rows.weights)
    y_map = None
    if head.real_valued:
        refuse_constant("fit_ensemble", rows.y)
        y_map = Standardizer.fit(rows.y, rows.weights, closure=head.closure)
    share = np.float32(rows.weights / rows.weights.mean())
    table = Rows(x_map(rows.x), rows.y if y_map is None else y_map(rows.y), share).on_device()
    head = in_units(head, table.y, table.weights)
    num_folds = recipe.num_folds(table.size if groups is None else len(np.unique(groups)))
    folds = assign_folds(table.size, num_folds, groups=groups, ordered=ordered, seed=seed)
    floor = _floor(rows.y, recipe, y_map, grid=cells is None)
    log_det, width = mean_log_det(y_map, head, table), None
    if cells is not None and y_map is not None:
        log_det, width = 0.0, jnp.asarray(cells / y_map.scale, jnp.float32)

    with_linear = recipe.with_linear(table.size) and has_scales(head.density_shape)
    held = hold_out(table, folds) if with_linear else None
    run = Run(recipe, head, table, folds, floor, seed, width, devices, held)
    history: dict[str, list[float]] = {}
    start, epochs, lost = time.perf_counter(), 0, 0
    best: Calibrated | None = None
    gain = math.inf  # nats, of the last cycle
    ends: list[Any] = []
    bar = tqdm(total=sum(recipe.cycles), unit="epoch", disable=not progress)
    with bar, Interrupts() as interrupts:
        for cycle, length in enumerate(recipe.cycles, start=1):
            before = time.perf_counter()
            lost += run.cycle(length, bar, log_det, interrupts)
            if interrupts.asked:
                break
            rate = table.size * length / (time.perf_counter() - before)
            epochs += length
            ends = [*ends, run.snapshot()][-2:]
            tried = [run.calibrate(ends[-count:]) for count in range(1, len(ends) + 1)]
            found = min(tried, key=lambda one: one.nll if np.isfinite(one.nll) else np.inf)
            record = {
                "epochs": epochs,
                "out_of_fold_nll": found.nll + log_det,
                "raw_nll": found.raw_nll + log_det,
                "seconds": time.perf_counter() - start,
                "rows_per_second": rate,
            }
            for name, value in record.items():
                history.setdefault(name, []).append(value)
            bar.set_postfix_str(f"held out {found.nll + log_det:.4f} nats")
            last, gain = gain, math.inf
            if best is not None and np.isfinite(best.nll):
                gain = best.nll - found.nll
            best = found if gain > 0 else best
            stop = interrupts.tell("fit_ensemble", callbacks, cycle, record)
            if stop or interrupts.asked or not _next_gain(last, gain) >= recipe.min_gain:
                break
    if interrupts.asked:
        if best is None:
            raise KeyboardInterrupt
        warnings.warn(
            "fit_ensemble: interrupted; the result is that of the last cycle.", stacklevel=2
        )
    if lost:
        warnings.warn(
            f"fit_ensemble: in {lost} epoch(s) some network met a loss that is not finite; these "
            f"steps were left out. Look for extreme values, or lower peak_rate in the recipe.",
            stacklevel=2,
        )
    if best is None or not np.isfinite(best.nll):
        raise FloatingPointError(
            f"fit_ensemble: the mean NLL of the rows held out is {history['out_of_fold_nll'][-1]}; "
            f"look for extreme values in x and y, or try a lower peak_rate in the recipe."
        )
    if with_linear and np.asarray(best.temperature.weights)[-1] < LEAST_WEIGHT:
        with_linear, best = False, run.calibrate(best.snapshots, alone=True)
    temperature, factor = run.for_all_networks(best)
    return EnsembleResult(
        graphdef=run.plan.eval_graph,
        networks=run.networks(best.snapshots),
        linear=fit_linear(table.x, table.y, table.weights) if with_linear else None,
        folds=folds,
        temperature=temperature,
        narrowing=factor,
        floor=floor,
        columns=columns,
        x_standardizer=x_map,
        y_standardizer=y_map,
        out_of_fold=best.density if y_map is None else to_unit(best.density, y_map),
        history={name: np.asarray(values) for name, values in history.items()},
        cells=cells,
    )


def _next_gain(last: float, gain: float) -> float:
    """What the next cycle will gain if gains go on falling by the same ratio."""
    return gain * gain / last if 0 < gain < last < math.inf else gain


def _floor(y: Any, recipe: Recipe, y_map: Standardizer | None, *, grid: bool = True) -> Array:
    """The least noise ``[D]``: a grid's rounding has a standard deviation of 0.29 of its step."""
    if y_map is None:
        return jnp.zeros(y.shape[1])
    steps = grid_steps(y) if recipe.grid and grid else np.zeros(y.shape[1])
    return jnp.asarray(
        np.maximum(recipe.min_scale, steps / math.sqrt(12) / y_map.scale), jnp.float32
    )
