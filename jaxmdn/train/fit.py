"""``fit``: from arrays to a trained density network, in one call.

This module is the host's side: checks, standardisation, the progress bar, when to stop. What runs
on the device stands in ``program``. Losses are reported in the target's own unit.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from jaxmdn import checks
from jaxmdn.components.base import Density
from jaxmdn.mixture.class_conditional import Labeled
from jaxmdn.train.data import Rows, as_arrays, concatenate, make_rows, split_rows
from jaxmdn.train.program import Carry, Program, negative_log_likelihood
from jaxmdn.train.report import ComponentReport
from jaxmdn.train.standardize import Standardizer, to_unit, unresolved
from jaxmdn.train.state import TrainState, matrices
from jaxmdn.train.targets import check_targets, refuse_constant
from jaxmdn.typing import Array, ArrayLike, Float


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite. ``result`` holds the last good parameters."""

    def __init__(self, message: str, result: FitResult) -> None:
        super().__init__(message)
        self.result = result


@dataclasses.dataclass(frozen=True, repr=False)
class FitResult:
    """A trained network with all it takes to predict in the target's own unit.

    Attributes:
      model: the trained NNX module (the one passed in), in evaluation mode. It works on
        standardised numbers; :meth:`predict` converts.
      x_standardizer, y_standardizer: the maps applied to inputs and targets; None where none was.
      history: per epoch, from epoch 0 (the initial parameters): ``train_nll`` and ``valid_nll`` in
        nats in the target's unit (NaN where there is none; with a ``loss`` of your own
        ``train_loss``, ``valid_loss``, in standardised units, and ``valid_nll``), ``seconds`` since
        the start and, for mixtures, ``mean_weight [epochs, K]``: the mixing coefficients, averaged
        over (at most 1,024 of) the training rows.
      best_epoch: the epoch whose parameters were kept.
      report: use of the components over the training rows; None for heads without components.
    """

    model: Any
    x_standardizer: Standardizer | None
    y_standardizer: Standardizer | None
    history: dict[str, np.ndarray]
    best_epoch: int
    report: ComponentReport | None

    def predict(self, x: Any) -> Any:
        """The predictive density of each row of ``x [N, ...]``, in the target's own unit."""
        graphdef, state = nnx.split(self.model)
        return _predict(graphdef, state, self.y_standardizer, _map_inputs(self, "predict", x))

    def log_prob(self, x: Any, y: Any) -> Float[Array, "N"]:
        """Log-density of each row, ``[N]``, nats, in the target's own unit."""
        graphdef, state = nnx.split(self.model)
        x, y = _map_inputs(self, "log_prob", x), as_arrays("log_prob", y, "y")
        value = _log_prob(graphdef, state, x, _map_targets(self.y_standardizer, y))
        return value if self.y_standardizer is None else value - self.y_standardizer.log_det

    def __repr__(self) -> str:
        valid = float(self.history["valid_nll"][self.best_epoch])
        return (
            f"FitResult({type(self.model).__name__}, best_epoch={self.best_epoch} of "
            f"{len(self.history['seconds']) - 1}, valid_nll={valid:.4f} nats)"
        )


@partial(jax.jit, static_argnums=0)
def _predict(graphdef: Any, state: Any, y_map: Any, x: Any) -> Density:
    density = nnx.merge(graphdef, state)(x)
    return density if y_map is None else to_unit(density, y_map)


@partial(jax.jit, static_argnums=0)
def _log_prob(graphdef: Any, state: Any, x: Any, y: Any) -> Array:
    return -nnx.merge(graphdef, state).nll(x, y, reduction="none")


def _map_inputs(result: FitResult, function: str, x: Any) -> Any:
    x = as_arrays(function, x, "x")
    return x if result.x_standardizer is None else result.x_standardizer(x)


def _map_targets(y_map: Standardizer | None, y: Any) -> Any:
    if y_map is None:
        return y
    return y._replace(y=y_map(y.y)) if isinstance(y, Labeled) else y_map(y)


MAX_HALVINGS = 3  # of the step, after a loss that is not finite
CALM = 10  # epochs without one, after which half a step is a whole one again
# One object, so that fitting the same architecture again finds its compiled program.
DEFAULT_OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(3e-3, weight_decay=0.1, mask=matrices)
)


def fit(
    model: Any,
    x: Any,
    y: Any,
    *,
    weights: Float[ArrayLike, "N"] | None = None,
    validation: float | tuple[Any, ...] | None = 0.1,
    optimizer: optax.GradientTransformation | None = None,
    num_epochs: int = 500,
    batch_size: int = 128,
    patience: int | None = 50,
    standardize: bool = True,
    initialize: bool = True,
    loss: Callable[..., Any] = negative_log_likelihood,
    ema: float = 0.99,
    refit: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a density network and keep the parameters with the best validation NLL.

    Args:
      model: an NNX module such as ``jaxmdn.nn.MDN``: ``model(x)`` returns a density,
        ``model.nll(x, y, weights=, reduction=)`` the loss, ``model.initialize`` sets the bias,
        ``model.head`` is its head. It is trained in place.
      x: inputs ``[N, F]``, or a pytree of arrays ``[N, ...]``.
      y: targets ``[N, D]``, or ``Labeled(label [N], y [N, D])``.
      weights: nonnegative row weights ``[N]``; they weight training, initialisation,
        standardisation and validation alike.
      validation: share of the rows held back at random, or ``(x, y)`` or ``(x, y, weights)``, or
        None: train for all epochs and keep the last parameters.
      optimizer: an Optax transformation; default AdamW at 3e-3 with a weight decay of 0.1 (of
        matrices), after clipping the gradient's global norm to 1.
      num_epochs: at most so many passes over the rows.
      batch_size: rows per step; the last batch of an epoch may be smaller.
      patience: stop after so many epochs without a better validation NLL; None never stops.
      standardize: shift and scale inputs (a single array ``[N, F]``; indices for an embedding are
        ``[N]`` or in a dictionary) and real-valued targets to mean 0 and variance 1; everything
        reported is back in the target's unit.
      initialize: start from the training targets' marginal density.
      loss: ``loss(model, x, y, weights, key) -> scalar`` to train on; the default is the NLL.
        The best epoch is that of the lowest ``loss`` on the validation rows (of the lowest NLL for
        a surrogate such as beta-NLL); the history shows their NLL, too.
        :func:`jaxmdn.train.objective` makes one of an objective or a score.
      ema: share of a running average of the parameters that a step keeps, in [0, 1); the average is
        validated and kept in their place. 0: none.
      refit: once the best epoch is known, start again and train on all rows, those held back too,
        for as many epochs. History and report stay those of the first run.
      seed: seeds the split, the initialisation and the shuffling; the same seed on the same
        machine gives the same result, bit for bit.
      progress: show a progress bar.

    Returns:
      A :class:`FitResult`.

    Raises:
      ValueError: for rows that do not match or are not finite (naming the first), and for
        impossible options.
      NonFiniteLossError: when the loss is NaN or infinite once more after the step was halved three
        times; its ``result`` holds the best parameters, which the model is also left with.

    Warns:
      UserWarning: when the loss is not finite; training goes on from the last good epoch with half
        the step.
      ComponentWarning: for components that died and scales at their floor.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> from flax import nnx
    >>> x = jnp.linspace(-1, 1, 64)[:, None]
    >>> model = jaxmdn.nn.MDN(1, jaxmdn.NormalHead(1, 1), hidden_features=(8,), rngs=nnx.Rngs(0))
    >>> result = jaxmdn.train.fit(model, x, 3.0 * x, num_epochs=2, progress=False)
    >>> jaxmdn.mean(result.predict(x)).shape
    (64, 1)
    """
    _check_model(model, optimizer)
    checks.require_count("fit", "num_epochs", num_epochs)
    checks.require_count("fit", "batch_size", batch_size)
    if patience is not None:
        checks.require_count("fit", "patience", patience)
    checks.require_number("fit", "ema", ema, lower=0.0, upper=1.0)
    rows = make_rows("fit", x, y, weights)
    check_targets(model.head, rows.y)
    key_split, key_bias, key_train = jax.random.split(jax.random.key(seed), 3)
    held_out: Rows | None = None
    if isinstance(validation, tuple):
        held_out = make_rows("fit(validation)", *validation, *(None,) * (3 - len(validation)))
        check_targets(model.head, held_out.y)
    elif validation is not None:
        rows, held_out = split_rows("fit", rows, validation, key_split)

    x_map, y_map = _standardizers(model, rows) if standardize else (None, None)
    log_det = 0.0 if y_map is None else y_map.log_det

    def standardized(rows: Rows) -> Rows:
        x = rows.x if x_map is None else x_map(rows.x)
        return Rows(x, _map_targets(y_map, rows.y), rows.weights).on_device()

    rows = standardized(rows)
    held_out = None if held_out is None else standardized(held_out)
    if initialize:
        model.initialize(key_bias, rows.y, weights=rows.weights)
    optimizer = optimizer or DEFAULT_OPTIMIZER

    program, params, model_state = Program.create(
        model, optimizer, loss, min(batch_size, rows.size), float(ema)
    )
    state = TrainState.create(params, optimizer, key_train, model_state=model_state)
    carry = program.start(state, held_out)
    own = loss is not negative_log_likelihood
    shift = 0.0 if own else log_det  # another loss is shown in standardised units, as it is
    names = ("train_loss", "valid_loss", "valid_nll") if own else ("train_nll", "valid_nll")
    history: dict[str, list[Any]] = {name: [] for name in (*names, "seconds")}

    def record(train: Any, valid: Any, score: Any, usage: Any) -> None:
        history["train_loss" if own else "train_nll"].append(float(train) + shift)
        history["valid_nll"].append(float(valid) + log_det if held_out else math.nan)
        if own:
            history["valid_loss"].append(float(score) if held_out else math.nan)
        history["seconds"].append(time.perf_counter() - start)
        if usage is not None:
            history.setdefault("mean_weight", []).append(np.asarray(usage, np.float64))

    def finish(carry: Carry) -> FitResult:
        nnx.update(model, carry.best_params, carry.best_model_state)
        model.eval()
        return FitResult(
            model=model,
            x_standardizer=x_map,
            y_standardizer=y_map,
            history={name: np.asarray(values) for name, values in history.items()},
            best_epoch=int(carry.best_epoch),
            report=program.report(carry, rows),
        )

    start = time.perf_counter()
    nll = float("nan") if held_out is None else program.validate(state, held_out)[0]
    record(float("nan"), nll, carry.best_score, program.usage(state, rows))
    bar = tqdm(range(1, num_epochs + 1), unit="epoch", disable=not progress, leave=True)
    if held_out is not None and not np.isfinite(carry.best_score):
        raise ValueError(
            f"fit(validation): the loss of the validation rows is {float(carry.best_score)} before "
            f"training; look for extreme values among them."
        )
    step_size, calm = 1.0, 0
    for epoch in bar:
        carry, numbers = program.epoch(carry, rows, held_out, epoch, step_size)
        numbers, best, best_epoch = jax.device_get((numbers, carry.best_score, carry.best_epoch))
        record(numbers.train, numbers.valid, numbers.score, numbers.usage)
        if not numbers.sound:
            if step_size < 0.5**MAX_HALVINGS * 1.5:
                bar.close()
                raise _non_finite(epoch, numbers.losses, finish(carry))
            step_size, calm = step_size / 2, 0
            warnings.warn(
                f"fit: the loss became non-finite in epoch {epoch}; it goes on from the parameters "
                f"before with {step_size:g} of each step.",
                stacklevel=2,
            )
        calm += 1
        if calm >= CALM and step_size < 1:
            step_size, calm = 2 * step_size, 0
        shown = f"train {numbers.train + shift:.4f}"
        if held_out is not None:
            shown += f"  valid {numbers.score + shift:.4f}  best {best + shift:.4f}"
        bar.set_postfix_str(shown + " nats", refresh=False)
        if held_out is not None and patience is not None and epoch - best_epoch >= patience:
            break
    bar.close()
    # Before the model, which shares its parameters with `params`, gets the best ones.
    again = TrainState.create(params, optimizer, key_train, model_state=model_state)
    result = finish(carry)
    if refit and held_out is not None and result.best_epoch:
        carry, every = program.start(again, None), concatenate(rows, held_out)
        for epoch in tqdm(range(1, result.best_epoch + 1), unit="epoch", disable=not progress):
            carry, numbers = program.epoch(carry, every, None, epoch)
            if not numbers.sound:
                raise _non_finite(epoch, numbers.losses, result)
        nnx.update(model, carry.best_params, carry.best_model_state)
    if result.report is not None:
        result.report.warn(model.head)
    return result


def _standardizers(model: Any, rows: Rows) -> tuple[Standardizer | None, Standardizer | None]:
    x_map = y_map = None
    single = isinstance(rows.x, jax.Array | np.ndarray)
    counted = single and not jnp.issubdtype(rows.x.dtype, jnp.floating) and rows.x.ndim == 1
    if single and not counted:
        if rows.x.ndim != 2:
            raise ValueError(
                f"fit: to standardise, x must have shape [N, F], got {list(rows.x.shape)}; reshape "
                f"it (a single feature is x[:, None]), or pass standardize=False."
            )
        x_map = Standardizer.fit(rows.x, rows.weights)
    if model.head.real_valued:
        targets = rows.y.y if isinstance(rows.y, Labeled) else rows.y
        checks.require_floating("fit", "y", targets)
        checks.require_last_axis("fit", "y", targets, model.head.event_dim, "event dimension D")
        y_map = Standardizer.fit(targets, rows.weights, closure=model.head.closure)
        refuse_constant("fit", targets)
        fine = unresolved(targets)
        if len(fine):
            warnings.warn(
                f"fit: column {fine[0]} of y varies little around a large value, more finely than "
                f"{jnp.result_type(float)} resolves; result.log_prob is exact, but predict's "
                f"densities are rounded. Subtract a constant from the column first.",
                stacklevel=3,
            )
    return x_map, y_map


def _check_model(model: Any, optimizer: Any) -> None:
    missing = [name for name in ("head", "nll", "initialize") if not hasattr(model, name)]
    if missing or not isinstance(model, nnx.Module):
        raise TypeError(
            f"fit: model must be an nnx.Module with head, nll and initialize, such as "
            f"jaxmdn.nn.MDN; {type(model).__name__} lacks {', '.join(missing) or 'nnx.Module'}. "
            f"Wrap a trunk with MDN.from_trunk, or use make_train_step in a loop of your own."
        )
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise TypeError(
            f"fit: optimizer must be an Optax transformation such as optax.adam(1e-3), "
            f"got {type(optimizer).__name__}."
        )


def _non_finite(epoch: int, losses: np.ndarray, result: FitResult) -> NonFiniteLossError:
    bad = np.flatnonzero(~np.isfinite(losses))
    place = f"step {bad[0] + 1} of {len(losses)}" if len(bad) else "the last step"
    return NonFiniteLossError(
        f"fit: the loss became non-finite in epoch {epoch}, at {place}. The parameters of epoch "
        f"{result.best_epoch} were restored (error.result). Try a lower learning rate, a smaller "
        f"gradient clip, a larger min_scale, or look for outliers in x and y.",
        result,
    )
