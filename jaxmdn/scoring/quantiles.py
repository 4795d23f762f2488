"""Scores of quantiles and of intervals: what a forecast is worth to one who acts on a part of it.

The pinball score of every level at once is the CRPS: ``CRPS = 2 int_0^1 pinball_p dp``. A single
level asks about one risk only (a flood, a stock that runs out), an interval about both tails.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.inference.quantiles import central, check_levels, quantile_at
from jaxmdn.mixture import check_target
from jaxmdn.typing import Array, ArrayLike, Float, Num


def pinball_score(
    density: Density, y: Num[Array, "..."], p: Float[ArrayLike, "..."] | Sequence[float]
) -> Float[Array, "..."]:
    """Pinball (quantile) score of each dimension's quantile at level ``p``, ``[..., D]``.

    ``p (y - q)`` where ``y`` lies above the predicted quantile ``q``, else ``(1 - p) (q - y)``:
    in the target's unit, lower is better. At ``p = 1/2`` it is half the absolute error.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      p: levels in [0, 1], a number, a vector or an array as ``quantile`` takes them: they lead.

    Returns:
      ``[levels..., ..., D]``, in the compute dtype.

    Raises:
      ValueError: if ``p`` is a number or a NumPy array that lies outside [0, 1], on a wrong event
        size, or if shapes do not broadcast. TypeError: for a density without quantiles.

    Limits: zero at ``p = 0`` and ``p = 1`` (the limit wherever the mean is finite); NaN for NaN and
    for JAX arrays outside [0, 1]. Differentiable; where ``y = q``, as if ``y`` lay below.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.scoring.pinball_score(mixture, jnp.array([3.0]), 0.5)[0]), 4)
    1.5

    References:
      Koenker and Bassett (1978), Regression quantiles, eq. 3.1; Gneiting and Raftery (2007),
      Strictly proper scoring rules, prediction, and estimation, section 6.1.
    """
    check_target("pinball_score", density, y)
    level = check_levels("pinball_score", density, p)
    event = (*jnp.broadcast_shapes(density.batch_shape, y.shape[:-1]), density.event_dim)
    checks.require_broadcastable("pinball_score", targets=event, p=level.shape)
    return _pinball(density, y, level)


@meshes.jit
def _pinball(density: Density, y: Array, p: Array) -> Array:
    density, p, y = numerics.upcast_tree(density, p, y)
    error = y - quantile_at(density, p)
    # The quantile at p = 0 or 1 is infinite, but nothing is paid for it.
    return numerics.silent_product(jnp.where(error > 0, p, 1 - p), jnp.abs(error))


def interval_score(
    density: Density, y: Num[Array, "..."], level: float = 0.9
) -> Float[Array, "..."]:
    """Interval (Winkler) score of each dimension's central interval, ``[..., D]``.

    ``(u - l) + 2 / a (l - y)_+ + 2 / a (y - u)_+`` with ``a = 1 - level``: the interval's width,
    and a fine for a miss in proportion to its distance. In the target's unit, lower is better; it
    is ``2 / a`` times the two ends' pinball scores together.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      level: the interval's probability, a number in (0, 1).

    Raises:
      ValueError: if ``level`` lies outside (0, 1), on a wrong event size, or if shapes do not
        broadcast. TypeError: for a density without quantiles.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.scoring.interval_score(mixture, jnp.zeros(1), 0.9)[0]), 3)
    3.29

    References:
      Winkler (1972), A decision-theoretic approach to interval estimation; Gneiting and Raftery
      (2007), Strictly proper scoring rules, prediction, and estimation, eq. 43.
    """
    checks.require_number("interval_score", "level", level, lower=0.0, upper=1.0, strict_lower=True)
    check_target("interval_score", density, y)
    return _interval(density, y, level)


@meshes.jit
def _interval(density: Density, y: Array, level: Array) -> Array:
    density, y = numerics.upcast_tree(density, y)
    miss = 1 - jnp.asarray(level, y.dtype)
    low, high = central(density, 0.5 * miss)
    outside = jnp.maximum(jnp.maximum(low - y, y - high), 0)
    return high - low + 2 / miss * outside
