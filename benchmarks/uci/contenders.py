"""What is compared: each a function of a split that returns predictions for its test rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmdn
from benchmarks.uci.splits import Split
from jaxmdn import train

LEVELS = np.arange(1, 200) / 200  # of models that predict quantiles


class Prediction(NamedTuple):
    """What a contender says of the test rows.

    Attributes:
      density: a jaxmdn density, batch shape ``[M]``; None where there are quantiles alone.
      log_prob: of the test targets, ``[M]``, nats.
      mean: ``[M, 1]``.
      quantiles: ``[M, L]`` at :data:`LEVELS`; None where there is a density.
      notes: what else is worth keeping.
    """

    density: Any
    log_prob: np.ndarray | None
    mean: np.ndarray
    quantiles: np.ndarray | None = None
    notes: dict[str, Any] = {}


def _normal(mean: np.ndarray, scale: np.ndarray, y: np.ndarray) -> Prediction:
    normal = jaxmdn.components.Normal(
        loc=jnp.asarray(mean)[:, None, None], scale=jnp.asarray(scale)[:, None, None]
    )
    density = jaxmdn.Mixture(logits=jnp.zeros((len(mean), 1)), components=normal)
    log_prob = -0.5 * ((y[:, 0] - mean) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    return Prediction(density, log_prob, mean[:, None])


def linear(split: Split, seed: int) -> Prediction:
    """Least squares with normal noise: its predictive variance by the textbook formula."""
    shift, scale = split.x.mean(axis=0), split.x.std(axis=0)
    scale = np.where(scale > 0, scale, 1)

    def design(x: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(x)), (x - shift) / scale])

    rows = design(split.x)
    inverse = np.linalg.pinv(rows.T @ rows + 1e-6 * np.eye(rows.shape[1]))
    slope = inverse @ rows.T @ split.y[:, 0]
    residual = split.y[:, 0] - rows @ slope
    variance = residual @ residual / max(1, len(rows) - rows.shape[1])
    new = design(split.x_test)
    spread = np.sqrt(variance * (1 + np.einsum("ni,ij,nj->n", new, inverse, new)))
    return _normal(new @ slope, spread, split.y_test)


def _fitted(result: Any, split: Split, notes: dict[str, Any]) -> Prediction:
    density = result.predict(split.x_test)
    log_prob = np.asarray(result.log_prob(split.x_test, split.y_test), np.float64)
    return Prediction(density, log_prob, np.asarray(jaxmdn.mean(density)), notes=notes)


def plain(split: Split, seed: int) -> Prediction:
    """The MDN of a tutorial: two layers of 50, five normals, Adam at 1e-3 for 200 epochs."""
    import optax

    model = jaxmdn.nn.MDN(
        split.x.shape[1],
        jaxmdn.NormalHead(5, 1),
        hidden_features=(50, 50),
        activation="relu",
        rngs=nnx.Rngs(seed),
    )
    options = {"optimizer": optax.adam(1e-3), "num_epochs": 200, "patience": None}
    options |= {"batch_size": 128, "refit": False, "calibrate": False}
    return _fitted(_fit(model, split, seed, **options), split, {})


def fit(split: Split, seed: int) -> Prediction:
    """``fit`` and ``MDN`` as they are."""
    model = jaxmdn.nn.MDN(split.x.shape[1], jaxmdn.NormalHead(5, 1), rngs=nnx.Rngs(seed))
    result = _fit(model, split, seed)
    return _fitted(result, split, {"best_epoch": int(result.best_epoch)})


def _fit(model: Any, split: Split, seed: int, **options: Any) -> Any:
    return train.fit(
        model, split.x, split.y, target=_target(split), seed=seed, progress=False, **options
    )


def _target(split: Split) -> str:
    """Whether a density is trained, or the probabilities of a coarse grid's cells."""
    return "density" if split.cell is None else "grid"


def ensemble(split: Split, seed: int, effort: str = "default") -> Prediction:
    """``fit_ensemble`` as it is."""
    options: dict[str, Any] = {"effort": effort, "target": _target(split)}
    result = train.fit_ensemble(split.x, split.y, seed=seed, progress=False, **options)
    notes = {
        "epochs": [int(epochs) for epochs in result.history["epochs"]],
        "out_of_fold_nll": [float(nll) for nll in result.history["out_of_fold_nll"]],
        "scale": [float(scale) for scale in result.temperature.scale],
        "narrowing": result.narrowing,
        "networks": result.num_networks,
    }
    return _fitted(result, split, notes)


def ngboost(split: Split, seed: int) -> Prediction:
    """NGBoost's normal, 500 trees with early stopping on a tenth of the rows."""
    model = importlib.import_module("ngboost").NGBRegressor(
        n_estimators=2000,
        validation_fraction=0.1,
        early_stopping_rounds=50,
        random_state=seed,
        verbose=False,
    )
    model.fit(split.x, split.y[:, 0])
    found = model.pred_dist(split.x_test)
    return _normal(np.asarray(found.loc), np.asarray(found.scale), split.y_test)


def boosted_quantiles(split: Split, seed: int) -> Prediction:
    """Gradient-boosted trees, one model for each of 19 quantiles; no density."""
    ensemble = importlib.import_module("sklearn.ensemble")
    levels = np.arange(1, 20) / 20
    columns = []
    for level in levels:
        model = ensemble.HistGradientBoostingRegressor(
            loss="quantile", quantile=level, random_state=seed
        )
        columns.append(model.fit(split.x, split.y[:, 0]).predict(split.x_test))
    found = np.sort(np.stack(columns, axis=1), axis=1)
    quantiles = np.stack([np.interp(LEVELS, levels, row) for row in found])
    return Prediction(None, None, quantiles.mean(axis=1, keepdims=True), quantiles)


def peer(name: str) -> Callable[[Split, int], Prediction]:
    """A scikit-learn regressor ``MODULE:CLASS`` that predicts ``output_type="quantiles"``."""
    module, _, kind = name.partition(":")
    model_class = getattr(importlib.import_module(module), kind)

    def contender(split: Split, seed: int) -> Prediction:
        model = model_class().fit(split.x, split.y[:, 0])
        mean = np.asarray(model.predict(split.x_test))[:, None]
        found = model.predict(split.x_test, output_type="quantiles", quantiles=list(LEVELS))
        return Prediction(None, None, mean, np.stack([np.asarray(q) for q in found], axis=1))

    return contender


CONTENDERS: dict[str, Callable[..., Prediction]] = {
    "linear": linear,
    "plain": plain,
    "fit": fit,
    "ensemble": ensemble,
    "fast": lambda split, seed: ensemble(split, seed, "fast"),
    "best": lambda split, seed: ensemble(split, seed, "best"),
    "ngboost": ngboost,
    "boosted_quantiles": boosted_quantiles,
}
