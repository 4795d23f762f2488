"""Tails of a density that is known by its logarithm alone: quadrature around its maximum.

For families that have no distribution function of their own. The density must be unimodal in a
coordinate ``t`` on the real line: ``y`` itself, ``log y`` for positive targets, the logit of the
position between two bounds. With ``q`` the density of ``t`` and ``m`` its maximum, each tail is

    int q(m + w sinh u) w cosh(u) du,

by Gauss-Legendre panels in ``u`` from where the tail begins to where ``q`` has fallen below
rounding; ``w`` is where ``q`` has fallen by one nat. The substitution is uniform near the maximum
and geometric far from it, so that normal and Cauchy tails take the same nodes. The outer tail is
integrated relative to the density where it begins, with ``w`` from the slope there, so that its
logarithm is finite wherever that of the density is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes
from jaxmdn.special.elementary import integrate
from jaxmdn.typing import Array, Bool, Float

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
    drop: Callable[[Array], Array],
    start: float,
    depth: Any,
    like: Float[Array, "..."],
    factor: float = 2.0,
) -> Float[Array, "..."]:
    """A power of ``factor`` times ``start`` at which ``drop`` exceeds ``depth``."""

    def grow(_: Any, u: Array) -> Array:
        return jnp.where(drop(u) > depth, u, factor * u)

    return meshes.fori_loop(0, REACH, grow, jnp.full_like(like, start))


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

    def beyond(self, width: Array, begin: Array, depth: float) -> Array:
        """The ``u > begin`` of one side where the density is ``depth`` nats lower than there."""
        level = self.fixed(self.at(width, begin))
        grow = extent(
            lambda g: level - self.fixed(self.at(width, begin + g)), 2.0**-20, depth, begin
        )
        return jnp.minimum(begin + jax.lax.stop_gradient(grow), FARTHEST)

    def at(self, width: Array, u: Array) -> Array:
        """The coordinate ``m + w sinh u`` of one side, by the sign of ``w``."""
        return self.origin + width * jnp.sinh(u)

    def integral(self, width: Array, first: Array, last: Array, function: Any = None) -> Array:
        """``int function(t) q(t) dt`` of one side, from ``u = first`` to ``last``."""

        def integrand(u: Array) -> Array:
            t = self.at(width, u)
            density = jnp.exp(self.q(t)) * jnp.abs(width) * jnp.cosh(u)
            return density if function is None else density * function(t)

        return _panels(integrand, first, last)

    def log_ratio(self, t: Array, sign: Array, reach: Array) -> Array:
        """``log int exp(q(t + s) - q(t)) ds`` from ``t`` outwards, over the whole tail.

        A unit of ``s`` is as far as the slope at ``t`` takes for one nat, at most ``reach``. With
        ``h`` one over the slope, the integral is ``h (1 + q'' h^2 + O(q''^2 h^4))`` too: better,
        once that is less than the rounding of ``q`` and ``t``.
        """
        one = jnp.ones_like(t)

        def slope(t: Array) -> Array:
            return -sign * jax.jvp(self.q, (t,), (one,))[1]

        fall, bend = jax.jvp(slope, (t,), (one,))  # bend is -sign q''
        fixed_fall, fixed_bend = jax.lax.stop_gradient((fall, -sign * bend))
        level, start, sloped = self.fixed(t), self.q(t), fixed_fall > 0
        fixed_fall = jnp.where(sloped, fixed_fall, 0)
        unit = 1 / (fixed_fall + 1 / reach)

        def at(v: Array) -> Array:
            return t + sign * unit * jnp.sinh(v)

        end = extent(lambda v: level - self.fixed(at(v)), 2.0**-6, self.depth, t, 2.0**0.25)
        whole = _panels(
            lambda v: jnp.exp(self.q(at(v)) - start) * unit * jnp.cosh(v), jnp.zeros_like(t), end
        )
        share = fixed_bend / jnp.where(sloped, fixed_fall, 1) ** 2
        noise = float(jnp.finfo(t.dtype).eps) * (jnp.abs(level) + jnp.abs(t) * fixed_fall)
        gap = jnp.abs(jax.lax.stop_gradient(whole) * fixed_fall - 1 - share)
        straight = sloped & (share * share < noise) & (gap < 8 * noise)
        fall = jnp.where(straight, fall, 1)
        share = jnp.where(straight, -sign * bend / fall / fall, 0)
        return jnp.where(
            straight, jnp.log1p(share) - jnp.log(fall), jnp.log(jnp.where(straight, 1, whole))
        )


def shape_of(
    log_density: Callable[[Array], Array], start: Float[Array, "..."], lower: float, upper: float
) -> Shape:
    """Find the maximum and the widths of a log-density of ``y``, from a ``y`` in the support."""
    forward, back, slope = coordinate(lower, upper)

    def q(t: Array) -> Array:
        y = forward(t)
        some = (y > lower) & (y < upper)  # not rounded to an end
        value = log_density(jnp.where(some, y, start)) + slope(t)
        return jnp.where(some & ~jnp.isnan(value), value, -jnp.inf)

    def fixed(t: Array) -> Array:
        return jax.lax.stop_gradient(q(jax.lax.stop_gradient(t)))

    origin = jax.lax.stop_gradient(maximum(fixed, back(start)))
    top = fixed(origin)

    def fall(sign: float) -> Array:
        return extent(lambda w: top - fixed(origin + sign * w), 2.0**-30, 1.0, origin)

    width = {sign: fall(sign) for sign in (-1.0, 1.0)}
    depth = 10 - math.log(float(jnp.finfo(origin.dtype).eps))
    return Shape(q, fixed, origin, width, depth)


def log_tails(
    log_density: Callable[[Array], Array],
    y: Float[Array, "..."],
    start: Float[Array, "..."],
    lower: float,
    upper: float,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]:
    """Logarithms of both tails of a unimodal density: of the one beyond ``y``, and of the other.

    Args:
      log_density: elementwise, of ``y`` inside the support; differentiable in what it closes over,
        in ``y`` three times.
      y: strictly inside the support, in the shape of the result.
      start: a point inside the support from which to look for the maximum, likewise.
      lower, upper: the support's ends (static).

    Returns:
      ``log P`` beyond ``y`` as seen from the maximum; ``log P`` of the rest; the first one less the
      log-density of the coordinate ``t`` (whose derivative in ``t`` follows from it); and whether
      beyond is above.

    Differentiable in the parameters; where the nodes lie does not move with them.
    """
    shape = shape_of(log_density, start, lower, upper)
    t = jax.lax.stop_gradient(coordinate(lower, upper)[1](y))
    above = t >= shape.origin
    sign = jnp.where(above, 1, -1).astype(t.dtype)
    width = jnp.where(above, shape.width[1.0], shape.width[-1.0])
    across = jnp.where(above, shape.width[-1.0], shape.width[1.0])
    begin = jnp.arcsinh(jnp.abs(t - shape.origin) / width)
    zero = jnp.zeros_like(begin)
    inner = shape.integral(sign * width, zero, begin)
    end = shape.beyond(-sign * across, zero, shape.depth)
    rest = inner + shape.integral(-sign * across, zero, end)
    level = shape.q(t)
    reached = level > -jnp.inf
    ratio = shape.log_ratio(jnp.where(reached, t, shape.origin), sign, width * jnp.cosh(begin))
    near = jnp.where(reached, level, 0) + ratio
    small = near < -0.9  # then the rest, nearly all, has its digits from it
    log_rest = jnp.where(small, jnp.log1p(-jnp.exp(jnp.where(small, near, -1))), jnp.log(rest))
    nearly = jnp.where(reached, log_rest, 0)
    return jnp.where(reached, near, -jnp.inf), nearly, ratio, above


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
        width = sign * shape.width[sign]
        end = shape.beyond(width, zero, 2 * shape.depth)
        return shape.integral(width, zero, end, lambda t: function(forward(t)))

    return side(-1.0) + side(1.0)


def _panels(
    function: Callable[[Array], Array], first: Float[Array, "..."], last: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``int_first^last function(u) du`` by equal Gauss-Legendre panels, one node after another."""
    length = last - first
    return length * integrate(lambda x: function(first + x * length), NODES, first, PANELS)
