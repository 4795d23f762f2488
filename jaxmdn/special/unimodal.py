"""Tails of a density that is known by its logarithm alone: quadrature around its maximum.

For families that have no distribution function of their own. The density must be unimodal in a
coordinate ``t`` on the real line: ``y`` itself, ``log y`` for positive targets, the logit of the
position between two bounds. With ``q`` the density of ``t`` and ``m`` its maximum, each tail is

    int q(m + w sinh u) w cosh(u) du,

by Gauss-Legendre panels in ``u`` from where the tail begins to where ``q`` has fallen below
rounding; ``w`` is where ``q`` has fallen by one nat. The substitution is uniform near the maximum
and geometric far from it, so that normal and Cauchy tails take the same nodes. Nothing is
subtracted: a tail is as accurate as the density is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.typing import Array, Float

# Doublings reach 2^40 units from the start, and as many halvings find the maximum to 2^-40 of it.
CLIMB = 90
REACH = 45
PANELS, NODES = 10, 16
# Beyond it sinh overflows no float32, and no power-law tail matters to rounding.
FARTHEST = 60.0


def coordinate(lower: float, upper: float) -> tuple[Callable, Callable, Callable]:
    """``t`` to ``y``, ``y`` to ``t`` and ``log dy/dt`` for a support with these ends."""
    if math.isinf(lower) and math.isinf(upper):
        return lambda t: t, lambda y: y, jnp.zeros_like
    if math.isinf(upper):
        return lambda t: lower + jnp.exp(t), lambda y: jnp.log(y - lower), lambda t: t
    if math.isinf(lower):
        return lambda t: upper - jnp.exp(-t), lambda y: -jnp.log(upper - y), lambda t: -t
    width = upper - lower

    def forward(t: Array) -> Array:
        return jnp.where(
            t < 0, lower + width * jax.nn.sigmoid(t), upper - width * jax.nn.sigmoid(-t)
        )

    def slope(t: Array) -> Array:
        return math.log(width) + jax.nn.log_sigmoid(t) + jax.nn.log_sigmoid(-t)

    return forward, lambda y: jnp.log(y - lower) - jnp.log(upper - y), slope


def place(
    mean: Float[Array, "..."], variance: Float[Array, "..."], lower: float, upper: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Centre and width, in the coordinate ``t``, of a density with these moments, roughly.

    Those of the normal, the log-normal, and of the logit of the beta density that have them.
    """
    if math.isinf(lower) and math.isinf(upper):
        return mean, jnp.sqrt(variance)
    if math.isinf(lower) or math.isinf(upper):
        distance = jnp.abs(mean - (upper if math.isinf(lower) else lower))
        spread = jnp.log1p(variance / distance / distance)
        centre = jnp.log(distance) - 0.5 * spread
        return -centre if math.isinf(lower) else centre, jnp.sqrt(spread)
    left, right = (mean - lower) / (upper - lower), (upper - mean) / (upper - lower)
    total = left * right * (upper - lower) ** 2 / variance - 1
    return jnp.log(left / right), jnp.sqrt((1 / left + 1 / right) / total)


def maximum(q: Callable[[Array], Array], start: Float[Array, "..."]) -> Float[Array, "..."]:
    """Where a unimodal log-density is largest: steps that double uphill and halve at the top."""

    def climb(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        t, step = state
        here, left, right = q(t), q(t - step), q(t + step)
        best = jnp.where(left > right, t - step, t + step)
        better = jnp.maximum(left, right) > here
        return jnp.where(better, best, t), jnp.where(better, 2 * step, 0.5 * step)

    return meshes.fori_loop(0, CLIMB, climb, (start, jnp.ones_like(start)))[0]


def extent(
    drop: Callable[[Array], Array], start: float, depth: Any, like: Float[Array, "..."]
) -> Float[Array, "..."]:
    """A power of two times ``start`` at which ``drop`` exceeds ``depth``."""

    def double(_: Any, u: Array) -> Array:
        return jnp.where(drop(u) > depth, u, 2 * u)

    return meshes.fori_loop(0, REACH, double, jnp.full_like(like, start))


class Shape(NamedTuple):
    """A unimodal density as quadrature needs it; nothing here moves with the parameters.

    Attributes:
      q: its logarithm in the coordinate ``t``, differentiable in the parameters.
      fixed: the same without derivatives.
      origin: its maximum, a ``t``.
      width: by the side's sign, how far from there it has fallen by one nat.
      depth: nats below which a remainder is rounding.
    """

    q: Callable[[Array], Array]
    fixed: Callable[[Array], Array]
    origin: Array
    width: dict[float, Array]
    depth: float

    def beyond(self, sign: float, begin: Array, depth: float) -> Array:
        """The ``u > begin`` of one side where the density is ``depth`` nats lower than there."""
        level = self.fixed(self.at(sign, begin))
        grow = extent(
            lambda g: level - self.fixed(self.at(sign, begin + g)), 2.0**-20, depth, begin
        )
        return jnp.minimum(begin + jax.lax.stop_gradient(grow), FARTHEST)

    def at(self, sign: float, u: Array) -> Array:
        """The coordinate ``m + w sinh u`` of one side."""
        return self.origin + sign * self.width[sign] * jnp.sinh(u)

    def integral(self, sign: float, first: Array, last: Array, function: Any = None) -> Array:
        """``int function(t) q(t) dt`` of one side, from ``u = first`` to ``last``."""

        def integrand(u: Array) -> Array:
            t = self.at(sign, u)
            density = jnp.exp(self.q(t)) * self.width[sign] * jnp.cosh(u)
            return density if function is None else density * function(t)

        return _panels(integrand, first, last)


def shape_of(
    log_density: Callable[[Array], Array], start: Float[Array, "..."], lower: float, upper: float
) -> Shape:
    """Find the maximum and the widths of a log-density of ``y``, from a ``y`` in the support."""
    forward, back, slope = coordinate(lower, upper)

    def q(t: Array) -> Array:
        value = log_density(forward(t)) + slope(t)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    def fixed(t: Array) -> Array:
        return jax.lax.stop_gradient(q(jax.lax.stop_gradient(t)))

    origin = jax.lax.stop_gradient(maximum(fixed, back(start)))
    top = fixed(origin)

    def fall(sign: float) -> Array:
        return extent(lambda w: top - fixed(origin + sign * w), 2.0**-30, 1.0, origin)

    width = {sign: fall(sign) for sign in (-1.0, 1.0)}
    depth = 10 - math.log(float(jnp.finfo(origin.dtype).eps))
    return Shape(q, fixed, origin, width, depth)


def tails(
    log_density: Callable[[Array], Array],
    y: Float[Array, "..."],
    start: Float[Array, "..."],
    lower: float,
    upper: float,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``P(Y <= y)`` and ``P(Y > y)`` of a unimodal density, neither by a difference.

    Args:
      log_density: elementwise, of ``y`` inside the support; differentiable in what it closes over.
      y: strictly inside the support, in the shape of the result.
      start: a point inside the support from which to look for the maximum, likewise.
      lower, upper: the support's ends (static).

    Differentiable in ``y`` and in the parameters; where the nodes lie does not move with them.
    """
    shape = shape_of(log_density, start, lower, upper)
    far = coordinate(lower, upper)[1](y) - shape.origin
    inner, outer = {}, {}
    for sign in (-1.0, 1.0):
        begin = jnp.arcsinh(jnp.maximum(sign * far, 0) / shape.width[sign])
        inner[sign] = shape.integral(sign, jnp.zeros_like(begin), begin)
        outer[sign] = shape.integral(sign, begin, shape.beyond(sign, begin, shape.depth))
    return outer[-1.0] + inner[1.0], outer[1.0] + inner[-1.0]


def expect(
    function: Callable[[Array], Array],
    log_density: Callable[[Array], Array],
    start: Float[Array, "..."],
    lower: float,
    upper: float,
) -> Float[Array, "..."]:
    """``E[function(Y)]`` of a unimodal density; arguments as of :func:`tails`.

    ``function`` may grow like a power: what lies beyond twice the depth of the tails is left out.
    """
    shape = shape_of(log_density, start, lower, upper)
    forward = coordinate(lower, upper)[0]
    zero = jnp.zeros_like(shape.origin)

    def side(sign: float) -> Array:
        end = shape.beyond(sign, zero, 2 * shape.depth)
        return shape.integral(sign, zero, end, lambda t: function(forward(t)))

    return side(-1.0) + side(1.0)


def _panels(
    function: Callable[[Array], Array], first: Float[Array, "..."], last: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``int_first^last function(u) du`` by equal Gauss-Legendre panels, one node after another."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    places = (np.arange(PANELS)[:, None] + 0.5 * (node + 1)).ravel() / PANELS
    weights = np.tile(0.5 * weight, PANELS) / PANELS

    def add(total: Array, step: Array) -> tuple[Array, None]:
        place, weight = step
        return total + weight * function(first + place * (last - first)), None

    steps = jnp.asarray(np.stack([places, weights], axis=1), first.dtype)
    return (last - first) * meshes.scan(add, jnp.zeros_like(first), steps)[0]


__all__ = ["coordinate", "expect", "place", "shape_of", "tails"]
