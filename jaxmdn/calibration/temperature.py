"""Temperatures: a few numbers, fitted to rows that were held out, that make densities come true.

Networks trained to the end are over-confident. What is wrong is mostly the same everywhere: scales
too small by a factor, too small by a constant, and no allowance for outliers. Four kinds of number
mend that, and a weight for each model makes one exact mixture of several.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.optimize import minimize

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.components.declare import register
from jaxmdn.inference.widening import has_scales, placed, widen
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.mixture.merging import merge, pool
from jaxmdn.typing import Array, ArrayLike, Float, Parameter

MAX_OUTLIERS = 0.1  # the largest share of outliers
OUTLIER_SPREAD = 1.5  # their scale, in standard deviations of the targets


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """What :func:`fit_temperature` found; pass it to :func:`apply_temperature`.

    Attributes:
      scale: factor ``T_a`` of the scales of each model, ``[A]``.
      noise: what is added to them, ``c``, in the target's unit, ``[D]``.
      weights: share of each model, ``[A]``; they sum to one.
      outliers: share of outliers, ``[]``.
      loc, spread: where those lie, ``[D]``, in the target's unit.
    """

    scale: Parameter
    noise: Parameter
    weights: Parameter
    outliers: Parameter
    loc: Parameter
    spread: Parameter


def apply_temperature(
    temperature: Temperature, models: Mixture, *, floor: Float[ArrayLike, "..."] = 0.0
) -> Mixture:
    """One calibrated mixture of several models' densities.

    ``p(y) = (1 - eps) sum_a w_a p_a(y; T_a, c) + eps p_out(y)``, where every scale of ``p_a`` is
    ``sqrt((T_a s)^2 + max(c, floor)^2)`` and ``p_out`` is a wide component of the same family.
    Where the components have no scale, the weights alone act.

    Args:
      temperature: from :func:`fit_temperature`.
      models: the models' densities side by side: a mixture of batch shape ``[A, ...]``.
      floor: the least ``noise``, ``[D]`` or a number, in the target's unit.

    Returns:
      A mixture of batch shape ``[...]`` with ``A K + 1`` components (``A K`` without scales).
    """
    if not isinstance(models, Density) or models.batch_shape[:1] != temperature.weights.shape:
        raise ValueError(
            f"apply_temperature: expected a mixture of batch shape "
            f"[{temperature.weights.shape[0]}, ...], one density for each model, got "
            f"{getattr(models, 'batch_shape', type(models).__name__)}."
        )
    return _apply(
        temperature, models, jnp.asarray(floor, numerics.compute_dtype(temperature.weights))
    )


@meshes.jit
def _apply(temperature: Temperature, models: Mixture, floor: Array) -> Mixture:
    if not has_scales(models):
        return pool(models, temperature.weights)
    lead = (temperature.scale.shape[0], *(1,) * (len(models.batch_shape) - 1))
    noise = jnp.maximum(temperature.noise, floor)
    pooled = pool(widen(models, temperature.scale.reshape(lead), noise), temperature.weights)
    first = pooled.components.map_parameters(_first)
    outliers = Mixture(
        logits=jnp.zeros((*pooled.batch_shape, 1), pooled.logits.dtype),
        components=placed(first, temperature.loc, temperature.spread),
    )
    share = jnp.stack([1 - temperature.outliers, temperature.outliers])
    return merge((pooled, outliers), share)


def _first(leaf: Array, rank: int) -> Array:
    """The first component alone."""
    axis = leaf.ndim - 1 - rank
    return jax.lax.slice_in_dim(leaf, 0, 1, axis=axis)


@meshes.jit
def fit_temperature(
    models: Mixture, y: Float[Array, "N D"], *, weights: Float[Array, "N"] | None = None
) -> Temperature:
    """Temperatures and weights of several models by the NLL of rows that none was trained on.

    Maximises ``sum_i v_i log p(y_i)`` of :func:`apply_temperature`'s density over the factors
    ``T_a`` of the scales, the noise ``c``, the models' weights and the share of outliers, by BFGS,
    with priors as weak as a row: ``log T_a`` and the weights' logits of standard deviation one,
    ``c`` and the outliers' share within a factor ``e^2`` of ``e^-4``.

    Args:
      models: the models' densities of the rows, side by side: a mixture of batch shape ``[A, N]``.
      y: targets ``[N, D]`` that no model has seen: out-of-fold rows, say.
      weights: nonnegative row weights ``[N]``; a row of weight two counts as two rows.

    Returns:
      A :class:`Temperature`. Without scales to widen (gamma, counts, ...) only its weights matter.

    Raises:
      ValueError: on shapes that do not match.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> y = 3.0 * jax.random.normal(jax.random.key(0), (4000, 1))
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 4000, 1, 1)), scale=jnp.ones(1))
    >>> narrow = jaxmdn.Mixture(logits=jnp.zeros((1, 4000, 1)), components=normal)
    >>> fitted = jaxmdn.calibration.fit_temperature(narrow, y)
    >>> calibrated = jaxmdn.calibration.apply_temperature(fitted, narrow)
    >>> print(f"{jnp.mean(jaxmdn.variance(calibrated)) ** 0.5:.1f}")
    3.0

    References:
      Guo et al. (2017), On calibration of modern neural networks, section 4.2 (for classes);
      Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive
      distributions, for the weights.
    """
    name = "fit_temperature"
    if not isinstance(models, Density) or len(models.batch_shape) != 2:
        raise ValueError(
            f"{name}: expected a density of batch shape [A, N] (models, rows), got "
            f"{getattr(models, 'batch_shape', type(models).__name__)}."
        )
    check_target(name, models, y)
    (models, y) = numerics.upcast_tree(models, y)
    share = jnp.ones(len(y), y.dtype) if weights is None else jnp.asarray(weights, y.dtype)
    rows = jnp.sum(share)
    share = share / rows
    loc = share @ y
    deviation = jnp.sqrt(share @ (y - loc) ** 2)
    deviation = jnp.where(deviation > 0, deviation, 1)
    count = models.batch_shape[0]

    def build(theta: Array) -> Temperature:
        log_scale, logits = theta[:count], theta[count : 2 * count]
        return Temperature(
            scale=jnp.exp(log_scale),
            noise=jnp.exp(theta[-2] - 4) * deviation,
            weights=jax.nn.softmax(logits),
            outliers=MAX_OUTLIERS * jax.nn.sigmoid(theta[-1] - 4),
            loc=loc,
            spread=OUTLIER_SPREAD * deviation,
        )

    def loss(theta: Array) -> Array:
        log_prob = _apply(build(theta), models, jnp.zeros((), y.dtype)).log_prob(y)
        width = jnp.asarray([1.0] * (2 * count) + [2.0] * 2, y.dtype)
        return 0.5 * jnp.sum((theta / width) ** 2) / rows - share @ log_prob

    start = jnp.zeros(2 * count + 2, y.dtype)
    found = minimize(loss, start, method="BFGS", options={"maxiter": 50}).x
    better = jnp.all(jnp.isfinite(found)) & (loss(found) < loss(start))
    return build(jnp.where(better, found, start))


__all__ = ["Temperature", "apply_temperature", "fit_temperature"]
