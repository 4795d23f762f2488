"""The von Mises family: angles, hours of the day, directions; the circle's normal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxmdn.components.declare import family, magnitude, real
from jaxmdn.components.support import CIRCLE, Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.special import circular
from jaxmdn.special.circular import TURN, representative
from jaxmdn.special.roots import bisect
from jaxmdn.special.sides import log_complement, log_rest
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family
class VonMises(Univariate):
    """A product of von Mises densities, ``exp(k_d cos(y_d - loc_d)) / (2 pi I0(k_d))``, in radians.

    Attributes:
      loc: circular means and modes, ``[..., K, D]``; any real number, modulo ``2 pi``.
      concentration: ``k``, ``[..., K, D]`` with size one allowed for K and D; not negative, zero is
        the uniform. About ``1 / variance`` for large ones.

    Targets are any real numbers, taken modulo ``2 pi``; the density integrates to one over a turn.
    What needs an order (cdf, quantile, samples, mean, variance) is that of the representative in
    ``[-pi, pi]``, as a real variable: the mean of a density that straddles the cut lies far from
    its mode. :meth:`circular_mean` and :meth:`circular_variance` do not depend on the cut.

    Accurate to the dtype for concentrations from 0 on, in value and in derivatives. Samples are
    differentiable in both parameters (implicitly): the derivative of the mean of ``f(sample)`` is
    that of ``E[f(Y)]`` for a periodic ``f``; another one would notice who crosses the cut.

    References:
      Mardia and Jupp (2000), Directional Statistics, section 3.5.4; Best and Fisher (1979),
      Efficient simulation of the von Mises distribution; Bishop and Legleye (1994), Estimating
      conditional probability densities for periodic variables.
    """

    loc: Parameter = real()
    concentration: Parameter = magnitude()

    domain: ClassVar[Support] = CIRCLE

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> VonMises:
        """The member about this mean with this variance of ``y - mean`` in ``[-pi, pi]``.

        Uniform where the variance is ``pi^2 / 3`` or more.
        """
        low, high = jnp.zeros_like(variance), jnp.full_like(variance, math.log(1e8))
        low = low - math.log(1e4)

        def narrow(log_k: Array) -> Array:
            return ~(_own_variance(jnp.exp(log_k)) > variance)

        low, high = bisect(narrow, low, high, steps=40)
        return cls(loc=mean, concentration=jnp.exp(0.5 * (low + high)))

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        loc, concentration, y = self._parameters(y)
        infinite = jnp.isinf(y)
        value = circular.log_density(jnp.where(infinite, 0, y) - loc, concentration)
        return jnp.where(infinite, -jnp.inf, value)

    def _turned(self, *arrays: Array) -> tuple[Array, ...]:
        """``loc`` in ``[-pi, pi]``, ``concentration``, the sign of ``loc``, and what lies beyond.

        That is, ``P(loc + Z > pi)`` where the sign is positive, else ``P(loc + Z < -pi)``.
        """
        loc, concentration, *values = self._parameters(*arrays)
        loc = representative(loc)
        sign = jnp.where(loc < 0, -1, 1).astype(loc.dtype)
        beyond = circular.survival(math.pi - sign * loc, concentration)
        return loc, concentration, sign, beyond, *values

    def _above(self, y: Float[Array, "..."], sign: float) -> Float[Array, "..."]:
        """``P(sign Y > sign y)``, with relative accuracy where it is small."""
        loc, concentration, side, beyond, y = self._turned(y)
        infinite = jnp.isinf(y)
        ends = jnp.where(sign * y < 0, 1, 0).astype(y.dtype)
        y = representative(jnp.where(infinite, 0, y))
        # E(z) - E(pi - loc), where E is the survival function of Z, E(z + 2 pi) = E(z) - 1.
        z = sign * (y - loc)
        over, under = z > math.pi, z < -math.pi
        inner = jnp.where(over, TURN - z, jnp.where(under, TURN + z, z))
        own = circular.survival(inner, concentration)
        own = jnp.where(over, -own, jnp.where(under, 1 + own, own))
        return jnp.where(infinite, ends, jnp.clip(own - sign * side * beyond, 0, 1))

    def place(self) -> tuple[Array, Array]:
        """Centre and width along the circle itself."""
        loc, concentration = self._parameters()
        return representative(loc), 1 / jnp.sqrt(0.25 + concentration)

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``P(Y <= y)`` of the representative in ``[-pi, pi]``; 0 and 1 at ``-inf`` and ``inf``."""
        return self._above(y, -1.0)

    def survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._above(y, 1.0)

    def _log_above(self, y: Float[Array, "..."], sign: float) -> Float[Array, "..."]:
        """The logarithm of ``_above``: of a difference of two tails, or of what that leaves of one.

        With ``E`` and ``z`` as there, ``c = E(pi - |loc|)`` is the smaller one of the two, or,
        where the way from ``loc`` to ``y`` crosses the cut, the larger one.
        """
        loc, concentration, y = self._parameters(y)
        loc = representative(loc)
        ends = jnp.where(sign * y < 0, 0, -jnp.inf).astype(y.dtype)
        z = sign * (representative(jnp.where(jnp.isinf(y), 0, y)) - loc)
        left = loc < 0
        beside = left == (sign < 0)  # the cut is on the side whose probability is asked for
        crosses = jnp.abs(z) > math.pi
        inner = jnp.where(crosses, TURN - jnp.abs(z), jnp.where(beside, z, -z))
        own = circular.log_tails(inner, concentration)
        cut = circular.log_tails(math.pi - jnp.where(left, -loc, loc), concentration)
        rest, large = (jnp.where(crosses, c, o) for c, o in zip(cut, own, strict=True))
        small = jnp.where(crosses, own[1], cut[1])
        difference = large + log_rest(jnp.minimum(small - large, 0))
        others = log_complement(jnp.exp(difference), rest, small)
        value = jnp.where(beside == crosses, others, difference)
        return jnp.where(jnp.isinf(y), ends, value)

    def log_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``-inf``, with derivatives of zero, where two tails that differ round to the same."""
        return self._log_above(y, -1.0)

    def log_survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._log_above(y, 1.0)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The ``y`` in ``[-pi, pi]`` with ``tail(y, upper) = q``; NaN for a q outside [0, 1]."""
        loc, concentration, sign, beyond, q = self._turned(q)
        side = jnp.where(upper, -1, 1).astype(q.dtype)
        level = q - side * sign * beyond
        turns = jnp.where(level < 0, -1, jnp.where(level > 1, 1, 0)).astype(level.dtype)
        y = loc + circular.quantile(level - turns, concentration, upper) + TURN * side * turns
        y = jnp.where(q == 0, -side * math.pi, jnp.where(q == 1, side * math.pi, y))
        return jnp.where((q >= 0) & (q <= 1), jnp.clip(y, -math.pi, math.pi), jnp.nan)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, concentration = self._parameters()
        full = (*shape, *self.batch_shape, self.event_dim)
        concentration = jnp.broadcast_to(concentration, full)
        z = circular.attach(circular.draw(key, concentration), concentration)
        return representative(loc + z).astype(self.dtype)

    def mean(self) -> Float[Array, "..."]:
        """Mean of the representative in ``[-pi, pi]``."""
        loc, _, sign, beyond = self._turned()
        return self._fill(loc - TURN * sign * beyond)

    def variance(self) -> Float[Array, "..."]:
        """Variance of the representative in ``[-pi, pi]``."""
        loc, concentration, sign, beyond = self._turned()
        partial, half = circular.upper_moments(math.pi - sign * loc, concentration)
        moved = TURN * (TURN * beyond * (1 - beyond) - 2 * partial)
        return self._fill(2 * half + moved)

    def turn(self, angle: Float[Array, "..."]) -> VonMises:
        """The density of ``y + angle``."""
        return dataclasses.replace(self, loc=self.loc + angle)

    def circular_mean(self) -> Float[Array, "..."]:
        """The direction ``arg E[exp(i Y)]`` in ``[-pi, pi]``."""
        return self._fill(representative(self._parameters()[0]))

    def circular_variance(self) -> Float[Array, "..."]:
        """``1 - |E[exp(i Y)]| = 1 - I1(k) / I0(k)``, from 0 to 1."""
        return self._fill(circular.resultant_gap(self._parameters()[1]))


def _own_variance(concentration: Array) -> Array:
    return 2 * circular.upper_moments(jnp.zeros_like(concentration), concentration)[1]
