"""Proper scores with scikit-learn's signature ``(estimator, X, y)``: higher is better."""

from __future__ import annotations

from typing import Any

import numpy as np


def neg_log_score(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Mean log-density of the targets, nats a row: ``GridSearchCV(..., scoring=neg_log_score)``."""
    return float(np.average(estimator.log_prob(X, y), weights=sample_weight))


def neg_crps(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Minus the mean CRPS, in the target's unit; of several outputs the mean over them."""
    scores = np.asarray(estimator.crps(X, y)).reshape(len(y), -1).mean(axis=1)
    return -float(np.average(scores, weights=sample_weight))
