"""Distribution functions of which one side is computed, as a logarithm, and the other one follows.

A module writes ``side(*variables, *shapes)``: the logarithm of the side that it computes, the lower
one or the upper one; the derivative of that in another variable, in which the integral is taken
(``log x``, say); and ``dx`` over that variable's change. Both sides, their logarithms and all their
derivatives are made of it here. A derivative that nobody asks for (in the shapes, while a quantile
is sought) costs no integral.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmdn.typing import Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_side(side: Callable[..., Any], variables: tuple, shapes: tuple) -> Array:
    """What ``side`` computes; differentiable in the first variable and in the shapes."""
    return side(*variables, *shapes)[0]


def _log_side_jvp(side: Callable[..., Any], primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (variables, shapes), ((dx, *_), dshapes) = primals, tangents
    moving = [i for i, tangent in enumerate(dshapes) if not isinstance(tangent, SymbolicZero)]

    def of(*moved: Array) -> Any:
        at = dict(zip(moving, moved, strict=True))
        return side(*variables, *(at.get(i, shape) for i, shape in enumerate(shapes)))

    points, directions = ([values[i] for i in moving] for values in (shapes, dshapes))
    if moving:
        (value, slope, unit), (change, *_) = jax.jvp(of, points, directions)
    else:
        value, slope, unit = of()
        change = jnp.zeros_like(value)
    return value, change if isinstance(dx, SymbolicZero) else change + slope * (dx / unit)


log_side.defjvp(_log_side_jvp, symbolic_zeros=True)


def complete(lower: Array, log: Array) -> tuple[Array, Array]:
    """Both sides, from whether the lower one was computed and its logarithm."""
    side = jnp.exp(_bound(log))
    return jnp.where(lower, side, 1 - side), jnp.where(lower, 1 - side, side)


def log_complete(lower: Array, log: Array) -> tuple[Array, Array]:
    """Logarithms of both sides; where one rounds to ``-inf`` its derivatives are zero."""
    log = _bound(log)
    rest = log_rest(log)
    return jnp.where(lower, log, rest), jnp.where(lower, rest, log)


def log_rest(log: Array) -> Array:
    """``log(1 - exp(log))`` for ``log <= 0``; ``-inf``, with a derivative of zero, at zero."""
    all_, near = log == 0, log > -0.7  # where exp(log), of about one, has lost digits
    close = jnp.log(-jnp.expm1(jnp.where(near & ~all_, log, -1)))
    value = jnp.where(near, close, jnp.log1p(-jnp.exp(jnp.where(near, -1, log))))
    return jnp.where(all_, -jnp.inf, value)


def log_complement(above: Array, log_first: Array, log_second: Array) -> Array:
    """``log(1 - above)``, which is the logarithm of the sum of the other two as well.

    Whichever does not cancel, in value and in derivative.
    """
    small = above < 0.4
    direct = jnp.log1p(-jnp.where(small, above, 0))
    return jnp.where(small, direct, jnp.logaddexp(log_first, log_second))


def nearer_side(q: Array, upper: Array | bool) -> tuple[Array, Array]:
    """The smaller one of a tail's probability and of the other tail's, and whether it is the upper.

    ``q`` is the probability above where ``upper``, else that below; ``1 - q`` is exact beyond 1/2.
    """
    far = q > 0.5
    return jnp.where(far, 1 - q, q), jnp.logical_xor(far, upper)


def _bound(log: Array) -> Array:
    """Not above zero, where rounding may have put it."""
    return log - jax.lax.stop_gradient(jnp.maximum(log, 0))
