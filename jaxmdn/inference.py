"""Questions one asks of a mixture once it is there: so far, its distribution function."""

from __future__ import annotations

import jax

from jaxmdn.components.base import Density
from jaxmdn.mixture import check_target
from jaxmdn.typing import Array, Float


@jax.jit
def cdf(mixture: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
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
    check_target("cdf", mixture, y)
    return mixture.cdf(y)
