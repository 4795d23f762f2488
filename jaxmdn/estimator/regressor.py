"""The estimator: its parameters and its training."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import optax
from flax import nnx
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from jaxmdn import train
from jaxmdn.estimator.inputs import all_columns, coded, learn_categories
from jaxmdn.estimator.predictions import Predictions
from jaxmdn.heads import FactorizedHead, Family, Head, NormalHead
from jaxmdn.nn import MDN
from jaxmdn.train.recipe import resolve
from jaxmdn.train.state import matrices
from jaxmdn.train.targets import check_targets


def _single(estimator: Any) -> bool:
    if estimator.recipe is None:
        return True
    raise AttributeError(
        f"MDNRegressor: partial_fit trains a single network, but recipe is {estimator.recipe!r}; "
        f"pass recipe=None."
    )


class MDNRegressor(Predictions, RegressorMixin, BaseEstimator):
    """A mixture density network as scikit-learn's regressor: ``fit``, then any question.

    ``predict`` gives the mean (or median, mode, quantiles), ``predict_interval`` a central
    interval, ``predict_distribution`` the density itself; ``score`` is R2, and
    :func:`neg_log_score` and :func:`neg_crps` are for ``scoring=``. Inputs and targets are
    standardised inside.

    Args:
      recipe: ``"fast"``, ``"default"``, ``"best"`` or a :class:`jaxmdn.train.Recipe`: a calibrated
        ensemble by :func:`jaxmdn.train.fit_ensemble`. None: a single network by
        :func:`jaxmdn.train.fit`, in a fraction of the time, whose intervals tend to be too narrow.
      members: networks of each kind for each fold of the ensemble; None is the recipe's number.
      components: K, components of the mixture.
      family: family of every output, a name or :class:`jaxmdn.heads.Family` (``"student_t"`` has 5
        degrees of freedom unless a ``Family`` says otherwise; ``"lognormal"``, ``"gamma"``, counts
        and the others hold what their support allows); one for each output; or a head.
      covariance: of ``family="normal"``: ``"diagonal"``, ``"full"``, ``"low_rank"``,
        ``"isotropic"``.
      hidden_features, activation, dropout, embedding: see :class:`jaxmdn.nn.MDN`. Of an ensemble,
        ``hidden_features`` and ``dropout``; None leaves the recipe's.
      max_epochs, batch_size, learning_rate, weight_decay, validation, patience: of a single
        network, see :func:`jaxmdn.train.fit`; an ensemble follows its recipe.
      warm_start: a single network's next ``fit`` goes on from its parameters, standardised as at
        first, for as many epochs again.
      verbose: show progress bars, and warnings about components.
      random_state: seed, ``RandomState`` or None.

    Attributes:
      result_: what ``fit`` or ``fit_ensemble`` returned; None where every target is constant.
      columns_: a :class:`jaxmdn.train.Columns`, what becomes of gaps and categories.
      constant_: the value of each output that was constant in ``fit``, else NaN, ``[D]``.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    A target that is constant warns and is predicted as it is.

    >>> import numpy as np
    >>> from jaxmdn.estimator import MDNRegressor
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> model = MDNRegressor(recipe=None, hidden_features=(8,), max_epochs=2, random_state=0)
    >>> lower, upper = model.fit(X, X[:, 0]).predict_interval(X, coverage=0.9)
    >>> bool((lower < upper).all())
    True
    """

    def __init__(
        self,
        recipe: Any = "fast",
        *,
        members: int | None = None,
        components: int = 5,
        family: Any = "student_t",
        covariance: str = "diagonal",
        hidden_features: tuple[int, ...] = (128, 128, 128),
        activation: Any = "silu",
        dropout: float = 0.0,
        embedding: float | None = 0.2,
        max_epochs: int = 500,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.1,
        validation: float | None = 0.1,
        patience: int | None = 50,
        warm_start: bool = False,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.recipe = recipe
        self.members = members
        self.components = components
        self.family = family
        self.covariance = covariance
        self.hidden_features = hidden_features
        self.activation = activation
        self.dropout = dropout
        self.embedding = embedding
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation = validation
        self.patience = patience
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.allow_nan = self.recipe is not None
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MDNRegressor:
        """Train on inputs ``X [N, F]`` and targets ``y [N]`` or ``[N, D]``.

        Args:
          X: numbers, at least two rows; for an ensemble some may be missing (NaN). Columns of
            pandas' type "category" are indicators of each value; one that is missing or was never
            met is none of them.
          y: finite numbers that the family's support holds.
          sample_weight: nonnegative weights ``[N]``; a weight of zero leaves the row out.
        """
        if self.warm_start and self.recipe is not None:
            raise ValueError(
                f"MDNRegressor.fit: warm_start goes on with a single network, but recipe is "
                f"{self.recipe!r}; pass recipe=None."
            )
        return self._fit(X, y, sample_weight, go_on=self.warm_start)

    @available_if(_single)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MDNRegressor:
        """Train a single network for one pass over some rows, from where it is.

        The first call sets the standardisation, so that its rows should look like the others.
        """
        options = {"validation": None, "num_epochs": 1, "ema": 0.0}
        return self._fit(X, y, sample_weight, go_on=True, **options)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, go_on: bool, **options: Any) -> Any:
        go_on = go_on and getattr(self, "result_", None) is not None
        if not go_on:
            self.categories_ = learn_categories(X, sample_weight)
        x, y = validate_data(
            self,
            coded(X, self.categories_),
            y,
            reset=not go_on,
            dtype=np.float64,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
            **self._gaps,
        )
        columns = np.asarray(y, np.float64).reshape(len(y), -1)
        weights = _weights(sample_weight, len(y))
        if go_on:
            if columns.shape[1] != len(self.constant_) or self.scalar_ != (y.ndim == 1):
                raise ValueError(
                    f"MDNRegressor: y has {columns.shape[1]} output(s), but {len(self.constant_)} "
                    f"in the fit that this one goes on from; pass as many."
                )
        else:
            self.scalar_ = y.ndim == 1
            self.constant_ = _constant(columns, weights)
            names = getattr(self, "feature_names_in_", None)
            self.columns_ = all_columns(x, names, self.categories_, weights)
        if not len(self._varying):
            self.result_ = None
            return self
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = (self._spread(x), columns[:, self._varying], weights)
        with warnings.catch_warnings():
            if not self.verbose:
                warnings.simplefilter("ignore", train.ComponentWarning)
            self.result_ = (
                self._ensemble(*rows, seed)
                if self.recipe is not None
                else self._network(*rows, seed, self.result_ if go_on else None, options)
            )
        return self

    def _head(self, event_dim: int, df: float = 5.0) -> Head:
        """The head that the parameters describe."""
        if isinstance(self.family, Head):
            return self.family
        if self.family == "normal":
            return NormalHead(self.components, event_dim, covariance=self.covariance)
        single = isinstance(self.family, (str, type, Family))
        each = (self.family,) * event_dim if single else tuple(self.family)
        families = [Family("student_t", df=df) if own == "student_t" else own for own in each]
        return FactorizedHead(families, self.components)

    def _ensemble(self, x: Any, y: Any, weights: Any, seed: int) -> Any:
        by_name = (None, self.recipe) if isinstance(self.recipe, str) else (self.recipe, "default")
        recipe = resolve("MDNRegressor", *by_name)
        changes: dict[str, Any] = {
            "members": self.members,
            "num_components": self.components,
            "hidden_features": self.hidden_features,
            "dropout": self.dropout,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        recipe = dataclasses.replace(recipe, **given)  # a name's recipe, with these numbers
        # The recipe's own head has noise of its own in place of a floor.
        head = None if self.family == "student_t" else self._head(y.shape[1])
        if head is not None:
            check_targets(head, y, "MDNRegressor.fit")
        result = train.fit_ensemble(
            x, y, head=head, recipe=recipe, weights=weights, seed=seed, progress=bool(self.verbose)
        )
        return dataclasses.replace(result, columns=self.columns_)

    def _network(
        self, x: Any, y: Any, weights: Any, seed: int, before: Any, options: dict[str, Any]
    ) -> Any:
        if before is None:
            head = self._head(y.shape[1])
            model = MDN(
                x.shape[1],
                head,
                hidden_features=self.hidden_features,
                activation=self.activation,
                dropout=self.dropout,
                embedding=self.embedding,
                rngs=nnx.Rngs(seed),
            )
            x_map = train.Standardizer.fit(x, weights)
            y_map = train.Standardizer.fit(y, weights, closure=head.closure)
        else:
            model, x_map, y_map = before.model, before.x_standardizer, before.y_standardizer
        check_targets(model.head, y, "MDNRegressor.fit")
        result = train.fit(
            model,
            x_map(x),
            y_map(y),
            weights=weights,
            optimizer=_optimizer(self.learning_rate, self.weight_decay),
            batch_size=self.batch_size,
            patience=self.patience,
            standardize_x=False,
            standardize_y=False,
            initialize=before is None,
            seed=seed,
            progress=bool(self.verbose),
            **({"num_epochs": self.max_epochs, "validation": self.validation} | options),
        )
        log_det = float(np.mean(y_map.log_det_at(model.head.support, y)))
        history = {
            name: values + log_det if name.endswith("_nll") else values
            for name, values in result.history.items()
        }
        return dataclasses.replace(
            result, x_standardizer=x_map, y_standardizer=y_map, history=history
        )


def _weights(sample_weight: Any, count: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, np.float64)
    if weights.ndim == 0:
        weights = np.full(count, float(weights))
    if weights.ndim != 1:
        raise ValueError("MDNRegressor.fit: sample_weight must be 1D array or scalar, one per row.")
    if len(weights) != count:
        raise ValueError(
            f"MDNRegressor.fit: sample_weight.shape == {weights.shape}, expected {(count,)}!"
        )
    if not (weights >= 0).all() or not (weights > 0).any():
        raise ValueError(
            "MDNRegressor.fit: sample_weight must be nonnegative and not all zero; pass at least "
            "one positive weight."
        )
    return weights


def _constant(y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The value of each output that is the same in every row that counts, else NaN; warns."""
    rows = y if weights is None else y[weights > 0]
    constant = np.where((rows == rows[0]).all(axis=0), rows[0], np.nan)
    if not np.isnan(constant).all():
        warnings.warn(
            f"MDNRegressor.fit: output(s) {np.flatnonzero(~np.isnan(constant)).tolist()} of y are "
            f"constant; they are predicted as they are.",
            stacklevel=4,
        )
    return constant


@functools.cache
def _optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """One object for equal numbers, so that training finds its compiled program again."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices),
    )
