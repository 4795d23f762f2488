"""Roots of many increasing functions at once, by as many evaluations for each.

Every element takes the same fixed number of steps, so that everything vectorises and compiles into
one loop; each keeps a bracket, and no step leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.typing import Array, Float

#: By the dtype's bytes: bisections of a whole number; in the logarithm of the ends' distance they
#: are enough for 2^24 and 2^40.
WHOLE_STEPS = {4: 34, 8: 50}


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
    function: Callable[[Array], tuple[Array, Any]],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    *,
    steps: int,
    some: Callable[[Array], Callable[[Array], tuple[Array, Any]]] | None = None,
) -> tuple[Float[Array, "..."], Any]:
    """Return an increasing function's root, and what else it gave there.

    By ``steps`` evaluations (static) of Chandrupatla's method: inverse quadratic interpolation
    where it is safe, bisection elsewhere. ``function`` is elementwise and returns its value and a
    tree of arrays whose last axes are those of the value. ``function(lower) <= 0 <=
    function(upper)`` up to rounding; where that fails, or nothing lies between the two, the nearer
    end is the root. The function is compiled once: its ends are evaluated inside the loop.

    ``some(index)``, the function of some elements of one axis alone, is compiled beside it. The
    second half of the steps is then for those alone whose value is not yet within rounding of a
    number of order one, a sixteenth of all at a time.

    References:
      Chandrupatla (1997), A new hybrid quadratic/bisection algorithm for finding the zero of a
      nonlinear function without using derivatives.
    """
    # Made of the bounds, so that under shard_map they vary over the mesh as they do.
    infinite, shapes = jnp.maximum(lower, jnp.inf), jax.eval_shape(function, lower)[1]
    extra = jax.tree.map(lambda leaf: jnp.broadcast_to(lower, leaf.shape), shapes)
    state = ((upper, infinite, extra), (lower, -infinite, extra), jnp.minimum(infinite, 0.5))
    first = steps if some is None else steps // 2
    state = meshes.fori_loop(0, first, partial(_step, function, lower, upper), state)
    if some is not None:
        (_, fa, _), (_, fb, _), _ = state
        open_ = jnp.minimum(jnp.abs(fa), jnp.abs(fb)) > float(jnp.finfo(fa.dtype).eps)
        size = -(-len(open_) // 16)
        order = jnp.argsort(~open_)  # and those after the last again, whose state nothing takes
        order = jnp.concatenate([order, jnp.full(size, len(open_), order.dtype)])

        def block(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            start, state = carry
            index = jax.lax.dynamic_slice_in_dim(order, start, size)
            part = jax.tree.map(
                lambda leaf: leaf.at[..., index].get(mode="clip"), (state, lower, upper)
            )
            step = partial(_step, some(index), *part[1:])
            part = meshes.fori_loop(first, steps, step, part[0])
            state = jax.tree.map(
                lambda leaf, new: leaf.at[..., index].set(new, mode="drop"), state, part
            )
            return start + size, state

        count = jnp.sum(open_)
        state = meshes.while_loop(lambda carry: carry[0] < count, block, (0 * count, state))[1]
    (a, fa, extra_a), (b, fb, extra_b), _ = state
    newest = jnp.abs(fa) <= jnp.abs(fb)
    return jax.tree.map(partial(jnp.where, newest), (a, extra_a), (b, extra_b))


def _step(
    function: Callable[[Array], tuple[Array, Any]], lower: Array, upper: Array, i: Array, state: Any
) -> Any:
    (a, fa, extra_a), (b, fb, extra_b), t = state  # a is the newest point
    new = a + t * (b - a)
    # The two ends first; the lower one again where it is already above zero.
    new = jnp.where(i == 0, lower, jnp.where((i == 1) & (fa <= 0), upper, new))
    value, extra = function(new)
    same = jnp.sign(value) == jnp.sign(fa)
    c, fc = jnp.where(same, a, b), jnp.where(same, fa, fb)
    old = (a, fa, extra_a)
    b, fb, extra_b = jax.tree.map(partial(jnp.where, same), (b, fb, extra_b), old)
    t = _next_fraction(new, b, c, value, fb, fc)
    return (new, value, extra), (b, fb, extra_b), t


def _next_fraction(a: Array, b: Array, c: Array, fa: Array, fb: Array, fc: Array) -> Array:
    """Where between ``a`` and ``b`` to look next: interpolated where that is safe, else halfway."""
    xi = (a - b) / (c - b)
    phi = (fa - fb) / (fc - fb)
    safe = (phi * phi < xi) & ((1 - phi) ** 2 < 1 - xi)
    inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return jnp.where(safe & jnp.isfinite(inverse), jnp.clip(inverse, 0.001, 0.999), 0.5)


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
        best = jnp.where(missing <= least, _clip(newton, lower, upper, y), best)
        close = (missing <= before / 2) | (missing < 0.01)
        good = (newton >= lower) & (newton <= upper) & close  # False for NaN
        y = jnp.where(good, newton, split(lower, upper))
        return y, lower, upper, missing, jnp.minimum(missing, least), best

    infinite = jnp.maximum(start, jnp.inf)
    state = (start, lower, upper, infinite, infinite, start)
    return meshes.fori_loop(0, steps, step, state)[-1]


def _clip(newton: Array, lower: Array, upper: Array, y: Array) -> Array:
    return jnp.where(jnp.isnan(newton), y, jnp.clip(newton, lower, upper))


__all__ = ["bisect", "close_in", "first_whole", "halfway", "invert_tail"]
