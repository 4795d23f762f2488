"""distrax both ways: hand a mixture to distrax code, or bring one in.

The only module that imports distrax; nothing else in the library needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import components, numerics
from jaxmdn.components import Categorical, FullNormal, LowRankNormal, Normal
from jaxmdn.components.base import Density
from jaxmdn.components.batch import spread
from jaxmdn.components.interval import BoundedDensity, check_bounds
from jaxmdn.mixture import Mixture

try:
    import distrax
except Exception as error:  # a broken TensorFlow Probability raises far more than ImportError
    raise ImportError(
        f"jaxmdn.interop needs a working distrax, but importing it failed: {error!r}; "
        f"install or repair it with: pip install 'distrax>=0.1.9'. "
        f"All of jaxmdn but to_distrax and from_distrax works without it."
    ) from error


class Counterpart(NamedTuple):
    """How distrax spells one dimension of a family.

    Attributes:
      distribution: its class.
      names: what it calls our parameters.
      bijectors: what takes its variable to ours, outermost first as in ``distrax.Chain``; the
        bounds of a bounded family come in front.
    """

    distribution: type[distrax.Distribution]
    names: dict[str, str]
    bijectors: tuple[Callable[[Any], Any], ...] = ()


LOCATION = {"loc": "loc", "scale": "scale"}
#: The families whose dimensions are independent: ``distrax.Independent`` of the counterpart.
COUNTERPARTS: dict[type[Any], Counterpart] = {
    Normal: Counterpart(distrax.Normal, LOCATION),  # to_distrax: MultivariateNormalDiag
    components.Laplace: Counterpart(distrax.Laplace, LOCATION),
    components.Logistic: Counterpart(distrax.Logistic, LOCATION),
    components.LogNormal: Counterpart(distrax.Normal, LOCATION, (jnp.exp,)),
    components.LogitNormal: Counterpart(distrax.Normal, LOCATION, (jax.nn.sigmoid,)),
    components.Gamma: Counterpart(
        distrax.Gamma, {"concentration": "concentration", "rate": "rate"}
    ),
    components.Beta: Counterpart(
        distrax.Beta, {"concentration1": "alpha", "concentration0": "beta"}
    ),
    components.VonMises: Counterpart(
        distrax.VonMises, {"loc": "loc", "concentration": "concentration"}
    ),
    components.Bernoulli: Counterpart(distrax.Bernoulli, {"logit": "logits"}),
}


def to_distrax(density: Density) -> distrax.Distribution:
    """Return the distrax distribution of the same density.

    ``Normal`` becomes ``MultivariateNormalDiag``, ``FullNormal`` ``MultivariateNormalTri``,
    ``LowRankNormal`` ``MultivariateNormalFullCovariance`` (distrax has no low-rank covariance),
    ``Mixture`` ``MixtureSameFamily`` (nested ones too). ``Laplace``, ``Logistic``, ``Gamma``,
    ``Beta``, ``VonMises`` and ``Bernoulli`` become ``Independent`` of their namesakes,
    ``LogNormal`` and ``LogitNormal`` of a ``Transformed`` normal; bounds other than 0 and 1 are a
    ``ScalarAffine``. Targets keep their event axis ``[..., D]``; distrax's ``Categorical`` has
    none, so drop the last axis of a class index. Half-precision parameters become float32, the
    dtype of jaxmdn's own log-densities.

    What distrax 0.1.9 then computes is not all jaxmdn computes. Outside a support its log-densities
    are NaN (a Bernoulli's: interpolated), not ``-inf``, and at the ends of one they may be NaN. In
    float32 a von Mises has ``-inf`` for concentrations above 88 (709 in float64), and gamma and
    beta are off by 1e-3 for concentrations of 1e4. Its mean and variance of a von Mises are the
    circular ones; a ``Transformed`` has no variance, and a mean only where the map is affine.

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
            components_distribution=to_distrax(spread(density.components, shape)),
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
    if type(density) in COUNTERPARTS:
        return distrax.Independent(_one_dimension(density), reinterpreted_batch_ndims=1)
    raise TypeError(f"to_distrax: distrax has no counterpart of {type(density).__name__}.")


def _one_dimension(density: Any) -> distrax.Distribution:
    """The distribution whose batch shape is that of ``density`` and its dimensions."""
    there = COUNTERPARTS[type(density)]
    parameters = {theirs: getattr(density, ours) for ours, theirs in there.names.items()}
    distribution, bijectors = there.distribution(**parameters), there.bijectors
    if isinstance(density, BoundedDensity) and (density.lower, density.upper) != (0, 1):
        bijectors = (distrax.ScalarAffine(density.lower, density.width), *bijectors)
    if bijectors:
        bijector = distrax.Chain(bijectors) if len(bijectors) > 1 else bijectors[0]
        distribution = distrax.Transformed(distribution, bijector)
    return distribution


def from_distrax(distribution: Any) -> Density:
    """Return the jaxmdn density of a distrax distribution.

    The way back from :func:`to_distrax`. ``Independent`` over one axis keeps it as the event axis;
    a univariate distribution gets one, ``D = 1``. ``MixtureSameFamily`` becomes a ``Mixture``; a
    plain multivariate normal, a component family. A ``ScalarAffine`` gives a beta or logit-normal
    its bounds, numbers known outside ``jit``; the upper one returns up to rounding.

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
    spread = getattr(distribution, "reinterpreted_batch_ndims", 0) == 1  # an Independent
    density = _from_one_dimension(distribution.distribution if spread else distribution)
    if density is not None:
        return density if spread else density.map_parameters(lambda leaf, _: leaf[..., None])
    package = type(distribution).__module__.partition(".")[0]
    origin = "" if package == "distrax" else f" of {package}, which is not distrax"
    plain = ", ".join(c.distribution.__name__ for c in COUNTERPARTS.values() if not c.bijectors)
    raise TypeError(
        f"from_distrax: no jaxmdn family for {type(distribution).__name__}{origin}; supported are "
        f"{plain} (also as Independent over one axis), Normal transformed by exp or sigmoid, Beta "
        f"and the latter by a ScalarAffine, MultivariateNormalDiag, MultivariateNormalTri, "
        f"MultivariateNormalFullCovariance, MultivariateNormalDiagPlusLowRank, Categorical and "
        f"MixtureSameFamily of these."
    )


def _from_one_dimension(distribution: Any) -> Density | None:
    """The family whose last parameter axis is the distribution's; None if there is none."""
    bijectors: Sequence[Any] = ()
    if isinstance(distribution, distrax.Transformed):
        bijector, distribution = distribution.bijector, distribution.distribution
        bijectors = bijector.bijectors if isinstance(bijector, distrax.Chain) else (bijector,)
    affine = len(bijectors) > 0 and isinstance(bijectors[0], distrax.ScalarAffine)
    inner = bijectors[1:] if affine else bijectors
    for family, there in COUNTERPARTS.items():
        known = isinstance(distribution, there.distribution)
        if affine and not issubclass(family, BoundedDensity):
            continue
        if known and _written_out(inner) == _written_out(there.bijectors):
            names = there.names.items()
            parameters = {ours: getattr(distribution, theirs) for ours, theirs in names}
            return family(**parameters, **(_bounds(family, bijectors[0]) if affine else {}))
    return None


def _written_out(bijectors: Sequence[Any]) -> list[str]:
    """What tells scalar bijectors apart; distrax compares its own like this."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    maps = (distrax.as_bijector(bijector).forward for bijector in bijectors)
    return [str(jax.make_jaxpr(function)(number)) for function in maps]


def _bounds(family: type, affine: Any) -> dict[str, float]:
    try:
        lower, width = float(affine.shift), float(affine.scale)
    except TypeError as error:
        raise TypeError(
            f"from_distrax: the bounds of {family.__name__} are static, so its ScalarAffine must "
            f"have a scalar shift and scale, known outside jit."
        ) from error
    check_bounds("from_distrax", lower, lower + width)
    return {"lower": lower, "upper": lower + width}
