"""Where a mixture's components lie: the panels on which its density is a smooth function.

Each component's density is tabulated at nodes whose distances grow outwards, so that a rough place
and width suffice (``Univariate.place``); the table's sums, inverted, are the ends of panels. They
are quantiles of the components at levels that are even in a normal's scores, with the component's
own centre in their middle, where a density may have a cusp. Nothing here is differentiated.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.inference.sums import components_first
from jaxmdn.mixture import Mixture
from jaxmdn.special import unimodal
from jaxmdn.special.circular import representative
from jaxmdn.typing import Array, Float

# Nodes of a component's table on one side, and the largest of them, sinh(U) widths from the centre:
# the quantile at 1e-12 of a density that falls like y^-2 is 3e11 scales away, sinh(27).
NODES, FARTHEST = 12, {4: 16.0, 8: 28.0}
# By the dtype's bytes: how far out panels reach, in a normal's scores (levels of 3e-7 and 1e-12).
REACH = {4: 5.0, 8: 7.0}
# Panels of one component, if there are many, and of all of them together at least; the second pair
# where tails may fall like powers, by the dtype's bytes.
FEWEST, TOTAL, FEWEST_OPEN, TOTAL_OPEN = 4, 36, {4: 4, 8: 6}, {4: 40, 8: 76}


def open_ended(mixture: Mixture) -> bool:
    """Whether a panel may hold a tail over many decades."""
    return mixture.components.domain.kind == "real" and mixture.components.power_tails


def num_panels(mixture: Mixture) -> int:
    """Panels of each component, an even number."""
    fewest, total = FEWEST, TOTAL
    if open_ended(mixture):
        size = mixture.weights().dtype.itemsize
        fewest, total = FEWEST_OPEN[size], TOTAL_OPEN[size]
    return max(fewest, 2 * math.ceil(total / mixture.num_components / 2))


def component_edges(mixture: Mixture) -> Float[Array, "L K ..."]:
    """Ascending quantiles of each component, ``[L, K, ..., D]``, its centre in their middle.

    On a circle they are not sorted; whole numbers are not rounded. NaN for components of weight
    zero and for what rounds to an end of the support. Rows are last, so that loops are vectorised.
    """
    mixture = jax.lax.stop_gradient(mixture)
    half = num_panels(mixture) // 2
    reach = REACH[mixture.weights().dtype.itemsize]
    if open_ended(mixture):  # no further than panels of some seven nats do, which nodes resolve
        reach = min(reach, 3.5 + 0.5 * half)
    scores = np.linspace(-reach, 0, half, endpoint=False)
    levels = [0.5 * math.erfc(-score / math.sqrt(2)) for score in scores]
    of_one = jax.vmap(functools.partial(_edges, levels=levels), out_axes=1)
    return of_one(components_first(mixture), jnp.moveaxis(mixture.weights(), -1, 0))


def _edges(family: Any, weight: Float[Array, "..."], levels: list[float]) -> Float[Array, "L ..."]:
    centre, width = family.place()
    shape = (*jnp.broadcast_shapes(weight.shape, family.batch_shape), family.event_dim)
    centre, width = jnp.broadcast_to(centre, shape), jnp.broadcast_to(width, shape)
    dtype = centre.dtype
    own = family.domain
    circle = own.kind == "circle"
    forward, *_ = unimodal.coordinate(own.lower - own.step, own.upper)
    steps = np.linspace(-1, 1, 2 * NODES + 1)
    places = FARTHEST[dtype.itemsize] * (0.14 * steps + 0.86 * steps**9)
    largest = 0.9 * math.log(float(jnp.finfo(dtype).max))  # of logarithms
    least = 4 * float(jnp.finfo(dtype).tiny)
    limit = math.pi if circle else math.inf if own.kind == "real" else largest

    def weigh(total: Array, step: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        offset, gap = step
        t = centre + width * offset
        middle = centre if circle else jnp.zeros_like(centre)
        inside = jnp.abs(t - middle) <= limit
        t = jnp.clip(t, middle - limit, middle + limit)
        value = family.continued(t) if circle else family.in_coordinate(t)
        mass = jnp.exp(value) * width * gap
        # Nor does it underflow: a cell that begins with nothing has no place for a level.
        mass = jnp.where(value > -jnp.inf, jnp.maximum(mass, least), mass)
        # What rounds to a bound may be infinite there.
        mass = jnp.where(inside & (mass > 0) & (mass < jnp.inf), mass, 0)
        return total + mass, (t, mass)

    table = jnp.asarray(
        np.stack([np.sinh(places), np.gradient(places) * np.cosh(places)], 1), dtype
    )
    total, (t, mass) = meshes.scan(weigh, jnp.zeros_like(centre), (table[:, 0], table[:, 1]))
    lower, upper = (_reach(t, mass, total, levels, reverse=side) for side in (False, True))
    edges = insert(jnp.concatenate([lower, upper[::-1]]), centre)
    if circle:
        y, inside = representative(edges), True
    else:
        y = forward(edges)
        inside = (y > own.lower - own.step) & (y < own.upper)
    return jnp.where(inside & (weight[..., None] > 0), y, jnp.nan)


def insert(edges: Float[Array, "L ..."], value: Float[Array, "..."]) -> Float[Array, "M ..."]:
    """Ascending numbers with one more among them: what a sort would give, but cheap."""
    outer = jnp.full_like(edges[:1], jnp.inf)
    above = jnp.minimum(jnp.concatenate([edges, outer]), value)
    return jnp.maximum(jnp.concatenate([-outer, edges]), above)


def _reach(
    t: Float[Array, "T ..."], mass: Array, total: Array, levels: list[float], reverse: bool
) -> Float[Array, "L ..."]:
    """Where the sums of a table reach these shares of the whole: linear in their logarithms."""
    share = jnp.asarray(levels, t.dtype).reshape(-1, *(1,) * total.ndim) * total

    def add(state: tuple, point: tuple[Array, Array]) -> tuple[tuple, None]:
        (start, mass, low, cell), (end, next_mass) = state, point
        high = low + 0.5 * (mass + next_mass)
        here = (share > low) & (share <= high)
        cell = tuple(
            jnp.where(here, new, old)
            for new, old in zip((low, high, start, end), cell, strict=True)
        )
        return (end, next_mass, high, cell), None

    zero, none = jnp.zeros_like(total), jnp.zeros_like(share)
    state = zero, zero, zero, (none, none, none, none)
    low, high, start, end = meshes.scan(add, state, (t, mass), reverse=reverse)[0][3]
    rising = (low > 0) & (high > low)
    pace = jnp.log(jnp.where(rising, high / low, math.e))
    # From the cell's own end: from the table's, 1e6 widths away, float32 would lose the place.
    part = jnp.where(rising, jnp.log(jnp.where(rising, share / low, 1)) / pace, 0)
    return start + part * (end - start)
