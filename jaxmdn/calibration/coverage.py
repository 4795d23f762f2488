"""Coverage and reliability: of what was given a probability, what share came true?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes
from jaxmdn.calibration.uniform import jump, pit
from jaxmdn.components.base import Density
from jaxmdn.inference.regions import level_jump
from jaxmdn.mixture import NUM_SAMPLES, check_target
from jaxmdn.typing import Array, Float, Key, Num

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def coverage(
    density: Density,
    y: Num[Array, "..."],
    levels: Sequence[float] = (0.5, 0.9),
    *,
    region: str = "central",
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Float[Array, "..."]:
    """Share of targets inside the region of each probability, averaged over all leading axes.

    The central interval of level ``q`` holds the targets whose PIT lies between ``(1 - q) / 2``
    and ``(1 + q) / 2``, in each dimension by itself; the highest-density region, one of all
    dimensions together, those whose density is among the largest that make up ``q``. For a
    calibrated model the share is ``q``, give or take ``sqrt(q (1 - q) / N)``. Where the cdf jumps
    (at counts, at a hurdle's zeros) a target counts by the share of its jump that lies within: the
    exact mean of what a randomised PIT would give. So it does in highest-density regions, into
    which classes and counts enter by falling probability, equally probable ones together.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      levels: probabilities in (0, 1), Python numbers.
      region: ``"central"`` or ``"highest_density"`` (static).
      key: a typed key; needed for highest-density regions of several dimensions and of counts
        without a largest one, whose probability is found by sampling. For central intervals of
        densities with jumps it randomises the PIT.
      num_samples: as in ``hdr_level``, for the latter.

    Returns:
      ``[L, D]`` for central intervals, ``[L]`` for highest-density regions. NaN if any target or
      parameter is.

    Raises:
      ValueError: if a level lies outside (0, 1), or for a missing key or an unknown region.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.array([[-2.0], [-0.5], [0.0], [1.0]])
    >>> jaxmdn.coverage(mixture, y, (0.5, 0.9)).tolist()
    [[0.5], [0.75]]

    References:
      Czado, Gneiting and Held (2009), Predictive model assessment for count data, eq. 2.
    """
    _check_levels("coverage", "levels", levels)
    checks.require_option("coverage", "region", region, ("central", "highest_density"))
    if region == "highest_density":
        below, at, _ = level_jump("coverage", density, y, key, num_samples)
        return _mean_share(below[..., None], at[..., None], tuple(levels))[:, 0]
    if _is_averaged("coverage", density, y, key):
        half = 0.5 * np.array(levels)
        upper, lower = (_mean_share(*jump(density, y), tuple(0.5 + s * half)) for s in (1, -1))
        return upper - lower
    outside = 2 * jnp.abs(pit(density, y, key=key) - 0.5)
    return _mean_share(outside, jnp.zeros_like(outside), tuple(levels))


class ReliabilityTable(NamedTuple):
    """What :func:`reliability_table` returns: a row per probability.

    Attributes:
      p: predicted probabilities, ``[L]``.
      observed: share of the targets at or below the predicted quantile, ``[L, D]``.
      standard_error: of that share if the model is right, ``sqrt(p (1 - p) / N)``,
        ``[L, D]``.
    """

    p: Array
    observed: Array
    standard_error: Array


def reliability_table(
    density: Density,
    y: Num[Array, "..."],
    p: Sequence[float] = DECILES,
    *,
    key: Key[Array, ""] | None = None,
) -> ReliabilityTable:
    """Predicted probabilities against observed shares, the numbers of a reliability diagram.

    For each ``p``, the share of targets with ``F(y) <= p``: for a calibrated model ``p``
    itself, give or take the standard error of a binomial share (rows taken as independent). Where
    the cdf jumps a target counts by the share of its jump below ``p``, as in :func:`coverage`.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``; all leading axes are pooled.
      p: probabilities of quantiles in (0, 1), Python numbers.
      key: a typed key, by which the PIT is randomised where the cdf jumps.

    Raises:
      ValueError: if one lies outside (0, 1).

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.array([[-2.0], [-1.0], [-0.5], [1.0]])
    >>> table = jaxmdn.calibration.reliability_table(mixture, y, (0.1, 0.5))
    >>> table.observed.tolist()
    [[0.25], [0.75]]

    References:
      Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated
      regression, eq. 8.
    """
    _check_levels("reliability_table", "p", p)
    if _is_averaged("reliability_table", density, y, key):
        below, at = jump(density, y)
    else:
        below = pit(density, y, key=key)
        at = jnp.zeros_like(below)
    observed = _mean_share(below, at, tuple(p))
    level = jnp.asarray(p, observed.dtype)
    count = math.prod(jnp.broadcast_shapes(density.batch_shape, y.shape[:-1]))
    error = jnp.sqrt(level * (1 - level) / count)[:, None]
    return ReliabilityTable(level, observed, jnp.broadcast_to(error, observed.shape))


def _check_levels(function: str, name: str, levels: Sequence[float]) -> None:
    if not isinstance(levels, Iterable):
        raise TypeError(
            f"{function}: {name} must be a sequence of numbers, got {levels!r}; pass ({levels!r},)."
        )
    for level in levels:
        checks.require_number(function, name, level, lower=0.0, upper=1.0, strict_lower=True)


def _is_averaged(function: str, density: Density, y: Array, key: Array | None) -> bool:
    """Whether jumps are shared out, for want of a key that would randomise them."""
    if key is not None or not any(density.jumps):
        return False
    check_target(function, density, y)
    return True


@meshes.jit
def _mean_share(below: Array, at: Array, levels: Sequence[Array]) -> Array:
    """The mean of ``P(below + V at <= level)``, ``V`` uniform, of ``[..., D]`` to ``[L, D]``."""
    below, at = (part.reshape(-1, part.shape[-1]) for part in (below, at))
    level = jnp.asarray(levels, below.dtype)[:, None, None]
    some = at > 0
    part = jnp.clip((level - below) / jnp.where(some, at, 1), 0, 1)
    share = jnp.where(some, part, (below <= level).astype(part.dtype))
    share = jnp.where(jnp.isnan(below + at), jnp.nan, share)
    return jnp.mean(share, axis=1)
