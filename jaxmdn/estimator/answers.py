"""Functions of the predicted densities, compiled for few sizes of a batch.

Rows are cut into batches of at most ``LARGEST``, and each is filled up (``train.padding``), so that
whatever the table's length one function compiles at most ten programs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmdn
from jaxmdn.train import padding
from jaxmdn.train.predictor import Predictor
from jaxmdn.typing import Array

LARGEST = 8192


def in_batches(function: str, predictor: Predictor, *rows: np.ndarray, **numbers: Any) -> Any:
    """A function's values of all rows, in float64.

    Args:
      function: a name in ``FUNCTIONS``.
      predictor: the networks.
      *rows: arrays ``[N, ...]``: standardised inputs, then what the function takes for each row.
      **numbers: what it takes for all rows.

    Returns:
      A pytree of arrays ``[N, ...]``.
    """
    parts = []
    for start in range(0, max(len(rows[0]), 1), LARGEST):
        batch = [array[start : start + LARGEST] for array in rows]
        count, filled = padding.fill(batch)
        values = _evaluate(function, predictor, *filled, **numbers)
        parts.append(jax.tree.map(lambda value: np.asarray(value, np.float64)[:count], values))  # noqa: B023
    return jax.tree.map(lambda *own: np.concatenate(own), *parts)


def _moments(density: Any) -> tuple[Array, Array]:
    return jaxmdn.mean(density), jnp.sqrt(jaxmdn.variance(density))


def _mode(density: Any) -> Array:
    return jaxmdn.modes(density).location[..., 0, :]


def _sample(density: Any, number: Array, *, key: Array, draws: Array) -> Array:
    """Draws ``[N, S, D]``, of each row by a key of its own: its place in the table decides."""

    def one(own: Any, row: Array) -> Array:
        return own.sample(jax.random.fold_in(key, row), draws.shape)

    return jax.vmap(one)(density, number)


FUNCTIONS: dict[str, Any] = {
    "moments": _moments,
    "mean": jaxmdn.mean,
    "quantile": jaxmdn.quantile,
    "mode": _mode,
    "sample": _sample,
    "log_prob": jaxmdn.log_prob,
    "cdf": jaxmdn.cdf,
    "crps": jaxmdn.crps,
}


@partial(jax.jit, static_argnums=0)
def _evaluate(function: str, predictor: Predictor, x: Any, *rows: Any, **numbers: Any) -> Any:
    return FUNCTIONS[function](predictor(x), *rows, **numbers)
