"""Recalibration: a map of the predicted probabilities that makes them come true.

If targets fall below the predicted quantile of level ``p`` in a share ``R(p)`` of held-out rows,
``R(F(y))`` is a calibrated cdf. Here ``R`` is continuous, strictly increasing and piecewise linear,
so that it has an inverse and a slope, and recalibrated densities have quantiles and logarithms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.components.declare import register
from jaxmdn.inference import cdf
from jaxmdn.inference.quantiles import check_levels, quantile_at
from jaxmdn.mixture import check_target
from jaxmdn.typing import Array, ArrayLike, Float, Parameter


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recalibration:
    """A strictly increasing map of [0, 1] onto itself for each dimension, ``R_d``.

    Attributes:
      knots: predicted probabilities ``[D, M]`` at which the observed share is
        ``0, 1 / (M - 1), ..., 1``; linear between them.
    """

    knots: Parameter


def recalibrate(
    pit_values: Float[Array, "..."], *, num_knots: int = 21, pseudo_rows: float = 1.0
) -> Recalibration:
    """Fit the map from predicted to observed probabilities on held-out rows.

    The knots are the PIT values' quantiles at ``0, 1 / (M - 1), ..., 1`` (linear between the
    points ``(i / (n + 1), u_(i))``), averaged with the identity's with weights ``n`` and
    ``pseudo_rows``: so the slope stays between ``1 / (M - 1)`` and ``(n + pseudo_rows) /
    pseudo_rows``, even where values tie. PIT values that lie evenly give the identity.

    Args:
      pit_values: numbers in [0, 1], ``[..., D]``, from :func:`jaxmdn.pit`, of rows that the model
        was not fitted to; all leading axes are pooled.
      num_knots: M, both ends included, at least 2 (the identity). About ``n / (M - 1)`` rows fix
        each slope, to ``sqrt((M - 1) / n)`` of itself.
      pseudo_rows: what the identity weighs, in rows; positive.

    Returns:
      The map; pass it to :func:`recalibrated_cdf`, :func:`recalibrated_quantile` and
      :func:`recalibrated_log_prob`.

    Raises:
      ValueError: without rows or on options out of range. TypeError: for an array that is not
        floating.

    Limits: values outside [0, 1] and NaN give NaN for their dimension. Beyond the extreme PIT
    values the predicted tail is kept, with another weight.

    >>> import jax.numpy as jnp, jaxmdn
    >>> low = jnp.linspace(0.01, 0.49, 49)[:, None]  # all targets below the predicted median
    >>> fitted = jaxmdn.calibration.recalibrate(low, num_knots=3)
    >>> [round(float(knot), 3) for knot in fitted.knots[0]]
    [0.0, 0.255, 1.0]

    References:
      Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated
      regression, algorithm 1.
    """
    checks.require_floating("recalibrate", "pit_values", pit_values)
    checks.require_count("recalibrate", "num_knots", num_knots, minimum=2)
    checks.require_number("recalibrate", "pseudo_rows", pseudo_rows, lower=0.0, strict_lower=True)
    if pit_values.ndim < 2 or pit_values.size == 0:
        raise ValueError(
            f"recalibrate: expected pit_values of shape [..., D] with at least one row, got "
            f"{list(pit_values.shape)}; a scalar target keeps an axis of size one."
        )
    (values,) = numerics.upcast(pit_values)
    count = values.size // values.shape[-1]
    # In float32 neighbouring knots must stay apart by more than rounding, however many the rows.
    floor = 8 * (num_knots - 1) * float(jnp.finfo(values.dtype).eps)
    share = max(pseudo_rows / (count + pseudo_rows), floor)
    return _fit(values, share, np.linspace(0.0, 1.0, num_knots))


@meshes.jit
def _fit(values: Array, share: Array, levels: Array) -> Recalibration:
    values = values.reshape(-1, values.shape[-1])
    dtype, count = values.dtype, values.shape[0]
    bad = jnp.any(~((values >= 0) & (values <= 1)), axis=0)[:, None]
    share, levels = jnp.asarray(share, dtype), jnp.asarray(levels, dtype)
    ends = jnp.zeros_like(values[:1])
    points = jnp.concatenate([ends, jnp.sort(values, axis=0), ends + 1])  # at i / (n + 1)
    place = levels * (count + 1)
    index = jnp.minimum(place.astype(jnp.int32), count)
    fraction = (place - index.astype(dtype))[:, None]
    empirical = points[index] + fraction * (points[index + 1] - points[index])  # [M, D]
    knots = (1 - share) * empirical.T + share * levels
    knots = knots.at[:, 0].set(0).at[:, -1].set(1)
    return Recalibration(knots=jnp.where(bad, jnp.nan, knots))


def recalibrated_cdf(
    recalibration: Recalibration, density: Density, y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Recalibrated distribution function of each dimension, ``R_d(F_d(y_d))``, ``[..., D]``.

    Args:
      recalibration: from :func:`recalibrate`.
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.

    Raises as ``cdf``, and ``ValueError`` for a map of another event size. Differentiable, with
    kinks at the knots.
    """
    _check("recalibrated_cdf", recalibration, density)
    return _apply(recalibration, cdf(density, y))


def recalibrated_quantile(
    recalibration: Recalibration, density: Density, p: Float[ArrayLike, "..."] | Sequence[float]
) -> Float[Array, "..."]:
    """Recalibrated quantile of each dimension, the ``y`` with ``R_d(F_d(y_d)) = p``, ``[..., D]``.

    Args:
      recalibration: from :func:`recalibrate`.
      density: a density with batch shape ``[...]``.
      p: probabilities in [0, 1], as ``quantile`` takes them: levels lead.

    Raises as ``quantile``, and ``ValueError`` for a map of another event size. JAX arrays outside
    [0, 1] and NaN give NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.linspace(-4.0, 4.0, 999)[:, None]  # much wider than the model believes
    >>> fitted = jaxmdn.calibration.recalibrate(jaxmdn.pit(mixture, y))
    >>> round(float(jaxmdn.calibration.recalibrated_quantile(fitted, mixture, 0.9)[0]), 1)
    3.2
    """
    _check("recalibrated_quantile", recalibration, density)
    level = check_levels("recalibrated_quantile", density, p)
    return _quantile(recalibration, density, level)


def recalibrated_log_prob(
    recalibration: Recalibration, density: Density, y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Log-density after recalibration, ``[...]``, in nats; it integrates to one.

    For one dimension ``log R'(F(y)) + log p(y)``, and at a value of positive probability (a
    hurdle's zero) the logarithm of ``R(P(Y <= y)) - R(P(Y < y))``. For several, the
    marginals are recalibrated and the dependence between them (the copula) is kept: with
    ``z_d = Q_d(R_d(F_d(y_d)))``,
    ``log p(z) + sum_d [log R_d'(F_d(y_d)) + log f_d(y_d) - log f_d(z_d)]``. Where the dimensions
    are independent that is ``log p(y) + sum_d log R_d'(F_d(y_d))``.

    Args:
      recalibration: from :func:`recalibrate`.
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.

    Raises:
      TypeError: for a discrete density, and for several dimensions if one has such values.
      ValueError: for a map of another event size, on a wrong event size of ``y``, or if leading
        axes do not broadcast.

    Limits: jumps at the knots. NaN in gives NaN out. For ``D > 1``, where the cdf is 0 or 1 to the
    dtype (5 standard deviations above the mean in float32, 8 in float64), ``z_d = y_d`` is taken.
    """
    _check("recalibrated_log_prob", recalibration, density)
    check_target("recalibrated_log_prob", density, y)
    if density.discrete:
        raise TypeError(
            "recalibrated_log_prob: needs a continuous density; of a discrete one take differences "
            "of recalibrated_cdf."
        )
    if density.event_dim > 1 and any(density.jumps):
        dims = np.flatnonzero(density.jumps).tolist()
        raise TypeError(
            f"recalibrated_log_prob: dimensions {dims} have values "
            f"of positive probability, where a copula is not unique; take one dimension at a time "
            f"(jaxmdn.marginal), with a map of its own."
        )
    return _log_prob(recalibration, density, y)


@meshes.jit
def _log_prob(recalibration: Recalibration, density: Density, y: Array) -> Array:
    recalibration, density, y = numerics.upcast_tree(recalibration, density, y)
    p = density.cdf(y)
    low, high, _ = _segment(recalibration.knots, p)
    steps = recalibration.knots.shape[-1] - 1
    log_slope = -jnp.sum(jnp.log(steps * (high - low)), axis=-1)
    if density.event_dim == 1:
        value = density.log_prob(y) + log_slope
        if not any(density.jumps):
            return value
        below, at = density.jump(y)
        some = at > 0
        log_mass = jnp.log(_mass(recalibration, below, jnp.where(some, at, 1)))
        return jnp.where(some, log_mass, value[..., None])[..., 0]
    z = quantile_at(density, _apply(recalibration, p))
    z = jnp.where(jnp.isfinite(z), z, y)
    change = density.marginal_log_prob(y) - density.marginal_log_prob(z)
    return density.log_prob(z) + log_slope + jnp.sum(change, axis=-1)


def _mass(recalibration: Recalibration, below: Array, at: Array) -> Array:
    """``R(below + at) - R(below)``; within one segment without a difference."""
    low, high, first = _segment(recalibration.knots, below)
    last = _segment(recalibration.knots, below + at)[-1]
    across = _apply(recalibration, below + at) - _apply(recalibration, below)
    slope = 1 / ((recalibration.knots.shape[-1] - 1) * (high - low))
    return jnp.where(first == last, slope * at, across)


@meshes.jit
def _apply(recalibration: Recalibration, p: Array) -> Array:
    knots, p = numerics.upcast(recalibration.knots, p)
    low, high, index = _segment(knots, p)
    return (index.astype(p.dtype) + (p - low) / (high - low)) / (knots.shape[-1] - 1)


@meshes.jit
def _quantile(recalibration: Recalibration, density: Density, p: Array) -> Array:
    knots, density, p = numerics.upcast_tree(recalibration.knots, density, p)
    steps, dims = knots.shape[-1] - 1, jnp.arange(knots.shape[0], dtype=jnp.int32)
    place = p * steps
    index = jnp.clip(place.astype(jnp.int32), 0, steps - 1)
    low, high = knots[dims, index], knots[dims, index + 1]
    level = low + (place - index.astype(p.dtype)) * (high - low)
    return quantile_at(density, level)


def _segment(knots: Array, p: Array) -> tuple[Array, Array, Array]:
    """The knots around each of ``p [..., D]``, and the index of the lower one."""
    search = jax.vmap(lambda row, p: jnp.searchsorted(row, p, side="right"), (0, -1), -1)
    index = jnp.clip(search(knots, p).astype(jnp.int32) - 1, 0, knots.shape[-1] - 2)
    dims = jnp.arange(knots.shape[0], dtype=jnp.int32)
    return knots[dims, index], knots[dims, index + 1], index


def _check(function: str, recalibration: Recalibration, density: Density) -> None:
    if not isinstance(recalibration, Recalibration):
        raise TypeError(
            f"{function}: expected a Recalibration, got {type(recalibration).__name__}; "
            f"recalibrate makes one from PIT values."
        )
    if not isinstance(density, Density):
        raise TypeError(f"{function}: expected a density, got {type(density).__name__}.")
    if recalibration.knots.shape[0] != density.event_dim:
        raise ValueError(
            f"{function}: expected a map of {density.event_dim} dimensions (the density's D), got "
            f"one of {recalibration.knots.shape[0]}; fit it to PIT values of this model."
        )
