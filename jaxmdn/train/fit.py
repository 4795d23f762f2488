"""``fit``: from arrays to a trained density network, in one call.

Here arguments are checked and rows prepared; ``loop`` goes through the epochs, ``program`` is what
runs on the device. Losses are reported in the target's own unit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxmdn import checks
from jaxmdn.train.data import Rows, concatenate, make_rows, split_rows
from jaxmdn.train.loop import Loop, Progress, Unit
from jaxmdn.train.objectives import CellLoss
from jaxmdn.train.optimizers import shared
from jaxmdn.train.prepare import (
    input_map,
    mean_log_det,
    standardized,
    start_from,
    target_map,
)
from jaxmdn.train.program import Carry, Program, negative_log_likelihood
from jaxmdn.train.recipe import FEW_ROWS
from jaxmdn.train.result import FitResult
from jaxmdn.train.resume import Keeper, Store, fingerprint
from jaxmdn.train.room import make_room
from jaxmdn.train.spread import Layout
from jaxmdn.train.state import Optimizer, matrices
from jaxmdn.train.targets import check_targets, find_cells
from jaxmdn.train.watch import Callback, check_callbacks

ADAM_CONSTANTS = ("b1", "b2", "eps", "eps_root", "weight_decay", "nesterov", "mu_dtype")
# One object, so that fitting the same architecture again finds its compiled program.
DEFAULT_OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.inject_hyperparams(optax.adamw, static_args=("mask", *ADAM_CONSTANTS))(
        3e-3, weight_decay=0.1, mask=matrices
    ),
)


def fit(
    model: Any,
    x: Any,
    y: Any,
    *,
    weights: Any = None,
    validation: float | tuple[Any, ...] | None = 0.1,
    optimizer: Optimizer | None = None,
    num_epochs: int = 500,
    batch_size: int | None = None,
    patience: int | None = 50,
    standardize_x: bool = True,
    standardize_y: bool = True,
    initialize: bool = True,
    target: str = "density",
    loss: Callable[..., Any] = negative_log_likelihood,
    ema: float = 0.99,
    refit: bool | None = None,
    calibrate: bool = True,
    callbacks: Callback | Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = False,
    mesh: Any = None,
    sharding: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a density network and keep the parameters with the best validation NLL.

    Args:
      model: an NNX module such as ``jaxmdn.nn.MDN``: ``model(x)`` returns a density,
        ``model.nll(x, y, weights=, reduction=)`` the loss, ``model.initialize`` sets the bias,
        ``model.head`` is its head. It is trained in place.
      x: inputs ``[N, F]``, or a pytree of arrays ``[N, ...]``.
      y: targets ``[N, D]``, sequences of them ``[N, T, D]``, or ``Labeled(label [N], y [N, D])``.
      weights: nonnegative row weights ``[N]``, of sequences also ``[N, T]``; truth values are a
        mask. They weight training, initialisation, standardisation and validation alike; rows of
        weight zero are left out altogether, and what ``y`` holds of them does not matter.
      validation: share of the rows held back at random, or ``(x, y)`` or ``(x, y, weights)``, or
        None: train for all epochs and keep the last parameters.
      optimizer: an Optax transformation; default AdamW at 3e-3 with a weight decay of 0.1 (of
        matrices), after clipping the gradient's global norm to 1. Fits of one architecture with
        equal ones, of Optax's own functions, are compiled once.
      num_epochs: at most so many passes over the rows.
      batch_size: rows per step; the last batch of an epoch may be smaller. None: 64 where there are
        fewer than 2,500 rows, else 128.
      patience: after so many epochs without a better validation NLL the best parameters are
        refined: with a quarter, a sixteenth and a sixty-fourth of each step, each as long as a
        fifth of these epochs gains something; then training stops. None never stops.
      standardize_x: shift and scale inputs to mean 0 and variance 1, column by column: a single
        array ``[N, F]`` or ``[N, ..., F]``, of a pytree the floating leaves with two axes or more.
        Indices for an embedding are ``[N]``, or whole numbers in a dictionary.
      standardize_y: the same of real-valued targets, as far as their density allows; everything
        reported is back in the target's unit.
      initialize: start from the training targets' marginal density. A density that does not let
        its targets be standardised gets their unit (:func:`jaxmdn.heads.in_units`): ``model.head``
        is another one then.
      target: ``"grid"``: targets were rounded (ratings, whole prices, few digits); train, validate
        and score by the probabilities of cells as wide as the grid's step, which is found from the
        rows, in the place of ``loss``. It takes continuous components, independent in their
        dimensions. ``"density"`` warns where the step is above a tenth of a standard deviation.
      loss: ``loss(model, x, y, weights, key) -> scalar`` to train on; the default is the NLL.
        The best epoch is that of the lowest ``loss`` on the validation rows (of the lowest NLL for
        a surrogate such as beta-NLL); the history shows their NLL, too.
        :func:`jaxmdn.train.objective` makes one of an objective or a score.
      ema: share of a running average of the parameters that a step keeps, in [0, 1); the average is
        validated and kept in their place. 0: none.
      refit: once the best epoch is known, start again and train on all rows, those held back too,
        for the epochs that led to the best. History, report and temperature stay those of the first
        run, whose epochs are as long: some of its rows, others in each, come twice. None: where
        there are fewer than 2,500 rows, and those held back were drawn from them.
      calibrate: multiply all scales by one factor, at least one, that the validation rows like
        best (:func:`jaxmdn.calibration.fit_scale_factor`), and judge every epoch by the NLL so
        calibrated: networks trained for long are over-confident. It takes validation by the NLL and
        components with a location and a scale; of others nothing changes.
      callbacks: ``callback(epoch, record)``, or several, called after every epoch; one that returns
        "stop" ends the training. ``record`` holds what the history gets.
      checkpoint: a folder in which the run is saved while it goes on, in the background: killed at
        any moment, at most the epochs since the last save are lost.
      save_every: epochs between saves; None: a minute.
      resume: go on with the run in the folder, if there is one. Rows, seed and options must be the
        same (``num_epochs``, ``patience`` and ``callbacks`` may differ); on the same machine the
        result is that of a run that was never interrupted, bit for bit.
      mesh: devices to train on (``jax.make_mesh``), of one process or of several that are given
        the same rows: each batch is spread over all of them, whatever the axes; each device holds
        all rows. The result is that of one device but for rounding.
      sharding: a rule: ``sharding(array) -> PartitionSpec`` says over which axes of the mesh a
        parameter is spread, and with it its gradient, its average and the optimizer's moments; what
        a step needs of it is gathered when it is needed. The trained network's parameters stay as
        they lie. None: every device holds all (20 bytes a parameter: four billion in 80 GB).
      seed: seeds the split, the initialisation and the shuffling; the same seed on the same
        machine gives the same result, bit for bit.
      progress: show a progress bar.

    Returns:
      A :class:`FitResult`. Ctrl-C ends the training after the epoch that runs, with a warning and
      the best result so far; the second time it raises.

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
    check_model("fit", model, optimizer)
    checks.require_count("fit", "num_epochs", num_epochs)
    if batch_size is not None:
        checks.require_count("fit", "batch_size", batch_size)
    if patience is not None:
        checks.require_count("fit", "patience", patience)
    checks.require_number("fit", "ema", ema, lower=0.0, upper=1.0)
    callbacks = check_callbacks("fit", callbacks)
    layout = Layout.create("fit", mesh, sharding)
    make_room()
    rows, _ = make_rows("fit", x, y, weights).counted()
    few = rows.size < FEW_ROWS
    batch_size = (64 if few else 128) if batch_size is None else batch_size
    if refit is None:
        refit = few and not isinstance(validation, tuple)
    refit = refit and validation is not None
    check_targets(model.head, rows.y)
    cells = find_cells("fit", model.head, rows.y, target)
    key_split, key_bias, key_train = jax.random.split(jax.random.key(seed), 3)
    held_out: Rows | None = None
    if isinstance(validation, tuple):
        held_out = make_rows("fit(validation)", *validation, *(None,) * (3 - len(validation)))
        check_targets(model.head, held_out.y)
    elif validation is not None:
        rows, held_out = split_rows("fit", rows, validation, key_split)

    store = None
    if checkpoint is not None:
        settings = {
            "seed": seed, "batch_size": batch_size, "ema": ema, "initialize": initialize,
            "standardize_x": standardize_x, "standardize_y": standardize_y,
            "model": model.config() if getattr(model, "describable", False) else None,
            "rows": fingerprint(rows), "validation": fingerprint(held_out),
            # Runs from before these were settings know none of them.
            "calibrate": calibrate or None, "refit": refit or None,
            "cells": None if cells is None else cells.tolist(),
        }  # fmt: skip
        store = Store.open(layout, checkpoint, save_every, resume, settings)

    x_map = input_map("fit", rows) if standardize_x else None
    y_map = target_map("fit", model.head, rows) if standardize_y else None
    rows = standardized(rows, x_map, y_map)
    held_out = None if held_out is None else standardized(held_out, x_map, y_map)
    if cells is not None:
        unit = np.ones_like(cells) if y_map is None else y_map.scale
        loss = CellLoss(tuple(float(width) for width in cells / unit))
    if initialize:
        start_from(rows, model, key_bias)
    optimizer = DEFAULT_OPTIMIZER if optimizer is None else shared(optimizer)

    every = concatenate(rows, held_out) if refit and held_out is not None else rows
    program, params, model_state = Program.create(
        model, optimizer, loss, min(batch_size, every.size), float(ema), layout, calibrate
    )
    log_map = y_map if cells is None else None  # a probability has no unit
    log_dets = [mean_log_det(log_map, model.head, part) for part in (rows, held_out)]
    rows, every, held_out, model_state, key_train = layout.place(
        (rows, every, held_out, model_state, key_train)
    )
    params = layout.place_by_rule(params)
    unit = Unit(
        log_det=log_dets[0],
        valid_log_det=log_dets[1],
        own_loss=cells is None and loss is not negative_log_likelihood,
        validated=held_out is not None,
    )
    progressed = Progress()

    def finish(carry: Carry) -> FitResult:
        nnx.update(model, *layout.gather((carry.best_params, carry.best_model_state)))
        model.eval()
        return FitResult(
            model=model,
            x_standardizer=x_map,
            y_standardizer=y_map,
            history={name: np.asarray(values) for name, values in progressed.history.items()},
            best_epoch=int(carry.best_epoch),
            report=program.report(carry, rows),
            temperature=progressed.temperature(int(carry.best_epoch)),
            cells=cells,
        )

    loop = Loop(
        function="fit",
        advance=lambda carry, epoch, step_size: (
            *program.epoch(carry, every, held_out, epoch, step_size, rows.size),
            every.size,
        ),
        finish=finish,
        unit=unit,
        layout=layout,
        num_epochs=num_epochs,
        patience=patience,
        callbacks=callbacks,
        progress=progress,
        initial=lambda carry: program.initial(carry, rows, held_out),
        keeper=None if store is None else Keeper(store, "search"),
    )
    with layout.set():
        carry = program.start(program.state(params, model_state, key_train), held_out)
        carry = loop.run(carry, progressed)
        # Before the model, which shares its parameters with `params`, gets the best ones.
        again = program.state(params, model_state, key_train)
        result = finish(carry)
        if refit and held_out is not None and result.best_epoch and not progressed.interrupted:
            path = progressed.path[: progressed.best]
            final = dataclasses.replace(
                loop,
                advance=lambda carry, epoch, step_size: (
                    *program.epoch(carry, every, held_out, epoch, step_size * path[epoch - 1]),
                    every.size,
                ),
                unit=dataclasses.replace(unit, validated=False),
                num_epochs=len(path),
                callbacks=(),
                finish=lambda carry: result,
                initial=None,
                keeper=None if store is None else Keeper(store, "refit"),
            )
            carry = final.run(program.start(again, held_out), progressed_again := Progress())
            if not progressed_again.interrupted:
                nnx.update(model, *layout.gather((carry.average, carry.state.model_state)))
    if result.report is not None:
        result.report.warn(model.head)
    return result


def check_model(function: str, model: Any, optimizer: Any) -> None:
    """Raise unless a network has all that training asks of it, and an optimizer can be one."""
    missing = [name for name in ("head", "nll", "initialize") if not hasattr(model, name)]
    if missing or not isinstance(model, nnx.Module):
        raise TypeError(
            f"{function}: model must be an nnx.Module with head, nll and initialize, such as "
            f"jaxmdn.nn.MDN; {type(model).__name__} lacks {', '.join(missing) or 'nnx.Module'}. "
            f"Wrap a trunk with MDN.from_trunk, or use make_train_step in a loop of your own."
        )
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise TypeError(
            f"{function}: optimizer must be an Optax transformation such as optax.adam(1e-3), "
            f"got {type(optimizer).__name__}."
        )
