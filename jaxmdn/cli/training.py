"""From the options of ``jaxmdn fit`` to a trained result: one network, or an ensemble."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import optax
from flax import nnx

from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.table import Table
from jaxmdn.cli.targets import Targets
from jaxmdn.heads import Head
from jaxmdn.nn import MDN
from jaxmdn.train import (
    Columns,
    EnsembleResult,
    FitResult,
    NonFiniteLossError,
    Recipe,
    ShuffledBatches,
    fit,
    fit_ensemble,
    fit_stream,
)
from jaxmdn.train.recipe import resolve

HIDDEN, COMPONENTS, EPOCHS, PATIENCE, BATCH = (64, 64), 5, 500, 50, 64
STREAM_EPOCHS, STREAM_PATIENCE, STREAM_BATCH = 20, 5, 1024
RATE, DECAY, MIN_SCALE = 2e-3, 1e-2, 1e-3


def head_of(arguments: argparse.Namespace, targets: Targets) -> Head:
    """The head that predicts the targets."""
    floors = {"min_scale": MIN_SCALE, "min_weight": arguments.min_weight or 0.0}
    if arguments.min_scale is not None:
        floors["min_scale"] = arguments.min_scale
    try:
        return targets.head(arguments.components or COMPONENTS, arguments.covariance, **floors)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def one_network(
    arguments: argparse.Namespace, head: Head, table: Table, columns: Columns
) -> FitResult:
    """Train a single network; a tenth of the rows (of groups, of the time) stops the training."""
    validation: Any = 0.1
    if _groups(table) is not None or table.times is not None:
        held = table.held_back(0.1, arguments.seed)
        validation, table = rows_of(table.take(held), columns), table.take(~held)
    x, y, weights = rows_of(table, columns)
    try:
        return fit(
            _model(arguments, head, x.shape[1]), x, y, weights=weights, validation=validation,
            num_epochs=arguments.epochs or EPOCHS, batch_size=arguments.batch_size or BATCH,
            patience=arguments.patience or PATIENCE, **_options(arguments),
        )  # fmt: skip
    except (NonFiniteLossError, TypeError) as error:
        raise UsageError(str(error)) from None


def streamed(
    arguments: argparse.Namespace,
    head: Head,
    batches: ShuffledBatches,
    validation: tuple[Any, ...],
    maps: tuple[Any, Any],
) -> FitResult:
    """Train a single network on batches from a file; judge it after a million rows or a pass."""
    a_pass = -(-batches.num_rows // batches.batch_size)
    try:
        return fit_stream(
            _model(arguments, head, len(maps[0].shift)), batches, validation=validation,
            steps=a_pass * (arguments.epochs or STREAM_EPOCHS), standardizer=maps,
            every=min(a_pass, -(-(10**6) // batches.batch_size)),
            patience=arguments.patience or STREAM_PATIENCE, **_options(arguments),
        )  # fmt: skip
    except (NonFiniteLossError, TypeError) as error:
        raise UsageError(str(error)) from None


def _model(arguments: argparse.Namespace, head: Head, in_features: int) -> MDN:
    return MDN(
        in_features, head, hidden_features=tuple(arguments.hidden or HIDDEN),
        dropout=arguments.dropout or 0.0, rngs=nnx.Rngs(arguments.seed),
    )  # fmt: skip


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``fit`` and ``fit_stream`` are both told."""
    rate, decay = arguments.learning_rate, arguments.weight_decay
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(RATE if rate is None else rate, weight_decay=DECAY if decay is None else decay),
    )
    return {
        "optimizer": optimizer, "seed": arguments.seed, "checkpoint": arguments.checkpoint,
        "resume": arguments.resume, "progress": not arguments.quiet,
    }  # fmt: skip


def ensemble(
    arguments: argparse.Namespace, head: Head, table: Table, columns: Columns
) -> EnsembleResult:
    """Train an ensemble by a recipe, with those of its numbers changed that were given.

    It learns ``columns`` by itself; real targets without a family get the recipe's own head.
    """
    recipe = resolve("jaxmdn fit", None, arguments.effort)
    given = {
        "num_components": arguments.components,
        "hidden_features": arguments.hidden and tuple(arguments.hidden),
        "dropout": arguments.dropout,
        "batch_size": arguments.batch_size,
        "peak_rate": arguments.learning_rate,
        "weight_decay": arguments.weight_decay,
        "min_scale": arguments.min_scale,
        "cycles": _cycles(recipe, arguments.epochs),
    }
    own = any(table.targets.families.values()) or arguments.covariance or arguments.min_weight
    _, y, weights = rows_of(table, columns)
    try:
        recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
        return fit_ensemble(
            table.prepared, y, head if own else None, weights=weights,
            categorical=table.inputs.categories, groups=_groups(table),
            ordered=table.times is not None, recipe=recipe, seed=arguments.seed,
            progress=not arguments.quiet,
        )  # fmt: skip
    except (FloatingPointError, TypeError) as error:
        raise UsageError(str(error)) from None


def rows_of(table: Table, columns: Columns) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Inputs, targets and weights, as ``fit`` takes them."""
    return np.asarray(columns(table.prepared)), table.targets.whole(table.y), table.weights


def _groups(table: Table) -> np.ndarray | None:
    """The groups, if there are several to be told apart."""
    several = table.groups is not None and len(np.unique(table.groups)) > 1
    return table.groups if several else None


def _cycles(recipe: Recipe, epochs: int | None) -> tuple[int, ...] | None:
    """The recipe's cycles as far as they are so many epochs, or one that is shorter."""
    if epochs is None:
        return None
    ends = np.cumsum(recipe.cycles)
    return recipe.cycles[: int((ends <= epochs).sum())] or (epochs,)
