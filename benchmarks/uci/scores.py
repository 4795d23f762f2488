"""Scores of predictions on test rows, in the target's own unit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from benchmarks.uci.contenders import LEVELS, Prediction
from benchmarks.uci.splits import Split
from jaxmdn.inference import cell_log_prob

DRAWS = 1000


def scores(prediction: Prediction, split: Split) -> dict[str, Any]:
    """NLL (with and without repeated rows), RMSE, CRPS, CDE loss, 90 % coverage and width.

    Of targets on a coarse grid the NLL is that of their cells, whose width is ``cell``.
    """
    y = split.y_test[:, 0]
    found: dict[str, Any] = {"rmse": _root_mean((prediction.mean[:, 0] - y) ** 2)}
    log_prob = prediction.log_prob
    if split.cell is not None and prediction.density is not None:
        target = jnp.asarray(split.y_test, jnp.float32)
        log_prob = np.asarray(cell_log_prob(prediction.density, target, split.cell))
        found["cell"] = split.cell
    if log_prob is not None:
        found["nll"] = -float(log_prob.mean())
        fresh = log_prob[~split.repeated]
        found["nll_fresh"] = -float(fresh.mean()) if len(fresh) else None
    if prediction.quantiles is not None:
        inside = prediction.quantiles[:, (LEVELS == 0.05) | (LEVELS == 0.95)]
        found["crps"] = float(_pinball(prediction.quantiles, y).mean())
        found["coverage"] = float(((inside[:, 0] <= y) & (y <= inside[:, 1])).mean())
        found["width"] = float((inside[:, 1] - inside[:, 0]).mean())
        return found
    return found | _of_density(prediction.density, jnp.asarray(split.y_test, jnp.float32))


def _of_density(density: Any, y: jax.Array) -> dict[str, float]:
    """Coverage by the cdf, width by quantiles; CRPS and CDE loss by 1,000 draws a row.

    ``CRPS = E|Y - y| - E|Y - Y'| / 2`` (Gneiting and Raftery 2007, eq. 21);
    ``CDE = E f(Y) - 2 f(y)`` (Izbicki and Lee 2017, eq. 7), up to a constant the squared distance
    of the densities.
    """
    p = np.asarray(jaxmdn.cdf(density, y))[:, 0]
    ends = [np.asarray(jaxmdn.quantile(density, level))[:, 0] for level in (0.05, 0.95)]
    draws = jnp.sort(jaxmdn.sample(jax.random.key(0), density, (DRAWS,))[..., 0], axis=0)
    place = (2 * jnp.arange(DRAWS) - DRAWS + 1)[:, None]
    pairs = 2 * jnp.sum(place * draws, axis=0) / (DRAWS * (DRAWS - 1))  # E|Y - Y'|
    crps = jnp.mean(jnp.abs(draws - y[:, 0]), axis=0) - 0.5 * pairs
    some = draws[::20, :, None]
    own = jnp.exp(jax.lax.map(lambda row: jaxmdn.log_prob(density, row), some))
    cde = jnp.mean(own, axis=0) - 2 * jnp.exp(jaxmdn.log_prob(density, y))
    return {
        "crps": float(crps.mean()),
        "cde": float(cde.mean()),
        "coverage": float(((p >= 0.05) & (p <= 0.95)).mean()),
        "width": float((ends[1] - ends[0]).mean()),
    }


def _pinball(quantiles: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The CRPS, twice the quantile loss over all levels, by the trapezoidal rule, ``[M]``."""
    gap = y[:, None] - quantiles
    return 2 * np.maximum(LEVELS * gap, (LEVELS - 1) * gap).sum(axis=1) / (len(LEVELS) + 1)


def _root_mean(squares: np.ndarray) -> float:
    return float(np.sqrt(squares.mean()))
