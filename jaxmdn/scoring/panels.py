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
# Panels of one component, if there are many, and of all of them together at least.
FEWEST, TOTAL = 4, 36


def num_panels(count: int) -> int:
    """Panels of each of ``count`` components, an even number."""
    return max(FEWEST, 2 * math.ceil(TOTAL / count / 2))


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
    forward, _, slope = unimodal.coordinate(own.lower - own.step, own.upper)
    steps = np.linspace(-1, 1, 2 * NODES + 1)
    places = FARTHEST[dtype.itemsize] * (0.14 * steps + 0.86 * steps**9)
    largest = 0.9 * math.log(float(jnp.finfo(dtype).max))  # of logarithms
    limit = math.pi if circle else math.inf if own.kind == "real" else largest

    def weigh(step: Array) -> tuple[Array, Array]:
        place, gap = step
        t = centre + width * jnp.sinh(place)
        middle = centre if circle else jnp.zeros_like(centre)
        inside = jnp.abs(t - middle) <= limit
        t = jnp.clip(t, middle - limit, middle + limit)
        value = family.continued(t) if circle else family.continued(forward(t)) + slope(t)
        mass = jnp.exp(value) * width * (gap * jnp.cosh(place))
        # What rounds to a bound may be infinite there.
        return t, jnp.where(inside & (mass > 0) & (mass < jnp.inf), mass, 0)

    table = jnp.asarray(np.stack([places, np.gradient(places)], axis=1), dtype)
    t, mass = meshes.scan(lambda _, step: (None, weigh(step)), None, table)[1]
    half = num_panels(mixture.num_components) // 2
    scores = np.linspace(-REACH[dtype.itemsize], 0, half, endpoint=False)
    levels = [0.5 * math.erfc(-score / math.sqrt(2)) for score in scores]
    left = _reach(mass, t, levels)
    right = _reach(mass[::-1], t[::-1], levels)[::-1]
    edges = jnp.sort(jnp.concatenate([left, centre[None], right]), axis=0)
    if circle:
        y, inside = edges - 2 * math.pi * jnp.round(edges / (2 * math.pi)), True
    else:
        y = forward(edges)
        inside = (y > own.lower - own.step) & (y < own.upper)
    return jnp.where(inside & (mixture.weights()[..., None] > 0), y, jnp.nan)


def _reach(mass: Float[Array, "T ..."], t: Array, levels: list[float]) -> Float[Array, "L ..."]:
    """Where the sums of a table reach these shares of the whole: linear in their logarithms."""
    column = jnp.asarray(levels, t.dtype).reshape(-1, *(1,) * (t.ndim - 1)) * jnp.sum(mass, axis=0)
    column = jnp.log(column)

    def add(state: tuple, node: tuple[Array, Array]) -> tuple[tuple, None]:
        edges, summed, last, before = state
        mass, t = node
        after = summed + 0.5 * (before + mass)
        low, high = jnp.log(summed), jnp.log(after)
        share = jnp.where(summed > 0, (column - low) / (high - low), 0)
        share = jnp.where(column >= high, 1, jnp.where(column > low, share, 0))
        return (edges + share * (t - last), after, t, mass), None

    zero = jnp.zeros_like(t[0])
    start = (jnp.broadcast_to(t[0], (len(levels), *t.shape[1:])), zero, t[0], zero)
    return meshes.scan(add, start, (mass, t))[0][0]


__all__ = ["component_edges", "num_panels"]
