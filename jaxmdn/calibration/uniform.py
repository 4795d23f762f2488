"""Transforms of the targets that are uniform if the predicted densities are right, and a test.

A transform turns targets from many different densities into numbers of one known distribution:
that is what makes them comparable, and what coverage, recalibration and tests build upon.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import checks, numerics
from jaxmdn.calibration import kolmogorov
from jaxmdn.components import Categorical
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.sequential import conditionals
from jaxmdn.typing import Array, Float, Key, Num


def pit(
    mixture: Density, y: Num[Array, "..."], *, key: Key[Array, ""] | None = None
) -> Float[Array, "..."]:
    """Probability integral transform of each dimension, ``F_d(y_d)``, ``[..., D]``.

    For a calibrated model these numbers are uniform on (0, 1); a hump in their histogram says the
    predictions are too wide, a U too narrow, a slope biased. For integer targets the cdf jumps, and
    the transform is randomised over the jump: ``F(y - 1) + v P(Y = y)`` with ``v`` uniform.

    Args:
      mixture: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      key: a typed key for ``v``; needed by discrete densities, not used by continuous ones. Classes
        are taken in the order of their indices.

    Returns:
      ``[..., D]`` in [0, 1], in the compute dtype.

    Raises:
      ValueError: for a discrete density without a key, on a wrong event size, or if leading axes do
        not broadcast. TypeError: for a target that is not floating, if the density is continuous.

    Limits: NaN in gives NaN out. Differentiable in continuous targets and in every parameter.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> jaxmdn.pit(mixture, jnp.zeros(1)).tolist()
    [0.5]

    References:
      Dawid (1984), The prequential approach; Gneiting et al. (2007), Probabilistic forecasts,
      calibration and sharpness, section 3.1; Smith (1985), Diagnostic checks of non-standard time
      series models; Czado, Gneiting and Held (2009), Predictive model assessment for count data,
      eq. 1.
    """
    check_target("pit", mixture, y)
    if not mixture.discrete:
        return _pit(mixture, y)
    if key is None:
        raise ValueError(
            "pit: a discrete density needs a key, to spread each target over its jump of the cdf: "
            "pit(mixture, y, key=jax.random.key(0))."
        )
    return _randomised_pit(key, mixture, y)


@jax.jit
def _pit(mixture: Density, y: Array) -> Array:
    return mixture.cdf(y)


@jax.jit
def _randomised_pit(key: Array, mixture: Density, y: Array) -> Array:
    (mixture,) = numerics.upcast_tree(mixture)
    dtype = numerics.compute_dtype(mixture)
    below, at = _below_and_at(mixture, y.astype(dtype))
    return below + jax.random.uniform(key, at.shape, dtype) * at


def _below_and_at(density: Density, y: Array) -> tuple[Array, Array]:
    """``P(Y_d < y_d)`` and ``P(Y_d = y_d)``, ``[..., D]``, of integers given as real numbers."""
    if isinstance(density, Mixture) and isinstance(_family(density), Categorical):
        below, at = _below_and_at(density.components, y[..., None, :])
        weights = density.weights()[..., None]
        return numerics.weighted_sum(weights, below, -2), numerics.weighted_sum(weights, at, -2)
    if isinstance(density, Categorical):
        probabilities, index = (
            density.probabilities(),
            jnp.arange(density.num_classes, dtype=y.dtype),
        )
        below = jnp.sum(jnp.where(index < y, probabilities, 0), axis=-1, keepdims=True)
        at = jnp.sum(jnp.where(index == y, probabilities, 0), axis=-1, keepdims=True)
        return jnp.where(jnp.isnan(y), jnp.nan, below), at
    below = density.cdf(jnp.ceil(y) - 1)
    return below, density.cdf(y) - below


def _family(density: Density) -> Density:
    while isinstance(density, Mixture):
        density = density.components
    return density


@jax.jit
def rosenblatt(mixture: Density, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rosenblatt's transform, ``u_d = P(Y_d <= y_d | y_1, ..., y_{d-1})``, ``[..., D]``.

    For a calibrated model these numbers are uniform on (0, 1) *and* independent across dimensions,
    so that they test the dependence too, which :func:`pit` (one dimension at a time) cannot see.
    With D = 1 the two are the same.

    Args:
      mixture: continuous predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``; leading axes broadcast. The order of the dimensions matters; take
        ``jaxmdn.marginal(mixture, order)`` for another one.

    Returns:
      ``[..., D]`` in [0, 1], in the compute dtype.

    Raises:
      ValueError: on a wrong event size, or if leading axes do not broadcast. TypeError: for a
        discrete density, or a target that is not floating.

    Limits: NaN in gives NaN out, and so do dimensions behind one at which every component's density
    underflows. Differentiable in the targets and in every parameter.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.FullNormal.from_covariance(
    ...     jnp.zeros((1, 2)), jnp.array([[[1.0, 0.8], [0.8, 1.0]]])
    ... )
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> u = jaxmdn.rosenblatt(mixture, jnp.array([1.0, 0.8]))  # 0.8 is the conditional mean
    >>> [round(float(x), 4) for x in u]
    [0.8413, 0.5]

    References:
      Rosenblatt (1952), Remarks on a multivariate transformation, p. 470.
    """
    check_target("rosenblatt", mixture, y)
    if mixture.discrete:
        raise TypeError(
            f"rosenblatt: not defined for a discrete {type(_family(mixture)).__name__}; use "
            f"pit(mixture, y, key=key), which spreads each target over its jump of the cdf."
        )
    return conditionals(mixture, y).cdf


class PitTest(NamedTuple):
    """The outcome of :func:`pit_test`, per dimension.

    Attributes:
      statistic: largest distance between the PIT's empirical cdf and the diagonal, ``[D]``.
      p_value: probability of a larger one if the model is right, ``[D]``.
    """

    statistic: Array
    p_value: Array


def pit_test(pit_values: Float[Array, "..."]) -> PitTest:
    """Kolmogorov-Smirnov test of each dimension's PIT values against the uniform distribution.

    ``D = sup_u |F_N(u) - u|`` over all leading axes together.

    Args:
      pit_values: numbers in [0, 1], ``[..., D]``, from :func:`pit` or any other transform that is
        uniform under the model.

    Returns:
      The statistic and its p-value, ``[D]`` each. Up to 512 rows the p-value is exact (to rounding,
      1e-3 of itself in float32); beyond, it is off by less than 4e-5.

    Raises:
      ValueError: without rows. TypeError: for an array that is not floating.

    Limits: rows must be independent given the model, and not those it was fitted to: there the
    values look more uniform than they are. With very many rows any model fails; look at the
    statistic. NaN gives NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> even = (jnp.arange(10.0)[:, None] + 0.5) / 10
    >>> result = jaxmdn.calibration.pit_test(even)
    >>> round(float(result.statistic[0]), 3), round(float(result.p_value[0]), 3)
    (0.05, 1.0)

    References:
      Kolmogorov (1933); Simard and L'Ecuyer (2011), Computing the two-sided Kolmogorov-Smirnov
      distribution.
    """
    checks.require_floating("pit_test", "pit_values", pit_values)
    if pit_values.ndim < 2 or pit_values.size == 0:
        raise ValueError(
            f"pit_test: expected pit_values of shape [..., D] with at least one row, got "
            f"{list(pit_values.shape)}; a scalar target keeps an axis of size one."
        )
    return _pit_test(pit_values)


@jax.jit
def _pit_test(pit_values: Array) -> PitTest:
    (values,) = numerics.upcast(pit_values)
    values = jnp.sort(values.reshape(-1, values.shape[-1]), axis=0)  # [N, D]
    count = values.shape[0]
    rank = jnp.arange(count, dtype=values.dtype)[:, None]
    above, below = (rank + 1) / count - values, values - rank / count
    statistic = jnp.max(jnp.maximum(above, below), axis=0)
    return PitTest(statistic, kolmogorov.survival(statistic, count))


__all__ = ["PitTest", "pit", "pit_test"]
