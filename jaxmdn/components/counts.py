"""Families of counts: what whole numbers ask for, once for all of them.

Outside the whole numbers there is no mass, whatever the parameters; the distribution function is a
staircase; and the quantile is the first step that reaches the level, found by bisection.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.support import COUNTS, Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.special.roots import first_whole
from jaxmdn.special.sides import nearer_side
from jaxmdn.typing import Array, Bool, Float, Key, Num

#: By how many rounding units a distribution function may be off.
SLACK = 32


class CountDensity(Univariate):
    """Base of the families on ``0, 1, 2, ...`` with independent dimensions.

    A subclass writes ``log_mass``, ``tails`` and ``log_tails`` at whole ``y >= 0``, in the compute
    dtype, ``draw`` and the moments. Targets are integer or floating arrays of whole numbers; the
    log-density is ``-inf`` at all others, with a gradient of zero, and NaN at NaN. Nothing is
    differentiable in ``y``. Samples are whole numbers in the compute dtype (at least float32).
    """

    domain: ClassVar[Support] = COUNTS

    @abc.abstractmethod
    def log_mass(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``log P(Y = y)``."""

    @abc.abstractmethod
    def tails(self, y: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """``P(Y <= y)`` and ``P(Y > y)``, the smaller one with relative accuracy."""

    def log_tails(self, y: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Logarithms of :meth:`tails`."""
        below, above = self.tails(y)
        return jnp.log(below), jnp.log(above)

    @abc.abstractmethod
    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Whole numbers of the full shape, in the compute dtype."""

    def marginal_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        (y,) = self._targets(y)
        valid = self.domain.contains(y)
        value = self.log_mass(jnp.where(valid, y, 0))
        return jnp.where(valid, value, jnp.where(jnp.isnan(y), jnp.nan, -jnp.inf))

    def continued(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.log_mass(y)

    def _targets(self, y: Num[Array, "..."]) -> tuple[Array]:
        return (jax.lax.stop_gradient(self._parameters(y)[-1]),)

    def _staircase(
        self, y: Num[Array, "..."], values: Callable[..., tuple], least: float, most: float
    ) -> tuple[Array, Array]:
        (y,) = self._targets(y)
        inside = (y >= 0) & jnp.isfinite(y)
        tails = values(jnp.where(inside, jnp.floor(y), 0))
        return self._with_ends(y, inside, tails, least, most)

    def _tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        """``P(Y <= y)`` and ``P(Y > y)``: constant between whole numbers."""
        return self._staircase(y, self.tails, 0.0, 1.0)

    def _log_tails(self, y: Num[Array, "..."]) -> tuple[Array, Array]:
        return self._staircase(y, self.log_tails, -jnp.inf, 0.0)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        """The smallest count with ``cdf >= q`` (``survival <= q``); 0 and ``inf`` at the ends.

        No derivative: zero. In float32 counts beyond 2^24 are those that it can represent.
        """
        return whole_quantile(self, q, upper)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        return self.draw(key, (*shape, *self.batch_shape, self.event_dim))


def whole_quantile(
    density: Any, q: Float[Array, "..."], upper: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Quantile of each dimension of a family of counts that has a cdf and two moments."""
    density, q = jax.lax.stop_gradient(numerics.upcast_tree(density, q))
    inside = (q > 0) & (q < 1)
    level = jnp.where(inside, q, 0.5)
    near, above = nearer_side(level, upper)
    accept = partial(reaches, density, q=level, upper=upper)
    found = first_count(density, accept, jnp.where(above, near, 0.5))
    last = jnp.logical_xor(q == 1, upper)
    ends = jnp.where((q == 0) | (q == 1), jnp.where(last, jnp.inf, 0), jnp.nan)
    return jnp.where(inside, found, ends.astype(found.dtype))


def reaches(
    density: Any, y: Float[Array, "..."], q: Float[Array, "..."], upper: Bool[Array, "..."]
) -> Bool[Array, "..."]:
    """Whether ``P(Y <= y) >= q`` (``P(Y > y) <= q`` where ``upper``), up to rounding."""
    return reached(partial(density.tail, y), q, upper)


def reached(
    tail: Callable[[Array], Array], q: Float[Array, "..."], upper: Bool[Array, "..."]
) -> Bool[Array, "..."]:
    """As :func:`reaches`, of ``tail(upper)``: a level that is itself a step's must reach it.

    By the smaller tail, where ``1 - q`` is exact: but ``q`` itself has been rounded, next to one.
    """
    eps = float(jnp.finfo(q.dtype).eps)
    near, above = nearer_side(q, upper)
    value, room = tail(above), SLACK * eps
    slack = jnp.where(above == upper, 0, eps).astype(q.dtype)
    least = near * (1 - room) - slack
    return jnp.where(above, value <= near * (1 + room) + slack, value >= least)


def first_count(
    density: Any, accept: Callable[[Array], Array], above: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The smallest count that is accepted; one with ``P(Y > y) <= above`` must be."""
    mean, variance = density.mean(), density.variance()
    # Cantelli's inequality, and some room for rounding.
    reach = 1.05 * (mean + jnp.sqrt(variance) / jnp.sqrt(above)) + 2
    upper = jnp.ceil(jnp.broadcast_to(reach, jnp.broadcast_shapes(reach.shape, above.shape)))
    found = first_whole(accept, jnp.full_like(upper, -1), upper)
    return jnp.where(jnp.isnan(upper), jnp.nan, found)


def lattices(density: Any) -> tuple[tuple[float, float] | None, ...]:
    """For each dimension, where it is discrete, its smallest value and its step."""
    return tuple(
        (own.lower, own.step) if own.discrete and own.kind != "classes" else None
        for own in density.support
    )
