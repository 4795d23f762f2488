"""Proper scores with scikit-learn's signature ``(estimator, X, y)``: higher is better."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline


def neg_log_score(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Mean log-density of the targets, nats a row: ``GridSearchCV(..., scoring=neg_log_score)``.

    Of a pipeline or a search that ends in an :class:`MDNRegressor`, too.
    """
    model, X = _regressor("neg_log_score", estimator, X)
    return float(np.average(model.log_prob(X, y), weights=sample_weight))


def neg_crps(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Minus the mean CRPS, in the target's unit; of several outputs the mean over them.

    Of a pipeline or a search that ends in an :class:`MDNRegressor`, too.
    """
    model, X = _regressor("neg_crps", estimator, X)
    scores = np.asarray(model.crps(X, y)).reshape(len(y), -1).mean(axis=1)
    return -float(np.average(scores, weights=sample_weight))


def _regressor(function: str, estimator: Any, X: Any) -> tuple[Any, Any]:
    """The regressor inside, and its own inputs."""
    if hasattr(estimator, "best_estimator_"):
        return _regressor(function, estimator.best_estimator_, X)
    if isinstance(estimator, Pipeline):
        X = estimator[:-1].transform(X) if len(estimator) > 1 else X
        return _regressor(function, estimator[-1], X)
    if not hasattr(estimator, "log_prob"):
        raise TypeError(
            f"{function}: expected an MDNRegressor, or a pipeline or search that ends in one, got "
            f"{type(estimator).__name__}, which has no density. A transformed target loses it: "
            f"MDNRegressor standardises by itself, and family='lognormal' is for logarithms."
        )
    return estimator, X
