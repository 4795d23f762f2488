"""Where a mixture's components lie: the panels on which its density is a smooth function.

Each component's density is tabulated at nodes whose distances grow outwards, so that a rough place
and width suffice (``Univariate.place``); the table's sums, inverted, are the ends of panels. They
are quantiles of the components at levels that are even in a normal's scores, with the component's
own centre in their middle, where a density may have a cusp. Nothing here is differentiated.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.mixture import Mixture
from jaxmdn.special import unimodal
from jaxmdn.typing import Array, Float

# Nodes of a component's table on one side, and the largest of them, sinh(U) widths from the centre:
# the quantile at 1e-12 of a density that falls like y^-2 is 3e11 scales away, sinh(27).
NODES, FARTHEST = 12, {4: 16.0, 8: 28.0}
# By the dtype's bytes: how far out panels reach, in a normal's scores (levels of 3e-7 and 1e-12).
REACH = {4: 5.0, 8: 7.0}
# Panels of one component, if there are many, and of all of them together at least; the second pair
# where tails may fall like powers.
FEWEST, TOTAL, FEWEST_OPEN, TOTAL_OPEN = 4, 36, 6, 60


def open_ended(mixture: Mixture) -> bool:
    """Whether a panel may hold a tail over many decades."""
    return mixture.components.domain.kind == "real" and mixture.components.power_tails


def num_panels(mixture: Mixture) -> int:
    """Panels of each component, an even number."""
    fewest, total = (FEWEST_OPEN, TOTAL_OPEN) if open_ended(mixture) else (FEWEST, TOTAL)
    return max(fewest, 2 * math.ceil(total / mixture.num_components / 2))


def component_edges(mixture: Mixture) -> Float[Array, "L ..."]:
    """Ascending quantiles of each component, ``[L, ..., K, D]``, its centre in their middle.

    On a circle they are not sorted; whole numbers are not rounded. NaN for components of weight
    zero and for what rounds to an end of the support.
    """
    mixture = jax.lax.stop_gradient(mixture)
    family = mixture.components
    centre, width = family.place()
    shape = (*mixture.batch_shape, mixture.num_components, mixture.event_dim)
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

    def weigh(step: Array) -> tuple[Array, Array]:
        place, gap = step
        t = centre + width * jnp.sinh(place)
        middle = centre if circle else jnp.zeros_like(centre)
        inside = jnp.abs(t - middle) <= limit
        t = jnp.clip(t, middle - limit, middle + limit)
        value = family.continued(t) if circle else family.in_coordinate(t)
        mass = jnp.exp(value) * width * (gap * jnp.cosh(place))
        # Nor does it underflow: a cell that begins with nothing has no place for a level.
        mass = jnp.where(value > -jnp.inf, jnp.maximum(mass, least), mass)
        # What rounds to a bound may be infinite there.
        return t, jnp.where(inside & (mass > 0) & (mass < jnp.inf), mass, 0)

    table = jnp.asarray(np.stack([places, np.gradient(places)], axis=1), dtype)
    t, mass = meshes.scan(lambda _, step: (None, weigh(step)), None, table)[1]
    half = num_panels(mixture) // 2
    reach = REACH[dtype.itemsize]
    if open_ended(mixture):  # no further than panels of some seven nats do, which nodes resolve
        reach = min(reach, 3.5 + 0.5 * half)
    scores = np.linspace(-reach, 0, half, endpoint=False)
    levels = [0.5 * math.erfc(-score / math.sqrt(2)) for score in scores]
    mass, t = (jnp.stack([part, part[::-1]], axis=1) for part in (mass, t))  # from either end
    ends = _reach(mass, t, levels)
    edges = insert(jnp.concatenate([ends[:, 0], ends[::-1, 1]]), centre)
    if circle:
        y, inside = edges - 2 * math.pi * jnp.round(edges / (2 * math.pi)), True
    else:
        y = forward(edges)
        inside = (y > own.lower - own.step) & (y < own.upper)
    return jnp.where(inside & (mixture.weights()[..., None] > 0), y, jnp.nan)


def insert(edges: Float[Array, "L ..."], value: Float[Array, "..."]) -> Float[Array, "M ..."]:
    """Ascending numbers with one more among them: what a sort would give, but cheap."""
    outer = jnp.full_like(edges[:1], jnp.inf)
    above = jnp.minimum(jnp.concatenate([edges, outer]), value)
    return jnp.maximum(jnp.concatenate([-outer, edges]), above)


def _reach(mass: Float[Array, "T ..."], t: Array, levels: list[float]) -> Float[Array, "L ..."]:
    """Where the sums of a table reach these shares of the whole: linear in their logarithms."""
    upto = np.tril(np.ones((len(mass) - 1, len(mass) - 1)))  # a cumulated sum takes 4 times as long
    sums = jnp.einsum("ij,j...->i...", jnp.asarray(0.5 * upto, t.dtype), mass[:-1] + mass[1:])
    sums = jnp.log(sums)
    low = jnp.concatenate([jnp.full_like(sums[:1], -jnp.inf), sums[:-1]])
    rising = (low > -jnp.inf) & (sums > low)
    gap = jnp.diff(t, axis=0)
    pace = jnp.where(rising, gap / jnp.where(rising, sums - low, 1), 0)
    edges = []
    for level in levels:
        column = math.log(level) + sums[-1]
        # From the cell's own end: from the table's, 1e6 widths away, float32 would lose the place.
        place = t[:-1] + jnp.where(rising, column - low, 0) * pace
        edges.append(jnp.sum(jnp.where((column > low) & (column <= sums), place, 0), axis=0))
    return jnp.stack(edges)


__all__ = ["component_edges", "insert", "open_ended"]
