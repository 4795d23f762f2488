"""Zero inflation: counts some of which are zero for a reason of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.counts import CountDensity
from jaxmdn.components.declare import family, part, real
from jaxmdn.components.zero_mass import ZeroMass
from jaxmdn.special.sides import log_complement
from jaxmdn.special.softplus import log_sigmoid
from jaxmdn.typing import Array, Float, Key, Parameter


@family
class ZeroInflated(ZeroMass, CountDensity):
    """A family of counts with extra zeros, ``P(0) = z + (1 - z) p(0)``, ``P(y) = (1 - z) p(y)``.

    Attributes:
      base: a family of counts ``p`` (Poisson, NegativeBinomial, Bernoulli) of batch shape
        ``[..., K]``.
      logit: log-odds of an extra zero, ``z = 1 / (1 + exp(-logit))``, ``[..., K, D]`` with size one
        allowed for K and D.

    Raises ``TypeError`` on use with a base that is no family of counts; ``Hurdle`` takes any.

    References:
      Lambert (1992), Zero-inflated Poisson regression, section 2.
    """

    base: Any = part("poisson")
    logit: Parameter = real()

    def log_mass(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        (logit,) = numerics.upcast_tree(self.base, self.logit)[1:]
        return _log_inflated(y, logit, self.inner(counts=True).log_mass(y))

    def tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        extra, rest = self.shares()
        below, above = self.inner(counts=True).tails(y)
        above = rest * above
        # The two shares of zeros do not add up to one by the last digit.
        return jnp.where(above < 0.5, 1 - above, extra + rest * below), above

    def log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        extra, rest = self.log_shares()
        below, above = self.inner(counts=True).log_tails(y)
        return log_complement(jnp.exp(rest + above), extra, rest + below), rest + above

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        key_zero, key_base = jax.random.split(key)
        extra, _ = self.shares()
        draws = self.inner(counts=True).draw(key_base, shape)
        zero = numerics.uniform(key_zero, shape, extra.dtype) < extra
        return jnp.where(zero, 0, draws)

    def mean(self) -> Float[Array, "..."]:
        _, rest = self.shares()
        return self._fill(rest * self.inner(counts=True).mean())

    def variance(self) -> Float[Array, "..."]:
        extra, rest = self.shares()
        base = self.inner(counts=True)
        return self._fill(rest * (base.variance() + extra * base.mean() ** 2))


@jax.custom_jvp
def _log_inflated(y: Array, logit: Array, log_base: Array) -> Array:
    """``log P(y)`` from the base's ``log p(y)``; constant in ``y``."""
    extra, rest = log_sigmoid(logit), log_sigmoid(-logit)
    zero = y == 0
    # Where there is mass only: the derivative of a sum of two zeros is none.
    log_zero = jnp.where(zero, log_base, 0)
    above = -jnp.exp(rest) * numerics.expm1(log_zero)
    return jnp.where(zero, log_complement(above, extra, rest + log_zero), rest + log_base)


@_log_inflated.defjvp
def _log_inflated_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """``dP(0) = (1 - z) dp(0) + z (1 - z) (1 - p(0)) dlogit``, each over ``P(0)``."""
    (y, logit, log_base), (_, dlogit, dlog_base) = primals, tangents
    value = _log_inflated(y, logit, log_base)
    extra, rest = log_sigmoid(logit), log_sigmoid(-logit)
    zero = y == 0
    log_zero, log_mass = jnp.where(zero, log_base, 0), jnp.where(value > -jnp.inf, value, 0)
    of_base = jnp.where(zero, jnp.exp(rest + log_zero - log_mass), 1)
    of_logit = jnp.where(
        zero, -numerics.expm1(log_zero) * jnp.exp(extra + rest - log_mass), -jnp.exp(extra)
    )
    return value, of_base * dlog_base + of_logit * dlogit
