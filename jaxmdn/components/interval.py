"""Families that live on an interval: positive numbers, shares, durations up to a limit.

A subclass says what happens inside; what holds at the ends and beyond them is here, once: a
log-density of ``-inf`` with derivatives of zero outside, the limit at the ends, distribution
functions that stay at zero and one, quantiles that end where the support does.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxmdn.components.support import POSITIVE, Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.typing import Array, Float


class IntervalDensity(Univariate):
    """Base of the families on ``[lower, upper]``, parameters ``[..., K, D]``.

    The methods that start with ``inner_`` are called with finite targets strictly inside (the
    density also at the ends, where ``closed``) and probabilities strictly between 0 and 1, in the
    compute dtype.

    Limits, for all of them: outside the interval the log-density is ``-inf`` and its derivatives
    are zero; at the ends it is the limit from inside, with derivatives of zero where that is
    infinite. NaN gives NaN. Quantiles of 0 and 1 are the ends; outside [0, 1] they are NaN.
    """

    lower: float
    upper: float
    #: Whether the log-density at the ends is finite, and ``inner_log_prob`` right there.
    closed: ClassVar[bool] = False

    @abc.abstractmethod
    def inner_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log-density."""

    @abc.abstractmethod
    def inner_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        """``P(Y_d < y_d)`` and ``P(Y_d > y_d)``, each without cancellation."""

    @abc.abstractmethod
    def inner_log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        """Logarithms of both tails."""

    def limits(self) -> tuple[Array | float, Array | float]:
        """The limits of the log-density at both ends."""
        return -math.inf, -math.inf

    def _guard(self, y: Array, inside: Array) -> Array:
        """The targets, with a harmless one instead of those that are not inside."""
        return jnp.where(inside, y, jnp.asarray(self.domain.inside, y.dtype))

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        y = self._parameters(y)[-1]
        inside = self.domain.contains(y)
        value = self.inner_log_prob(self._guard(y, inside))
        low, high = self.limits()
        beyond = jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf).astype(value.dtype)
        if not self.closed:
            beyond = jnp.where(y == self.lower, low, jnp.where(y == self.upper, high, beyond))
        return jnp.where(inside, value, beyond)

    def _both(self, tails: Callable, y: Array, least: float, most: float) -> tuple[Array, Array]:
        y = self._parameters(y)[-1]
        inside = (y > self.lower) & (y < self.upper)
        return self._with_ends(y, inside, tails(self._guard(y, inside)), least, most)

    def _tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return self._both(self.inner_tails, y, 0.0, 1.0)

    def _log_tails(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        return self._both(self.inner_log_tails, y, -jnp.inf, 0.0)


class PositiveDensity(IntervalDensity):
    """Base of the families on the positive numbers; a change of unit stays in the family."""

    lower = 0.0
    upper = math.inf
    domain: ClassVar[Support] = POSITIVE


class BoundedDensity(IntervalDensity):
    """Base of the families between two static bounds ``lower < upper``, Python numbers.

    Members of different bounds do not join (``merge``).
    """

    @property
    def domain(self) -> Support:  # type: ignore[override]
        kind = "interval" if math.isfinite(self.lower) or math.isfinite(self.upper) else "real"
        return Support(kind, self.lower, self.upper, closed=self.closed)

    @property
    def width(self) -> float:
        """``upper - lower``."""
        return self.upper - self.lower

    def units(self, y: Float[Array, "..."]) -> tuple[Array, Array]:
        """``(y - lower) / (upper - lower)`` and its complement to one, never zero inside."""
        tiny = float(jnp.finfo(y.dtype).tiny)
        below, above = (y - self.lower) / self.width, (self.upper - y) / self.width
        return jnp.maximum(below, tiny), jnp.maximum(above, tiny)

    def from_units(self, x: Array, complement: Array) -> Array:
        """The ``y`` of :meth:`units`, counted from the nearer bound."""
        return jnp.where(x < 0.5, self.lower + self.width * x, self.upper - self.width * complement)


def check_bounds(name: str, lower: Any, upper: Any, *, finite: bool = True) -> None:
    """Raise unless ``lower < upper`` are Python numbers (finite, or one of them at least)."""
    for side, value in (("lower", lower), ("upper", upper)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"{name}: {side} must be a Python number (bounds are static), got "
                f"{type(value).__name__}."
            )
    if not lower < upper:
        raise ValueError(f"{name}: lower must be below upper, got {lower!r} and {upper!r}.")
    if finite and not (math.isfinite(lower) and math.isfinite(upper)):
        raise ValueError(f"{name}: both bounds must be finite, got {lower!r} and {upper!r}.")
