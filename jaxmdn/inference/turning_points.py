"""Where a density of one dimension turns: its modes, and the valleys between them.

Between neighbouring turning points the density is monotone, so that it takes each value at most
once: regions of highest density come down to one crossing a piece, modes to the turning points
themselves. The points are looked for on a grid of every component's own quantiles, which resolves
every component's scale however much the scales differ, by the slope of the *logarithm*, which does
not underflow where the density does.

Points come first in the arrays here, ``[P, ...]``, so that they broadcast against the batch axes of
a mixture as they are; the event axis, of size one, is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.inference.derivatives import Parts, derivatives
from jaxmdn.inference.lengths import on_circle
from jaxmdn.mixture import Mixture
from jaxmdn.special.circular import TURN, representative
from jaxmdn.typing import Array, Bool, Float, Int

# Each component is sampled at the quantiles of z = -7, -6.5625, ..., 7 of a standard normal, and
# at its ends, beyond which there is nothing (a probability of 1e-30).
Z_STEP, Z_STEPS, NOTHING = 0.4375, 16, 1e-30
# And a circle at so many more points, evenly.
CIRCLE_POINTS = 16
FEW = 16  # values that are counted at once
FAR = 1e38  # beyond any priority
# Halvings of a cell of the grid for the turning point in it, by the dtype's bytes; and for a point
# that need only lie between two of them.
STEPS, ROUGH_STEPS = {4: 26, 8: 54}, 12


class TurningPoints(NamedTuple):
    """The points at which a univariate density turns, in increasing order, ``P = 2 M + 1``.

    Attributes:
      location: ``[P, ...]``: the left end, a mode, a valley, a mode, ..., the right end. What is
        left of the slots holds the right end.
      value: the log-density there.
      is_mode: ``[M, ...]``: which of the slots 1, 3, ... hold a mode.
      grid: sorted points ``[N, ...]`` that resolve the density, and
      height: its logarithm there.
      until: ``[P, ...]``, how many points of the grid lie at or before each turning point.
      least, most: ends ``[L, ...]`` of intervals beyond which no component has more than each of
        :func:`grid_levels` on either side.
    """

    location: Float[Array, "P ..."]
    value: Float[Array, "P ..."]
    is_mode: Bool[Array, "M ..."]
    grid: Float[Array, "N ..."]
    height: Float[Array, "N ..."]
    until: Int[Array, "P ..."]
    least: Float[Array, "L ..."]
    most: Float[Array, "L ..."]


def turning_points(mixture: Mixture) -> TurningPoints:
    """Find the modes and valleys of a univariate mixture of plain components.

    A mixture of K normals in one dimension has at most ``M = K`` modes, whatever their scales
    (Carreira-Perpinan and Williams 2003), hence ``2 K - 1`` turning points. Of other families there
    may be more: they get ``M = 2 K`` slots, and the rightmost are left out beyond that. A circle is
    cut in its lowest valley: the left end and the right end, a turn apart, are the same point.
    """
    slots = mixture.num_components * mixture.components.most_modes
    parts = Parts.of(mixture)
    points, least, most = (_circle_grid if on_circle(mixture) else _grid)(mixture)
    grid, rate, height = _refine(parts, points)  # [N, ...], sorted
    # It rises from the first point on and falls to the last, also where several are the same.
    rising = ((rate > 0) | (grid <= grid[:1])) & (grid < grid[-1:])
    rising = jnp.concatenate([jnp.ones_like(rising[:1]), rising[1:]])
    if on_circle(mixture):  # around the cut, the lowest point, signs of slopes are rounding
        room = 64 * float(jnp.finfo(height.dtype).eps) * (1 + jnp.abs(height[:1]))
        low = (height <= height[:1] + room).astype(jnp.int32)
        beside = [jax.lax.cummin(low, axis=0, reverse=reverse) > 0 for reverse in (False, True)]
        rising = (rising | beside[0]) & ~beside[1]
    turns = rising[1:] != rising[:-1]
    first = jnp.arange(len(turns), dtype=jnp.float32).reshape(-1, *(1,) * (turns.ndim - 1))
    lower, upper, *_ = _cells(grid, grid[:-1], turns, first, 2 * slots - 1)
    # The first turn is to the left of a mode, and they alternate.
    is_mode = jnp.arange(lower.shape[0]) % 2 == 0
    sign = jnp.where(is_mode, -1, 1).astype(grid.dtype).reshape(-1, *(1,) * (grid.ndim - 1))

    def turning(y: Array) -> tuple[Array, Any]:
        value, rate = derivatives(parts, y, 1)
        return sign * rate, value

    found, value = _bisect(turning, lower, upper, STEPS[grid.dtype.itemsize])
    location, value = (
        jnp.concatenate([ends[:1], inner, ends[-1:]])
        for ends, inner in ((grid, found), (height, value))
    )
    count = (jnp.sum(turns, axis=0) + 1) // 2
    is_mode = jnp.arange(slots).reshape(-1, *(1,) * count.ndim) < count
    until = _count_until(grid, location)
    return TurningPoints(location, value, is_mode, grid, height, until, least, most)


def _count_until(grid: Float[Array, "N ..."], y: Float[Array, "P ..."]) -> Int[Array, "P ..."]:
    """How many points of a sorted grid lie at or before each ``y``."""
    flat, ends = (values.reshape(len(values), math.prod(y.shape[1:])) for values in (grid, y))
    search = jax.vmap(partial(jnp.searchsorted, side="right"), in_axes=1, out_axes=1)
    return search(flat, ends).reshape(y.shape).astype(jnp.int32)


def _grid(mixture: Mixture) -> tuple[Array, Array, Array]:
    """Every component's quantiles, sorted; components of weight zero have none.

    Also, for each of :func:`grid_levels`, an interval that leaves no component more on either side.
    """
    below, above = _component_grid(mixture, mixture.components)
    alive = mixture.weights() > 0
    least = jnp.min(jnp.where(alive, below, jnp.inf), axis=-1)
    most = jnp.max(jnp.where(alive, above, -jnp.inf), axis=-1)
    points = jnp.concatenate([below, above[:-1]])  # [G, ..., K]
    points = jnp.where(alive, points, most[:1, ..., None])
    points = jax.lax.collapse(jnp.moveaxis(points, -1, 0), 0, 2)  # [K G, ...]
    points = _sort(points)
    # Quantiles may round to the ends, where a density is infinite: the rest has slopes.
    first, last = mixture.support[0].interior(points.dtype)
    return points.at[1:].max(first).at[:-1].min(last), least, most


def _sort(points: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    """Sort by the first axis, NaN last, as integers: a CPU takes a quarter of the time."""
    kind = jnp.int32 if points.dtype.itemsize == 4 else jnp.int64
    largest = jnp.iinfo(kind).max

    def flip(bits: Array) -> Array:  # of negative numbers, whose bits grow with their size
        return jnp.where(bits < 0, bits ^ largest, bits)

    bits = jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(points), jnp.nan, points), kind)
    return jax.lax.bitcast_convert_type(flip(jnp.sort(flip(bits), axis=0)), points.dtype)


def _component_grid(mixture: Mixture, components: Any) -> Float[Array, "2 L ... K"]:
    """Lower and upper quantiles of every component at :func:`grid_levels`."""
    p = grid_levels(mixture.dtype)
    batch = (*mixture.batch_shape, mixture.num_components, 1)
    # Levels in front: of the lower tails, then of the upper ones.
    levels = p.reshape(-1, *(1,) * len(batch))
    upper = jnp.asarray([False, True]).reshape(2, *(1,) * levels.ndim)
    found = components.tail_quantile(jnp.stack([levels, levels]), upper)
    most = float(jnp.finfo(found.dtype).max) / 2  # an interval's length is a number, too
    return jnp.clip(jnp.broadcast_to(found, (2, len(p), *batch))[..., 0], -most, most)


def _circle_grid(mixture: Mixture) -> tuple[Array, Array, Array]:
    """As :func:`_grid`, once around the circle from the bottom of its lowest valley."""
    batch, parts = mixture.batch_shape, Parts.of(mixture)
    components: Any = mixture.components
    centre = components.circular_mean()
    # Each component is cut opposite to its centre, so that its quantiles resolve both its tails.
    below, above = _component_grid(mixture, components.turn(-centre))
    points = jnp.concatenate([below, above[:-1]]) + centre[..., 0]
    points = jnp.where(mixture.weights() > 0, points, 0)
    points = jax.lax.collapse(jnp.moveaxis(points, -1, 0), 0, 2)  # [K G, ...]
    even = jnp.asarray([TURN * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)], points.dtype)
    even = jnp.broadcast_to(even.reshape(-1, *(1,) * len(batch)), (CIRCLE_POINTS, *batch))
    points = representative(jnp.concatenate([points, even]))
    (height,) = derivatives(parts, points, 0)
    lowest = jnp.argmin(height, axis=0, keepdims=True)
    start = jnp.take_along_axis(points, lowest, axis=0)
    # The nearest other points on both sides; the density falls after the one, rises to the other.
    left = jnp.max(jnp.where(points < start, points, points - TURN), axis=0)
    right = jnp.min(jnp.where(points > start, points, points + TURN), axis=0)

    def slope(y: Array) -> tuple[Array, Any]:
        return derivatives(parts, y, 1)[1], ()

    cut = _bisect(slope, left, right, STEPS[points.dtype.itemsize])[0]
    points = cut + jnp.mod(points - cut, TURN)
    ends = jnp.broadcast_to(cut, (len(grid_levels(points.dtype)), *batch))
    points = jnp.concatenate([cut[None], _sort(points), cut[None] + TURN])
    return points, ends, ends + TURN


def grid_levels(dtype: Any) -> Float[Array, "L"]:
    """The levels of a component's lower (or upper) quantiles on the grid, ascending."""
    z = [-Z_STEP * step for step in range(Z_STEPS, -1, -1)]
    return jnp.asarray([NOTHING, *(0.5 * math.erfc(-x / math.sqrt(2)) for x in z)], dtype)


def _refine(parts: Parts, grid: Float[Array, "N ..."]) -> tuple[Array, Array, Array]:
    """Add the points that separate turning points between neighbours; also slopes and heights.

    Between two points of opposite slope there may be three turning points instead of one, between
    two of like slope two instead of none. The zeros of the curvature keep them apart, so those are
    added, and before them its extrema in cells where it may have a pair of zeros. The derivatives
    are long programs, written once for both: the new points take the room of copies of the last.
    """
    count = 2 * len(parts.log_weights)
    columns = (grid, *derivatives(parts, grid, 2))
    room = [jnp.broadcast_to(own[-1:], (2 * count, *own.shape[1:])) for own in columns]
    columns = jax.tree.map(lambda *both: jnp.concatenate(both), columns, tuple(room))

    def add(turn: Array, columns: Any) -> Any:
        extrema = turn == 0
        grid, _, first, second = columns
        pairs, changes = (find(grid, first, second) for find in (_hidden_pairs, _sign_changes))
        side, flags, priority = jax.tree.map(partial(jnp.where, extrema), pairs, changes)
        lower, upper, side, place = _cells(grid, side, flags, priority, count)

        def sought(y: Array) -> tuple[Array, Any]:
            *known, change = derivatives(parts, y, 3)
            return side * jnp.where(extrema, change, known[2]), tuple(known)

        found, known = _bisect(sought, lower, upper, ROUGH_STEPS)
        return _insert([column[:-count] for column in columns], (found, *known), place)

    grid, height, first, _ = meshes.fori_loop(0, 2, add, columns)
    return grid, first, height


def _insert(columns: Any, new: Any, place: Int[Array, "S ..."]) -> tuple[Array, ...]:
    """Insert new points behind those of index ``place``, ascending, without sorting all again."""
    ones, size = (1,) * (place.ndim - 1), len(columns[0])
    order, slots = (
        jnp.arange(n, dtype=place.dtype).reshape(-1, *ones)
        for n in (len(place), size + len(place) + 1)
    )
    below = _count_below(place + 1 + order, slots)  # new points in front of each slot, [N + 1, ...]
    slots, before, until = slots[:-1], below[:-1], below[1:]
    source = jnp.where(until > before, size + before, jnp.minimum(slots - before, size - 1))
    joined = jnp.stack([jnp.concatenate(pair) for pair in zip(columns, new, strict=True)])
    return tuple(jnp.take_along_axis(joined, source[None], axis=1, mode="clip"))


def _count_below(values: Int[Array, "S ..."], ends: Int[Array, "N ..."]) -> Int[Array, "N ..."]:
    """How many values are below each end. A few at a time: of more, XLA keeps all comparisons."""
    largest = jnp.iinfo(values.dtype).max
    parts = -(-len(values) // FEW)
    room = jnp.full((parts * FEW - len(values), *values.shape[1:]), largest, values.dtype)
    groups = jnp.concatenate([values, room]).reshape(parts, FEW, 1, *values.shape[1:])

    def add(i: Any, count: Array) -> Array:
        return count + jnp.sum(groups[i] < ends, axis=0, dtype=values.dtype)

    none = jnp.broadcast_to(0 * ends, jnp.broadcast_shapes(ends.shape, groups.shape[2:]))
    return add(0, none) if parts == 1 else meshes.fori_loop(0, parts, add, none)


def _hidden_pairs(grid: Array, first: Array, second: Array) -> tuple[Array, Array, Array]:
    """Cells where the curvature may have a pair of zeros: its side, whether, and how far it is."""
    (s0, s1), (c0, c1) = ((values[:-1], values[1:]) for values in (first, second))
    width = jnp.diff(grid, axis=0)
    chord = jnp.where(width > 0, (s1 - s0) / jnp.where(width > 0, width, 1), c0)
    # The cubic through both ends with their slopes has the curvature q, extremal at a share u.
    bend = c0 + c1 - 2 * chord
    u = (2 * c0 + c1 - 3 * chord) / jnp.where(bend == 0, 1, 3 * bend)
    q = c0 + u * (6 * chord - 4 * c0 - 2 * c1) + 3 * u * u * bend
    side, size = jnp.sign(c0), jnp.abs(c0) + jnp.abs(c1)
    inside = (u > 0) & (u < 1) & (side == jnp.sign(c1)) & (bend != 0)
    hidden = inside & (side * q < jnp.minimum(jnp.abs(c0), jnp.abs(c1))) & _near(first, size, width)
    return side, hidden, side * q / jnp.where(size > 0, size, 1)


def _sign_changes(grid: Array, first: Array, second: Array) -> tuple[Array, Array, Array]:
    """Cells where the curvature changes sign: minus the side where it begins, and as above."""
    width, size = jnp.diff(grid, axis=0), jnp.abs(second[:-1]) + jnp.abs(second[1:])
    bends = (jnp.sign(second[:-1]) != jnp.sign(second[1:])) & _near(first, size, width)
    lowest = jnp.minimum(jnp.abs(first[:-1]), jnp.abs(first[1:]))
    side = jnp.where(second[:-1] > 0, -1, 1).astype(grid.dtype)
    return side, bends, lowest / jnp.where(bends, size * width, 1)


def _near(first: Array, size: Array, width: Array) -> Bool[Array, "..."]:
    """Whether the slope may reach zero between neighbours, judged by the curvature there."""
    height = jnp.minimum(jnp.abs(first[:-1]), jnp.abs(first[1:]))
    return (jnp.sign(first[:-1]) != jnp.sign(first[1:])) | (height < size * width)


def _cells(
    grid: Float[Array, "N ..."],
    side: Float[Array, "..."],
    flags: Bool[Array, "..."],
    priority: Float[Array, "..."],
    size: int,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."], Int[Array, "..."]]:
    """Ends, sides and indices of ``size`` flagged cells of the lowest priority, in their order.

    Where none is left, both ends are the last point, and the index is its.
    """
    last = len(grid) - 1
    # In float32, of which XLA finds the largest without sorting all.
    score = jnp.where(flags, -jnp.clip(priority, -FAR, FAR).astype(jnp.float32), -jnp.inf)
    index = jax.lax.top_k(jnp.moveaxis(score, 0, -1), size)[1]
    used = jnp.arange(size) < jnp.sum(flags, axis=0)[..., None]
    index = jnp.moveaxis(jnp.sort(jnp.where(used, index, last)), -1, 0)
    columns = jnp.stack([jnp.broadcast_to(side, grid[:-1].shape), grid[:-1], grid[1:]])
    side, *ends = jnp.take_along_axis(columns, index[None], axis=1, mode="clip")
    lower, upper = (jnp.where(index < last, end, grid[-1:]) for end in ends)
    return lower, upper, side, index


def _bisect(
    function: Callable[[Array], tuple[Array, Any]],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    steps: int,
) -> tuple[Float[Array, "..."], Any]:
    """A root of an increasing function, to the cell's width over ``2^steps``; what else it gave.

    Its derivatives are long programs: one evaluation a step, none of the ends.
    """

    def halve(_: Any, state: tuple) -> tuple:
        low, high, *_ = state
        middle = low + (high - low) / 2
        value, extra = function(middle)
        above = value > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high), middle, extra

    extra = jax.tree.map(lambda _: lower, jax.eval_shape(function, lower)[1])
    return meshes.fori_loop(0, steps + 1, halve, (lower, upper, lower, extra))[2:]
