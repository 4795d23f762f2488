"""distrax both ways: hand a mixture to distrax code, or bring one in.

The only module that imports distrax; nothing else in the library needs it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components import Categorical, FullNormal, LowRankNormal, Normal
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture

try:
    import distrax
except Exception as error:  # a broken TensorFlow Probability raises far more than ImportError
    raise ImportError(
        f"jaxmdn.interop needs a working distrax, but importing it failed: {error!r}; "
        f"install or repair it with: pip install 'distrax>=0.1.9'. "
        f"All of jaxmdn but to_distrax and from_distrax works without it."
    ) from error


def to_distrax(density: Density) -> distrax.Distribution:
    """Return the distrax distribution of the same density.

    ``Normal`` becomes ``MultivariateNormalDiag``, ``FullNormal`` ``MultivariateNormalTri``,
    ``LowRankNormal`` ``MultivariateNormalFullCovariance`` (distrax has no low-rank covariance),
    ``Mixture`` ``MixtureSameFamily`` (nested ones too). Targets keep their event axis
    ``[..., D]``; distrax's ``Categorical`` has none, so drop the last axis of a class index.
    Half-precision parameters become float32, the dtype of jaxmdn's own log-densities.

    Raises:
      TypeError: for a family distrax does not have.

    >>> import jax.numpy as jnp, jaxmdn
    >>> mixture = jaxmdn.NormalHead(3, 2)(jnp.zeros(15))
    >>> jaxmdn.to_distrax(mixture).event_shape
    (2,)
    """
    density = density.map_parameters(lambda parameter, _: numerics.upcast(parameter)[0])
    if isinstance(density, Mixture):
        shape = (*density.batch_shape, density.num_components)
        return distrax.MixtureSameFamily(
            mixture_distribution=distrax.Categorical(
                logits=jnp.broadcast_to(density.log_weights(), shape)
            ),
            components_distribution=to_distrax(_with_batch_shape(density.components, shape)),
        )
    if isinstance(density, Categorical):
        return distrax.Categorical(logits=density.logits)
    full_shape = (*density.batch_shape, density.event_dim)
    if isinstance(density, Normal):
        return distrax.MultivariateNormalDiag(
            loc=density.mean(), scale_diag=jnp.broadcast_to(density.scale, full_shape)
        )
    if isinstance(density, FullNormal):
        tril = jnp.broadcast_to(density.scale_tril, (*full_shape, density.event_dim))
        return distrax.MultivariateNormalTri(loc=density.mean(), scale_tri=tril)
    if isinstance(density, LowRankNormal):
        return distrax.MultivariateNormalFullCovariance(
            loc=density.mean(), covariance_matrix=density.covariance()
        )
    raise TypeError(f"to_distrax: distrax has no counterpart of {type(density).__name__}.")


def _with_batch_shape(density: Density, shape: tuple[int, ...]) -> Density:
    """Broadcast the parameters: distrax lets no leading axis be shared."""
    return density.map_parameters(
        lambda parameter, rank: jnp.broadcast_to(
            parameter, (*shape, *parameter.shape[parameter.ndim - rank :])
        )
    )


def from_distrax(distribution: Any) -> Density:
    """Return the jaxmdn density of a distrax distribution.

    Univariate normals get an event axis, ``D = 1``. ``MixtureSameFamily`` becomes a ``Mixture``;
    a plain multivariate normal, a component family.

    Raises:
      TypeError: for a distribution jaxmdn has no family for.

    References:
      Babuschkin et al. (2020), The DeepMind JAX Ecosystem (distrax).
    """
    if isinstance(distribution, distrax.MixtureSameFamily):
        return Mixture(
            logits=distribution.mixture_distribution.logits,
            components=from_distrax(distribution.components_distribution),
        )
    if isinstance(distribution, distrax.Categorical):
        return Categorical(logits=distribution.logits)
    if isinstance(distribution, distrax.Normal):
        loc, scale = jnp.broadcast_arrays(distribution.loc, distribution.scale)
        return Normal(loc=loc[..., None], scale=scale[..., None])
    if isinstance(distribution, distrax.MultivariateNormalDiag):
        return Normal(loc=distribution.loc, scale=jnp.abs(distribution.scale_diag))
    if isinstance(distribution, distrax.MultivariateNormalTri):
        tril = distribution.scale_tri
        if not distribution.is_lower:  # an upper factor: go through the covariance
            return FullNormal.from_covariance(distribution.loc, distribution.covariance())
        # Signs on the diagonal are free in distrax; a column's sign leaves the covariance alone.
        signs = jnp.sign(jnp.diagonal(tril, axis1=-2, axis2=-1))
        return FullNormal.from_scale_tril(distribution.loc, tril * signs[..., None, :])
    if isinstance(
        distribution,
        distrax.MultivariateNormalFullCovariance | distrax.MultivariateNormalDiagPlusLowRank,
    ):
        return FullNormal.from_covariance(distribution.loc, distribution.covariance())
    raise TypeError(
        f"from_distrax: no jaxmdn family for {type(distribution).__name__}; supported are Normal, "
        f"MultivariateNormalDiag, MultivariateNormalTri, MultivariateNormalFullCovariance, "
        f"MultivariateNormalDiagPlusLowRank, Categorical and MixtureSameFamily of these."
    )
