"""The beta family: shares and other targets between two bounds."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn.components.declare import constant, family, magnitude
from jaxmdn.components.interval import BoundedDensity, check_bounds
from jaxmdn.special import beta as beta_functions
from jaxmdn.special.gamma import log_draw
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family
class Beta(BoundedDensity):
    """A product of beta densities, ``x^(a - 1) (1 - x)^(b - 1) / B(a, b) / (upper - lower)``.

    ``x = (y_d - lower) / (upper - lower)``.

    Attributes:
      concentration1: ``a``, ``[..., K, D]``, positive.
      concentration0: ``b``, ``[..., K, D]``, positive; the mean of ``x`` is ``a / (a + b)``.
      lower, upper: the bounds (static).

    Sizes of one are allowed for K and D. Limits: the log-density at ``lower`` is ``inf``, finite or
    ``-inf`` for ``a`` below, at or above one, at ``upper`` likewise for ``b``: data on the bounds
    (a share of exactly 0 or 1) give an infinite likelihood of either sign, with derivatives of
    zero. Take bounds a little wider than the data, shrink the data (Smithson and Verkuilen use
    ``(x (N - 1) + 1 / 2) / N`` of N data), or use a truncated normal, which is finite there. Made
    for concentrations from 1e-2 to 1e6.

    References:
      Johnson, Kotz and Balakrishnan (1995), Continuous Univariate Distributions 2, chapter 25.
      Smithson and Verkuilen (2006), A better lemon squeezer?, p. 55.
    """

    concentration1: Parameter = magnitude()
    concentration0: Parameter = magnitude()
    lower: float = constant(0.0)
    upper: float = constant(1.0)

    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        a, b, y = self._parameters(y)
        x, rest = self.units(y)
        jacobian = jnp.log(x) + jnp.log(rest) + math.log(self.width)
        return beta_functions.log_kernel(x, rest, a, b) - jacobian

    def limits(self) -> tuple[Array | float, Array | float]:
        a, b = self._parameters()

        def limit(own: Array, other: Array) -> Array:
            beside = jnp.where(own < 1, jnp.inf, -jnp.inf)
            return jnp.where(own == 1, jnp.log(other) - math.log(self.width), beside)

        return limit(a, b), limit(b, a)

    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        a, b, y = self._parameters(y)
        return beta_functions.tails(*self.units(y), a, b)

    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        a, b, y = self._parameters(y)
        return beta_functions.log_tails(*self.units(y), a, b)

    def inner_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        a, b, q = self._parameters(q)
        return self.from_units(*beta_functions.quantile(q, a, b, upper))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        a, b = self._parameters()
        full = (*shape, *self.batch_shape, self.event_dim)
        key_one, key_zero = jax.random.split(key)
        logit = log_draw(key_one, a, full)
        logit = logit - log_draw(key_zero, b, full)
        x, rest = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
        return self.drawn(self.from_units(x, rest))

    def mean(self) -> Float[Array, "..."]:
        a, b = self._parameters()
        return self._fill(self.from_units(a / (a + b), b / (a + b)))

    def variance(self) -> Float[Array, "..."]:
        a, b = self._parameters()
        n = a + b
        return self._fill(self.width**2 * (a / n) * (b / n) / (n + 1))

    @classmethod
    def from_moments(
        cls,
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        *,
        lower: float = 0.0,
        upper: float = 1.0,
        **constants: Any,
    ) -> Beta:
        """The member with these moments; variances above 0.99 of the largest are taken as that."""
        check_bounds("Beta.from_moments", lower, upper)
        width = upper - lower
        x, rest = (mean - lower) / width, (upper - mean) / width
        n = jnp.maximum(width**2 * x * rest / variance, 1 / 0.99) - 1
        return cls(
            concentration1=n * x, concentration0=n * rest, lower=lower, upper=upper, **constants
        )
