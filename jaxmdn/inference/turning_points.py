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

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn.components import Normal
from jaxmdn.mixture import Mixture, require_mixture
from jaxmdn.special.roots import bisect, halfway
from jaxmdn.typing import Array, Bool, Float

#: Families on a circle, or with mass at a point; by name, so that nobody has to load them.
NOT_ON_THE_LINE = ("Hurdle", "VonMises", "ZeroInflated")

# Each component is sampled at the quantiles of z = -7, -6.5625, ..., 7 of a standard normal, and
# at its ends, beyond which there is nothing (a probability of 1e-30).
Z_STEP, Z_STEPS, NOTHING = 0.4375, 16, 1e-30
# Halvings of a cell of the grid for the turning point in it, by the dtype's bytes; and for a point
# that need only lie between two of them.
STEPS, ROUGH_STEPS = {4: 26, 8: 54}, 12


def require_continuous(function: str, mixture: Any) -> None:
    """Raise ``TypeError`` unless ``mixture`` is a mixture over real numbers."""
    require_mixture(function, mixture)
    if mixture.discrete:
        raise TypeError(
            f"{function}: needs a density over real numbers, got a mixture of "
            f"{type(mixture.components).__name__}."
        )
    if type(mixture.components).__name__ in NOT_ON_THE_LINE:
        raise TypeError(
            f"{function}: not defined for {type(mixture.components).__name__}, whose targets lie "
            f"on a circle or have a point of positive probability."
        )


class TurningPoints(NamedTuple):
    """The points at which a univariate density turns, in increasing order, ``P = 2 M + 1``.

    Attributes:
      location: ``[P, ...]``: the left end, a mode, a valley, a mode, ..., the right end. What is
        left of the slots holds the right end.
      is_mode: ``[M, ...]``: which of the slots 1, 3, ... hold a mode.
      grid: sorted points ``[N, ...]`` that resolve the density, and
      height: its logarithm there.
    """

    location: Float[Array, "P ..."]
    is_mode: Bool[Array, "M ..."]
    grid: Float[Array, "N ..."]
    height: Float[Array, "N ..."]


def log_density(mixture: Mixture, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-density at points ``[P, ...]`` without their event axis."""
    return mixture.log_prob(y[..., None])


def slope(mixture: Mixture, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Derivative of the log-density at points ``[P, ...]``."""
    return jax.jvp(partial(log_density, mixture), (y,), (jnp.ones_like(y),))[1]


def component_quantiles(
    mixture: Mixture, p: Float[Array, "..."], *, upper: bool = False
) -> Float[Array, "..."]:
    """Points below (or above) which each component has probability ``p [...]``, ``[..., K]``.

    ``upper`` counts from the other end, where ``1 - p`` would round, in families that can be
    reflected; in others it ends where ``1 - p`` does.
    """
    family = mixture.components
    if upper and set(family.closure) != {"affine"}:
        upper, p = False, jnp.minimum(1 - p, 1 - float(jnp.finfo(p.dtype).eps))
    if upper:
        zero = jnp.zeros(1, p.dtype)
        family = family.affine(zero, zero - 1)  # -Y has the same quantiles, negated and reversed
    found = family.quantile(p[..., None, None])[..., 0]
    return -found if upper else found


def turning_points(mixture: Mixture) -> TurningPoints:
    """Find the modes and valleys of a univariate mixture of plain components.

    A mixture of K normals in one dimension has at most ``M = K`` modes, whatever their scales
    (Carreira-Perpinan and Williams 2003), hence ``2 K - 1`` turning points. Of other families there
    may be more: they get ``M = 2 K`` slots, and the rightmost are left out beyond that.
    """
    slots = mixture.num_components * (1 if isinstance(mixture.components, Normal) else 2)
    grid, rate = _refine(mixture, _grid(mixture))  # [N, ...], sorted
    rising = rate > 0
    rising = jnp.concatenate([jnp.ones_like(rising[:1]), rising[1:-1], jnp.zeros_like(rising[:1])])
    turns = rising[1:] != rising[:-1]
    start = grid[:-1]
    lower, upper, _ = _cells(grid, start, turns, start, 2 * slots - 1)
    # The first turn is to the left of a mode, and they alternate.
    is_mode = jnp.arange(lower.shape[0]) % 2 == 0
    sign = jnp.where(is_mode, -1, 1).astype(grid.dtype).reshape(-1, *(1,) * (grid.ndim - 1))
    steps = STEPS[grid.dtype.itemsize]
    found = _bisect(lambda y: sign * slope(mixture, y), lower, upper, steps)
    location = jnp.concatenate([grid[:1], found, grid[-1:]])
    count = (jnp.sum(turns, axis=0) + 1) // 2
    is_mode = jnp.arange(slots).reshape(-1, *(1,) * count.ndim) < count
    return TurningPoints(location, is_mode, grid, log_density(mixture, grid))


def _grid(mixture: Mixture) -> Float[Array, "N ..."]:
    """Every component's quantiles, sorted; components of weight zero have none."""
    batch, dtype = mixture.batch_shape, mixture.dtype
    z = -Z_STEP * np.arange(Z_STEPS, -1, -1)
    p = jnp.concatenate([jnp.array([NOTHING], dtype), jax.scipy.special.ndtr(jnp.array(z, dtype))])
    p = p.reshape(-1, *(1,) * len(batch))
    alive = mixture.weights() > 0
    below, above = (
        jnp.broadcast_to(points, (p.shape[0], *batch, mixture.num_components))
        for points in (component_quantiles(mixture, p, upper=upper) for upper in (False, True))
    )
    last = jnp.max(jnp.where(alive, above[0], -jnp.inf), axis=-1)[..., None]
    points = jnp.where(alive, jnp.concatenate([below, above[:-1]]), last)  # [G, ..., K]
    points = jnp.moveaxis(points, -1, 0).reshape(-1, *batch)
    return jnp.sort(points, axis=0)


def _slopes(mixture: Mixture, y: Float[Array, "..."]) -> tuple[Array, Array]:
    """First and second derivative of the log-density at points ``[P, ...]``."""
    return jax.jvp(partial(slope, mixture), (y,), (jnp.ones_like(y),))


def _refine(mixture: Mixture, grid: Float[Array, "N ..."]) -> tuple[Array, Array]:
    """Add the points that separate turning points between neighbours; return the slopes, too.

    Between two points of opposite slope there may be three turning points instead of one, between
    two of like slope two instead of none. The zeros of the curvature keep them apart, so those are
    added, and before them its extrema in cells where it may have a pair of zeros.
    """
    first, second = _slopes(mixture, grid)
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
    priority = side * q / jnp.where(size > 0, size, 1)
    lower, upper, side = _cells(grid, side, hidden, priority, mixture.num_components)

    def third(y: Array) -> Array:
        change = jax.jvp(lambda y: _slopes(mixture, y)[1], (y,), (jnp.ones_like(y),))[1]
        return side * change

    found = _bisect(third, lower, upper, ROUGH_STEPS)
    points = (found, *_slopes(mixture, found))
    grid, first, second = _merge((grid, first, second), points)

    width, size = jnp.diff(grid, axis=0), jnp.abs(second[:-1]) + jnp.abs(second[1:])
    bends = (jnp.sign(second[:-1]) != jnp.sign(second[1:])) & _near(first, size, width)
    height = jnp.minimum(jnp.abs(first[:-1]), jnp.abs(first[1:]))
    priority = height / jnp.where(bends, size * width, 1)
    side = jnp.where(second[:-1] > 0, -1, 1).astype(grid.dtype)
    lower, upper, side = _cells(grid, side, bends, priority, 2 * mixture.num_components)
    found = _bisect(lambda y: side * _slopes(mixture, y)[1], lower, upper, ROUGH_STEPS)
    return _merge((grid, first), (found, slope(mixture, found)))


def _near(first: Array, size: Array, width: Array) -> Bool[Array, "..."]:
    """Whether the slope may reach zero between neighbours, judged by the curvature there."""
    height = jnp.minimum(jnp.abs(first[:-1]), jnp.abs(first[1:]))
    return (jnp.sign(first[:-1]) != jnp.sign(first[1:])) | (height < size * width)


def _merge(first: tuple[Array, ...], second: tuple[Array, ...]) -> Any:
    """Join columns ``[N, ...]`` and ``[M, ...]``, sorted by the first of each."""
    columns = [jnp.concatenate(pair) for pair in zip(first, second, strict=True)]
    return jax.lax.sort(columns, dimension=0, num_keys=1)


def _cells(
    grid: Float[Array, "N ..."],
    side: Float[Array, "..."],
    flags: Bool[Array, "..."],
    priority: Float[Array, "..."],
    size: int,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Ends and sides of ``size`` flagged cells, lowest priority first.

    Where none is left, both ends are the last point.
    """
    cells = jnp.arange(flags.shape[0]).reshape(-1, *(1,) * (flags.ndim - 1))

    def pick(priority: Array, _: None) -> tuple[Array, Array]:
        first = jnp.argmin(priority, axis=0)
        return jnp.where(cells == first, jnp.inf, priority), first

    # A few passes for the smallest cost less than a sort.
    _, index = jax.lax.scan(pick, jnp.where(flags, priority, jnp.inf), length=size)
    # Once none is left, the pass picks the first cell again.
    count = jnp.arange(size).reshape(-1, *(1,) * (flags.ndim - 1))
    used = count < jnp.sum(flags, axis=0)
    side = jnp.take_along_axis(side, index, axis=0)
    lower, upper = (
        jnp.where(used, jnp.take_along_axis(grid, index + shift, axis=0), grid[-1:])
        for shift in (0, 1)
    )
    return lower, upper, side


def _bisect(
    function: Callable[[Array], Array],
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    steps: int,
) -> Float[Array, "..."]:
    """A root of an increasing function, to the cell's width over ``2^steps``.

    Its derivatives are dear to compile: one evaluation a step, none of the ends.
    """
    return halfway(*bisect(lambda y: function(y) > 0, lower, upper, steps=steps))


__all__ = [
    "TurningPoints",
    "component_quantiles",
    "log_density",
    "require_continuous",
    "slope",
    "turning_points",
]
