"""Families with extra mass at zero: what zero inflation and hurdles have in common.

Both hold another family and the log-odds of an extra zero; parameters of both are mapped, taken,
joined and narrowed together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import numerics
from jaxmdn.components.counts import CountDensity
from jaxmdn.components.univariate import Univariate
from jaxmdn.special.softplus import log_sigmoid
from jaxmdn.typing import Array, Float, Parameter

ZeroMassT = TypeVar("ZeroMassT", bound="ZeroMass")


class ZeroMass(Univariate):
    """Base of ``ZeroInflated`` and ``Hurdle``: fields ``base`` and ``logit``."""

    base: Any
    logit: Parameter

    def map_parameters(self: ZeroMassT, function: Callable[[Array, int], Array]) -> ZeroMassT:
        return dataclasses.replace(  # type: ignore[type-var]
            self, base=self.base.map_parameters(function), logit=function(self.logit, 1)
        )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.logit.shape[:-1], self.base.batch_shape)

    @property
    def event_dim(self) -> int:
        return max(self.logit.shape[-1], self.base.event_dim)

    @property
    def dtype(self) -> np.dtype:
        return self.base.dtype

    @classmethod
    def align(cls: type[ZeroMassT], densities: tuple[ZeroMassT, ...]) -> tuple[ZeroMassT, ...]:
        bases = type(densities[0].base).align(tuple(density.base for density in densities))
        pairs = zip(densities, bases, strict=True)
        return tuple(dataclasses.replace(own, base=base) for own, base in pairs)  # type: ignore[type-var]

    @classmethod
    def from_moments(
        cls: type[ZeroMassT],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        **constants: Any,
    ) -> ZeroMassT:
        """The member with these moments and at most a tenth of extra zeros.

        ``base`` is the family of the rest; further constants are passed on to it. The moments are
        those asked for if the base can have what is left for it.
        """
        family = constants.pop("base")
        # variance = (1 - z) (base variance + z base mean^2): half of it, at most, by the zeros.
        odds = jnp.minimum(1 / 9, 0.5 * variance / jnp.maximum(mean * mean, variance))
        share = odds / (1 + odds)
        inner = mean / (1 - share)
        rest = variance / (1 - share) - share * inner * inner
        base = family.from_moments(inner, rest, **constants)
        return cls(base=base, logit=jnp.log(odds))  # type: ignore[call-arg]

    def inner(self, *, counts: bool = False) -> Any:
        """The base in the compute dtype, checked."""
        kind = CountDensity if counts or self.base.discrete else Univariate
        if not isinstance(self.base, kind):
            raise TypeError(
                f"{type(self).__name__}: expected a base family "
                f"{'of counts' if counts else 'with independent dimensions'}, got "
                f"{type(self.base).__name__}; "
                + ("use Hurdle for real-valued ones." if counts else "see jaxmdn.components.")
            )
        return numerics.upcast_tree(self.base, self.logit)[0]

    def place(self) -> tuple[Array, Array]:
        return self.inner().place()

    def log_shares(self) -> tuple[Array, Array]:
        """Log-probabilities of an extra zero and of none, in the compute dtype."""
        logit = numerics.upcast_tree(self.base, self.logit)[1]
        return log_sigmoid(logit), log_sigmoid(-logit)

    def shares(self) -> tuple[Array, Array]:
        """Probabilities of an extra zero and of none."""
        extra, rest = self.log_shares()
        return jnp.exp(extra), jnp.exp(rest)

    def _parameters(self, *arrays: Array) -> tuple[Array, ...]:
        leaves = jax.tree.leaves((self.base, self.logit))
        return numerics.upcast(*leaves, *arrays)
