"""Highest-density regions: the smallest sets of a given probability.

The region of level q is ``{y : p(y) >= t}`` with ``t`` such that it holds probability ``q``. In one
dimension it is a union of intervals, one around each mode that is high enough, and its probability
a sum of differences of the cdf: exact. In more it is measured by samples.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, numerics
from jaxmdn.inference.level_sets import (
    crossing,
    expand,
    follow,
    region_ends,
    region_probability,
    solve_level,
)
from jaxmdn.inference.turning_points import require_continuous, turning_points
from jaxmdn.mixture import NUM_SAMPLES, Estimate, Mixture, check_target
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.typing import Array, ArrayLike, Float, Key


class Intervals(NamedTuple):
    """Disjoint intervals in increasing order; unused slots hold NaN.

    Attributes:
      lower: left ends ``[..., M]``.
      upper: right ends ``[..., M]``.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def hdr_threshold(
    mixture: Mixture,
    level: Float[ArrayLike, "..."],
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Estimate:
    """Log-density above which a mixture has probability ``level``, ``[...]``, nats.

    ``P(log p(Y) >= t) = level``: the region ``{y : log p(y) >= t}`` is the smallest one of that
    probability.

    Args:
      mixture: a mixture of batch shape ``[...]``.
      level: probabilities in (0, 1), ``[...]``; they broadcast against the batch.
      key: needed for D > 1 only, where the threshold is the empirical quantile of the log-density
        over samples.
      num_samples: how many (static; D > 1 only).

    Returns:
      :class:`~jaxmdn.mixture.Estimate`, ``[...]`` each in the compute dtype: exact to its rounding
      for D = 1, with a standard error of zero. For D > 1 the standard error of the region's
      *probability* is ``sqrt(level (1 - level) / num_samples)``; the threshold's is half the
      distance between the quantiles that far to both sides.

    Raises:
      ValueError: if ``level`` is a number or a NumPy array that lies outside (0, 1) or does not
        broadcast, and for D > 1 without a key. TypeError: if the mixture is none, or discrete.

    Limits: JAX arrays outside (0, 1), and NaN, give NaN. For D = 1 the threshold is differentiable
    in the level and in every parameter (the implicit function, with what moves in and out at the
    region's ends); for D > 1 no derivative passes. Where a mode lies exactly at the threshold the
    derivative is one-sided.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> threshold = jaxmdn.hdr_threshold(mixture, 0.95)  # the density at 1.96
    >>> round(float(threshold.value), 3)
    -2.84

    References:
      Hyndman (1996), Computing and graphing highest density regions, sections 2 and 3.
    """
    require_continuous("hdr_threshold", mixture)
    level = _check_level("hdr_threshold", mixture, level)
    if mixture.event_dim == 1:
        return _exact(_threshold(mixture, level))
    _require_key("hdr_threshold", mixture, key, num_samples)
    return _sampled_threshold(key, mixture, level, num_samples)


def hdr_intervals(mixture: Mixture, level: Float[ArrayLike, "..."]) -> Intervals:
    """Disjoint intervals of the highest-density region of a univariate mixture.

    Args:
      mixture: a mixture of batch shape ``[...]`` with D = 1.
      level: probabilities in (0, 1), ``[...]``; they broadcast against the batch.

    Returns:
      :class:`Intervals`, ``[..., M]`` each, in the target's unit. A mixture of K normals in one
      dimension has at most ``M = K`` modes, hence as many intervals; for other families M is 2 K.
      A class-conditional density counts the components of all classes.

    Raises:
      ValueError: if D > 1, and as :func:`hdr_threshold`.

    Limits: as :func:`hdr_threshold`; the ends are differentiable where the density is not flat.
    A valley exactly at the threshold belongs to the region. Between modes of equal height the
    region splits evenly, as it must.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [9.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> lower, upper = jaxmdn.hdr_intervals(mixture, 0.95)
    >>> [[round(float(end), 2) for end in pair] for pair in zip(lower, upper)]
    [[-1.96, 1.96], [7.04, 10.96]]

    References:
      Carreira-Perpinan and Williams (2003), On the number of modes of a Gaussian mixture.
    """
    require_continuous("hdr_intervals", mixture)
    if mixture.event_dim != 1:
        raise ValueError(
            f"hdr_intervals: regions are intervals for D = 1 only, got D = {mixture.event_dim}; "
            f"take one dimension first, jaxmdn.marginal(mixture, (d,)), or use hdr_threshold."
        )
    return _intervals(mixture, _check_level("hdr_intervals", mixture, level))


def hdr_level(
    mixture: Mixture,
    y: Float[Array, "..."],
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Estimate:
    """Level of the smallest region that holds ``y``, ``P(p(Y) >= p(y))``, ``[...]``.

    It is zero at the highest mode and one far away, and uniform on (0, 1) if ``y`` comes from the
    mixture: a share q of targets should lie in the region of level q.

    Args:
      mixture: a mixture of batch shape ``[...]``.
      y: targets ``[..., D]``; leading axes broadcast.
      key: needed for D > 1 only, where the level is the share of samples that are at least as
        dense as ``y``.
      num_samples: how many (static; D > 1 only).

    Returns:
      :class:`~jaxmdn.mixture.Estimate`, ``[...]`` each in the compute dtype: exact to its rounding
      for D = 1, with a standard error of zero; else with ``sqrt(level (1 - level) /
      num_samples)``.

    Raises:
      ValueError: on a wrong event size, and for D > 1 without a key. TypeError: if the mixture is
        none, or discrete.

    Limits: NaN gives NaN. For D = 1 the level is differentiable in ``y`` and every parameter,
    except where the density is flat (at a mode the derivative is set to zero); for D > 1 no
    derivative passes.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.hdr_level(mixture, jnp.array([-1.96])).value), 3)
    0.95

    References:
      Harrison et al. (2015), Validation of Bayesian posterior distributions using a
      multidimensional Kolmogorov-Smirnov test, section 2; Izbicki et al. (2022), CD-split and
      HPD-split, section 3.
    """
    require_continuous("hdr_level", mixture)
    check_target("hdr_level", mixture, y)
    if mixture.event_dim == 1:
        return _exact(_level(mixture, y))
    _require_key("hdr_level", mixture, key, num_samples)
    return _sampled_level(key, mixture, y, num_samples)


@jax.jit
def _threshold(mixture: Mixture, level: Float[Array, "..."]) -> Float[Array, "..."]:
    return solve_level(*_plain(mixture, level))[0]


@jax.jit
def _intervals(mixture: Mixture, level: Float[Array, "..."]) -> Intervals:
    plain, level = _plain(mixture, level)
    points = follow(plain, *solve_level(plain, level))
    lower, upper = points[0::2], points[1::2]
    # Two intervals that meet at a valley above the threshold are one.
    apart, gap = jnp.ones_like(lower[:1], bool), lower[1:] > upper[:-1]
    filled = upper > lower
    starts = filled & jnp.concatenate([apart, gap])
    stops = filled & jnp.concatenate([gap, apart])
    first, last = (
        jnp.moveaxis(jnp.sort(jnp.where(flags, ends, jnp.nan), axis=0), 0, -1)
        for flags, ends in ((starts, lower), (stops, upper))
    )
    return Intervals(lower=first, upper=last)


@jax.jit
def _level(mixture: Mixture, y: Float[Array, "..."]) -> Float[Array, "..."]:
    plain, y = _plain(mixture, y)
    log_t = plain.log_prob(y)
    fixed, height = jax.lax.stop_gradient((plain, log_t))
    turns = turning_points(fixed)
    ends = region_ends(fixed, height, turns)
    level = region_probability(plain, follow(plain, log_t, ends, crossing(ends, turns)))
    return jnp.where(jnp.isnan(log_t), jnp.nan, level)


def _exact(value: Array) -> Estimate:
    return Estimate(value, jnp.zeros_like(value))


@partial(jax.jit, static_argnums=3)
def _sampled_threshold(key: Array, mixture: Mixture, level: Array, num_samples: int) -> Estimate:
    mixture, level = jax.lax.stop_gradient(_plain(mixture, level))
    values = mixture.log_prob(mixture.sample(key, (num_samples,)))  # [S, ...]
    lead = jnp.broadcast_shapes(values.shape[1:], level.shape)
    values = jnp.broadcast_to(expand(values, len(lead)), (num_samples, *lead))
    level = jnp.broadcast_to(level, lead)
    error = jnp.sqrt(level * (1 - level) / num_samples)
    shares = jnp.clip(1 - level + jnp.stack([-error, jnp.zeros_like(error), error]), 0, 1)
    quantiles = jax.vmap(jnp.quantile, in_axes=(1, 1), out_axes=1)
    low, value, high = quantiles(values.reshape(num_samples, -1), shares.reshape(3, -1))
    known = (level > 0) & (level < 1)
    value, error = (part.reshape(lead) for part in (value, 0.5 * (high - low)))
    return Estimate(*(jnp.where(known, part, jnp.nan) for part in (value, error)))


@partial(jax.jit, static_argnums=3)
def _sampled_level(key: Array, mixture: Mixture, y: Array, num_samples: int) -> Estimate:
    mixture, y = jax.lax.stop_gradient(_plain(mixture, y))
    values = mixture.log_prob(mixture.sample(key, (num_samples,)))  # [S, ...]
    log_t = mixture.log_prob(y)
    values = expand(values, log_t.ndim)
    share = jnp.mean(values >= log_t, axis=0, dtype=log_t.dtype)
    share = jnp.where(jnp.isnan(log_t + jnp.sum(values, axis=0)), jnp.nan, share)
    return Estimate(share, jnp.sqrt(share * (1 - share) / num_samples))


def _plain(mixture: Mixture, other: Array) -> Any:
    """A mixture of plain (for D = 1, univariate) components, and its companion, upcast alike."""
    mixture, other = numerics.upcast_tree(mixture, other)
    flat = flatten_mixture(mixture)
    return flat.marginals() if flat.event_dim == 1 else flat, other


def _check_level(function: str, mixture: Mixture, level: Any) -> Array:
    if isinstance(level, (int, float, np.ndarray, np.number)) and not np.all(
        (np.asarray(level) > 0) & (np.asarray(level) < 1) | np.isnan(level)
    ):
        raise ValueError(f"{function}: level must lie in (0, 1), got {level}.")
    level = jnp.asarray(level, numerics.compute_dtype(mixture))
    checks.require_broadcastable(function, density=mixture.batch_shape, level=level.shape)
    return level


def _require_key(function: str, mixture: Mixture, key: Any, num_samples: Any) -> None:
    checks.require_count(function, "num_samples", num_samples)
    if key is None:
        raise ValueError(
            f"{function}: D = {mixture.event_dim} needs samples, and they a key; pass "
            f"key=jax.random.key(seed). (For D = 1 the result is exact and needs none.)"
        )


__all__ = ["Intervals", "hdr_intervals", "hdr_level", "hdr_threshold"]
