"""Where a density of one dimension takes a value, and how much it has above it.

Between neighbouring turning points it is monotone: each piece crosses a threshold at most once.
Pieces and their ends come first in the arrays, ``[M2, ...]``: left of the first mode, right of it,
left of the second, and so on.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.inference.derivatives import Parts, derivatives
from jaxmdn.inference.lengths import cumulated
from jaxmdn.inference.turning_points import TurningPoints, grid_levels, turning_points
from jaxmdn.mixture import Mixture
from jaxmdn.special.roots import bisect, close_in, halfway
from jaxmdn.typing import Array, Bool, Float, Num

# By the dtype's bytes: evaluations of the density for each end of an interval, more where it may be
# infinite at an end of its support; and of the region's probability for its threshold.
STEPS, STEPS_BESIDE_ENDS, LEVEL_STEPS = {4: 4, 8: 5}, {4: 7, 8: 9}, {4: 28, 8: 42}
# Of so many rows, most of those steps are for the few that need more alone.
MANY_ROWS = 2**11
# Halvings of the range of thresholds for the one to begin with.
START_STEPS = 9


def expand(values: Num[Array, "P ..."], ndim: int) -> Num[Array, "P ..."]:
    """Insert axes after the first, so that the others broadcast against ``ndim`` batch axes."""
    missing = (1,) * max(ndim + 1 - values.ndim, 0)
    return values.reshape(values.shape[0], *missing, *values.shape[1:])


def region_ends(mixture: Mixture, log_t: Float[Array, "..."], turns: TurningPoints) -> Array:
    """Ends of ``{log p >= log_t}`` around each mode, left, right, left, ..., ``[M2, ...]``.

    Both ends are the same point where a mode is below. Where the valley between two modes is above
    the threshold, both have it as their end. No derivative passes.
    """
    return _ends_and_rates(mixture, log_t, turns)[0]


def _ends_and_rates(
    mixture: Mixture, log_t: Float[Array, "..."], turns: TurningPoints
) -> tuple[Float[Array, "M2 ..."], Float[Array, "M2 ..."]]:
    """:func:`region_ends`, and about the slopes of the log-density there, up to their sign."""
    parts = Parts.of(mixture)
    below, above, rises = _pieces(turns, log_t.shape)
    grid, height = (expand(values, log_t.ndim) for values in (turns.grid, turns.height))
    # The crossing of a piece lies between the last point of the grid on its one side and the first
    # on the other, which halving finds: a piece is monotone.
    lead = below.shape[1:]
    until = expand(turns.until, log_t.ndim)
    until = jnp.broadcast_to(until, (len(below) + 1, *lead))
    grid, height = (jnp.broadcast_to(values, (len(grid), *lead)) for values in (grid, height))

    def halve(_: Array, place: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = place
        middle = (low + high) // 2
        there = jnp.take_along_axis(height, middle, axis=0, mode="clip")
        before = (low < high) & ((there < log_t) == rises)
        return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

    first, last = until[:-1], until[1:]
    place = meshes.fori_loop(0, len(grid).bit_length(), halve, (first, last))[0]
    around = jnp.stack([place - 1, place])
    pair = jnp.stack([grid, height])[:, None]  # [2, 1, N, ...]
    (start, stop), (start_height, stop_height) = jnp.take_along_axis(
        pair, around[None], axis=2, mode="clip"
    )
    value = expand(turns.value, log_t.ndim)
    start_height = jnp.where(place > first, start_height, value[:-1])
    stop_height = jnp.where(place < last, stop_height, value[1:])
    start, stop = jnp.where(place > first, start, below), jnp.where(place < last, stop, above)
    sign = jnp.where(rises, 1, -1).astype(log_t.dtype)
    # Where a whole piece is above the threshold, or below, its nearer end is the end.
    excess = expand(turns.value, log_t.ndim) - log_t
    late, early = sign * excess[1:] <= 0, sign * excess[:-1] >= 0
    start, stop = (jnp.where(early, below, jnp.where(late, above, end)) for end in (start, stop))

    share = (log_t - start_height) / (stop_height - start_height)
    share = jnp.where(start <= stop, share, 1 - share)
    share = jnp.where((share > 0) & (share < 1), share, 0.5)  # of the chord; False for NaN
    start, stop = jnp.minimum(start, stop), jnp.maximum(start, stop)
    lower, upper = mixture.support[0].lower, mixture.support[0].upper
    # Next to an end of the support, in the logarithm of the distance: a power of that is straight.
    origin = jnp.where(start - lower <= upper - stop, lower, upper).astype(log_t.dtype)
    straight = 4 * jnp.abs(start - origin) < jnp.abs(stop - origin)
    straight |= 4 * jnp.abs(stop - origin) < jnp.abs(start - origin)

    def between(start: Array, stop: Array, share: Any) -> Array:
        limits = jnp.finfo(start.dtype)  # beside an origin numbers lie apart
        least = jnp.maximum(float(limits.epsneg) * jnp.abs(origin), float(limits.tiny))
        near, far = (jnp.log(jnp.maximum(jnp.abs(y - origin), least)) for y in (start, stop))
        mean = jnp.exp(near + share * (far - near))
        mean = jnp.where(stop > origin, mean, -mean)
        return jnp.where(straight, origin + mean, start + share * (stop - start))

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        y, start, stop, _ = state
        value, rate, bend = (sign * part for part in derivatives(parts, y, 2))
        value = value - sign * log_t
        start, stop = jnp.where(value < 0, y, start), jnp.where(value < 0, stop, y)
        # To the root of the parabola through this point; where there is none, halfway.
        unit = jnp.where(straight, y - origin, 1)
        slope, bend = rate * unit, bend * unit * unit + jnp.where(straight, rate * unit, 0)
        bend = jnp.where(jnp.isfinite(bend), bend, 0)
        root = jnp.sqrt(slope * slope - 2 * value * bend)
        change = -2 * value / (slope + jnp.where(slope < 0, -root, root))
        new = jnp.where(straight, origin + unit * jnp.exp(change), y + change)
        good = (new >= start) & (new <= stop)  # False for NaN
        return jnp.where(good, new, between(start, stop, 0.5)), start, stop, rate

    steps = STEPS if math.isinf(lower) and math.isinf(upper) else STEPS_BESIDE_ENDS
    state = (between(start, stop, share), start, stop, start)
    y, _, _, rate = meshes.fori_loop(0, steps[log_t.dtype.itemsize], step, state)
    return y, rate


def _pieces(turns: TurningPoints, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Ends of the monotone pieces between turning points ``[M2, ...]``, and which of them rise."""
    location = expand(turns.location, len(shape))
    lead = jnp.broadcast_shapes(location.shape[1:], shape)
    location = jnp.broadcast_to(location, (location.shape[0], *lead))
    below, above = location[:-1], location[1:]
    # Between a valley and a mode the density rises, then it falls.
    return below, above, (jnp.arange(below.shape[0]) % 2 == 0).reshape(-1, *(1,) * len(lead))


def crossing(ends: Array, turns: TurningPoints) -> Bool[Array, "M2 ..."]:
    """Whether the density crosses the threshold at an end, which then moves with it."""
    below, above, _ = _pieces(turns, ends.shape[1:])
    return (ends > below) & (ends < above)


@jax.custom_jvp
def follow(
    mixture: Mixture,
    log_t: Float[Array, "..."],
    y: Float[Array, "P ..."],
    moves: Bool[Array, "P ..."],
) -> Float[Array, "P ..."]:
    """Return ``y``, which moves with the parameters so that ``log p(y) = log_t``."""
    return y


@follow.defjvp
@meshes.any_rank
def _follow_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, log_t, y, moves = primals
    dmixture, dlog_t = tangents[:2]
    y = follow(mixture, log_t, y, moves)
    points = y[..., None]
    _, dlog_p = jax.jvp(lambda mixture: mixture.log_prob(points), (mixture,), (dmixture,))
    rate = derivatives(Parts.of(mixture), y, 1)[1]
    moves = moves & (rate != 0)
    return y, jnp.where(moves, (dlog_t - dlog_p) / jnp.where(moves, rate, 1), 0)


def region_probability(mixture: Mixture, ends: Float[Array, "M2 ..."]) -> Float[Array, "..."]:
    """The probability between left and right ends ``[M2, ...]``, ``[...]``."""
    below = cumulated(mixture, ends)
    return jnp.sum(below[1::2] - below[0::2], axis=0)


def solve_level(
    mixture: Mixture, level: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "M2 ..."], Bool[Array, "M2 ..."]]:
    """The threshold, the ends of its region, and whether it is crossed there."""
    level = jnp.broadcast_to(level, jnp.broadcast_shapes(mixture.batch_shape, level.shape))
    log_t, ends, moves = _search(*jax.lax.stop_gradient((mixture, level)))
    return _settle(mixture, level, log_t, ends, moves), ends, moves


def _search(mixture: Mixture, level: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    turns = turning_points(mixture)
    # Where a density is infinite at an end of its support, it is as high as a number can be there.
    top = math.log(float(jnp.finfo(level.dtype).max))
    highest = jnp.minimum(jnp.max(turns.value, axis=0), top)
    # All but 1 - level lies above t >= (1 - level) / 2 / L, if all but half of that lies in an
    # interval of length L: the shortest one known that leaves a quarter on either side at most.
    outside = (1 - level) / 2
    known = grid_levels(level.dtype)
    index = jnp.maximum(jnp.searchsorted(known, outside / 2, side="right") - 1, 0)
    length = expand(turns.most - turns.least, level.ndim)
    length = jnp.broadcast_to(length, (len(known), *level.shape))
    length = jnp.take_along_axis(length, index[None], axis=0)[0]
    lowest = jnp.log(outside) - jnp.log(length)

    highest = jnp.broadcast_to(highest, level.shape)
    lowest = jnp.minimum(lowest, highest)

    def missing(mixture: Mixture, turns: TurningPoints, level: Array) -> Any:
        def function(log_t: Array) -> tuple[Array, Array, Array]:
            ends, rate = _ends_and_rates(mixture, log_t, turns)
            # Every end that moves with t does so by dy = dlog t / (d log p / dy), where p(y) = t.
            moved = jnp.where(crossing(ends, turns), 1 / jnp.abs(rate), 0)
            slope = jnp.exp(log_t) * jnp.sum(moved, axis=0)
            return level - region_probability(mixture, ends), slope, ends

        return function

    def some(index: Array) -> Any:
        rows = jax.tree.map(lambda leaf: leaf[..., index], (turns, level))
        return missing(mixture[index], *rows)

    each = level.shape == mixture.batch_shape and level.ndim == 1
    each = each and isinstance(level.size, int) and level.size >= MANY_ROWS  # or symbolic
    log_t, ends = close_in(
        missing(mixture, turns, level),
        lowest,
        highest,
        _rough_threshold(turns, level, lowest, highest),
        steps=LEVEL_STEPS[level.dtype.itemsize],
        some=some if each else None,
    )
    known = (level > 0) & (level < 1)
    ends = jnp.where(known, ends, jnp.nan)
    return jnp.where(known, log_t, jnp.nan), ends, crossing(ends, turns)


def _rough_threshold(turns: TurningPoints, level: Array, lowest: Array, highest: Array) -> Array:
    """Above which the trapezoids on the grid of the density hold a share ``level`` of their sum."""
    grid, height = (expand(values, level.ndim) for values in (turns.grid, turns.height))
    width = jnp.diff(grid, axis=0, prepend=grid[:1]) + jnp.diff(grid, axis=0, append=grid[-1:])
    share = jnp.exp(height) * width
    share = share / jnp.sum(share, axis=0)

    def low_enough(log_t: Array) -> Array:
        return ~(jnp.sum(jnp.where(height >= log_t, share, 0), axis=0) > level)

    return halfway(*bisect(low_enough, lowest, highest, steps=START_STEPS))


@jax.custom_jvp
def _settle(
    mixture: Mixture, level: Array, log_t: Array, ends: Array, moves: Array
) -> Float[Array, "..."]:
    """Return ``log_t``, which moves with the parameters so that the region keeps its level."""
    return log_t


@_settle.defjvp
@meshes.any_rank
def _settle_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, level, log_t, ends, moves = primals
    dmixture, dlevel = tangents[:2]
    log_t = _settle(mixture, level, log_t, ends, moves)

    def reached(mixture: Mixture, log_t: Array) -> Array:
        return region_probability(mixture, follow(mixture, log_t, ends, moves))

    _, moved = jax.jvp(lambda mixture: reached(mixture, log_t), (mixture,), (dmixture,))
    _, rate = jax.jvp(partial(reached, mixture), (log_t,), (jnp.ones_like(log_t),))
    flat = ~(rate < 0)
    return log_t, jnp.where(flat, 0, (dlevel - moved) / jnp.where(flat, 1, rate))
