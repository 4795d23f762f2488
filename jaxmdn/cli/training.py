"""From the options of ``jaxmdn fit`` to a trained result: one network, or an ensemble."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import optax
from flax import nnx

from jaxmdn.cli.errors import UsageError
from jaxmdn.heads import Head
from jaxmdn.nn import MDN
from jaxmdn.train import EnsembleResult, FitResult, NonFiniteLossError, Recipe, fit, fit_ensemble
from jaxmdn.train.recipe import resolve

HIDDEN, COMPONENTS, EPOCHS, PATIENCE, BATCH = (64, 64), 5, 500, 50, 64
RATE, DECAY, MIN_SCALE = 2e-3, 1e-2, 1e-3


def head_options(arguments: argparse.Namespace) -> tuple[int, dict[str, float]]:
    """Components and floors of the head."""
    floors = {"min_scale": MIN_SCALE, "min_weight": arguments.min_weight or 0.0}
    if arguments.min_scale is not None:
        floors["min_scale"] = arguments.min_scale
    return arguments.components or COMPONENTS, floors


def one_network(
    arguments: argparse.Namespace,
    head: Head,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    held: np.ndarray | None,
) -> FitResult:
    """Train a single network; ``held [N]`` says which rows stop the training, else a tenth."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(
            RATE if arguments.learning_rate is None else arguments.learning_rate,
            weight_decay=DECAY if arguments.weight_decay is None else arguments.weight_decay,
        ),
    )
    validation: Any = 0.1
    if held is not None:
        own = (x[held], y[held])
        validation = own if weights is None else (*own, weights[held])
        x, y = x[~held], y[~held]
        weights = None if weights is None else weights[~held]
    try:
        model = MDN(
            x.shape[1], head, hidden_features=tuple(arguments.hidden or HIDDEN),
            dropout=arguments.dropout or 0.0, rngs=nnx.Rngs(arguments.seed),
        )  # fmt: skip
        return fit(
            model, x, y, optimizer=optimizer, num_epochs=arguments.epochs or EPOCHS,
            weights=weights, validation=validation, batch_size=arguments.batch_size or BATCH,
            patience=arguments.patience or PATIENCE, seed=arguments.seed,
            checkpoint=arguments.checkpoint, resume=arguments.resume,
            progress=not arguments.quiet,
        )  # fmt: skip
    except (NonFiniteLossError, TypeError) as error:
        raise UsageError(str(error)) from None


def ensemble(
    arguments: argparse.Namespace,
    head: Head | None,
    x: Any,
    y: np.ndarray,
    weights: np.ndarray | None,
    *,
    categorical: list[str],
    groups: np.ndarray | None,
    ordered: bool,
) -> EnsembleResult:
    """Train an ensemble by a recipe, with those of its numbers changed that were given."""
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
    try:
        recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
        return fit_ensemble(
            x, y, head, weights=weights, categorical=categorical, groups=groups, ordered=ordered,
            recipe=recipe, seed=arguments.seed, progress=not arguments.quiet,
        )  # fmt: skip
    except (FloatingPointError, TypeError) as error:
        raise UsageError(str(error)) from None


def _cycles(recipe: Recipe, epochs: int | None) -> tuple[int, ...] | None:
    """The recipe's cycles as far as they are so many epochs, or one that is shorter."""
    if epochs is None:
        return None
    ends = np.cumsum(recipe.cycles)
    return recipe.cycles[: int((ends <= epochs).sum())] or (epochs,)
