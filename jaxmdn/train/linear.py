"""A linear model with constant noise: where rows are few it is often what they support best."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmdn.components.batch import spread
from jaxmdn.components.declare import register
from jaxmdn.inference.widening import placed
from jaxmdn.mixture import Mixture
from jaxmdn.train.data import Rows
from jaxmdn.typing import Array, Parameter

# Penalties that are tried, as shares of the rows' total weight: from none to a mean alone.
PENALTIES = np.logspace(-6, 2, 33)
LEAST_WEIGHT = 0.05  # that of a useless model comes out near 0.015, and costs 0.01 nats
MOST_FREEDOM = 0.8  # of the rows; beyond it cross-validation in closed form says little


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """``y = x slope + intercept`` and noise, all in standardised units.

    Attributes:
      slope: ``[E, D]``.
      intercept: ``[D]``.
      scale: standard deviation of the noise, ``[D]``.
    """

    slope: Parameter
    intercept: Parameter
    scale: Parameter

    def __call__(self, x: Array) -> Array:
        """The mean of each row of ``x [N, E]``, ``[N, D]``."""
        return x @ self.slope.astype(x.dtype) + self.intercept.astype(x.dtype)


def beside(models: Mixture, loc: Array, scale: Array) -> Mixture:
    """A linear model's density, as one component of the family of others.

    Args:
      models: densities of components with a location and a scale, batch shape ``[A, N]``.
      loc: the linear model's means, ``[N, D]``.
      scale: ``[D]`` or ``[N, D]``.

    Returns:
      A mixture of one component, batch shape ``[1, N]``.
    """

    def first(leaf: Array, rank: int) -> Array:
        return leaf[(slice(0, 1), slice(None), slice(0, 1))]

    components = placed(
        spread(models.components).map_parameters(first),
        loc[None, :, None],
        jnp.broadcast_to(scale, loc.shape)[None, :, None],
    )
    return Mixture(
        logits=jnp.zeros((1, loc.shape[0], 1), models.logits.dtype), components=components
    )


def fit_linear(x: Any, y: Any, weights: Any) -> Linear:
    """Ridge regression of each output; the penalty by generalised cross-validation.

    Minimises ``sum_i v_i (y_i - x_i slope - intercept)^2 + penalty |slope|^2``; the penalty is the
    one of :data:`PENALTIES` with the least ``RSS / (1 - df / n)^2``, where ``df`` is the trace of
    the map from targets to fitted values. The noise is ``sqrt(RSS / (n - df))``.

    Args:
      x: inputs ``[N, E]``, standardised.
      y: targets ``[N, D]``.
      weights: nonnegative row weights ``[N]``, whose sum is taken for the number of rows.

    References:
      Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a good
      ridge parameter, eq. 1.4.
    """
    slope, intercept, scale = map(jnp.asarray, _ridge(x, y, weights))
    return Linear(slope=slope, intercept=intercept, scale=scale)


def _ridge(x: Any, y: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, intercept and scale."""
    x, y, weights = (np.asarray(part, np.float64) for part in (x, y, weights))
    count = weights.sum()
    centre, level = weights @ x / count, weights @ y / count
    root = np.sqrt(weights)[:, None]
    left, values, right = np.linalg.svd(root * (x - centre), full_matrices=False)
    target = root * (y - level)
    seen = left.T @ target  # [R, D]
    unseen = np.sum(target**2, axis=0) - np.sum(seen**2, axis=0)
    penalty = count * PENALTIES[:, None]
    kept = values**2 / (values**2 + penalty)  # [P, R]
    freedom = 1 + kept.sum(axis=1)
    loss = np.maximum(unseen + ((1 - kept) ** 2) @ seen**2, 0)  # [P, D]
    allowed = np.minimum(freedom / count, MOST_FREEDOM)[:, None]
    score = np.where(freedom[:, None] > MOST_FREEDOM * count, np.inf, loss / (1 - allowed) ** 2)
    best = np.argmin(score, axis=0)  # [D]
    shrunk = values[:, None] / (values[:, None] ** 2 + penalty[best, 0]) * seen
    slope = right.T @ shrunk
    outputs = np.arange(y.shape[1])
    scale = np.sqrt(loss[best, outputs] / np.maximum(count - freedom[best], 1.0))
    intercept = level - centre @ slope
    slope, intercept, scale = (np.asarray(own, np.float32) for own in (slope, intercept, scale))
    return slope, intercept, scale


def hold_out(rows: Rows, folds: np.ndarray) -> tuple[Array, Array]:
    """Means and scales of each row, ``[N, D]``, by the linear model of the other folds."""
    loc, scale = np.empty((2, *np.shape(rows.y)), np.float32)
    x, y, weights = (np.asarray(part) for part in (rows.x, rows.y, rows.weights))
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        slope, intercept, scale[held] = _ridge(x[~held], y[~held], weights[~held])
        loc[held] = x[held] @ slope + intercept
    return jnp.asarray(loc), jnp.asarray(scale)
