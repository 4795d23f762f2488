"""How many of its components a mixture really uses."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.mixture import Mixture, check_target, require_mixture
from jaxmdn.typing import Array, Bool, Float, Num


@meshes.jit
def effective_num_components(
    mixture: Mixture, y: Num[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """Effective number of components, ``exp(-sum_k w_k log w_k)``, between 1 and K, ``[...]``.

    Args:
      mixture: a mixture of batch shape ``[...]``; a class-conditional one counts classes.
      y: targets ``[..., D]``; with them the responsibilities at each target take the place of the
        weights: how many components could have produced it.

    Raises:
      TypeError: if the mixture is none, or ``y`` is of the wrong kind. ValueError: on a wrong
        event size.

    Limits: weights of zero count for nothing; a target that no component reaches (all densities
    zero) gives NaN, and so does NaN. Differentiable.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [9.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> float(jaxmdn.effective_num_components(mixture))
    2.0
    >>> round(float(jaxmdn.effective_num_components(mixture, jnp.zeros(1))), 3)
    1.0

    References:
      Hill (1973), Diversity and evenness: a unifying notation and its consequences, order 1.
    """
    require_mixture("effective_num_components", mixture)
    if y is None:
        log_weights = mixture.log_weights()
    else:
        check_target("effective_num_components", mixture, y)
        log_weights = numerics.log_normalize(mixture.joint_log_prob(y))
    weights = jnp.exp(log_weights)
    perplexity = jnp.exp(-numerics.weighted_sum(weights, log_weights, -1))
    reached = jnp.sum(weights, axis=-1) > 0
    return jnp.where(reached, jnp.broadcast_to(perplexity, reached.shape), jnp.nan)


def is_dead(mixture: Mixture, *, threshold: float = 1e-3) -> Bool[Array, "K"]:
    """Which components have a weight below ``threshold`` in every row, ``[K]``.

    Args:
      mixture: a mixture of batch shape ``[...]``: the predictions for a set of inputs.
      threshold: a weight in (0, 1). With a head's ``min_weight`` no weight is below that: ask for
        a few times as much.

    Raises:
      TypeError: if the mixture is none or the threshold no Python number. ValueError: if it lies
        outside (0, 1).

    Limits: a weight of NaN is not below anything; without rows no component is dead.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((2, 1)), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.array([[0.0, -20.0], [1.0, -9.0]]), components=normal)
    >>> jaxmdn.is_dead(mixture).tolist()
    [False, True]
    """
    require_mixture("is_dead", mixture)
    checks.require_number(
        "is_dead", "threshold", threshold, lower=0.0, upper=1.0, strict_lower=True
    )
    return _dead(mixture, float(threshold))


@partial(meshes.jit, static_argnums=1)
def _dead(mixture: Mixture, threshold: float) -> Bool[Array, "K"]:
    weights = mixture.weights()
    rows = weights.reshape(-1, weights.shape[-1])
    if not rows.shape[0]:
        return jnp.zeros(rows.shape[-1], bool)
    return jnp.all(rows < threshold, axis=0)
