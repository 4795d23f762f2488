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
from jaxmdn.inference.turning_points import (
    TurningPoints,
    component_quantiles,
    log_density,
    require_continuous,
    slope,
    turning_points,
)
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.special.roots import close_in
from jaxmdn.typing import Array, ArrayLike, Bool, Float, Key

# By the dtype's bytes: evaluations of the density for each end of an interval, Newton's steps after
# them, and evaluations of the region's probability for its threshold.
STEPS, NEWTON_STEPS, LEVEL_STEPS = {4: 12, 8: 18}, 2, {4: 28, 8: 42}


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
    num_samples: int = 1000,
) -> Float[Array, "..."]:
    """Log-density above which a mixture has probability ``level``, ``[...]``, nats.

    ``P(log p(Y) >= t) = level``: the region ``{y : log p(y) >= t}`` is the smallest one of that
    probability.

    Args:
      mixture: a mixture of batch shape ``[...]``.
      level: probabilities in (0, 1), ``[...]``; they broadcast against the batch.
      key: needed for D > 1 only, where the threshold is the empirical quantile of the log-density
        over samples.
      num_samples: how many (static; D > 1 only). The standard error of the region's *probability*
        is ``sqrt(level (1 - level) / num_samples)``; that of the threshold is this divided by the
        density of ``log p(Y)`` at it, about 0.05 for 1000 samples at level 0.9 and D = 2.

    Returns:
      ``[...]`` in the compute dtype, exact to its rounding for D = 1.

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
    >>> round(float(threshold), 3)
    -2.84

    References:
      Hyndman (1996), Computing and graphing highest density regions, sections 2 and 3.
    """
    require_continuous("hdr_threshold", mixture)
    level = _check_level("hdr_threshold", mixture, level)
    if mixture.event_dim == 1:
        return _threshold(mixture, level)
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
    num_samples: int = 1000,
) -> Float[Array, "..."]:
    """Level of the smallest region that holds ``y``, ``P(p(Y) >= p(y))``, ``[...]``.

    It is zero at the highest mode and one far away, and uniform on (0, 1) if ``y`` comes from the
    mixture: a share q of targets should lie in the region of level q.

    Args:
      mixture: a mixture of batch shape ``[...]``.
      y: targets ``[..., D]``; leading axes broadcast.
      key: needed for D > 1 only, where the level is the share of samples that are at least as
        dense as ``y``.
      num_samples: how many (static; D > 1 only); the standard error is
        ``sqrt(level (1 - level) / num_samples)``.

    Returns:
      ``[...]`` in the compute dtype, exact to its rounding for D = 1.

    Raises:
      ValueError: on a wrong event size, and for D > 1 without a key. TypeError: if the mixture is
        none, or discrete.

    Limits: NaN gives NaN. For D = 1 the level is differentiable in ``y`` and every parameter,
    except where the density is flat (at a mode the derivative is set to zero); for D > 1 no
    derivative passes.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.hdr_level(mixture, jnp.array([-1.96]))), 3)
    0.95

    References:
      Harrison et al. (2015), Validation of Bayesian posterior distributions using a
      multidimensional Kolmogorov-Smirnov test, section 2; Izbicki et al. (2022), CD-split and
      HPD-split, section 3.
    """
    require_continuous("hdr_level", mixture)
    check_target("hdr_level", mixture, y)
    if mixture.event_dim == 1:
        return _level(mixture, y)
    _require_key("hdr_level", mixture, key, num_samples)
    return _sampled_level(key, mixture, y, num_samples)


@jax.jit
def _threshold(mixture: Mixture, level: Float[Array, "..."]) -> Float[Array, "..."]:
    plain, level = _plain(mixture, level)
    return _solve(plain, level, _turns(plain))


@jax.jit
def _intervals(mixture: Mixture, level: Float[Array, "..."]) -> Intervals:
    plain, level = _plain(mixture, level)
    turns = _turns(plain)
    lower, upper = _ends(plain, _solve(plain, level, turns), turns)
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
    level = _probability(plain, *_ends(plain, log_t, _turns(plain)))
    return jnp.where(jnp.isnan(log_t), jnp.nan, level)


@partial(jax.jit, static_argnums=3)
def _sampled_threshold(key: Array, mixture: Mixture, level: Array, num_samples: int) -> Array:
    mixture, level = jax.lax.stop_gradient(_plain(mixture, level))
    values = mixture.log_prob(mixture.sample(key, (num_samples,)))  # [S, ...]
    lead = np.broadcast_shapes(values.shape[1:], level.shape)
    values = jnp.broadcast_to(_expand(values, len(lead)), (num_samples, *lead))
    level = jnp.broadcast_to(level, lead)
    quantile = jax.vmap(lambda v, q: jnp.quantile(v, q), in_axes=(1, 0))
    flat = quantile(values.reshape(num_samples, -1), 1 - level.reshape(-1))
    return jnp.where((level > 0) & (level < 1), flat.reshape(lead), jnp.nan)


@partial(jax.jit, static_argnums=3)
def _sampled_level(key: Array, mixture: Mixture, y: Array, num_samples: int) -> Array:
    mixture, y = jax.lax.stop_gradient(_plain(mixture, y))
    values = mixture.log_prob(mixture.sample(key, (num_samples,)))  # [S, ...]
    log_t = mixture.log_prob(y)
    values = _expand(values, log_t.ndim)
    share = jnp.mean(values >= log_t, axis=0, dtype=log_t.dtype)
    return jnp.where(jnp.isnan(log_t + jnp.sum(values, axis=0)), jnp.nan, share)


def _plain(mixture: Mixture, other: Array) -> Any:
    """A mixture of plain (for D = 1, univariate) components, and its companion, upcast alike."""
    mixture, other = numerics.upcast_tree(mixture, other)
    flat = flatten_mixture(mixture)
    return flat.marginals() if flat.event_dim == 1 else flat, other


def _expand(values: Float[Array, "P ..."], ndim: int) -> Float[Array, "P ..."]:
    """Insert axes after the first, so that the others broadcast against ``ndim`` batch axes."""
    missing = (1,) * max(ndim + 1 - values.ndim, 0)
    return values.reshape(values.shape[0], *missing, *values.shape[1:])


def _turns(mixture: Mixture) -> TurningPoints:
    return turning_points(jax.lax.stop_gradient(mixture))


def _ends(
    mixture: Mixture, log_t: Float[Array, "..."], turns: TurningPoints
) -> tuple[Float[Array, "M ..."], Float[Array, "M ..."]]:
    """Ends of ``{log p >= log_t}`` around each mode, ``[M, ...]``; equal where it is below.

    Where the valley between two modes is above the threshold, both have it as their end.
    """
    fixed, level = jax.lax.stop_gradient((mixture, log_t))
    location, grid, height = (
        _expand(values, level.ndim) for values in (turns.location, turns.grid, turns.height)
    )
    lead = np.broadcast_shapes(location.shape[1:], level.shape)
    location = jnp.broadcast_to(location, (location.shape[0], *lead))
    below, above = location[:-1], location[1:]
    # Between a valley and a mode the density rises, then it falls.
    rises = (jnp.arange(below.shape[0]) % 2 == 0).reshape(-1, *(1,) * len(lead))
    sign = jnp.where(rises, 1, -1).astype(level.dtype)

    def excess(y: Array) -> Array:
        return sign * (log_density(fixed, y) - level)

    # The crossing of a piece lies between the last point of the grid on its one side and the first
    # on the other: [2 M, N, ...], which is never stored.
    inside = (grid >= below[:, None]) & (grid <= above[:, None])
    high = (height >= level) == rises[:, None]
    start = jnp.max(jnp.where(inside & ~high, grid, below[:, None]), axis=1)
    stop = jnp.min(jnp.where(inside & high, grid, above[:, None]), axis=1)
    start, stop = jnp.minimum(start, stop), jnp.maximum(start, stop)
    root, left, right = close_in(excess, start, stop, steps=STEPS[level.dtype.itemsize])
    for _ in range(NEWTON_STEPS):
        value, rate = jax.jvp(excess, (root,), (jnp.ones_like(root),))
        step = jnp.where(rate > 0, value / jnp.where(rate > 0, rate, 1), 0)
        root = jnp.clip(root - step, left, right)
    crossing = (root > below) & (root < above)
    points = _follow(mixture, log_t, root, crossing)
    return points[0::2], points[1::2]


@jax.custom_jvp
def _follow(
    mixture: Mixture,
    log_t: Float[Array, "..."],
    y: Float[Array, "P ..."],
    moves: Bool[Array, "..."],
) -> Float[Array, "P ..."]:
    """Return ``y``, which moves with the parameters so that ``log p(y) = log_t``."""
    return y


@_follow.defjvp
def _follow_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, log_t, y, moves = primals
    dmixture, dlog_t = tangents[:2]
    y = _follow(mixture, log_t, y, moves)
    _, dlog_p = jax.jvp(lambda mixture: log_density(mixture, y), (mixture,), (dmixture,))
    rate = slope(mixture, y)
    moves = moves & (rate != 0)
    return y, jnp.where(moves, (dlog_t - dlog_p) / jnp.where(moves, rate, 1), 0)


def _probability(
    mixture: Mixture, lower: Float[Array, "M ..."], upper: Float[Array, "M ..."]
) -> Float[Array, "..."]:
    parts = mixture.cdf(upper[..., None]) - mixture.cdf(lower[..., None])
    return jnp.sum(parts[..., 0], axis=0)


def _solve(
    mixture: Mixture, level: Float[Array, "..."], turns: TurningPoints
) -> Float[Array, "..."]:
    level = jnp.broadcast_to(level, np.broadcast_shapes(mixture.batch_shape, level.shape))
    log_t = _search(*jax.lax.stop_gradient((mixture, level)), turns)
    return _settle(mixture, level, log_t, turns)


def _search(
    mixture: Mixture, level: Float[Array, "..."], turns: TurningPoints
) -> Float[Array, "..."]:
    highest = jnp.max(log_density(mixture, turns.location), axis=0)
    # All but 1 - level lies above t >= (1 - level) / 2 / L, if all but half of that lies in an
    # interval of length L.
    outside = (1 - level) / 2
    alive = mixture.weights() > 0
    left = jnp.where(alive, component_quantiles(mixture, outside / 2), jnp.inf)
    right = jnp.where(alive, component_quantiles(mixture, outside / 2, upper=True), -jnp.inf)
    length = jnp.max(right, axis=-1) - jnp.min(left, axis=-1)
    lowest = jnp.log(outside) - jnp.log(length)

    def missing(log_t: Array) -> Array:
        return level - _probability(mixture, *_ends(mixture, log_t, turns))

    highest = jnp.broadcast_to(highest, level.shape)
    steps = LEVEL_STEPS[level.dtype.itemsize]
    log_t, _, _ = close_in(missing, jnp.minimum(lowest, highest), highest, steps=steps)
    return jnp.where((level > 0) & (level < 1), log_t, jnp.nan)


@jax.custom_jvp
def _settle(
    mixture: Mixture, level: Float[Array, "..."], log_t: Float[Array, "..."], turns: TurningPoints
) -> Float[Array, "..."]:
    """Return ``log_t``, which moves with the parameters so that the region keeps its level."""
    return log_t


@_settle.defjvp
def _settle_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, level, log_t, turns = primals
    dmixture, dlevel = tangents[:2]
    log_t = _settle(mixture, level, log_t, turns)

    def probability(mixture: Mixture, log_t: Array) -> Array:
        return _probability(mixture, *_ends(mixture, log_t, turns))

    _, moved = jax.jvp(lambda mixture: probability(mixture, log_t), (mixture,), (dmixture,))
    _, rate = jax.jvp(partial(probability, mixture), (log_t,), (jnp.ones_like(log_t),))
    flat = ~(rate < 0)
    return log_t, jnp.where(flat, 0, (dlevel - moved) / jnp.where(flat, 1, rate))


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
