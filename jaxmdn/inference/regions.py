"""Highest-density regions: the smallest sets of a given probability.

The region of level q is ``{y : p(y) >= t}`` with ``t`` such that it holds probability ``q``. In one
dimension it is a union of intervals, one around each mode that is high enough, and its probability
a sum of differences of the cdf: exact. In more it is measured by samples.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.inference.lengths import (
    Continuum,
    log_density,
    on_atom,
    on_circle,
    plain,
    require_continuous,
    require_regions,
    without_atoms,
)
from jaxmdn.inference.level_sets import (
    crossing,
    expand,
    follow,
    region_ends,
    region_probability,
    solve_level,
)
from jaxmdn.inference.turning_points import turning_points
from jaxmdn.mixture import NUM_SAMPLES, Estimate, Mixture, check_target
from jaxmdn.special.circular import TURN, representative
from jaxmdn.typing import Array, ArrayLike, Float, Key, Num


class Intervals(NamedTuple):
    """Disjoint intervals in increasing order; unused slots hold ``inf``.

    Attributes:
      lower: left ends ``[..., M]``.
      upper: right ends ``[..., M]``.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


def hdr_threshold(
    mixture: Any,
    level: Float[ArrayLike, "..."],
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Estimate:
    """Log-density above which a mixture has probability ``level``, ``[...]``, nats.

    ``P(log p(Y) >= t) = level``: the region ``{y : log p(y) >= t}`` is the smallest one of that
    probability.

    Args:
      mixture: a mixture of batch shape ``[...]``, or independent ones.
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

    Limits: JAX arrays outside (0, 1), and NaN, give NaN. Where values of positive probability (the
    zeros of a hurdle) are enough for the level the threshold is ``inf``. For D = 1 it is
    differentiable in the level and in every parameter (the implicit function, with what moves in
    and out at the region's ends); for D > 1 no derivative passes. Where a mode lies exactly at the
    threshold the derivative is one-sided. Where a density is infinite at an end of its support, no
    region is narrower than what the dtype tells from that end: 1e-7 beside an end of 1 in float32.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> threshold = jaxmdn.hdr_threshold(mixture, 0.95)  # the density at 1.96
    >>> round(float(threshold.value), 3)
    -2.84

    References:
      Hyndman (1996), Computing and graphing highest density regions, sections 2 and 3.
    """
    require_regions("hdr_threshold", mixture)
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
      A class-conditional density counts the components of all classes. Each value of positive
      probability has a slot more, an interval of length zero where no other one holds it. Angles
      lie in ``[-pi, pi]``, with a slot more too: an arc across the cut is an interval at each end.

    Raises:
      ValueError: if D > 1, and as :func:`hdr_threshold`.

    Limits: as :func:`hdr_threshold`; the ends are differentiable where the density is not flat. A
    piece narrower than the spacing of the dtype's numbers there (float32: .06 at 1e6) is missing,
    or wider than it should be: count from a nearer origin, or use float64.
    A valley exactly at the threshold belongs to the region. Between modes of equal height the
    region splits evenly, as it must. A stretch of one density is inside as a whole, or outside.

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
    mixture: Any,
    y: Num[Array, "..."],
    *,
    key: Key[Array, ""] | None = None,
    num_samples: int = NUM_SAMPLES,
) -> Estimate:
    """Level of the smallest region that holds ``y``, ``P(p(Y) >= p(y))``, ``[...]``.

    It is zero at the highest mode and one far away, and uniform on (0, 1) if ``y`` comes from a
    continuous mixture: a share q of targets should lie in the region of level q. Of classes and
    counts it is the probability of all values that are at least as probable as ``y``.

    Args:
      mixture: a mixture of batch shape ``[...]``, independent ones, or a categorical density.
      y: targets ``[..., D]``; leading axes broadcast.
      key: needed for D > 1 and for counts without a largest one, where the level is the share of
        samples that are at least as dense as ``y``.
      num_samples: how many (static; only then).

    Returns:
      :class:`~jaxmdn.mixture.Estimate`, ``[...]`` each in the compute dtype: exact to its rounding
      without samples, with a standard error of zero; else with ``sqrt(level (1 - level) /
      num_samples)``.

    Raises:
      ValueError: on a wrong event size, and without a key where one is needed. TypeError: if the
        mixture is none.

    Limits: NaN gives NaN. At a value of positive probability in a continuum the level is the
    probability of all of those. For D = 1 it is differentiable in ``y`` and every parameter of a
    continuous mixture, except where the density is flat (at a mode the derivative is set to zero);
    else no derivative passes.

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
    below, at, sampled = level_jump("hdr_level", mixture, y, key, num_samples)
    level = below + at
    return (
        Estimate(level, jnp.sqrt(level * (1 - level) / num_samples)) if sampled else _exact(level)
    )


def level_jump(
    function: str, density: Any, y: Array, key: Key[Array, ""] | None, num_samples: int
) -> tuple[Array, Array, bool]:
    """``P(p(Y) > p(y))`` and ``P(p(Y) = p(y))``, ``[...]``, and whether by samples."""
    if not getattr(density, "discrete", False):
        require_regions(function, density)
    check_target(function, density, y)
    if density.event_dim == 1 and math.isfinite(density.support[0].upper) and density.discrete:
        return *_listed_jump(density, y), False
    if density.event_dim == 1 and not density.discrete:
        return *_level(density, y), False
    _require_key(function, density, key, num_samples)
    return *_sampled_jump(key, density, y, num_samples), True


@meshes.jit
def _threshold(mixture: Mixture, level: Float[Array, "..."]) -> Float[Array, "..."]:
    rest, level = _rest_of(*plain(mixture, level))
    log_t = rest.log_share + solve_level(rest.mixture, level)[0]
    return jnp.where(level <= 0, jnp.inf, log_t) if rest.atoms else log_t


def _rest_of(mixture: Mixture, level: Array) -> tuple[Continuum, Array]:
    """A density without its atoms, and the level at which its region completes theirs."""
    rest = without_atoms(mixture)
    if not rest.atoms:
        return rest, level
    known = (level > 0) & (level < 1)
    return rest, jnp.where(known, rest.level(jnp.where(known, level, 0.5)), jnp.nan)


@meshes.jit
def _intervals(mixture: Mixture, level: Float[Array, "..."]) -> Intervals:
    rest, level = _rest_of(*plain(mixture, level))
    points = follow(rest.mixture, *solve_level(rest.mixture, level))
    lower, upper = points[0::2], points[1::2]
    # Two intervals that meet at a valley above the threshold are one.
    apart, gap = jnp.ones_like(lower[:1], bool), lower[1:] > upper[:-1]
    filled = upper > lower
    starts = filled & jnp.concatenate([apart, gap])
    stops = filled & jnp.concatenate([gap, apart])
    first, last = (
        jnp.sort(jnp.where(flags, ends, jnp.nan), axis=0)
        for flags, ends in ((starts, lower), (stops, upper))
    )
    if on_circle(rest.mixture):
        first, last = _unrolled(first, last)
    for atom in rest.atoms:
        point = jnp.asarray(atom, first.dtype)
        covered = jnp.any((first <= point) & (point <= last), axis=0, keepdims=True)
        point = jnp.where(covered | jnp.isnan(level), jnp.nan, point)
        first, last = (jnp.sort(jnp.concatenate([ends, point]), axis=0) for ends in (first, last))
    some = ~jnp.all(jnp.isnan(first), axis=0)  # a region has a piece: else it is none, and NaN
    first, last = (jnp.where(some & jnp.isnan(ends), jnp.inf, ends) for ends in (first, last))
    return Intervals(lower=jnp.moveaxis(first, 0, -1), upper=jnp.moveaxis(last, 0, -1))


def _unrolled(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Arcs ``[M, ...]`` as intervals within ``[-pi, pi]``, ``[M + 1, ...]``: one may be cut."""
    near = representative(lower)
    lower, upper = near, upper - (lower - near)
    over = upper > math.pi
    rest = jnp.max(jnp.where(over, upper - TURN, -jnp.inf), axis=0, keepdims=True)
    rest = jnp.where(rest >= -math.pi, rest, jnp.nan)
    start = jnp.where(jnp.isnan(rest), jnp.nan, -math.pi)
    upper = jnp.where(over, math.pi, upper)
    pairs = (start, lower), (rest, upper)
    lower, upper = (jnp.sort(jnp.concatenate(ends), axis=0) for ends in pairs)
    return lower, upper


@meshes.jit
def _level(mixture: Mixture, y: Float[Array, "..."]) -> tuple[Array, Array]:
    mixture, y = plain(mixture, y)
    rest = without_atoms(mixture)
    log_t = rest.mixture.log_prob(y)
    fixed, height = jax.lax.stop_gradient((rest.mixture, log_t))
    found = turning_points(fixed)
    ends = region_ends(fixed, height, found)
    moving = follow(rest.mixture, log_t, ends, crossing(ends, found))
    level = region_probability(rest.mixture, moving)
    atoms, here = rest.whole(jnp.zeros_like(level)), on_atom(mixture, y)
    below = jnp.where(here, 0, rest.whole(level))
    return jnp.where(jnp.isnan(log_t), jnp.nan, below), jnp.where(here, atoms, 0)


def _exact(value: Array) -> Estimate:
    return Estimate(value, jnp.zeros_like(value))


@partial(meshes.jit, static_argnums=3)
def _sampled_threshold(key: Array, mixture: Any, level: Array, num_samples: int) -> Estimate:
    mixture, level = jax.lax.stop_gradient(plain(mixture, level))
    values = log_density(mixture, mixture.sample(key, (num_samples,)))  # [S, ...]
    lead = jnp.broadcast_shapes(values.shape[1:], level.shape)
    values = jnp.broadcast_to(expand(values, len(lead)), (num_samples, *lead))
    level = jnp.broadcast_to(level, lead)
    error = jnp.sqrt(level * (1 - level) / num_samples)
    shares = jnp.clip(1 - level + jnp.stack([-error, jnp.zeros_like(error), error]), 0, 1)
    quantiles = jax.vmap(jnp.quantile, in_axes=(1, 1), out_axes=1)
    # Samples on atoms come first, whatever they are.
    first = jnp.isposinf(values)
    highest = jnp.max(jnp.where(first, -jnp.inf, values), axis=0)
    finite = jnp.where(first, highest, values)
    low, value, high = quantiles(finite.reshape(num_samples, -1), shares.reshape(3, -1))
    known = (level > 0) & (level < 1)
    value, error = (part.reshape(lead) for part in (value, 0.5 * (high - low)))
    value = jnp.where(level <= jnp.mean(first, axis=0, dtype=level.dtype), jnp.inf, value)
    return Estimate(*(jnp.where(known, part, jnp.nan) for part in (value, error)))


@partial(meshes.jit, static_argnums=3)
def _sampled_jump(key: Array, density: Any, y: Array, num_samples: int) -> tuple[Array, Array]:
    density, y = jax.lax.stop_gradient((density, y) if density.discrete else plain(density, y))
    values = log_density(density, density.sample(key, (num_samples,)))  # [S, ...]
    share = jnp.full((num_samples, *(1,) * (values.ndim - 1)), 1 / num_samples, values.dtype)
    return _jump_of(density, values, share, log_density(density, y))


@meshes.jit
def _listed_jump(density: Any, y: Array) -> tuple[Array, Array]:
    """All values of a discrete dimension in place of samples."""
    density, y = jax.lax.stop_gradient((density, y))
    own, rank = density.support[0], len(density.batch_shape)
    count = round((own.upper - own.lower) / own.step) + 1
    every = own.lower + own.step * jnp.arange(count, dtype=numerics.compute_dtype(density))
    values = density.log_prob(every.reshape(count, *(1,) * rank, 1))  # [C, ...]
    return _jump_of(density, values, jnp.exp(values), density.log_prob(y))


def _jump_of(density: Any, values: Array, share: Array, log_t: Array) -> tuple[Array, Array]:
    """Shares of values ``[S, ...]`` that are denser than ``log_t``, and as dense."""
    values, share = (expand(part, log_t.ndim) for part in (values, share))
    # Equal probabilities, computed twice, may differ by rounding.
    eps = 8 * float(jnp.finfo(values.dtype).eps) if density.discrete else 0.0
    room = eps * (1 + jnp.where(jnp.isfinite(log_t), jnp.abs(log_t), 0))
    same = (values == log_t) | (jnp.abs(values - log_t) <= room)
    broken = jnp.isnan(log_t + jnp.sum(values, axis=0))
    shares = (jnp.sum(jnp.where(of, share, 0), axis=0) for of in ((values > log_t) & ~same, same))
    below, at = (jnp.where(broken, jnp.nan, jnp.minimum(part, 1)) for part in shares)
    return below, jnp.minimum(at, 1 - below)


def _check_level(function: str, mixture: Any, level: Any) -> Array:
    if isinstance(level, (int, float, np.ndarray, np.number)) and not np.all(
        (np.asarray(level) > 0) & (np.asarray(level) < 1) | np.isnan(level)
    ):
        raise ValueError(f"{function}: level must lie in (0, 1), got {level}.")
    level = jnp.asarray(level, numerics.compute_dtype(mixture))
    checks.require_broadcastable(function, density=mixture.batch_shape, level=level.shape)
    return level


def _require_key(function: str, mixture: Any, key: Any, num_samples: Any) -> None:
    checks.require_count(function, "num_samples", num_samples)
    if key is None:
        what = f"D = {mixture.event_dim}" if mixture.event_dim > 1 else "a density of counts"
        raise ValueError(
            f"{function}: {what} needs samples, and they a key; pass key=jax.random.key(seed). "
            f"(Of one real number, a class or a level the result is exact and needs none.)"
        )
