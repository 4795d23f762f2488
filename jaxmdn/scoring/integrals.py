"""The integral of the squared distance of a distribution function from a step: the CRPS.

``int_{t < y} F(t)^2 dt + int_{t > y} (1 - F(t))^2 dt`` on panels between which the density is
smooth (``scoring.panels``). The density alone is evaluated at the nodes of a panel; ``F`` at a
node is the integral of the interpolated density up to there, and what makes it right at ``y``. A
panel ``[a, b]`` left of ``y`` adds, by parts,

    int_a^b F^2 dy = (b - a) F(a)^2 + 2 int_a^b (b - y) F f dy,

which is exact where the density vanishes, however long the panel, and whose terms do not cancel
however heavy the tail. Of whole numbers a panel of as
many as there are nodes is summed one by one; a longer one by the formula of Euler and Maclaurin.

References:
  Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, eq. 20.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes, numerics
from jaxmdn.components import StudentT
from jaxmdn.inference.sums import components_first
from jaxmdn.mixture import Mixture
from jaxmdn.scoring.panels import component_edges, insert, open_ended
from jaxmdn.special import unimodal
from jaxmdn.typing import Array, Float

# Nodes of a panel; and where it may hold a tail over many decades, by the dtype's bytes: of random
# Student-t mixtures the largest error is 6e-8 by 8 nodes, 3e-9 by 10 and 2e-10 by 12.
NODES, OPEN_NODES = 6, {4: 8, 8: 12}


def _rule(count: int) -> tuple[np.ndarray, ...]:
    """Gauss-Legendre on [0, 1]: nodes, weights, integrals up to each node, second derivatives.

    The matrices act on the values at the nodes, through the polynomial that passes through them;
    the last one gives its values at both ends.
    """
    basis = np.polynomial.legendre
    z, weights = basis.leggauss(count)
    one = np.eye(count)
    degrees = np.arange(count)[:, None]
    # Values at the nodes to coefficients of Legendre polynomials, which are orthogonal there too.
    series = (degrees + 0.5) * basis.legvander(z, count - 1).T * weights
    upto = 0.5 * basis.legval(z, basis.legint(one, lbnd=-1)).T @ series
    second = 4 * basis.legval(z, basis.legder(one, 2)).T @ series
    ends = basis.legvander(np.array([-1.0, 1.0]), count - 1) @ series
    x, weights = 0.5 * (z + 1), 0.5 * weights
    return x, weights, upto, second, ends


@jax.custom_jvp
def squared_distance(mixture: Mixture, y: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """The CRPS of a mixture of a univariate family, everything in the compute dtype."""
    return _squared_distance(mixture, y)


def _squared_distance(mixture: Mixture, y: Array) -> Array:
    if mixture.components.domain.step:
        return _over_steps(mixture, y)
    return _over_panels(*_centred(mixture, y))


def _centred(mixture: Mixture, y: Array) -> tuple[Mixture, Array]:
    """The same on the whole line with zero where the components are.

    There numbers keep their places: float32 has 1e-7 of a location that may be many scales.
    """
    family = mixture.components
    shifts = family.domain.closed_under in ("affine", "positive_affine")
    if family.domain.kind != "real" or not shifts:
        return mixture, y
    weights, centre = jax.lax.stop_gradient((mixture.weights()[..., None], family.place()[0]))
    origin = numerics.weighted_sum(weights, centre, -2) / jnp.sum(weights, axis=-2)
    one = jnp.ones(mixture.event_dim, y.dtype)
    moved = family.affine(-origin[..., None, :], one)
    return dataclasses.replace(mixture, components=moved), y - origin


@squared_distance.defjvp
@meshes.any_rank
def _squared_distance_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # In y it is 2 F(y) - 1, without the quadrature's error.
    (mixture, y), (dmixture, dy) = primals, tangents
    value, moved = jax.jvp(lambda mixture: _squared_distance(mixture, y), (mixture,), (dmixture,))
    return value, moved + (2 * mixture.cdf(y) - 1) * dy


def _merge(parts: Float[Array, "L ... K D"], more: list[Array]) -> Float[Array, "P ... D"]:
    """Ascending ends of the panels: those of all components, and some more ``[..., D]``.

    NaN becomes the last of them, a panel of length zero.
    """
    shape, count = more[-1].shape, parts.shape[0] * parts.shape[-2]
    merged = jnp.moveaxis(parts, -2, 1).reshape(count, *parts.shape[1:-2], parts.shape[-1])
    missing = (1,) * (len(shape) + 1 - merged.ndim)
    merged = merged.reshape(count, *missing, *merged.shape[1:])
    merged = jnp.concatenate([jnp.broadcast_to(merged, (count, *shape)), jnp.stack(more)])
    return jnp.sort(jnp.where(jnp.isnan(merged), more[-1], merged), axis=0)


def _density(
    mixture: Mixture, points: Float[Array, "P n ... D"], parts: Array, log_density: Callable
) -> Float[Array, "P n ... D"]:
    """``sum_k w_k p_k``, each component between its own outermost edges alone.

    ``log_density(component, first, last)`` is one's at all points, those beyond its edges moved to
    them.

    Outside of them a density may overflow, or its derivative may. One component after another, so
    that nothing of ``[P, n, ..., K, D]`` is stored and the loops are vectorised.
    """
    weights = mixture.weights()
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    least = math.log(float(jnp.finfo(points.dtype).tiny))
    own = mixture.components.domain
    if own.kind == "circle":
        parts = jnp.stack([jnp.full_like(parts[0], end) for end in (own.lower, own.upper)])
    # A power's tail reaches over the other components, and its logarithm far beyond.
    axes = (0, -2) if isinstance(mixture.components, StudentT) else 0
    ends = [
        jnp.moveaxis(jnp.where(jnp.isnan(end), own.inside, end), -2, 0)
        for end in (
            jnp.broadcast_to(reach(parts, axis=axes, keepdims=True)[0], parts.shape[1:])
            for reach in (jnp.nanmin, jnp.nanmax)
        )
    ]

    @jax.checkpoint
    def add(total: Array, part: tuple) -> tuple[Array, None]:
        component, weight, first, last = part
        value = log_density(component, first, last)
        # Numbers below the smallest normal one are slow.
        some = (points >= first) & (points <= last) & (value > least) & (value < jnp.inf)
        value = jnp.where(some, jnp.exp(jnp.where(some, value, 0)), 0)
        return total + numerics.silent_product(weight[..., None], value), None

    each = (components_first(mixture), jnp.moveaxis(weights, -1, 0), *ends)
    return meshes.scan(add, jnp.zeros_like(points), each)[0]


def _over_panels(mixture: Mixture, y: Array) -> Array:
    own, parts = mixture.components.domain, component_edges(mixture)
    forward, back, slope = _coordinate(mixture, parts)
    bounds = [jnp.full_like(y, end) for end in (own.lower, own.upper) if own.kind == "circle"]
    # Beyond the panels F is 0 or 1: there the score is that of the nearest end, and the distance.
    inner = [atom for atom in own.atoms if own.lower < atom < own.upper]
    marks = [back(jnp.full_like(y, atom)) for atom in inner]
    middle = jnp.broadcast_to(jnp.nanmean(parts, axis=(0, -2)), y.shape)
    cuts = _merge(parts, [*bounds, middle])
    ends = back(jnp.stack([cuts[0], cuts[-1]]))
    inside = (y > own.lower) & (y < own.upper)
    t = back(jnp.where(inside, y, forward(ends[0])))
    t = jnp.where(inside, t, jnp.where(y <= own.lower, ends[0], ends[1]))
    inside &= (t >= ends[0]) & (t <= ends[1])
    t = jnp.clip(t, *ends)
    for atom, mark in zip(inner, marks, strict=True):
        t = jnp.where(y == atom, mark, t)
    nearest = jnp.where(inside | jnp.isnan(y), y, forward(t))
    edges = functools.reduce(insert, [*marks, t], back(cuts))
    first, last = edges[:-1], edges[1:]
    count = OPEN_NODES[y.dtype.itemsize] if open_ended(mixture) else NODES
    x, weights, upto, *_ = (jnp.asarray(part, y.dtype) for part in _rule(count))
    length = last - first
    nodes = first[:, None] + length[:, None] * x.reshape(-1, *(1,) * y.ndim)
    points = forward(nodes)
    log_slope = slope(nodes)

    def log_density(component: Any, low: Array, high: Array) -> Array:
        if own.kind in ("real", "circle"):
            return component.continued(jnp.clip(points, low, high)) + log_slope
        return component.in_coordinate(jnp.clip(nodes, back(low), back(high)))

    density = _density(mixture, points, parts, log_density)
    mass = length * jnp.einsum("i,pi...->p...", weights, density)
    within = length[:, None] * jnp.einsum("ji,pi...->pj...", upto, density)
    right = first >= t
    # F left of y, 1 - F right of it, summed from outside: small numbers keep their digits.
    outer = jnp.where(right, jnp.cumsum(mass[::-1], axis=0)[::-1], jnp.cumsum(mass, axis=0)) - mass
    sums = [jnp.sum(jnp.where(side, mass, 0), axis=0) for side in (~right, right)]
    for atom in own.atoms:
        share = mixture.jump(jnp.full_like(y, atom))[1]
        # One beyond the bounds is outside of all panels.
        beyond = math.inf if atom > own.lower else -math.inf
        mark = marks[inner.index(atom)] if atom in inner else beyond
        outer += share * jnp.where(right, last <= mark, first >= mark).astype(y.dtype)
        passed = (nearest >= atom).astype(y.dtype)
        sums = [sums[0] + share * passed, sums[1] + share * (1 - passed)]
    begin, end = forward(first), forward(last)
    below = mixture.cdf(nearest)
    above = 1 - below if own.kind == "circle" else mixture.survival(nearest)
    gap = jnp.where(right, above - sums[1], below - sums[0])
    side = right[:, None]
    rest = outer[:, None] + jnp.where(side, mass[:, None] - within, within)
    outer, rest = _probability(_put_right(outer, gap)), _probability(_put_right(rest, gap[:, None]))
    distance = jnp.where(side, points - begin[:, None], end[:, None] - points)
    inner_part = jnp.einsum("i,pi...->p...", weights, distance * rest * density)
    score = jnp.sum((end - begin) * outer**2 + 2 * length * inner_part, axis=0)
    score += jnp.abs(y - nearest)
    return score + _beyond(mixture, y, nearest, forward(ends[0]), forward(ends[1]))


def _put_right(value: Array, gap: Array) -> Array:
    """``value + gap``, but where ``value`` is smaller than the gap, of the size of ``value``."""
    size = jax.lax.stop_gradient(jnp.maximum(value, 0))
    both = size + jax.lax.stop_gradient(jnp.abs(gap))
    return value + gap * jnp.where(both > 0, size / jnp.where(both > 0, both, 1), 0)


def _coordinate(
    mixture: Mixture, parts: Float[Array, "L ... K D"]
) -> tuple[Callable, Callable, Callable]:
    """As ``unimodal.coordinate``; on the whole line ``y = c + s sinh(t)``.

    There a tail that falls like a power falls like an exponential.
    """
    own = mixture.components.domain
    if own.kind == "circle":
        return lambda t: t, lambda y: y, jnp.zeros_like
    if math.isfinite(own.lower) or math.isfinite(own.upper):
        return unimodal.coordinate(own.lower, own.upper)
    middle = parts.shape[0] // 2
    origin = jnp.nanmean(parts[middle], axis=-2)
    spread = jnp.nanmin(parts[middle + 1] - parts[middle - 1], axis=-2)
    info = jnp.finfo(spread.dtype)
    least = jnp.maximum(float(info.eps) * jnp.abs(origin), float(info.tiny))  # what is resolved
    unit = jnp.maximum(0.25 * spread, least)
    return (
        lambda t: origin + unit * jnp.sinh(t),
        lambda y: jnp.arcsinh((y - origin) / unit),
        lambda t: jnp.log(unit * jnp.cosh(t)),
    )


def _beyond(mixture: Mixture, y: Array, nearest: Array, low: Array, high: Array) -> Array:
    """What masses outside the density's interval add, each ``z``.

    Between such a mass and the interval ``F`` is ``z`` (or ``1 - z``), not 0 (or 1).
    """
    own = mixture.components.domain
    total = jnp.zeros_like(nearest)
    for atom in own.atoms:
        if own.lower < atom < own.upper:
            continue
        share = mixture.jump(jnp.full_like(y, atom))[1]
        end = low if atom <= own.lower else high
        first, last = jnp.minimum(end, atom), jnp.maximum(end, atom)
        passed = jnp.abs(jnp.clip(y, first, last) - end)
        total += share * (share * (last - first) - 2 * passed)
    return total


def _over_steps(mixture: Mixture, y: Array) -> Array:
    """The sum over a lattice, at the last of its values that ``y`` has reached."""
    own = mixture.components.domain
    index = jnp.floor((y - own.lower) / own.step + own.tolerance)
    if math.isfinite(own.upper):
        count = round((own.upper - own.lower) / own.step)
        index = jnp.clip(index, 0, count)
        total, below = _each_level(mixture, index, count)
    else:
        total, index, below = _counts(mixture, index)
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


def _counts(mixture: Mixture, index: Array) -> tuple[Array, Array, Array]:
    """The sum over all whole numbers; the index, which is not beyond them; and ``F`` there."""
    own = mixture.components.domain
    # Up to the whole number beyond the last edge.
    parts = jnp.maximum(jnp.floor((component_edges(mixture) - own.lower) / own.step), 0)
    zero = jnp.zeros_like(index)
    highest = jnp.max(jnp.where(jnp.isnan(parts), 0, parts), axis=(0, -2)) + 2
    highest = jnp.broadcast_to(highest, zero.shape)
    index = jnp.clip(index, 0, highest)
    # Zero by itself: what is continued above it need not pass through it. Then one by one.
    small = [zero, *(zero + (1 + NODES * i) for i in range(3))]
    # The next one that there is: in float32 some are missing from 2^24 on.
    after = index + jnp.maximum(1, float(jnp.finfo(index.dtype).eps) * index)
    edges = _merge(parts, [*small, highest, after, index])
    first, last = edges[:-1], edges[1:]
    x, weights, upto, second, ends = (jnp.asarray(part, index.dtype) for part in _rule(NODES))
    whole = jnp.arange(NODES, dtype=index.dtype)

    column = (-1, *(1,) * index.ndim)
    whole, x = whole.reshape(column), x.reshape(column)
    length = (last - first)[:, None]  # [P, 1, ..., D]
    few = length <= NODES
    nodes = first[:, None] + jnp.where(few, whole, length * x - 0.5)
    reach = own.lower + own.step * parts.at[-1].add(1)
    points = own.lower + own.step * nodes

    def log_density(component: Any, low: Array, high: Array) -> Array:
        return component.continued(jnp.clip(points, low, high))

    mass = _density(mixture, points, reach, log_density)
    # One by one.
    counted = jnp.where(whole < length, mass, 0)
    # Or the polynomial f through the nodes: sum f = int f - f'' / 24 + ...
    safe = jnp.where(few, 1, length)
    smooth = mass - jnp.einsum("ji,pi...->pj...", second, mass) / (24 * safe * safe)
    within = jnp.where(
        few,
        jnp.cumsum(counted, axis=1),
        length * jnp.einsum("ji,pi...->pj...", upto, smooth),
    )
    sums = jnp.sum(counted, axis=1), length[:, 0] * jnp.einsum("i,pi...->p...", weights, smooth)
    total = jnp.where(few[:, 0], *sums)
    right = first >= index
    # F and 1 - F from their own values at the target.
    passed = jnp.sum(jnp.where(first > index, 0, total), axis=0)
    start = jnp.cumsum(total, axis=0) - total - passed
    point = own.lower + own.step * index
    below, above = mixture.cdf(point), mixture.survival(point)

    def side(values: Array) -> Array:
        over = right.reshape(right.shape[0], *(1,) * (values.ndim - right.ndim), *right.shape[1:])
        return _probability(jnp.where(over, above - values, below + values))

    squares = side(start[:, None] + within) ** 2
    low, high = side(start), side(start + total)
    slopes = jnp.einsum("ji,pi...->pj...", ends, smooth)
    bend = jnp.where(right, -1, 1) * 2 * (high * slopes[:, 1] - low * slopes[:, 0])
    # sum g(k + 1/2) = int g + [g] / 2 + [g'] / 12 - ..., g the square.
    long = length[:, 0] * jnp.einsum("i,pi...->p...", weights, squares)
    long = long + 0.5 * (high**2 - low**2) + bend / 12
    short = jnp.sum(jnp.where(whole < length, squares, 0), axis=1)
    return jnp.sum(jnp.where(few[:, 0], short, long), axis=0), index, below


def _probability(values: Array) -> Array:
    """Within [0, 1], which rounding may have left."""
    return jnp.where(values < 0, 0, jnp.where(values > 1, 1, values))


__all__ = ["squared_distance"]
