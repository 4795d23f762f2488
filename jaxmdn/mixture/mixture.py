"""Mixing: everything that follows from ``p(y) = sum_k w_k p_k(y)``, for any component family.

``Mixture(logits, components)`` is a density itself, so mixtures nest. The functions below are the
public, checked and jit-compiled surface; inside an outer ``jit``, ``vmap`` or ``grad`` they inline
at no cost. They take any density where that makes sense, not mixtures alone.

    mixture = Mixture(logits=logits, components=Normal(loc=loc, scale=scale))
    log_prob(mixture, y)      # [...], nats

Shapes: ``logits [..., K]``, component parameters ``[..., K, ...]``, targets ``y [..., D]``
(a scalar target has ``D = 1``). Leading axes broadcast; ``K`` and ``D`` never do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density, PerDimension
from jaxmdn.components.categorical import draw_index
from jaxmdn.components.declare import register
from jaxmdn.components.support import Support
from jaxmdn.mixture import one_pass
from jaxmdn.typing import Array, Float, Int, Key, Num, Parameter


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(PerDimension, Density):
    """A mixture density ``p(y) = sum_k softmax(logits)_k p_k(y)``.

    Attributes:
      logits: unnormalised log-weights, ``[..., K]``; ``-inf`` is a weight of exactly zero.
      components: a density of batch shape ``[..., K]``.

    References:
      Bishop (1994), Mixture Density Networks, eq. 22 and 25.
    """

    logits: Parameter
    components: Density

    event_ranks: ClassVar = {"logits": 1}
    #: The head and the raw outputs that made it, while one program is traced: likelihoods may begin
    #: there. Whatever else is made of a mixture has no origin.
    origin: ClassVar[Any] = None

    def __post_init__(self) -> None:
        if isinstance(self.components, list | tuple):
            raise TypeError(
                f"Mixture: components must be one density with an axis of K components, got a "
                f"{type(self.components).__name__} of {len(self.components)}; stack their "
                f"parameters, or join densities of one family by jaxmdn.merge."
            )

    def map_parameters(self, function: Callable[[Array, int], Array]) -> Mixture:
        return Mixture(
            logits=function(self.logits, 1),
            components=self.components.map_parameters(lambda leaf, rank: function(leaf, rank + 1)),
        )

    @property
    def support(self) -> tuple[Support, ...]:
        return self.components.support

    @property
    def num_components(self) -> int:
        """K, the number of components."""
        self._check_count()
        return self.logits.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        self._check_count()
        return jnp.broadcast_shapes(self.logits.shape, self.components.batch_shape)[:-1]

    def _check_count(self) -> None:
        # One logit broadcast over K components would give a density that integrates to K.
        count, shape = self.logits.shape[-1], self.components.batch_shape
        if shape[-1:] != (count,):
            raise ValueError(
                f"Mixture: expected components of batch shape [..., {count}] (one per entry of "
                f"logits {list(self.logits.shape)}), got {list(shape)}; write out one logit and "
                f"one set of parameters per component."
            )

    @property
    def event_dim(self) -> int:
        return self.components.event_dim

    @property
    def dtype(self) -> np.dtype:
        return self.components.dtype

    def log_weights(self) -> Float[Array, "..."]:
        """Normalised log mixing coefficients, ``[..., K]``, in the compute dtype."""
        self._check_count()
        return numerics.log_normalize(numerics.upcast(self.logits)[0])

    def weights(self) -> Float[Array, "..."]:
        """Mixing coefficients, ``[..., K]``; they sum to one."""
        return jnp.exp(self.log_weights())

    def joint_log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        """``log(w_k p_k(y))``, ``[..., K]``."""
        log_weights, components = numerics.upcast(
            self.log_weights(), self.components.log_prob(y[..., None, :])
        )
        return log_weights + components

    def log_prob(self, y: Num[Array, "..."]) -> Float[Array, "..."]:
        if self.components.has_pullback:
            self._check_count()
            return one_pass.log_prob(*numerics.upcast_tree(self.logits, self.components, y))
        return numerics.logsumexp(self.joint_log_prob(y))

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Num[Array, "..."]:
        return self.sample_with_index(key, shape)[0]

    def sample_with_index(
        self, key: Key[Array, ""], shape: tuple[int, ...] = ()
    ) -> tuple[Num[Array, "..."], Int[Array, "..."]]:
        """Draw values ``shape + [..., D]`` and the components they came from."""
        key_component, key_value = jax.random.split(key)
        index = draw_index(key_component, self.logits, (*shape, *self.batch_shape))
        return self.components.take(index).sample(key_value), index

    def centred(self) -> tuple[Array, Array, Array]:
        """Weights ``[..., K, 1]``, the mean ``[..., D]``, the components' distances from it.

        Of a mixture in the compute dtype.

        In two steps: far from zero a weighted mean is rounded by more than the distances are.
        """
        weights, means = self.weights()[..., None], self.components.mean()
        near = numerics.weighted_sum(weights, means, -2)
        deviation = means - near[..., None, :]
        rest = numerics.weighted_sum(weights, deviation, -2)
        rest = jnp.where(jnp.isfinite(near), rest, 0)
        return weights, near + rest, deviation - rest[..., None, :]

    def mean(self) -> Float[Array, "..."]:
        return numerics.upcast_tree(self)[0].centred()[1].astype(self.dtype)

    def variance(self) -> Float[Array, "..."]:
        # Law of total variance about the mixture's own mean: E[y^2] - E[y]^2 would cancel.
        (wide,) = numerics.upcast_tree(self)  # the components' own may not fit into float16
        weights, _, deviation = wide.centred()
        variances = wide.components.variance()
        return numerics.weighted_sum(weights, variances + deviation**2, -2).astype(self.dtype)

    def covariance(self) -> Float[Array, "..."]:
        (wide,) = numerics.upcast_tree(self)
        weights, _, deviation = wide.centred()
        covariances = wide.components.covariance()
        outer = deviation[..., :, None] * deviation[..., None, :]  # [..., K, D, D]
        return numerics.weighted_sum(weights[..., None], covariances + outer, -3).astype(self.dtype)

    def marginals(self) -> Mixture:
        return dataclasses.replace(self, components=self.components.marginals())

    def _average(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """Weighted mean over the components of per-dimension values ``[..., K, D]``."""
        weights, values = numerics.upcast(self.weights(), values)
        # Divided by their own sum, the weights add up to exactly one: F(inf) = 1, never above.
        total = jnp.sum(weights, axis=-1, keepdims=True)
        average = jnp.sum(weights[..., None] * values, axis=-2) / total
        # Up to rounding: no function of probabilities takes more than one.
        return jnp.where(average > 1, 1, average)

    def _each(self, function: str, *arrays: Array) -> Array:
        values = getattr(self.components, function)(*(array[..., None, :] for array in arrays))
        if function in ("cdf", "survival", "tail"):
            return self._average(values)
        log_weights, values = numerics.upcast(self.log_weights()[..., None], values)
        total = numerics.logsumexp(log_weights + values, axis=-2)
        if function == "marginal_log_prob":
            return total
        # The logarithm of nearly one is what is missing, which a sum of about one has rounded away.
        missing = numerics.weighted_sum(jnp.exp(log_weights), numerics.expm1(values), -2)
        near = missing > -0.5
        return jnp.where(near, jnp.log1p(jnp.where(near, missing, 0)), total)

    def jump(self, y: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        below, at = self.components.jump(y[..., None, :])
        return self._average(below), self._average(at)

    def marginal(self, dims: tuple[int, ...]) -> Mixture:
        return dataclasses.replace(self, components=self.components.marginal(dims))

    def condition(
        self, dims: tuple[int, ...], values: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Mixture]:
        # p(rest | given) = sum_k [w_k p_k(given) / p(given)] p_k(rest | given)
        evidence, components = self.components.condition(dims, values[..., None, :])
        log_weights, evidence = numerics.upcast(self.log_weights(), evidence)
        joint = log_weights + evidence
        return numerics.logsumexp(joint), Mixture(logits=joint, components=components)

    def affine(self, shift: Float[Array, "D"], scale: Float[Array, "#D"]) -> Mixture:
        return dataclasses.replace(self, components=self.components.affine(shift, scale))


def check_target(function: str, density: Density, y: Any) -> None:
    """Check a target's event size and batch shape against a density."""
    if not isinstance(density, Density):
        raise TypeError(
            f"{function}: expected a density, got {type(density).__name__}; a head makes one from "
            f"raw outputs: mixture = head(raw)."
        )
    checks.require_array(function, "y", y)
    if not density.discrete:
        checks.require_floating(function, "y", y)
    elif y.ndim and 1 == density.event_dim < y.shape[-1]:
        raise ValueError(
            f"{function}: expected class indices y of shape [..., 1], got {list(y.shape)}; "
            f"of one-hot rows pass jax.numpy.argmax(y, axis=-1)[..., None]."
        )
    checks.require_last_axis(function, "y", y, density.event_dim, "event dimension D")
    checks.require_broadcastable(function, density=density.batch_shape, y=y.shape[:-1])


def require_mixture(function: str, mixture: Any) -> None:
    """Raise ``TypeError`` unless ``mixture`` is a :class:`Mixture`."""
    if not isinstance(mixture, Mixture):
        raise TypeError(
            f"{function}: expected a Mixture, got {type(mixture).__name__}; "
            f"a head returns one: mixture = head(raw)."
        )


@meshes.jit
def log_prob(density: Density, y: Num[Array, "..."]) -> Float[Array, "..."]:
    """:func:`jaxmdn.log_prob` from the parameters alone."""
    check_target("log_prob", density, y)
    return density.log_prob(y)


@meshes.jit
def component_log_prob(mixture: Mixture, y: Num[Array, "..."]) -> Float[Array, "..."]:
    """Log-density of ``y`` under each component alone (without its weight), ``[..., K]``, nats.

    Args, raises and limits as in :func:`log_prob`.
    """
    require_mixture("component_log_prob", mixture)
    check_target("component_log_prob", mixture, y)
    return mixture.components.log_prob(y[..., None, :])


@meshes.jit
def responsibilities(mixture: Mixture, y: Num[Array, "..."]) -> Float[Array, "..."]:
    """Posterior probability that component k produced ``y``: ``w_k p_k(y) / p(y)``, ``[..., K]``.

    They sum to one. Where ``y`` has density zero under every component they are all zero.

    References:
      Bishop (1994), Mixture Density Networks, eq. 30.
    """
    require_mixture("responsibilities", mixture)
    check_target("responsibilities", mixture, y)
    return jnp.exp(numerics.log_normalize(mixture.joint_log_prob(y)))


@meshes.jit
def mean(density: Density) -> Float[Array, "..."]:
    """Mean ``E[y]``, ``[..., D]``, in the target's unit (Bishop 1994, eq. 45).

    Raises ``TypeError`` for a family without one (categorical); so do the other moments.
    """
    return density.mean()


@meshes.jit
def variance(density: Density) -> Float[Array, "..."]:
    """Per-dimension variance, ``[..., D]``, in the target's unit squared (Bishop 1994, eq. 47).

    Law of total variance, taken about the mean, so that it neither cancels nor turns negative.
    """
    return density.variance()


@meshes.jit
def covariance(density: Density) -> Float[Array, "..."]:
    """Covariance matrix, ``[..., D, D]``, by the law of total covariance about the mean."""
    return density.covariance()
