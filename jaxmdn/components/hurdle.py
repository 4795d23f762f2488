"""Hurdles: zero or not, and only then how much."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components import counts
from jaxmdn.components.declare import family, part, real
from jaxmdn.components.support import Support
from jaxmdn.components.zero_mass import ZeroMass
from jaxmdn.special.sides import log_complement, log_rest
from jaxmdn.typing import Array, Bool, Float, Key, Num, Parameter


@family
class Hurdle(ZeroMass):
    """Mass ``z`` at exactly zero, else a family: ``P(Y = 0) = z``, ``(1 - z) p(y)`` elsewhere.

    Over counts the family is truncated to positive ones, ``p(y) / (1 - p(0))``. Over real numbers
    (rainfall, expenses, insurance claims) ``marginal_log_prob`` is, at zero, the logarithm of a
    probability and elsewhere that of a density: the density with respect to length plus a point
    mass at zero.

    Attributes:
      base: a family ``p`` with independent dimensions, of counts or of real numbers, batch shape
        ``[..., K]``.
      logit: log-odds of a zero, ``z = 1 / (1 + exp(-logit))``, ``[..., K, D]`` with size one
        allowed for K and D.

    Over real numbers the family is not ``discrete``, though its cdf jumps at zero (where the PIT is
    randomised): what integrates densities or seeks modes does not see the point mass. The quantile
    is zero over the whole jump, with a derivative of zero.

    References:
      Cragg (1971), Some statistical models for limited dependent variables, section 2; Mullahy
      (1986), Specification and testing of some modified count data models.
    """

    base: Any = part("gamma")
    logit: Parameter = real()

    @property
    def domain(self) -> Support:  # type: ignore[override]
        own = self.base.domain
        if own.discrete:
            return own
        # Zero has to stay zero: neither shift nor reflection.
        kept = "none" if own.closed_under == "none" else "scale"
        return dataclasses.replace(own, atoms=(0.0,), closed_under=kept)

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Hurdle:
        return dataclasses.replace(self, base=self.base.affine(jnp.zeros_like(shift), scale))

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        y = self._parameters(y)[-1]
        y = jax.lax.stop_gradient(y) if self.discrete else y
        inside = self.domain.contains(y)
        value = self.continued(jnp.where(inside, y, 0))
        outside = jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf).astype(value.dtype)
        return jnp.where(inside, value, outside)

    def continued(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self._parameters(y)[-1]
        zero = y == 0
        at_zero, rest = self.log_shares()
        base = self.inner()
        others = base.continued(jnp.where(zero, 1, y)) - self._log_positive(base)
        return jnp.where(zero, at_zero, rest + others)

    def without_atoms(self) -> tuple[Float[Array, "..."], Any]:
        """``log(1 - z)``, ``[..., K, D]``, and the family of what is not zero."""
        return self.log_shares()[1], self.base

    def _log_positive(self, base: Any) -> Float[Array, "..."]:
        """``log(1 - p(0))`` of a family of counts; zero of one of real numbers."""
        if not self.discrete:
            return jnp.zeros((1,), self._parameters()[0].dtype)
        log_zero = base.marginal_log_prob(jnp.zeros((1,), base.dtype))
        certain = log_zero >= 0  # no count but zero: nothing to divide by
        return jnp.where(certain, jnp.inf, log_rest(log_zero))

    def _log_base_tails(self, base: Any, y: Array) -> tuple[Array, Array]:
        """``log P(Y <= y)`` and ``log P(Y > y)`` without the zeros; below zero as at zero."""
        if not self.discrete:
            return base.log_cdf(y), base.log_survival(y)
        some = ~(y < 1)
        counts_below, counts_above = base._log_tails(jnp.where(some, y, 1))
        positive = self._log_positive(base)
        log_zero = base.marginal_log_prob(jnp.zeros((1,), base.dtype))
        tiny = float(jnp.finfo(positive.dtype).tiny)  # zero's share of them is not all
        share = jnp.where(some, jnp.minimum(log_zero - counts_below, -tiny), -1)
        within = counts_below + jnp.log(-jnp.expm1(share)) - positive
        return jnp.where(some, within, -jnp.inf), jnp.where(some, counts_above - positive, 0)

    def log_cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        y = self._parameters(y)[-1]
        zero, rest = self.log_shares()
        below, above = self._log_base_tails(self.inner(), y)
        value = log_complement(jnp.exp(rest + above), zero, rest + below)
        return jnp.where(y < 0, -jnp.inf if self.discrete else rest + below, value)

    def log_survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        y = self._parameters(y)[-1]
        zero, rest = self.log_shares()
        below, above = self._log_base_tails(self.inner(), y)
        if self.discrete:
            return jnp.where(y < 0, 0, rest + above)
        negative = log_complement(jnp.exp(rest + below), zero, rest + above)
        return jnp.where(y < 0, negative, rest + above)

    def cdf(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        if self.discrete:
            return jnp.exp(self.log_cdf(y))
        y = self._parameters(y)[-1]
        zero, rest = self.shares()
        base = self.inner()
        above = rest * base.survival(y)
        # The two shares do not add up to one by the last digit.
        value = jnp.where(above < 0.5, 1 - above, zero + rest * base.cdf(y))
        return jnp.where(y < 0, rest * base.cdf(y), value)

    def survival(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        if self.discrete:
            return jnp.exp(self.log_survival(y))
        y = self._parameters(y)[-1]
        zero, rest = self.shares()
        base = self.inner()
        below = rest * base.cdf(y)
        value = jnp.where(below < 0.5, 1 - below, zero + rest * base.survival(y))
        return jnp.where(y < 0, value, rest * base.survival(y))

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The smallest ``y`` whose upper tail is at most ``q``, or whose cdf is at least that."""
        if self.discrete:
            return counts.whole_quantile(self, q, upper)
        q = self._parameters(q)[-1]
        zero, rest = self.shares()
        base = self.inner()
        none = jnp.zeros((1,), q.dtype)
        start, end = rest * base.cdf(none), rest * base.survival(none)
        below = jnp.where(upper, q >= end + zero, q <= start)
        above = jnp.where(upper, q < end, q > start + zero)
        # The base's tail on the quantile's side, or, where that rounds to one, the other.
        own, other = jnp.where(above == upper, q, 1 - q) / rest, (q - zero) / rest
        turned = (above != upper) & (other < 0.5) & (zero < 0.5)
        within = jnp.where(below | above, jnp.where(turned, other, own), 0.5)
        value = base.tail_quantile(jnp.clip(within, 0, 1), above != turned)
        valid = (q >= 0) & (q <= 1) & ~jnp.isnan(start + zero)
        # A base that is not known has no quantile, not even where the zeros are enough.
        return jnp.where(valid & ~jnp.isnan(value), jnp.where(below | above, value, 0), jnp.nan)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws; over counts by inverting the truncated family's survival function."""
        key_zero, key_base = jax.random.split(key)
        full = (*shape, *self.batch_shape, self.event_dim)
        share, _ = self.shares()
        zero = numerics.uniform(key_zero, full, share.dtype) < share
        base = self.inner()
        if not self.discrete:
            wide = base.map_parameters(lambda leaf, _: jnp.broadcast_to(leaf, full))
            return jnp.where(zero, 0, wide.sample(key_base)).astype(self.dtype)
        base, positive = jax.lax.stop_gradient((base, self._log_positive(base)))
        tiny = float(jnp.finfo(share.dtype).eps)
        uniform = jax.random.uniform(key_base, full, share.dtype, tiny, 1.0)
        level = uniform * jnp.exp(positive)  # of P(Y > y): no count is too rare for it
        count = counts.first_count(base, lambda y: base.survival(y) <= level, level)
        return jnp.where(zero, 0, jnp.maximum(count, 1))

    def _base_moments(self) -> tuple[Array, Array]:
        base = self.inner()
        mean, variance = base.mean(), base.variance()
        if not self.discrete:
            return mean, variance
        positive = jnp.exp(self._log_positive(base))
        ratio = mean / positive
        return ratio, variance / positive - (1 - positive) * ratio**2

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self.shares()[1] * self._base_moments()[0])

    def variance(self) -> Float[Array, "..."]:
        zero, rest = self.shares()
        mean, variance = self._base_moments()
        return self._fill(rest * (variance + zero * mean**2))
