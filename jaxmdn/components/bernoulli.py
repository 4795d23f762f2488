"""The Bernoulli family: yes or no, by its log-odds."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.counts import CountDensity, reached
from jaxmdn.components.declare import family, real
from jaxmdn.components.support import COUNTS, Support
from jaxmdn.special.softplus import log_sigmoid, sigmoid
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family
class Bernoulli(CountDensity):
    """A product of Bernoulli distributions, ``P(Y_d = 1) = 1 / (1 + exp(-logit_d))``.

    Attributes:
      logit: log-odds of a one, ``[..., K, D]`` with size one allowed for K and D.

    ``-inf`` for a target that is neither 0 nor 1.
    """

    logit: Parameter = real()

    domain: ClassVar[Support] = dataclasses.replace(COUNTS, upper=1.0)

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> Bernoulli:
        """The member with this mean; its variance is what it is."""
        info = jnp.finfo(mean.dtype)
        mean = jnp.clip(mean, float(info.tiny), 1 - float(info.eps))
        return cls(logit=jnp.log(mean) - jnp.log1p(-mean))

    def log_mass(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        (logit,) = self._parameters()
        return log_sigmoid(jnp.where(y == 0, -logit, logit))

    def tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        no, yes = self._chances()
        zero = y < 1
        return jnp.where(zero, no, 1), jnp.where(zero, yes, 0)

    def log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        (logit,) = self._parameters()
        zero = y < 1
        below = jnp.where(zero, log_sigmoid(-logit), 0)
        return below, jnp.where(zero, log_sigmoid(logit), -jnp.inf)

    def _chances(self) -> tuple[Array, Array]:
        """``P(Y = 0)`` and ``P(Y = 1)``, neither one as a difference from one."""
        (logit,) = self._parameters()
        return sigmoid(-logit), sigmoid(logit)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """0 up to ``P(Y = 0)``, 1 above; NaN outside [0, 1]. No derivative: zero."""
        no, yes, q = numerics.upcast(*jax.lax.stop_gradient(self._chances()), q)
        end = jnp.where(upper, q == 0, q == 1)
        zero = reached(lambda above: jnp.where(above, yes, no), q, upper) & ~end
        found = jnp.where(zero, 0, 1).astype(q.dtype)
        return jnp.where((q >= 0) & (q <= 1) & ~jnp.isnan(no), found, jnp.nan)

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        _, yes = self._chances()
        return (numerics.uniform(key, shape, yes.dtype) < yes).astype(yes.dtype)

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self._chances()[1])

    def variance(self) -> Float[Array, "..."]:
        no, yes = self._chances()
        return self._fill(no * yes)
