"""The continuous ranked probability score: the mean absolute error of a distribution."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from jaxmdn import numerics
from jaxmdn.components import Normal
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.structure import class_marginal
from jaxmdn.typing import Array, Float


def _absolute_moment(loc: Array, scale: Array) -> Array:
    """``E|X|`` for ``X ~ N(loc, scale^2)``: ``2 s phi(m / s) + m erf(m / (s sqrt 2))``."""
    z = numerics.standardize(loc, jnp.zeros_like(loc), scale)
    density = jnp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return 2.0 * scale * density + loc * erf(z / math.sqrt(2.0))


@jax.jit
def crps(mixture: Mixture, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Continuous ranked probability score of each dimension's marginal, ``[..., D]``.

    ``CRPS = E|Y - y| - E|Y - Y'| / 2``, in closed form for normal mixtures, in the target's unit;
    for a point forecast it is the absolute error. Time ``O(K^2)``, memory ``O(K)``.

    Raises:
      TypeError: if the marginals are not normal mixtures.
      ValueError: on a wrong event size.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.crps(mixture, jnp.zeros(1))[0]), 4)
    0.2337

    References:
      Grimit et al. (2006), The continuous ranked probability score for circular variables, eq. 5.
    """
    check_target("crps", mixture, y)
    if not isinstance(mixture, Mixture):
        raise TypeError(f"crps: expected a Mixture, got {type(mixture).__name__}.")
    marginals = class_marginal(mixture).marginals()
    normal = marginals.components
    if not isinstance(normal, Normal):
        raise TypeError(f"crps: needs normal marginals, got {type(normal).__name__}.")
    weights, loc, scale, y = numerics.upcast(marginals.weights(), normal.loc, normal.scale, y)
    lead = (*marginals.batch_shape, marginals.num_components)
    loc = jnp.broadcast_to(loc, (*lead, y.shape[-1]))
    scale = jnp.broadcast_to(scale, loc.shape)
    weights = jnp.broadcast_to(weights, lead)[..., None]  # [..., K, 1]
    accuracy = jnp.sum(weights * _absolute_moment(y[..., None, :] - loc, scale), axis=-2)

    def add_pairs(total: Array, other: tuple[Array, ...]) -> tuple[Array, None]:
        weight, other_loc, other_scale = (part[..., None, :] for part in other)
        spread = jnp.sqrt(scale**2 + other_scale**2)
        pairs = weight * weights * _absolute_moment(loc - other_loc, spread)
        return total + jnp.sum(pairs, axis=-2), None

    by_component = tuple(jnp.moveaxis(part, -2, 0) for part in (weights, loc, scale))
    dispersion, _ = jax.lax.scan(add_pairs, jnp.zeros_like(loc[..., 0, :]), by_component)
    return accuracy - 0.5 * dispersion
