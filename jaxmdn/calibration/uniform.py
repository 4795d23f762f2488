"""Transforms of the targets that are uniform if the predicted densities are right."""

from __future__ import annotations

import jax

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
