"""``fit_ensemble``: from a table to one calibrated density, with nothing to choose.

Every network is trained on all folds but one; the rows of that one tell when to stop, how
over-confident the networks are and what each kind is worth. The same networks then predict
together, as one exact mixture.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from jaxmdn import checks, pickling
from jaxmdn.calibration.temperature import Temperature, apply_temperature
from jaxmdn.heads import Head, in_units
from jaxmdn.inference.cells import cell_log_prob
from jaxmdn.losses import log_prob
from jaxmdn.mixture import Labeled
from jaxmdn.mixture.sampling import Estimate
from jaxmdn.train import padding
from jaxmdn.train.columns import Columns
from jaxmdn.train.data import Rows, as_arrays, make_rows
from jaxmdn.train.folds import assign_folds
from jaxmdn.train.prepare import mean_log_det
from jaxmdn.train.recipe import Recipe, resolve
from jaxmdn.train.room import make_room
from jaxmdn.train.run import Calibrated, Run, densities, moments
from jaxmdn.train.spread import own_devices
from jaxmdn.train.standardize import Standardizer, to_unit
from jaxmdn.train.targets import check_targets, find_cells, grid_steps, refuse_constant
from jaxmdn.train.watch import Callback, Interrupts, check_callbacks
from jaxmdn.typing import Array, ArrayLike, Float


class Uncertainty(NamedTuple):
    """The two parts of the predictive variance, ``[N, D]``, in the target's unit squared.

    Attributes:
      aleatoric: the mean of the networks' own variances: noise that more rows would not remove.
      epistemic: the variance of the networks' means: what they do not agree about.
    """

    aleatoric: np.ndarray
    epistemic: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class EnsembleResult:
    """Networks trained on all folds but one each, and the calibrated mixture of them.

    Attributes:
      graphdef: the networks' architecture (NNX), in evaluation mode.
      networks: the state of all of them, ``[A, G, ...]``: A models (arms), each of G networks.
      folds: the fold of each training row that counts, ``[N]``.
      temperature: fitted to the rows held out, in standardised units, for all networks.
      narrowing: by this its scales and noise are smaller than those fitted, since new rows are
        predicted by more networks, which err less together.
      floor: the least noise under a scale, ``[D]``, in standardised units.
      columns: what becomes of gaps and categories among the inputs.
      x_standardizer, y_standardizer: the maps applied to inputs, after that, and targets.
      out_of_fold: the calibrated density of each training row under the networks that did not see
        it, in the target's unit. Nearly what to expect of new rows: epochs, temperatures and
        weights, a dozen numbers, were chosen by these rows. None after loading.
      history: per cycle: ``epochs`` so far, ``out_of_fold_nll`` and ``raw_nll`` (before
        calibration), nats a row in the target's unit, ``seconds`` since the start and
        ``rows_per_second`` of the cycle (rows of the table, for all networks together).
      cells: of targets on a grid its step, ``[D]``, in the target's unit: ``log_prob`` and the
        history's NLL are those of cells as wide. None: there is a density.
    """

    graphdef: Any
    networks: Any
    folds: np.ndarray
    temperature: Temperature
    narrowing: float
    floor: Array
    columns: Columns
    x_standardizer: Standardizer
    y_standardizer: Standardizer | None
    out_of_fold: Any
    history: dict[str, np.ndarray]
    cells: np.ndarray | None = None

    @property
    def model(self) -> Any:
        """The first of the networks, an NNX module; it maps standardised inputs."""
        return nnx.merge(self.graphdef, _first(self.networks))

    @property
    def num_networks(self) -> int:
        """How many networks predict together."""
        arms, each = jax.tree.leaves(self.networks)[0].shape[:2]
        return int(arms * each)

    def predict(self, x: Any) -> Any:
        """The predictive density of each row of ``x [N, F]``, in the target's own unit.

        Up to 16,384 rows are filled up to a power of two, so that tables of all lengths share 11
        compiled programs.
        """
        count, inputs = self._filled("predict", x)
        arms = densities(self.graphdef, self.networks, inputs)
        density = _own_unit(apply_temperature(self.temperature, arms, floor=self.floor), self)
        return padding.cut(density, count)

    def log_prob(self, x: Any, y: Any) -> Float[Array, "N"]:
        """Log-density of each row, ``[N]``, nats, in the target's own unit."""
        if len(x) != len(y):
            raise ValueError(f"log_prob: x has {len(x)} rows, y {len(y)}; pass as many of both.")
        count, inputs, y = self._filled("log_prob", x, as_arrays("log_prob", y, "y"))
        return padding.cut(self._log_prob(inputs, y), count)

    def _log_prob(self, inputs: Any, y: Any) -> Float[Array, "N"]:
        arms = densities(self.graphdef, self.networks, inputs)
        density = apply_temperature(self.temperature, arms, floor=self.floor)
        y_map = self.y_standardizer
        if self.cells is not None and y_map is not None:
            return cell_log_prob(density, y_map(y), self.cells / y_map.scale)
        if y_map is None:
            return log_prob(density, jnp.asarray(y))
        log_det = y_map.log_det_at(density.support, y)
        return log_prob(density, y_map(y)) - jnp.asarray(log_det).astype(density.dtype)

    def uncertainty(self, x: Any) -> Uncertainty:
        """Split the predictive variance of each row of ``x [N, F]`` by the law of total variance.

        The networks count as the calibration weighs them, with the scales that it gives them; the
        outliers that it allows for are left out.

        References:
          Depeweg et al. (2018), Decomposition of uncertainty in Bayesian deep learning, eq. 10.
        """
        count, x = self._filled("uncertainty", x)
        found = moments(self.graphdef, self.networks, x, self.temperature, self.floor)
        means, variances = (np.asarray(part)[:, :, :count] for part in found)
        share = np.asarray(self.temperature.weights)[:, None, None, None] / means.shape[1]
        mean = np.sum(share * means, axis=(0, 1))
        aleatoric = np.sum(share * variances, axis=(0, 1))
        epistemic = np.sum(share * (means - mean) ** 2, axis=(0, 1))
        unit = 1.0 if self.y_standardizer is None else self.y_standardizer.scale**2
        return Uncertainty(aleatoric * unit, epistemic * unit)

    def importance(self, x: Any, y: Any, *, num_repeats: int = 5, seed: int = 0) -> Estimate:
        """What each input is worth: the NLL lost where its column is shuffled, nats a row, ``[F]``.

        Args:
          x, y: rows that the networks were not trained on.
          num_repeats: shuffles of each column, at least 2.
          seed: of the shuffles.

        References:
          Breiman (2001), Random forests, section 10.
        """
        checks.require_count("importance", "num_repeats", num_repeats, minimum=2)
        inputs, sources = np.array(self._inputs("importance", x)), self.columns.sources
        y, rng = as_arrays("importance", y, "y"), np.random.default_rng(seed)
        nll = -float(np.mean(self._log_prob(jnp.asarray(inputs), y)))
        losses = np.empty((num_repeats, sources[-1] + 1))
        for (repeat, column), _ in np.ndenumerate(losses):
            own, shuffled = sources == column, inputs.copy()
            shuffled[:, own] = inputs[rng.permutation(len(inputs))][:, own]
            losses[repeat, column] = -np.mean(self._log_prob(jnp.asarray(shuffled), y)) - nll
        error = losses.std(axis=0, ddof=1) / num_repeats**0.5
        return Estimate(jnp.asarray(losses.mean(axis=0)), jnp.asarray(error))

    def _inputs(self, function: str, x: Any) -> Array:
        """Standardised, ``[N, E]``."""
        return self.x_standardizer(self.columns(x, function=function))

    def _filled(self, function: str, x: Any, *others: Any) -> tuple[Any, ...]:
        """N, and standardised inputs and what else there is, filled up to a power of two rows."""
        count, filled = padding.fill((self.columns(x, function=function), *others))
        return count, self.x_standardizer(filled[0]), *filled[1:]

    def __reduce__(self) -> tuple[Any, ...]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        networks = nnx.merge(own.pop("graphdef"), own.pop("networks"))
        return _rebuild, (networks, pickling.pack(own))

    def __repr__(self) -> str:
        nll = self.history["out_of_fold_nll"].min()
        return f"EnsembleResult({self.num_networks} networks, out_of_fold_nll={nll:.4f} nats)"


def _rebuild(networks: Any, fields: dict[str, Any]) -> EnsembleResult:
    """What a pickle describes; one module holds all networks' parameters, ``[A, G, ...]``."""
    graphdef, state = nnx.split(networks)
    return EnsembleResult(graphdef=graphdef, networks=state, **pickling.unpack(fields))


@jax.jit
def _first(networks: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, 0], networks)


def _own_unit(density: Any, result: Any) -> Any:
    y_map = result.y_standardizer
    return density if y_map is None else to_unit(density, y_map)


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
    weights. Nothing else is chosen, and the same networks then predict together.

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

    run = Run(recipe, head, table, folds, floor, seed, width, devices)
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
    temperature, factor = run.for_all_networks(best)
    return EnsembleResult(
        graphdef=run.plan.eval_graph,
        networks=run.networks(best.snapshots),
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
