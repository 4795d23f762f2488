"""Coverage: does an interval of probability q hold a share q of the targets?"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmdn import checks
from jaxmdn.calibration.uniform import pit
from jaxmdn.components.base import Density
from jaxmdn.typing import Array, Float


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
