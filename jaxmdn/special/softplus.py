"""``log(1 + e^x)`` and the logistic function's logarithm: value and slope share an exponential.

JAX's own add two exponentials under a logarithm, and take another for the derivative.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmdn.typing import Array, Float


def softplus_and_slope(x: Float[Array, "..."]) -> tuple[Array, Array]:
    """``log(1 + e^x)`` and its derivative, the logistic function.

    XLA fuses a maximum and an absolute value better than selections. Both have a corner at zero,
    from where the smallest normal number moves ``x`` away, so that derivatives of any order are
    those of the arm above it. (A rule of their own would be lost in a loop inside another: jax
    0.10.)
    """
    x = x + float(jnp.finfo(x.dtype).tiny)
    decay = jnp.exp(-jnp.abs(x))
    slope = jnp.where(x >= 0, jnp.ones_like(x), decay) / (1 + decay)
    return jnp.maximum(x, 0) + jnp.log1p(decay), slope


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


def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``1 / (1 + e^-x)``, elementwise: a tanh, as compilers make of it, has no lower tail."""
    return softplus_and_slope(x)[1]


def log_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 / (1 + e^-x))``, elementwise."""
    return -softplus(-x)
