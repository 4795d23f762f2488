"""A logistic variable seen through equal bins: pixels, audio samples, ratings, rounded numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit

from jaxmdn import meshes, numerics
from jaxmdn.components.counts import reached
from jaxmdn.components.declare import constant, family, positive, real
from jaxmdn.components.support import Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.special.roots import bisect
from jaxmdn.special.softplus import log_sigmoid, sigmoid
from jaxmdn.typing import Array, Bool, Float, Key, Num, Parameter


@family
class DiscretizedLogistic(Univariate):
    """A product of logistic distributions rounded to the nearest of ``num_bins`` even levels.

    The levels are ``lower + i w``, ``w = (upper - lower) / (num_bins - 1)``. With ``F`` the
    logistic cdf, ``P(Y = y) = F(y + w / 2) - F(y - w / 2)``; the first and the last level take all
    that lies below and above them, so that the probabilities add up to one.

    Attributes:
      loc: centres before rounding, ``[..., K, D]``, in the target's unit.
      scale: logistic scales, ``[..., K, D]`` with size one allowed for K and D.
      lower, upper: the first and the last level (static numbers).
      num_bins: how many levels there are (static, at least 2).

    A target further than a sixteenth of a bin from every level has log-probability ``-inf``.
    Log-probabilities do not cancel and are finite at every level, far tails included.

    References:
      Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, eq. 2.
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)
    lower: float = constant(0.0)
    upper: float = constant(255.0)
    num_bins: int = constant(256)

    @property
    def lattice(self) -> tuple[float, float]:
        """The smallest value and the distance from one value to the next."""
        if self.num_bins < 2 or not self.lower < self.upper:
            raise ValueError(
                f"DiscretizedLogistic: expected lower < upper and num_bins >= 2, got lower "
                f"{self.lower}, upper {self.upper}, num_bins {self.num_bins}; lower and upper are "
                f"the first and the last level, not the outer edges of their bins."
            )
        return float(self.lower), (self.upper - self.lower) / (self.num_bins - 1)

    @property
    def domain(self) -> Support:  # type: ignore[override]
        origin, step = self.lattice
        return Support("interval", origin, float(self.upper), step=step, closed=True)

    @classmethod
    def from_moments(
        cls, mean: Float[Array, "..."], variance: Float[Array, "..."], **constants: Any
    ) -> DiscretizedLogistic:
        """The member whose logistic has these moments, less the rounding's own ``w^2 / 12``.

        Exact up to rounding effects where the bins are narrow and the ends far; the scale is at
        least a tenth of a bin.
        """
        member = cls(loc=mean, scale=mean, **constants)
        step = member.lattice[1]
        rest = jnp.maximum(variance - step * step / 12, (0.1 * step * math.pi) ** 2 / 3)
        return dataclasses.replace(member, scale=jnp.sqrt(3 * rest) / math.pi)

    def _index(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        """The nearest level's index, not bounded, and the distance from it in bins."""
        origin, step = self.lattice
        position = (jax.lax.stop_gradient(y) - origin) / step
        index = jnp.round(position)
        return index, position - index

    def _edge(self, index: Float[Array, "..."]) -> Float[Array, "..."]:
        """``(edge - loc) / scale`` of the upper edge of a bin."""
        origin, step = self.lattice
        loc, scale, index = self._parameters(index)
        return numerics.standardize(origin + (index + 0.5) * step, loc, scale)

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        _, scale, y = self._parameters(y)
        valid = self.domain.contains(y)
        index = self._index(jnp.where(valid, y, self.lower))[0]
        first, last = index == 0, index == self.num_bins - 1
        above, below = self._edge(index), -self._edge(index - 1)
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b))
        width = numerics.divide(jnp.asarray(self.lattice[1], scale.dtype), scale)
        value = jnp.where(last, 0, log_sigmoid(above))
        value = value + jnp.where(first, 0, log_sigmoid(below))
        value = value + jnp.where(first | last, 0, jnp.log(-jnp.expm1(-width)))
        return jnp.where(valid, value, jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf))

    def _staircase(
        self, y: Num[Array, "..."], inner: Callable, least: float, most: float
    ) -> tuple[Array, Array]:
        """``inner`` of both sides of the upper edge of the bin, and the ends."""
        (_, _, y) = self._parameters(y)
        origin, step = self.lattice
        index = jnp.floor((jax.lax.stop_gradient(y) - origin) / step + self.domain.tolerance)
        inside = (index >= 0) & (index < self.num_bins - 1)
        z = self._edge(jnp.where(inside, index, 0))
        return self._with_ends(y, inside, (inner(z), inner(-z)), least, most)

    def _tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        """``P(Y <= y)`` and ``P(Y > y)``: constant between levels."""
        return self._staircase(y, sigmoid, 0.0, 1.0)

    def _log_tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        return self._staircase(y, log_sigmoid, -jnp.inf, 0.0)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The smallest level with ``cdf >= q`` (``survival <= q``); NaN outside [0, 1].

        No derivative: zero.
        """
        loc, scale, q = jax.lax.stop_gradient(self._parameters(q))
        origin, step = self.lattice
        inside = (q > 0) & (q < 1)
        safe = jnp.where(inside, q, 0.5)
        logit = jnp.log(safe) - jnp.log1p(-safe)
        logistic = loc + jnp.where(upper, -scale, scale) * logit
        guess = jnp.ceil((logistic - origin) / step - 0.5)

        def reaches(index: Array) -> Array:
            z = self._edge(index)
            return reached(lambda above: sigmoid(jnp.where(above, -z, z)), safe, upper)

        # The guess may be off by one step, and next to one a compiler that computes it twice may
        # round it both ways: only ends of a bracket are taken from it.
        low, high = jnp.clip(guess - 2, -1, None), jnp.clip(guess + 1, 0, self.num_bins - 1)
        ends = jnp.minimum(low, high - 1), high  # at most three apart: two halvings
        index = bisect(reaches, *ends, steps=2, middle=lambda a, b: jnp.floor(0.5 * (a + b)))[1]
        last = jnp.logical_xor(q == 1, upper)
        index = jnp.where(inside, index, jnp.where(last, self.num_bins - 1, 0))
        valid = (q >= 0) & (q <= 1) & ~jnp.isnan(logistic)
        return jnp.where(valid, origin + index * step, jnp.nan)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        loc, scale = jax.lax.stop_gradient(self._parameters())
        full = (*shape, *self.batch_shape, self.event_dim)
        draw = loc + scale * logit(numerics.uniform(key, full, loc.dtype))
        origin, step = self.lattice
        return origin + jnp.clip(jnp.round((draw - origin) / step), 0, self.num_bins - 1) * step

    def _moments(self) -> tuple[Array, Array]:
        """Mean and variance in bins, the mean relative to the first level.

        About the level next to ``loc``, so that the variance of narrow densities does not cancel.
        """
        loc, scale = self._parameters()
        origin, step = self.lattice
        centre = jnp.clip(jnp.round((loc - origin) / step), 0, self.num_bins - 1)
        centre = jax.lax.stop_gradient(centre)

        def add(total: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
            distance = index - centre
            upper = distance >= 0
            z = self._edge(index)
            tail = sigmoid(jnp.where(upper, -z, z))  # P(Y > level), or P(Y <= level)
            first, second = total
            first = first + jnp.where(upper, tail, -tail)
            return (first, second + jnp.abs(2 * distance + 1) * tail), None

        zero = jnp.zeros(jnp.broadcast_shapes(loc.shape, scale.shape), loc.dtype)
        indices = jnp.asarray(np.arange(self.num_bins - 1), loc.dtype)
        first, second = meshes.scan(jax.checkpoint(add), (zero, zero), indices)[0]
        return centre + first, second - first**2

    def mean(self) -> Float[Array, "..."]:
        origin, step = self.lattice
        return self._fill(origin + step * self._moments()[0])

    def variance(self) -> Float[Array, "..."]:
        return self._fill(self.lattice[1] ** 2 * self._moments()[1])
