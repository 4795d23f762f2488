"""The asymmetric Laplace family: skewed, on the real line, every function elementary."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.declare import family, positive, real
from jaxmdn.components.support import REAL, Support
from jaxmdn.components.univariate import Univariate
from jaxmdn.typing import Array, Bool, Float, Key, Parameter


@family
class AsymmetricLaplace(Univariate):
    """A product of asymmetric Laplace densities.

    With ``z = (y_d - loc_d) / scale_d`` and the asymmetry ``k`` each is::

        k / (1 + k^2) / scale exp(-k z) for z > 0,  k / (1 + k^2) / scale exp(z / k) for z < 0.

    Its negative logarithm is the pinball loss of the level ``k^2 / (1 + k^2)``, of which ``loc`` is
    the quantile.

    Attributes:
      loc: modes, ``[..., K, D]``.
      scale: scales, ``[..., K, D]``, positive.
      asymmetry: ``k``, ``[..., K, D]``, positive: one for Laplace's, less for a long upper tail.

    Sizes of one are allowed for K and D. Limits: the density has a cusp at ``loc``, where the
    derivatives of its logarithm are those from the right.

    References:
      Kotz, Kozubowski and Podgorski (2001), The Laplace Distribution and Generalizations,
        eq. 3.1.10.
    """

    loc: Parameter = real(in_unit=True)
    scale: Parameter = positive(in_unit=True)
    asymmetry: Parameter = positive(fixable=True)

    power_tails: ClassVar = False

    domain: ClassVar[Support] = REAL

    def _exponent(self, y: Array) -> tuple[Array, Array, Array]:
        """Whether ``y`` is below the mode, minus the exponent, and the asymmetry."""
        loc, scale, asymmetry, y = self._parameters(y)
        z = numerics.standardize(y, loc, scale)
        return z < 0, jnp.where(z < 0, -z / asymmetry, z * asymmetry), asymmetry

    def marginal_log_prob(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        _, size, asymmetry = self._exponent(y)
        # k / (1 + k^2) = 1 / (k + 1 / k): no square to overflow
        return -size - jnp.log(asymmetry + 1 / asymmetry) - jnp.log(self._parameters()[1])

    def _tails(self, y: Array) -> tuple[Array, Array]:
        below, size, asymmetry = self._exponent(y)
        share = jnp.where(below, _share(asymmetry), _share(1 / asymmetry))
        near = share * jnp.exp(-size)
        return jnp.where(below, near, 1 - near), jnp.where(below, 1 - near, near)

    def _log_tails(self, y: Array) -> tuple[Array, Array]:
        below, size, asymmetry = self._exponent(y)
        share = jnp.where(below, _share(asymmetry), _share(1 / asymmetry))
        near = jnp.log(share) - size
        far = jnp.log1p(-share * jnp.exp(-size))
        return jnp.where(below, near, far), jnp.where(below, far, near)

    def tail_quantile(
        self, q: Float[Array, "..."], upper: Bool[Array, "..."]
    ) -> Float[Array, "..."]:
        loc, scale, asymmetry, q = self._parameters(q)
        share, rest = _share(asymmetry), _share(1 / asymmetry)
        below = jnp.where(upper, q >= rest, q < share)
        near = jnp.where(below == upper, 1 - q, q)  # the tail that is exponential there
        left = jnp.log(jnp.where(below, near, share) / share)
        right = jnp.log(jnp.where(below, rest, near) / rest)
        return loc + scale * jnp.where(below, asymmetry * left, -right / asymmetry)

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        full = (2, *shape, *self.batch_shape, self.event_dim)
        loc, scale, asymmetry = self._parameters()
        up, down = jax.random.exponential(key, full, loc.dtype)
        return (loc + scale * (up / asymmetry - down * asymmetry)).astype(self.dtype)

    def mean(self) -> Float[Array, "..."]:
        loc, scale, asymmetry = self._parameters()
        return self._fill(loc + scale * (1 / asymmetry - asymmetry))

    def variance(self) -> Float[Array, "..."]:
        _, scale, asymmetry = self._parameters()
        return self._fill((scale / asymmetry) ** 2 + (scale * asymmetry) ** 2)

    def affine(self, shift: Float[Array, "... D"], scale: Float[Array, "#D"]) -> AsymmetricLaplace:
        return dataclasses.replace(
            self,
            loc=shift + scale * self.loc,
            scale=jnp.abs(scale) * self.scale,
            asymmetry=jnp.where(scale < 0, 1 / self.asymmetry, self.asymmetry),
        )

    @classmethod
    def from_moments(
        cls,
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        *,
        asymmetry: float = 1.0,
        **constants: Any,
    ) -> AsymmetricLaplace:
        """The member with these moments and this asymmetry, a positive Python number."""
        if not asymmetry > 0:
            raise ValueError(
                f"AsymmetricLaplace.from_moments: asymmetry must be positive, got {asymmetry}."
            )
        scale = jnp.sqrt(variance / (asymmetry**-2 + asymmetry**2))
        loc = mean - scale * (1 / asymmetry - asymmetry)
        full = jnp.full_like(scale, asymmetry)
        return cls(loc=loc, scale=scale, asymmetry=full, **constants)


def _share(asymmetry: Array) -> Array:
    """``k^2 / (1 + k^2)``, the probability below the mode."""
    inverse = 1 / asymmetry
    return asymmetry / (asymmetry + inverse)
