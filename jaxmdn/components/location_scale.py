"""Families ``y = loc + scale * z`` with a standard member ``z`` that is symmetric about zero.

A subclass writes the standard member once, as elementwise functions of ``z``; everything else about
location and scale is here. The upper tail is the lower one of ``-z``, so that neither cancels.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.support import REAL, Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.typing import Array, Bool, Float, Parameter

LocationScaleT = TypeVar("LocationScaleT", bound="LocationScale")


class LocationScale(Univariate):
    """Base of the symmetric location-scale families, parameters ``[..., K, D]``.

    The methods that start with ``standard_`` are those of ``z``, in the compute dtype; they may
    depend on further parameters of the family.
    """

    loc: Parameter
    scale: Parameter

    domain: ClassVar[Support] = REAL
    #: Of ``z``; a family in which it depends on parameters writes both moments' rules itself.
    standard_variance: ClassVar[float] = 1.0

    @property
    def event_dim(self) -> int:
        return self.loc.shape[-1]

    @abc.abstractmethod
    def standard_log_prob(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log-density of the standard member."""

    @abc.abstractmethod
    def standard_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """``P(Z <= z)``, with relative accuracy for negative ``z``."""

    @abc.abstractmethod
    def standard_log_cdf(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """``log P(Z <= z)``."""

    @abc.abstractmethod
    def standard_quantile(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        """The ``z`` with ``P(Z <= z) = p``; NaN outside [0, 1]."""

    def standardize(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """``z = (y - loc) / scale``, in the compute dtype."""
        loc, scale, *_, y = self._parameters(y)
        return numerics.standardize(y, loc, scale)

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        z = self.standardize(y)
        return self.standard_log_prob(z) - jnp.log(self.scale.astype(z.dtype))

    def cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.standard_cdf(self.standardize(y))

    def survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.standard_cdf(-self.standardize(y))

    def tail(self, y: Float[Array, "..."], upper: Bool[Array, "..."]) -> Float[Array, "..."]:
        z = self.standardize(y)
        return self.standard_cdf(jnp.where(upper, -z, z))

    def log_cdf(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.standard_log_cdf(self.standardize(y))

    def log_survival(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.standard_log_cdf(-self.standardize(y))

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        loc, scale, *_, q = self._parameters(q)
        return loc + jnp.where(upper, -scale, scale) * self.standard_quantile(q)

    def mean(self) -> Float[Array, "..."]:
        return self._fill(self.loc)

    def variance(self) -> Float[Array, "..."]:
        return self._fill(self.standard_variance * self.scale**2)

    @classmethod
    def from_moments(
        cls: type[LocationScaleT],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        **constants: Any,
    ) -> LocationScaleT:
        scale = jnp.sqrt(variance / cls.standard_variance)
        return cls(loc=mean, scale=scale, **constants)  # type: ignore[call-arg]

    def affine(
        self: LocationScaleT, shift: Float[Array, "... D"], scale: Float[Array, "#D"]
    ) -> LocationScaleT:
        return dataclasses.replace(  # type: ignore[type-var]
            self, loc=shift + scale * self.loc, scale=jnp.abs(scale) * self.scale
        )
