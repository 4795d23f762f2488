"""Calibration: do the predicted probabilities come true?"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmdn import checks
from jaxmdn.components.base import Density
from jaxmdn.inference import cdf
from jaxmdn.typing import Array, Float


@jax.jit
def pit(mixture: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Probability integral transform of each dimension, ``F_d(y_d)``, ``[..., D]``.

    For a calibrated model these numbers are uniform on (0, 1); a hump in their histogram says the
    predictions are too wide, a U too narrow, a slope biased.

    References:
      Dawid (1984), The prequential approach; Gneiting et al. (2007), section 3.1.
    """
    return cdf(mixture, y)


def coverage(
    mixture: Density, y: Float[Array, "..."], levels: Sequence[float] = (0.5, 0.9)
) -> Float[Array, "L D"]:
    """Share of targets inside the central interval of each level, ``[L, D]``.

    The central interval of level ``q`` holds the targets whose PIT lies between ``(1 - q) / 2``
    and ``(1 + q) / 2``; for a calibrated model the share is ``q``, give or take
    ``sqrt(q (1 - q) / N)``. Averaged over all leading axes.

    Args:
      mixture: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      levels: probabilities in (0, 1).

    Raises:
      ValueError: if a level lies outside (0, 1).
    """
    for level in levels:
        checks.require_number("coverage", "levels", level, lower=0.0, upper=1.0, strict_lower=True)
    values = pit(mixture, y)
    values = values.reshape(-1, values.shape[-1])
    distance = jnp.abs(values - 0.5)
    half = 0.5 * jnp.asarray(levels, distance.dtype)
    return jnp.mean(distance[None] <= half[:, None, None], axis=1, dtype=distance.dtype)
