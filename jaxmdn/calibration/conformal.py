"""Conformal prediction: regions that hold what they promise, however wrong the model.

A score says how badly a target fits its prediction. If calibration rows and new rows are
exchangeable, a new row's score is equally likely to take any rank among the calibration rows'
scores; so a region of all targets whose score does not exceed the right one of these scores holds
the new target with the probability asked for, in samples of any size. The better the model, the
smaller the region. The promise is marginal: averaged over inputs and calibration sets. Rows that
come in groups (repeated measurements of one thing) are not exchangeable with those of a new group:
take one row of each, or its largest score; for a promise in each group, calibrate each by itself.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.inference import hdr_level
from jaxmdn.inference.quantiles import central
from jaxmdn.mixture import NUM_SAMPLES, check_target
from jaxmdn.typing import Array, ArrayLike, Float, Key, Num


def conformal_hdr(
    mixture: Density,
    y: Num[Array, "..."],
    level: float = 0.9,
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Float[Array, ""]:
    """Probability to ask of highest-density regions so that they really hold ``level``, a scalar.

    The ``ceil((n + 1) level)``-th smallest of the calibration rows' ``hdr_level``, the probability
    of the region that just reaches the target. A new target then lies in its row's region of this
    probability with probability at least ``level``, and at most ``level + 1 / (n + 1)`` if scores
    do not tie::

        adjusted = conformal_hdr(mixture, y, 0.9)        # held-out rows
        hdr_intervals(new, adjusted)                     # D = 1
        hdr_level(new, y_new).value <= adjusted                # any D: is it inside? Classes too

    Args:
      mixture: predictive densities of the calibration rows, batch shape ``[...]``; rows the model
        was not fitted to.
      y: their targets ``[..., D]``; all leading axes are pooled into ``n`` rows.
      level: a Python number in (0, 1).
      key: a typed key, needed for ``D > 1``, where ``hdr_level`` is found by sampling. New rows
        need a key of their own and the same ``num_samples``.
      num_samples: as in ``hdr_level``.

    Returns:
      A scalar in [0, 1]. With fewer than ``level / (1 - level)`` rows nothing less than the whole
      space will do: 1, of which ``hdr_intervals`` makes NaN. NaN in gives NaN out.

    Raises:
      ValueError: if ``level`` lies outside (0, 1), and as ``hdr_level``.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.linspace(-4.0, 4.0, 99)[:, None]  # much wider than the model believes
    >>> round(float(jaxmdn.calibration.conformal_hdr(mixture, y, 0.9)), 4)
    0.9998

    References:
      Izbicki, Shimizu and Stern (2022), CD-split and HPD-split: efficient conformal regions in high
      dimensions, algorithm 2.
    """
    _check_level("conformal_hdr", level)
    scores = hdr_level(mixture, y, key=key, num_samples=num_samples).value
    return _ranked(scores.reshape(-1, 1), level, 1.0)[0]


def conformal_interval(
    density: Density, y: Num[Array, "..."], level: float = 0.9
) -> Float[Array, "D"]:
    """What to add to both ends of central intervals so that they really hold ``level``, ``[D]``.

    Conformalised quantile regression: the ``ceil((n + 1) level)``-th smallest of the calibration
    rows' ``max(l - y, y - u)``, with ``l`` and ``u`` the ends of the model's central interval. Pass
    it on as ``central_interval(new, level, offset=offset)``. Each dimension by itself holds
    ``level``; all of them together do not.

    Args:
      density: predictive densities of the calibration rows, batch shape ``[...]``; rows the model
        was not fitted to.
      y: their targets ``[..., D]``; all leading axes are pooled into ``n`` rows.
      level: a Python number in (0, 1).

    Returns:
      Offsets ``[D]`` in the target's unit; negative where the model's intervals are too wide,
      ``inf`` with fewer than ``level / (1 - level)`` rows. NaN in gives NaN out.

    Raises:
      ValueError: if ``level`` lies outside (0, 1), on a wrong event size, or if shapes do not
        broadcast. TypeError: for a density without quantiles.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.linspace(-4.0, 4.0, 99)[:, None]
    >>> round(float(jaxmdn.calibration.conformal_interval(mixture, y, 0.9)[0]), 3)
    2.029

    References:
      Romano, Patterson and Candes (2019), Conformalized quantile regression, eq. 6-8.
    """
    _check_level("conformal_interval", level)
    check_target("conformal_interval", density, y)
    excess = _excess(density, y, level)
    return _ranked(excess.reshape(-1, excess.shape[-1]), level, jnp.inf)


@meshes.jit
def _excess(density: Density, y: Array, level: Array) -> Array:
    """How far targets lie outside their central interval, ``[..., D]``; inside, below zero."""
    density, y = numerics.upcast_tree(density, y)
    lower, upper = _central_interval(density, level, jnp.zeros((), y.dtype))
    return jnp.maximum(lower - y, y - upper)


class Interval(NamedTuple):
    """An interval in each dimension.

    Attributes:
      lower: ``[..., D]``.
      upper: ``[..., D]``; below ``lower`` where the interval is empty.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def central_interval(
    density: Density,
    level: Float[ArrayLike, ""] = 0.9,
    *,
    offset: Float[ArrayLike, "..."] = 0.0,
) -> Interval:
    """Central interval of each dimension's marginal, :class:`Interval`.

    From the quantile at ``(1 - level) / 2`` to the one at ``(1 + level) / 2``, both ends moved
    outward by ``offset``.

    Args:
      density: a density with batch shape ``[...]``.
      level: the interval's probability in (0, 1).
      offset: broadcasts against ``[..., D]``, in the target's unit: from
        :func:`conformal_interval`. Where a negative one makes the ends pass each other, the
        interval is empty (``lower > upper``).

    Raises:
      ValueError: if ``level`` is a number outside (0, 1). TypeError: for a density without
        quantiles.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> lower, upper = jaxmdn.calibration.central_interval(mixture, 0.9, offset=0.5)
    >>> round(float(lower[0]), 3), round(float(upper[0]), 3)
    (-2.145, 2.145)
    """
    if not isinstance(level, jax.Array):
        _check_level("central_interval", level)
    return _central_interval(density, level, offset)


@meshes.jit
def _central_interval(density: Density, level: Array, offset: Array) -> Interval:
    (density,) = numerics.upcast_tree(density)
    dtype = numerics.compute_dtype(density)
    miss, offset = 1 - jnp.asarray(level, dtype), jnp.asarray(offset, dtype)
    lower, upper = central(density, 0.5 * miss)
    return Interval(lower - offset, upper + offset)


def _check_level(function: str, level: Any) -> None:
    checks.require_number(function, "level", level, lower=0.0, upper=1.0, strict_lower=True)


@partial(meshes.jit, static_argnums=(1, 2))
def _ranked(scores: Float[Array, "N D"], level: float, everything: float) -> Float[Array, "D"]:
    """The ``ceil((n + 1) level)``-th smallest score of each column, or ``everything`` beyond."""
    count = scores.shape[0]  # in an exported program a symbol
    # In whole numbers: 10 * 0.9 must not be rounded up to 10 for being 9.000000000000002.
    share = Fraction(level).limit_denominator(10**9)
    rank = -(-(count + 1) * share.numerator // share.denominator) if share else 1
    last = jnp.full((1, *scores.shape[1:]), everything, scores.dtype)
    chosen = jnp.concatenate([jnp.sort(scores, axis=0), last])[jnp.minimum(rank - 1, count)]
    return jnp.where(jnp.isnan(scores).any(axis=0), jnp.nan, chosen)
