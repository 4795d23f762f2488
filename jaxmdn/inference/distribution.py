"""Distribution functions of each dimension's marginal, and their logarithms.

``survival`` and the logarithms exist for the tails: in float32 ``1 - cdf`` is zero from 5.4
standard deviations on, and ``log(cdf)`` minus infinity below -14.
"""

from __future__ import annotations

from jaxmdn import meshes
from jaxmdn.components.base import Density
from jaxmdn.mixture import check_target
from jaxmdn.typing import Array, Float


@meshes.jit
def cdf(density: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Distribution function of each dimension's marginal, ``P(Y_d <= y_d)``, ``[..., D]``.

    ``F(y) = sum_k w_k F_k(y)``; for full and low-rank covariance the components' marginals are
    used. At ``+-inf`` it is 1 and 0; it is differentiable in ``y`` and in every parameter.

    Raises:
      TypeError: for a density without an order (categorical) or a target that is not floating.
      ValueError: on a wrong event size.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)))
    >>> jaxmdn.cdf(jaxmdn.Mixture(logits=jnp.zeros(2), components=normal), jnp.zeros(1)).tolist()
    [0.5]
    """
    check_target("cdf", density, y)
    return density.cdf(y)


@meshes.jit
def survival(density: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Probability above ``y`` in each dimension, ``P(Y_d > y_d)``, ``[..., D]``.

    ``1 - cdf`` without its cancellation: right of the mean it is accurate to the dtype until it
    underflows. Raises as :func:`cdf`.
    """
    check_target("survival", density, y)
    return density.survival(y)


@meshes.jit
def log_cdf(density: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Logarithm of :func:`cdf`, ``[..., D]``, accurate where the cdf itself underflows.

    Raises as :func:`cdf`.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.log_cdf(mixture, jnp.array([-40.0]))[0]), 2)
    -804.61
    """
    check_target("log_cdf", density, y)
    return density.log_cdf(y)


@meshes.jit
def log_survival(density: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Logarithm of :func:`survival`, ``[..., D]``. Raises as :func:`cdf`."""
    check_target("log_survival", density, y)
    return density.log_survival(y)
