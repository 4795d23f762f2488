"""The CRPS of whole numbers and levels: sums over a lattice.

Levels are summed one by one, counts too where none is likely to be large. Else panels as of a
continuum: one of as many whole numbers as there are nodes is summed one by one, a longer one by the
formula of Euler and Maclaurin.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.inference.sums import components_first
from jaxmdn.mixture import Mixture
from jaxmdn.scoring.nodes import density_of, merge, probability, rule
from jaxmdn.scoring.panels import component_edges
from jaxmdn.typing import Array, Bool

# So many whole numbers are summed one by one; and nodes of a panel, beyond.
SPAN, NODES = 128, 6


def over_steps(mixture: Mixture, y: Array) -> Array:
    """The sum over a lattice, at the last of its values that ``y`` has reached."""
    own = mixture.components.domain
    index = jnp.floor((y - own.lower) / own.step + own.tolerance)
    if math.isfinite(own.upper):
        count = round((own.upper - own.lower) / own.step)
        index = jnp.clip(index, 0, count)
        total, below = _each_level(mixture, index, count)
    else:
        small = _are_small(mixture)
        total, index, below = jax.lax.cond(small, _one_by_one, _counts, mixture, index)
    rest = y - own.lower - own.step * index
    slope = 2 * jnp.where(rest < 0, 0, below) - 1
    return own.step * total + jnp.where(jnp.isnan(y), y, numerics.silent_product(rest, slope))


def _each_level(mixture: Mixture, index: Array, count: int) -> tuple[Array, Array]:
    own = mixture.components.domain

    @jax.checkpoint
    def add(total: Array, level: Array) -> tuple[Array, None]:
        point = jnp.broadcast_to(own.lower + own.step * level, index.shape)
        tail = mixture.tail(point, level >= index)
        return total + tail * tail, None

    levels = jnp.arange(count, dtype=index.dtype)
    total = meshes.scan(add, jnp.zeros_like(index), levels)[0]
    return total, mixture.cdf(own.lower + own.step * index)


def _are_small(mixture: Mixture) -> Bool[Array, ""]:
    """Whether beyond ``SPAN`` no component has anything beside what it has at one.

    What is left out is at most a geometric series, squared.
    """
    mixture = jax.lax.stop_gradient(mixture)
    own, family = mixture.components.domain, mixture.components
    one, before, last = (
        family.continued(jnp.full(family.event_dim, own.lower + own.step * n, family.dtype))
        for n in (1.0, SPAN - 1.0, float(SPAN))
    )
    fall = jnp.where(before > -jnp.inf, last - before, -1)
    rest = before - jnp.log(-jnp.expm1(jnp.minimum(fall, 0))) - one
    small = (before == -jnp.inf) | (rest < math.log(float(jnp.finfo(rest.dtype).eps)))
    return jnp.all(small | (mixture.weights()[..., None] == 0))


def _one_by_one(mixture: Mixture, index: Array) -> tuple[Array, Array, Array]:
    """As :func:`_counts`, where nothing lies beyond ``SPAN``."""
    own, weights = mixture.components.domain, mixture.weights()
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    whole = jnp.arange(SPAN, dtype=index.dtype).reshape(-1, *(1,) * index.ndim)
    points = own.lower + own.step * whole

    @jax.checkpoint
    def add(total: Array, part: tuple) -> tuple[Array, None]:
        component, weight = part
        mass = jnp.exp(component.marginal_log_prob(points))
        return total + numerics.silent_product(weight[..., None], mass), None

    each = components_first(mixture), jnp.moveaxis(weights, -1, 0)
    mass = meshes.scan(add, jnp.zeros_like(whole + index), each)[0]
    index = jnp.clip(index, 0, SPAN)
    above = jnp.cumsum(mass[::-1], axis=0)[::-1] - mass
    tails = jnp.where(whole < index, jnp.cumsum(mass, axis=0), above)
    below = jnp.sum(jnp.where(whole <= index, mass, 0), axis=0)
    return jnp.sum(probability(tails) ** 2, axis=0), index, probability(below)


def _counts(mixture: Mixture, index: Array) -> tuple[Array, Array, Array]:
    """The sum over all whole numbers; the index, which is not beyond them; and ``F`` there."""
    own = mixture.components.domain
    # Up to the whole number beyond the last edge.
    parts = jnp.maximum(jnp.floor((component_edges(mixture) - own.lower) / own.step), 0)
    zero = jnp.zeros_like(index)
    highest = jnp.max(jnp.where(jnp.isnan(parts), 0, parts), axis=(0, 1)) + 2
    highest = jnp.broadcast_to(highest, zero.shape)
    index = jnp.clip(index, 0, highest)
    # Zero by itself: what is continued above it need not pass through it. Then one by one.
    small = [zero, *(zero + (1 + NODES * i) for i in range(3))]
    # The next one that there is: in float32 some are missing from 2^24 on.
    after = index + jnp.maximum(1, float(jnp.finfo(index.dtype).eps) * index)
    edges = merge(parts, [*small, highest, after, index])
    first, last = edges[:-1], edges[1:]
    x, weights, upto, second, ends = (jnp.asarray(part, index.dtype) for part in rule(NODES))
    whole = jnp.arange(NODES, dtype=index.dtype)

    column = (-1, *(1,) * first.ndim)
    whole, x = whole.reshape(column), x.reshape(column)
    length = last - first  # [P, ..., D]
    few = length <= NODES
    nodes = first + jnp.where(few, whole, length * x - 0.5)  # [n, P, ..., D]
    reach = own.lower + own.step * parts.at[-1].add(1)
    points = own.lower + own.step * nodes

    def log_density(component: Any, low: Array, high: Array) -> Array:
        return component.continued(jnp.clip(points, low, high))

    mass = density_of(mixture, points, reach, log_density)
    # One by one.
    counted = jnp.where(whole < length, mass, 0)
    # Or the polynomial f through the nodes: sum f = int f - f'' / 24 + ...
    safe = jnp.where(few, 1, length)
    smooth = mass - jnp.tensordot(second, mass, 1) / (24 * safe * safe)
    within = jnp.where(few, jnp.cumsum(counted, axis=0), length * jnp.tensordot(upto, smooth, 1))
    total = jnp.where(few, jnp.sum(counted, axis=0), length * jnp.tensordot(weights, smooth, 1))
    right = first >= index
    # F and 1 - F from their own values at the target.
    passed = jnp.sum(jnp.where(first > index, 0, total), axis=0)
    start = jnp.cumsum(total, axis=0) - total - passed
    point = own.lower + own.step * index
    below, above = mixture.cdf(point), mixture.survival(point)

    def side(values: Array) -> Array:
        return probability(jnp.where(right, above - values, below + values))

    squares = side(start + within) ** 2
    low, high = side(start), side(start + total)
    slopes = jnp.tensordot(ends, smooth, 1)
    bend = jnp.where(right, -1, 1) * 2 * (high * slopes[1] - low * slopes[0])
    # sum g(k + 1/2) = int g + [g] / 2 + [g'] / 12 - ..., g the square.
    long = length * jnp.tensordot(weights, squares, 1)
    long = long + 0.5 * (high**2 - low**2) + bend / 12
    short = jnp.sum(jnp.where(whole < length, squares, 0), axis=0)
    return jnp.sum(jnp.where(few, short, long), axis=0), index, below
