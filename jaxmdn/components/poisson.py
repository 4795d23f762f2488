"""The Poisson family: counts of independent events."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components.counts import CountDensity
from jaxmdn.components.declare import family, magnitude
from jaxmdn.special import counts as count_functions
from jaxmdn.typing import Array, Float, Key, Parameter

# Below this rate draws come from summing probabilities; the sum's terms, enough for 1e-16.
_SMALL_RATE, _TERMS = 10.0, 60


@family
class Poisson(CountDensity):
    """A product of Poisson distributions, ``P(Y_d = y) = rate_d^y exp(-rate_d) / y!``.

    Attributes:
      rate: means and variances, ``[..., K, D]`` with size one allowed for K and D; not negative.

    Accurate to the dtype for rates and counts of a million and more. A rate of zero puts all mass
    on zero; a negative one gives NaN.

    References:
      Loader (2000), Fast and accurate computation of binomial probabilities; Hoermann (1993), The
      transformed rejection method for generating Poisson random variables.
    """

    rate: Parameter = magnitude()

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> Poisson:
        """The member with this mean; its variance is what it is."""
        return cls(rate=jnp.maximum(mean, float(jnp.finfo(mean.dtype).tiny)))

    def log_mass(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return count_functions.poisson_log_mass(y, *self._parameters())

    def tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return count_functions.poisson_tails(y, *self._parameters())

    def log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return count_functions.poisson_log_tails(y, *self._parameters())

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        (rate,) = self._parameters()
        return draw_poisson(key, jnp.broadcast_to(rate, shape))

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self.rate)

    def variance(self) -> Float[Array, "..."]:
        return self._fill(self.rate)


def draw_poisson(key: Key[Array, ""], rate: Float[Array, "..."]) -> Float[Array, "..."]:
    """One draw for every rate; no derivative. NaN for a rate that is none.

    JAX's own sampler computes in float32, where ``y log(rate) - log(y!)`` has lost its digits at
    rates of 1e5, and takes one kind of key only.
    """
    rate = jax.lax.stop_gradient(rate)
    key_small, key_large = jax.random.split(key)
    small = rate < _SMALL_RATE
    valid = (rate >= 0) & jnp.isfinite(rate)
    few = _draw_small(key_small, jnp.where(valid & small, rate, 0))
    many = _draw_large(key_large, jnp.where(valid & ~small, rate, _SMALL_RATE), small | ~valid)
    return jnp.where(valid, jnp.where(small, few, many), jnp.where(rate > 0, rate, jnp.nan))


def _draw_small(key: Array, rate: Array) -> Array:
    """The number of counts whose cumulated probability a uniform number exceeds."""
    uniform = numerics.uniform(key, rate.shape, rate.dtype)
    least = 0.25 * float(jnp.finfo(rate.dtype).eps)  # below the uniform number's resolution

    def add(index: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, total, term = state
        total = total + term
        count = count + ((uniform >= total) & (term > least)).astype(rate.dtype)
        return count, total, term * (rate / (index + 1).astype(rate.dtype))

    zero = jnp.zeros_like(rate)
    return meshes.fori_loop(0, _TERMS, add, (zero, zero, jnp.exp(-rate)))[0]


def _draw_large(key: Array, rate: Array, skip: Array) -> Array:
    """Hoermann's transformed rejection (PTRS), with a log-mass that does not cancel."""
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha = jnp.log(1.1239 + 1.1328 / (b - 3.4))
    squeeze = 0.9277 - 3.6224 / (b - 2)
    tiny = float(jnp.finfo(rate.dtype).eps)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, count, done = state
        key, key_u, key_v = jax.random.split(key, 3)
        u = jax.random.uniform(key_u, rate.shape, rate.dtype) - 0.5
        v = jax.random.uniform(key_v, rate.shape, rate.dtype, tiny * tiny)
        us = jnp.maximum(0.5 - jnp.abs(u), tiny)
        k = jnp.floor((2 * a / us + b) * u + rate + 0.43)
        height = jnp.log(v) + log_inverse_alpha - jnp.log(a / (us * us) + b)
        fits = height <= count_functions.poisson_log_mass(jnp.maximum(k, 0), rate)
        accept = ((us >= 0.07) & (v <= squeeze)) | ((k >= 0) & ((us >= 0.013) | (v <= us)) & fits)
        return key, jnp.where(done, count, k), done | accept

    def waiting(state: tuple[Array, Array, Array]) -> Array:
        return ~jnp.all(state[2])

    return meshes.while_loop(waiting, attempt, (key, jnp.zeros_like(rate), skip))[1]
