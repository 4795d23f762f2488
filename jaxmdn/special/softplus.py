"""``log(1 + e^x)`` and the logistic function's logarithm: value and slope share an exponential.

JAX's own add two exponentials under a logarithm, and take another for the derivative.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmdn.typing import Array, Float


@jax.custom_jvp
def _parts(x: Array) -> tuple[Array, Array]:
    """``max(x, 0)`` and ``|x|``, whose derivatives at zero are those of the arm above it.

    So are those of all that follows, to any order; selected by ``where`` the loops were twice as
    slow.
    """
    return jnp.maximum(x, 0), jnp.abs(x)


@_parts.defjvp
def _parts_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
    (x,), (dx,) = primals, tangents
    return _parts(x), (jnp.where(x >= 0, dx, jnp.zeros_like(dx)), jnp.where(x >= 0, dx, -dx))


def softplus_and_slope(x: Float[Array, "..."]) -> tuple[Array, Array]:
    """``log(1 + e^x)`` and its derivative, the logistic function."""
    positive, distance = _parts(x)
    decay = jnp.exp(-distance)
    slope = jnp.where(x >= 0, jnp.ones_like(x), decay) / (1 + decay)
    return positive + jnp.log1p(decay), slope


@jax.custom_jvp
def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 + e^x)``, elementwise: ``e^x`` far below zero, ``x`` far above.

    >>> import jax.numpy as jnp
    >>> [round(value, 4) for value in softplus(jnp.array([-200.0, 0.0, 200.0])).tolist()]
    [0.0, 0.6931, 200.0]
    """
    return softplus_and_slope(x)[0]


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = softplus_and_slope(*primals)
    return value, slope * tangents[0]


def log_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 / (1 + e^-x))``, elementwise."""
    return -softplus(-x)


__all__ = ["log_sigmoid", "softplus", "softplus_and_slope"]
