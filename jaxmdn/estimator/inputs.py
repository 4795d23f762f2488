"""A frame's categories among an estimator's inputs, as numbers: scikit-learn checks for those."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmdn.train import Columns


def learn_categories(X: Any, weights: Any) -> Columns | None:
    """What the columns of pandas' type "category" hold, in rows that count; None without any."""
    if not hasattr(X, "columns") or not hasattr(X, "iloc"):
        return None
    named = [name for name, dtype in X.dtypes.items() if str(dtype) == "category"]
    return Columns.fit(X[named], weights, function="MDNRegressor.fit") if named else None


def coded(X: Any, categories: Columns | None) -> Any:
    """The frame with a category's place in place of it; -1 for one that is missing or unknown."""
    if categories is None or categories.names is None:
        return X
    lacking = [name for name in categories.names if name not in getattr(X, "columns", ())]
    if lacking:
        raise ValueError(
            f"MDNRegressor: X lacks the column {lacking[0]!r}, a category in fit; pass a frame "
            f"with the columns of fit."
        )
    X = X.copy(deep=False)
    codes = categories.codes(X[list(categories.names)], function="MDNRegressor")
    for name, code in zip(categories.names, np.nan_to_num(codes, nan=-1.0).T, strict=True):
        X[name] = code
    return X


def all_columns(x: np.ndarray, names: Any, categories: Columns | None, weights: Any) -> Columns:
    """What becomes of every column of checked inputs ``x [N, F]``: gaps, and these categories."""
    own = Columns.fit(x, weights, function="MDNRegressor.fit")
    if names is None or categories is None or categories.names is None:
        return own
    known = dict(zip(categories.names, categories.categories, strict=True))
    kinds = tuple(known.get(str(name), ()) for name in names)
    return Columns(
        names=tuple(map(str, names)),
        medians=tuple(np.nan if k else m for k, m in zip(kinds, own.medians, strict=True)),
        gaps=tuple(gap and not k for k, gap in zip(kinds, own.gaps, strict=True)),
        categories=kinds,
    )
