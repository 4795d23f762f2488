"""The logistic family: tails between the normal's and Laplace's, every function elementary."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit

from jaxmdn import meshes, numerics
from jaxmdn.components.declare import family, positive, real
from jaxmdn.components.location_scale import LocationScale
from jaxmdn.special.softplus import log_sigmoid, sigmoid, softplus
from jaxmdn.typing import Array, Float, Key, Parameter

# By the dtype's bytes: nodes of the trapezoidal rule for mean differences, and its ends.
_NODES, _SPAN = {4: 35, 8: 133}, {4: 19.0, 8: 38.0}


@family
class Logistic(LocationScale):
    """A product of logistic densities, ``cdf_d(y) = 1 / (1 + exp(-(y - loc_d) / scale_d))``.

    Attributes:
      loc: means and medians, ``[..., K, D]``.
      scale: scales, ``[..., K, D]`` with size one allowed for K and D; the standard deviation is
        ``pi / sqrt(3)`` times as large.
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)

    absolute_moments: ClassVar = True
    standard_variance: ClassVar = math.pi**2 / 3

    def standard_log_prob(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        distance = jnp.where(z < 0, -z, z)  # no abs: that has no second derivative at zero
        return -distance - 2 * softplus(-distance)

    def standard_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return sigmoid(z)

    def standard_log_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return log_sigmoid(z)

    def standard_quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        middle = jnp.abs(p - 0.5) < 0.25
        inner = jnp.where(middle, 2 * p - 1, 0)  # exact
        outer = jnp.where(middle, 0.5, p)
        return jnp.where(middle, 2 * jnp.arctanh(inner), jnp.log(outer) - jnp.log1p(-outer))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, scale = self._parameters()
        p = numerics.uniform(key, (*shape, *self.batch_shape, self.event_dim), loc.dtype)
        return (loc + scale * logit(p)).astype(self.dtype)

    def absolute_moment(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, scale, y = self._parameters(y)
        return _mean_distance(jnp.abs(y - loc), scale)

    def own_difference(self) -> Float[Array, "..."]:
        return 2 * self._parameters()[1]

    def mean_difference(self, other: Logistic) -> Float[Array, "..."]:
        """``E[|Y - x|]`` of the wider component, averaged over ``x`` of the narrower one.

        By the trapezoidal rule: on the narrower one's scale the integrand is analytic in a strip of
        half-width pi and falls off exponentially, so that the error is rounding.
        """
        loc, scale, other_loc, other_scale = numerics.upcast(
            self.loc, self.scale, other.loc, other.scale
        )
        wide, narrow = jnp.maximum(scale, other_scale), jnp.minimum(scale, other_scale)
        distance = jnp.abs(loc - other_loc)
        span, count = _SPAN[distance.dtype.itemsize], _NODES[distance.dtype.itemsize]
        x = np.linspace(-span, span, count)
        weights = 1 / (4 * np.cosh(0.5 * x) ** 2)
        nodes = jnp.asarray(np.stack([x, weights / np.sum(weights)], axis=-1), distance.dtype)

        def add(total: Array, node: Array) -> tuple[Array, None]:
            return total + node[1] * _mean_distance(
                jnp.abs(distance + narrow * node[0]), wide
            ), None

        start = jnp.zeros(jnp.broadcast_shapes(distance.shape, wide.shape), distance.dtype)
        return meshes.scan(jax.checkpoint(add), start, nodes)[0]


def _mean_distance(distance: Array, scale: Array) -> Array:
    """``E|Y - y|`` from ``|y - loc|``; smooth at zero, where the two kinks cancel."""
    return distance + 2 * scale * jnp.log1p(jnp.exp(-numerics.divide(distance, scale)))
