"""Families as a user writes them: a log-density, and what follows from it by quadrature."""

import jax
import jax.numpy as jnp

from jaxmdn.components import Support, Univariate, family, positive, real


@family
class Gumbel(Univariate):
    """Largest values: what is not written here follows from the log-density."""

    loc: jax.Array = real()
    scale: jax.Array = positive()

    domain = Support("real", closed_under="positive_affine")

    def marginal_log_prob(self, y):
        loc, scale, y = self._parameters(y)
        z = (y - loc) / scale
        return -z - jnp.exp(-z) - jnp.log(scale)

    def affine(self, shift, scale):
        return Gumbel(loc=shift + scale * self.loc, scale=scale * self.scale)


@family
class Lomax(Univariate):
    """Positive with a power tail, and bounded by no moment: the other substitution."""

    scale: jax.Array = positive()
    shape: jax.Array = positive()

    domain = Support("positive", 0.0)

    def marginal_log_prob(self, y):
        scale, shape, y = self._parameters(y)
        return jnp.log(shape) - jnp.log(scale) - (shape + 1) * jnp.log1p(y / scale)
