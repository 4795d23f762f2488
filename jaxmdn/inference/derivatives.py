"""A mixture of one dimension as loops want it, and the derivatives of its log-density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.base import Density
from jaxmdn.components.batch import spread
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Float

# Points times components of all rows that are done at once: what is computed of them, and is not
# kept, is then a few megabytes.
BLOCK = 2**20


class Parts(NamedTuple):
    """A mixture as a loop wants it: its weights are normalised, its components come first."""

    log_weights: Float[Array, "K ..."]
    components: Density

    @classmethod
    def of(cls, mixture: Mixture) -> Parts:
        """The parts of a mixture."""
        log_weights = mixture.log_weights()
        full = (*mixture.batch_shape, log_weights.shape[-1])
        components = spread(mixture.components, full).map_parameters(
            lambda leaf, rank: jnp.moveaxis(leaf, -1 - rank, 0)
        )
        return cls(jnp.moveaxis(jnp.broadcast_to(log_weights, full), -1, 0), components)


def derivatives(parts: Parts, y: Float[Array, "..."], order: int) -> tuple[Array, ...]:
    """The log-density at points ``[P, ...]`` and its first ``order`` (up to three) derivatives.

    With the derivatives ``a, b, c`` of a component's log-density and means over the
    responsibilities, they are ``s = E a``, ``E[b + (a - s)^2]`` and
    ``E[c + 3 b (a - s) + (a - s)^3]``: the components' are short programs, a mixture's own third
    derivative a long one. Many points are done in blocks, so that memory grows with K, not with its
    square.
    """
    points, rows = y.shape[0] if y.ndim else 0, parts.log_weights.shape
    size = max(BLOCK // max(math.prod(n for n in rows if isinstance(n, int)), 1), 1)
    if y.ndim < parts.log_weights.ndim or points <= 2 * size:
        return _derivatives(parts, y, order)
    full = -(-points // size) * size
    index = jnp.minimum(jnp.arange(full), points - 1)  # the last one again
    blocks = y[index].reshape(full // size, size, *y.shape[1:])
    found = jax.lax.map(lambda block: _derivatives(parts, block, order), blocks)
    return tuple(values.reshape(full, *y.shape[1:])[:points] for values in found)


def _derivatives(parts: Parts, y: Float[Array, "..."], order: int) -> tuple[Array, ...]:
    def lift(function: Callable) -> Callable:
        """From ``y -> (f, lower derivatives)`` to ``y -> (f', (f, lower derivatives))``."""

        def derivative(y: Array) -> tuple[Array, tuple]:
            value, rate, lower = jax.jvp(function, (y,), (jnp.ones_like(y),), has_aux=True)
            return rate, (*lower, value)

        return derivative

    log_weights, components = parts
    axis = -log_weights.ndim
    function: Callable = lambda y: (components.log_prob(y[..., None]), ())  # noqa: E731
    for _ in range(order):
        function = lift(function)
    highest, lower = function(jnp.expand_dims(y, axis))
    of_components: list[Array] = [*lower, highest]  # [P, K, ...] each
    values, rates = of_components[0], of_components[1:]
    joint = log_weights + values
    peak = numerics.finite_peak(joint, axis)
    share = jnp.exp(joint - peak)
    total = jnp.sum(share, axis=axis, keepdims=True)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    value = jnp.where(
        jnp.max(share, axis=axis) == 0, -jnp.inf, (jnp.log(total) + peak).squeeze(axis)
    )
    found, share = [value], share / total
    if order:
        found.append(numerics.weighted_sum(share, rates[0], axis))
    if order > 1:
        off = jnp.where(share > 0, rates[0] - jnp.expand_dims(found[1], axis), 0)
        found.append(numerics.weighted_sum(share, rates[1] + off * off, axis))
    if order > 2:
        third = rates[2] + off * (3 * rates[1] + off * off)
        found.append(numerics.weighted_sum(share, third, axis))
    return tuple(found)
