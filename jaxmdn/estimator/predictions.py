"""What a fitted regressor answers, in the target's own unit and in float64.

Densities are asked in standardised units; ``y = shift + scale z`` follows in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from jaxmdn import checks
from jaxmdn.estimator.answers import in_batches
from jaxmdn.estimator.inputs import coded
from jaxmdn.train.ensemble_result import EnsembleResult
from jaxmdn.train.predictor import Predictor

OUTPUT_TYPES = ("mean", "median", "mode", "quantiles", "full")
DECILES = tuple(round(0.1 * i, 1) for i in range(1, 10))


class Predictions:
    """The methods of :class:`MDNRegressor` after ``fit``.

    N rows and D outputs: where ``y`` was ``[N]`` in ``fit``, every D below is left out.
    """

    recipe: Any
    result_: Any  # FitResult or EnsembleResult; None where every target is constant
    columns_: Any  # Columns: gaps and categories among the inputs
    categories_: Any  # the columns of pandas' type "category" among them; None without any
    constant_: np.ndarray  # [D]: the value of each output that is constant, else NaN
    scalar_: bool  # whether y was [N]

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        output_type: str = "mean",
        quantiles: Sequence[float] | None = None,
    ) -> Any:
        """Predict numbers of each row.

        Args:
          X: inputs ``[N, F]``.
          return_std: return ``(mean, standard deviation)``, both ``[N, D]``.
          output_type: ``"mean"``; ``"median"``; ``"mode"``, the most likely value (of an ensemble
            some thousand times the work of the mean); ``"quantiles"``; or ``"full"``: a dictionary
            of all of these and of ``"distribution"``, without those that the family lacks (a count
            has no density to be highest).
          quantiles: levels in [0, 1] of ``"quantiles"`` and ``"full"``; default 0.1, 0.2, ... 0.9.

        Returns:
          ``[N, D]``; quantiles ``[Q, N, D]``. float64, in the target's unit.
        """
        checks.require_option("MDNRegressor.predict", "output_type", output_type, OUTPUT_TYPES)
        if return_std and output_type != "mean":
            raise ValueError(
                f'MDNRegressor.predict: return_std goes with output_type="mean", got '
                f'"{output_type}"; leave one of them out.'
            )
        x = self._inputs(X)
        if return_std:
            mean, std = self._ask("moments", x) or (None, None)
            rows = len(x)
            return self._own_unit(mean, rows=rows), self._own_unit(std, shift=False, rows=rows)
        if output_type == "full":
            return self._full(X, x, quantiles)
        if output_type == "quantiles":
            return self._quantiles(x, DECILES if quantiles is None else quantiles)
        if output_type == "median":
            return self._quantiles(x, (0.5,))[0]
        return self._own_unit(self._ask(output_type, x), rows=len(x))

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = DECILES) -> np.ndarray:
        """Quantiles of each output's marginal, ``[Q, N, D]``, for levels ``[Q]`` in [0, 1]."""
        return self._quantiles(self._inputs(X), quantiles)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Central intervals ``[2, N, D]``: lower ends, then upper ends.

        ``lower, upper = model.predict_interval(X, coverage=0.9)``: 5 % of the probability lies
        below, 5 % above, of each output by itself.
        """
        checks.require_number(
            "MDNRegressor.predict_interval", "coverage", coverage, lower=0.0, upper=1.0
        )
        outside = (1 - coverage) / 2
        return self._quantiles(self._inputs(X), (outside, 1 - outside))

    def predict_distribution(self, X: Any) -> Any:
        """The predictive density of each row, ``[N]``: for :mod:`jaxmdn`'s own functions.

        Of all outputs together, those left out that were constant.
        """
        check_is_fitted(self)
        if self.result_ is None:
            raise ValueError(
                "MDNRegressor.predict_distribution: the target was constant in fit; a single value "
                "has no density."
            )
        return self._density(X)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log-density of each row's target, ``[N]``, nats, in the target's own unit.

        An output that was constant in ``fit`` adds 0 where it has that value, else ``-inf``.
        """
        x, y = self._inputs(X), self._targets(X, y)
        known = np.isnan(self.constant_) | (y == self.constant_)
        value = np.where(known.all(axis=1), 0.0, -np.inf)
        if self.result_ is None:
            return value
        shift, scale = self._map()
        z = (y[:, self._varying] - shift) / scale
        return value + self._ask("log_prob", x, z) - np.log(scale).sum()

    def cdf(self, X: Any, y: Any) -> np.ndarray:
        """Probability of each output at or below the target's, ``[N, D]``."""
        x, y = self._inputs(X), self._targets(X, y)
        value = (y >= self.constant_).astype(np.float64)
        if self.result_ is not None:
            shift, scale = self._map()
            value[:, self._varying] = self._ask("cdf", x, (y[:, self._varying] - shift) / scale)
        return value[:, 0] if self.scalar_ else value

    def crps(self, X: Any, y: Any) -> np.ndarray:
        """Continuous ranked probability score of each output, ``[N, D]``, in the target's unit."""
        x, y = self._inputs(X), self._targets(X, y)
        value = np.abs(y - self.constant_)
        if self.result_ is not None:
            shift, scale = self._map()
            z = (y[:, self._varying] - shift) / scale
            value[:, self._varying] = scale * self._ask("crps", x, z)
        return value[:, 0] if self.scalar_ else value

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw ``[N, D, n_samples]`` targets, of each row by itself.

        The draws of a row depend on ``random_state`` and on the row's place in ``X``.
        """
        checks.require_count("MDNRegressor.sample_y", "n_samples", n_samples)
        x = self._inputs(X)
        seed = check_random_state(random_state).randint(2**31 - 1)
        drawn = None
        if self.result_ is not None:
            numbers = {"key": jax.random.key(seed), "draws": np.zeros(n_samples, bool)}
            drawn = self._ask("sample", x, np.arange(len(x), dtype=np.int32), **numbers)
            drawn = np.moveaxis(drawn, 1, 0)  # [S, N, D]
        own = self._own_unit(drawn, rows=(n_samples, len(x)))
        return np.moveaxis(own, 0, -1)

    def at_quantile(self, p: float) -> AtQuantile:
        """This regressor as one of its quantiles: ``at_quantile(0.9).predict(X)`` is ``[N, D]``.

        For those that take one fitted regressor for each quantile, such as MAPIE.
        """
        check_is_fitted(self)
        _levels([p])
        return AtQuantile(self, p)

    @property
    def _gaps(self) -> dict[str, Any]:
        """An ensemble takes inputs that are missing."""
        return {"ensure_all_finite": self.recipe is None or "allow-nan"}

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        own = coded(X, self.categories_)
        return validate_data(self, own, reset=False, dtype=np.float64, **self._gaps)

    def _spread(self, x: np.ndarray) -> np.ndarray:
        """Checked inputs with gaps filled and categories as indicators."""
        return self.columns_.spread(x) if self.columns_.changes else x

    def _inputs(self, X: Any) -> np.ndarray:
        """Checked inputs, as the networks take them."""
        x, result = self._checked(X), self.result_
        return x if result is None else np.asarray(result.x_standardizer(self._spread(x)))

    def _targets(self, X: Any, y: Any) -> np.ndarray:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        shape = (len(X),) if self.scalar_ else (len(X), len(self.constant_))
        if y.shape != shape:
            raise ValueError(
                f"MDNRegressor: y must have shape {list(shape)}, a target for each row as in fit, "
                f"got {list(y.shape)}."
            )
        return y.reshape(len(y), -1)

    def _ask(self, function: str, x: np.ndarray, *rows: Any, **numbers: Any) -> Any:
        """A function of the standardised densities; None where there is none."""
        if self.result_ is None:
            return None
        predictor = Predictor.of(self.result_)
        own = [np.asarray(row, x.dtype) if row.dtype.kind == "f" else row for row in rows]
        return in_batches(function, predictor, x, *own, **numbers)

    def _quantiles(self, x: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        each = [self._ask("quantile", x, p=np.asarray(p, x.dtype)) for p in _levels(levels)]
        return np.stack([self._own_unit(value, rows=len(x)) for value in each])

    def _full(self, X: Any, x: np.ndarray, quantiles: Any) -> dict[str, Any]:
        found = {
            "mean": self._own_unit(self._ask("mean", x), rows=len(x)),
            "median": self._quantiles(x, (0.5,))[0],
            "quantiles": self._quantiles(x, DECILES if quantiles is None else quantiles),
        }
        with contextlib.suppress(TypeError):  # a count, or outputs whose joint mode is not known
            found["mode"] = self._own_unit(self._ask("mode", x), rows=len(x))
        if self.result_ is not None:
            found["distribution"] = self._density(X)
        return found

    def _density(self, X: Any) -> Any:
        x, result = self._checked(X), self.result_
        if isinstance(result, EnsembleResult):  # which spreads categories itself
            return result.predict(x if self.categories_ is None else X)
        return result.predict(self._spread(x))

    @property
    def _varying(self) -> np.ndarray:
        """The outputs that have a density."""
        return np.flatnonzero(np.isnan(self.constant_))

    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale of the outputs that have a density."""
        own = self.result_.y_standardizer
        count = len(self._varying)
        return (np.zeros(count), np.ones(count)) if own is None else (own.shift, own.scale)

    def _own_unit(self, z: Any, *, shift: bool = True, rows: Any = None) -> np.ndarray:
        """Values ``[..., N, D]`` in the target's unit, of constant outputs too."""
        rows = z.shape[:-1] if z is not None else np.atleast_1d(rows)
        constant = self.constant_ if shift else np.where(np.isnan(self.constant_), np.nan, 0.0)
        value = np.broadcast_to(constant, (*rows, len(constant))).copy()
        if z is not None:
            start, scale = self._map()
            value[..., self._varying] = scale * z + (start if shift else 0.0)
        return value[..., 0] if self.scalar_ else value


def _levels(quantiles: Any) -> np.ndarray:
    levels = np.asarray(quantiles, np.float64)
    if levels.ndim != 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(
            f"MDNRegressor: quantiles must be a list of levels in [0, 1], got {levels.tolist()}."
        )
    return levels


class AtQuantile(RegressorMixin, BaseEstimator):
    """One quantile of a fitted :class:`MDNRegressor`, as a regressor of its own.

    Args:
      regressor: the fitted regressor.
      p: the level, in [0, 1].
    """

    def __init__(self, regressor: Any, p: float) -> None:
        self.regressor = regressor
        self.p = p

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self.regressor, "result_")

    @property
    def n_features_in_(self) -> int:
        """Columns of the inputs; by it others see that this regressor is fitted."""
        return self.regressor.n_features_in_

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> AtQuantile:
        """Fit the regressor anew."""
        self.regressor.fit(X, y, sample_weight)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The quantile of each row, ``[N, D]``."""
        return self.regressor.predict_quantiles(X, (self.p,))[0]
