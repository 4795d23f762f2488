"""Transforms of the targets that are uniform if the predicted densities are right, and a test.

A transform turns targets from many different densities into numbers of one known distribution:
that is what makes them comparable, and what coverage, recalibration and tests build upon.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.mixture import check_target
from jaxmdn.mixture.sequential import conditional_jumps
from jaxmdn.typing import Array, Float, Key, Num


def pit(
    density: Density,
    y: Num[Array, "..."],
    *,
    key: Key[Array, ""] | None = None,
    middle: bool = False,
) -> Float[Array, "..."]:
    """Probability integral transform of each dimension, ``F_d(y_d)``, ``[..., D]``.

    For a calibrated model these numbers are uniform on (0, 1); a hump in their histogram says the
    predictions are too wide, a U too narrow, a slope biased. Where the cdf jumps (at counts, at
    levels, at a hurdle's zeros) the transform is randomised over the jump:
    ``P(Y < y) + v P(Y = y)`` with ``v`` uniform.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``.
      key: a typed key for ``v``; needed if any dimension's cdf jumps, else not used. Classes are
        taken in the order of their indices.
      middle: take ``v = 1/2`` instead: the mid-PIT, whose mean is 1/2 for a calibrated model, but
        which is not uniform where the cdf jumps (static).

    Returns:
      ``[..., D]`` in [0, 1], in the compute dtype.

    Raises:
      ValueError: for a cdf with jumps without a key, on a wrong event size, or if leading axes do
        not broadcast. TypeError: for a target that is not floating, if the density is not discrete;
        for an autoregressive density, whose marginals have no closed form (:func:`rosenblatt` does
        without them).

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
    check_target("pit", density, y)
    if not middle:
        _require_key("pit", density, key)
    return _pit(density, y, None if middle else key)


def _require_key(function: str, density: Density, key: Array | None) -> None:
    if any(density.jumps) and key is None:
        what = "a discrete density" if all(density.jumps) else "a density with discrete dimensions"
        raise ValueError(
            f"{function}: {what} needs a key, to spread each target over its jump of the cdf: "
            f"{function}(mixture, y, key=jax.random.key(0)); jaxmdn.pit(mixture, y, middle=True) "
            f"does without."
        )


@meshes.jit
def _pit(density: Density, y: Array, key: Array | None) -> Array:
    if not any(density.jumps):
        return density.cdf(y)
    return _spread(key, *jump(density, y))


@meshes.jit
def jump(density: Density, y: Num[Array, "..."]) -> tuple[Array, Array]:
    """``P(Y_d < y_d)`` and ``P(Y_d = y_d)``, ``[..., D]``, in the compute dtype."""
    density = numerics.upcast_tree(density)[0]
    return density.jump(y.astype(numerics.compute_dtype(density)))


def _spread(key: Any, below: Array, at: Array) -> Array:
    share = 0.5 if key is None else jax.random.uniform(key, at.shape, at.dtype)
    return below + share * at


def rosenblatt(
    density: Density, y: Num[Array, "..."], *, key: Key[Array, ""] | None = None
) -> Float[Array, "..."]:
    """Rosenblatt's transform, ``u_d = P(Y_d <= y_d | y_1, ..., y_{d-1})``, ``[..., D]``.

    For a calibrated model these numbers are uniform on (0, 1) *and* independent across dimensions,
    so that they test the dependence too, which :func:`pit` (one dimension at a time) cannot see.
    With D = 1 the two are the same. Of an autoregressive density: each output given its parents.

    Args:
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``; leading axes broadcast. The order of the dimensions matters; take
        ``jaxmdn.marginal(mixture, order)`` for another one.
      key: a typed key, needed if any dimension's cdf jumps: the transform is then randomised as in
        :func:`pit`.

    Returns:
      ``[..., D]`` in [0, 1], in the compute dtype.

    Raises:
      ValueError: for a cdf with jumps without a key, on a wrong event size, or if leading axes do
        not broadcast. TypeError: for a target that is not floating, if the density is not discrete.

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
    check_target("rosenblatt", density, y)
    _require_key("rosenblatt", density, key)
    return _rosenblatt(density, y, key)


@meshes.jit
def _rosenblatt(density: Density, y: Array, key: Array | None) -> Array:
    jumps = any(density.jumps)
    if jumps:
        density = numerics.upcast_tree(density)[0]
        y = y.astype(numerics.compute_dtype(density))
    below, at = conditional_jumps(density, y)
    return _spread(key, below, at) if jumps else below


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
      The statistic and its p-value, ``[D]`` each. The p-value is SciPy's, computed on the host in
      float64: exact to at least five digits for any number of rows.

    Raises:
      ValueError: without rows. TypeError: for an array that is not floating.

    Limits: rows must be independent given the model, and not those it was fitted to: there the
    values look more uniform than they are. With very many rows any model fails; look at the
    statistic. NaN gives NaN. The p-value has no derivative: zero.

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


@meshes.jit
def _pit_test(pit_values: Array) -> PitTest:
    (values,) = numerics.upcast(pit_values)
    values = jnp.sort(values.reshape(-1, values.shape[-1]), axis=0)  # [N, D]
    count = values.shape[0]
    rank = jnp.arange(count, dtype=values.dtype)[:, None]
    above, below = (rank + 1) / count - values, values - rank / count
    statistic = jnp.max(jnp.maximum(above, below), axis=0)
    return PitTest(statistic, _probability_above(statistic, count))


def _probability_above(statistic: Array, count: int) -> Array:
    """Probability that the statistic of ``count`` uniform numbers is larger."""
    # It takes a second to load, and nothing else here needs it.
    from scipy.stats import kstwo

    def on_host(statistic: Array) -> np.ndarray:
        return kstwo.sf(np.asarray(statistic, np.float64), count).astype(statistic.dtype)

    like = jax.ShapeDtypeStruct(statistic.shape, statistic.dtype)
    fixed = jax.lax.stop_gradient(statistic)
    return jax.pure_callback(on_host, like, fixed, vmap_method="expand_dims")
