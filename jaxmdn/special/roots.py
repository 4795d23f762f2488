"""Roots of many increasing functions at once, each in a bracket that no step leaves.

All elements take their steps together, so that everything vectorises and compiles into one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.typing import Array, Bool, Float

#: By the dtype's bytes: bisections of a whole number; in the logarithm of the ends' distance they
#: are enough for 2^24 and 2^40.
WHOLE_STEPS = {4: 34, 8: 50}
#: Newton steps that all elements take where only some are to take more.
COMMON_STEPS = 5


def halfway(lower: Array, upper: Array) -> Array:
    """The middle of two numbers whose difference is finite."""
    return lower + 0.5 * (upper - lower)


def bisect(
    accept: Callable[[Array], Array],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    *,
    steps: int,
    middle: Callable[[Array, Array], Array] = halfway,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return what ``steps`` (static) bisections leave of an interval, accepted from some point on.

    One evaluation a step, none of the ends: ``upper`` is taken to be accepted, ``lower`` not to be.
    """

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        point = middle(low, high)
        good = accept(point) & (point > low)  # at the end of the road nothing moves
        return jnp.where(good, low, point), jnp.where(good, point, high)

    return meshes.fori_loop(0, steps, halve, (lower, upper))


def first_whole(
    accept: Callable[[Array], Array], lower: Float[Array, "..."], upper: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the smallest whole number in ``(lower, upper]`` that is accepted, if ``upper`` is.

    All those above an accepted one are taken to be accepted. Whole ends, ``lower >= -1``.
    """

    def middle(low: Array, high: Array) -> Array:
        far = high > 8 * (low + 2)  # then in the logarithm
        root = jnp.sqrt(low + 2) * jnp.sqrt(jnp.where(far, high, 1)) - 1
        return jnp.floor(jnp.where(far, root, halfway(low, high)))

    return bisect(accept, lower, upper, steps=WHOLE_STEPS[upper.dtype.itemsize], middle=middle)[1]


def close_in(
    function: Callable[[Array], tuple[Array, Array, Any]],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    start: Float[Array, "..."],
    *,
    steps: int,
    some: Callable[[Array], Callable[[Array], tuple[Array, Array, Any]]] | None = None,
) -> tuple[Float[Array, "..."], Any]:
    """Return an increasing function's root, and what else it gave there.

    By ``steps`` evaluations (static) of Newton's method from ``start``, each step at most half of
    the last; halfway between the ends of what is known to hold the root where that is not to be
    had. ``function`` is elementwise and returns its value, its slope and a tree of arrays whose
    last axes are those of the value. Of all points tried the one of the smallest value is taken,
    so that ``function(lower) <= 0 <= function(upper)`` need hold up to rounding only; where the
    root lies outside, the nearer end is approached. NaN where a value is NaN.

    ``some(index)``, the function of some elements of one axis alone, is compiled beside it. After
    ``COMMON_STEPS`` the others are for those alone whose value is not yet within rounding of a
    number of order one, a sixteenth of all at a time.

    References:
      Press, Teukolsky, Vetterling and Flannery (2007), Numerical recipes, section 9.4.
    """
    # Made of the bounds, so that under shard_map they vary over the mesh as they do.
    infinite, shapes = jnp.maximum(lower, jnp.inf), jax.eval_shape(function, lower)[2]
    extra = jax.tree.map(lambda leaf: jnp.broadcast_to(lower, leaf.shape), shapes)
    state = _Closing(start, lower, upper, upper - lower, start, infinite, extra)
    first = steps if some is None else COMMON_STEPS
    state = _newtons(function, 0, first, state)
    if some is not None:
        open_ = _is_open(state)
        size = -(-len(open_) // 16)
        order = jnp.argsort(~open_)  # and those after the last again, whose state nothing takes
        order = jnp.concatenate([order, jnp.full(size, len(open_), order.dtype)])

        def block(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            begin, state = carry
            index = jax.lax.dynamic_slice_in_dim(order, begin, size)
            part = jax.tree.map(lambda leaf: leaf.at[..., index].get(mode="clip"), state)
            part = _newtons(some(index), first, steps, part)
            state = jax.tree.map(
                lambda leaf, new: leaf.at[..., index].set(new, mode="drop"), state, part
            )
            return begin + size, state

        count = jnp.sum(open_)
        state = meshes.while_loop(lambda carry: carry[0] < count, block, (0 * count, state))[1]
    return jnp.where(jnp.isnan(state.best), jnp.nan, state.root), state.extra


class _Closing(NamedTuple):
    """The next point, the ends around the root, the last step; the best point, its value, extra."""

    point: Array
    lower: Array
    upper: Array
    step: Array
    root: Array
    best: Array
    extra: Any


def _is_open(state: _Closing) -> Bool[Array, "..."]:
    """Whether another step can tell more: not within rounding of a number of order one."""
    return (state.best > float(jnp.finfo(state.best.dtype).eps)) & (state.step != 0)


def _newtons(function: Callable, first: int, last: int, state: _Closing) -> _Closing:
    """Steps ``first`` to ``last``, or until none is open."""

    def go_on(carry: tuple[Array, _Closing]) -> Array:
        return (carry[0] < last) & jnp.any(_is_open(carry[1]))

    def step(carry: tuple[Array, _Closing]) -> tuple[Array, _Closing]:
        return carry[0] + 1, _newton(function, carry[1])

    return meshes.while_loop(go_on, step, (jnp.asarray(first), state))[1]


def _newton(function: Callable[[Array], tuple[Array, Array, Any]], state: _Closing) -> _Closing:
    point, lower, upper, step, root, best, extra = state
    value, slope, new_extra = function(point)
    better = ~(jnp.abs(value) >= best)  # NaN, too
    root, best, extra = jax.tree.map(
        partial(jnp.where, better), (point, jnp.abs(value), new_extra), (root, best, extra)
    )
    lower, upper = jnp.where(value > 0, lower, point), jnp.where(value > 0, point, upper)
    new = point - value / slope
    good = (new >= lower) & (new <= upper) & (jnp.abs(new - point) <= step / 2)  # False for NaN
    new = jnp.where(good, new, halfway(lower, upper))
    return _Closing(new, lower, upper, jnp.abs(new - point), root, best, extra)


def invert_tail(
    tail: Callable[[Array], Array],
    probability: Float[Array, "..."],
    upper_tail: Array,
    start: Float[Array, "..."],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    *,
    split: Callable[[Array, Array], Array],
    steps: int,
) -> Float[Array, "..."]:
    """Return the ``y`` at which a monotone elementwise tail equals ``probability``.

    By ``steps`` evaluations (static) of the tail with its slope: Newton's method for the
    *logarithm* of the tail, which is nearly straight where the tail itself is nearly flat. Where a
    step leaves the bracket, or the one before it did not halve what is missing in the logarithm,
    the bracket is split instead. The result is where Newton's step leads from the best of them all.

    Args:
      tail: increasing, or decreasing where ``upper_tail`` holds; not negative.
      probability: positive.
      upper_tail: whether the tail decreases.
      start, lower, upper: where to begin, and the bracket, all finite.
      split: gives a point inside a bracket.
    """
    sign = jnp.where(upper_tail, -1, 1).astype(probability.dtype)

    def step(_: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        y, lower, upper, before, least, best = state
        value, slope = jax.jvp(tail, (y,), (jnp.ones_like(y),))
        excess = sign * (value - probability)
        lower, upper = jnp.where(excess < 0, y, lower), jnp.where(excess < 0, upper, y)
        missing = jnp.log1p((value - probability) / probability)
        newton = y - value * missing / slope
        missing = jnp.abs(missing)
        kept = jnp.where(jnp.isnan(newton), y, jnp.clip(newton, lower, upper))
        best = jnp.where(missing <= least, kept, best)
        close = (missing <= before / 2) | (missing < 0.01)
        good = (newton >= lower) & (newton <= upper) & close  # False for NaN
        y = jnp.where(good, newton, split(lower, upper))
        return y, lower, upper, missing, jnp.minimum(missing, least), best

    infinite = jnp.maximum(start, jnp.inf)
    state = (start, lower, upper, infinite, infinite, start)
    return meshes.fori_loop(0, steps, step, state)[-1]
