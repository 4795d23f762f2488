"""``log(1 + e^x)`` and the logistic function's logarithm: value and slope share an exponential.

JAX's own add two exponentials under a logarithm, and take another for the derivative.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmdn.typing import Array, Float


def softplus_and_slope(x: Float[Array, "..."]) -> tuple[Array, Array]:
    """``log(1 + e^x)`` and its derivative, the logistic function."""
    # One condition for all arms, so that the derivatives at zero, too, are those of a smooth arm.
    positive = x >= 0
    decay = jnp.exp(jnp.where(positive, -x, x))
    slope = jnp.where(positive, jnp.ones_like(x), decay) / (1 + decay)
    return jnp.where(positive, x, jnp.zeros_like(x)) + jnp.log1p(decay), slope


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
