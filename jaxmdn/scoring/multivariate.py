"""Proper scores of several outputs at once, estimated from the density's own samples.

The CRPS and the scores of quantiles see one dimension at a time; these see how the dimensions hang
together. No closed forms exist for mixtures, so both are estimated, without bias: a biased estimate
would reward densities that are too narrow. Draws come in blocks of eight, inside a loop whose body
is recomputed for the gradient, so that memory does not grow with their number. The blocks fall into
at most sixteen groups, from whose spread the standard error is read.

Why blocks: of all pairs among ``S`` draws, most tell what others have told. With ``V`` the variance
that each draw brings by itself and ``P`` that of a pair beyond it, the estimate's variance is
``(V + 2 P / (B - 1)) / S`` with all pairs inside blocks of ``B``. For normals in 1 to 20 dimensions
``P`` is about ``2 V``: independent pairs (``B = 2``) need more than three times the draws of blocks
of eight, and blocks of any size would save at most a third more, for far more work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Categorical
from jaxmdn.components.base import Density
from jaxmdn.mixture import NUM_SAMPLES, Estimate, Mixture, check_target, sample
from jaxmdn.typing import Array, ArrayLike, Float, Key, Num

BLOCK, GROUPS = 8, 16


def energy_score(
    key: Key[Array, ""],
    density: Density,
    y: Num[Array, "..."],
    *,
    num_samples: int = NUM_SAMPLES,
    reparameterize: bool = False,
) -> Estimate:
    """Energy score of the joint density, ``[...]``, an unbiased estimate from samples.

    ``ES = E||Y - y|| - E||Y - Y'|| / 2`` with ``Y, Y'`` drawn from the mixture: the CRPS of several
    dimensions, in the target's unit; put the dimensions on one scale first. Lower is better.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``; further leading axes share the draws.
      num_samples: how many to draw for each density, at least 2; above eight, rounded up to whole
        blocks of eight and to as many in each group. The standard error falls with its root.
      reparameterize: let derivatives reach the weights, too, as ``sample`` does.

    Returns:
      :class:`~jaxmdn.mixture.Estimate`, ``[...]`` each, in the compute dtype; the standard error is
      NaN for a single block. An estimate may be negative, the score itself is not.

    Raises:
      ValueError: on a wrong event size, shapes that do not broadcast, fewer than two samples.
        TypeError: for classes, which have no distance.

    Limits: NaN in gives NaN out. Differentiable in ``y``, and in the parameters as ``sample`` is:
    without ``reparameterize`` in those of the component drawn, not in the weights, so that the
    gradient of a mixture's score is that of its expectation only with it.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 2)), scale=1e-6 * jnp.ones((1, 2)))
    >>> point = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> score = jaxmdn.scoring.energy_score(jax.random.key(0), point, jnp.array([3.0, 4.0]))
    >>> round(float(score.value), 3)
    5.0

    References:
      Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation,
      eq. 22.
    """
    _check("energy_score", density, y, num_samples)
    return _energy(key, density, y, num_samples, reparameterize)


@partial(meshes.jit, static_argnums=(3, 4))
def _energy(
    key: Array, density: Density, y: Array, num_samples: int, reparameterize: bool
) -> Estimate:
    density, y = numerics.upcast_tree(density, _real(y, density))

    def score(draws: Array) -> Array:
        accuracy = jnp.mean(_norm(draws - y), axis=0)
        count = draws.shape[0]
        pairs = [_norm(draws[s:] - draws[:-s]).sum(axis=0) for s in range(1, count)]
        return accuracy - sum(pairs) / (count * (count - 1))

    totals, blocks, _ = _over_blocks(score, key, density, y, num_samples, reparameterize)
    scores = totals / blocks  # of each group
    return Estimate(jnp.mean(scores, axis=0), _standard_error(scores))


def variogram_score(
    key: Key[Array, ""],
    density: Density,
    y: Num[Array, "..."],
    *,
    order: float = 0.5,
    weights: Float[ArrayLike, "D D"] | None = None,
    num_samples: int = NUM_SAMPLES,
    reparameterize: bool = False,
) -> Estimate:
    """Variogram score of the joint density, ``[...]``, an unbiased estimate from samples.

    ``VS = sum_ij w_ij (|y_i - y_j|^p - E|Y_i - Y_j|^p)^2`` with ``p`` the order: it tells wrong
    correlations apart where the energy score hardly does, but not a shift common to all dimensions.
    In the target's unit to the power ``2 p``. Lower is better.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      density: predictive densities, batch shape ``[...]``.
      y: targets ``[..., D]``; further leading axes share the draws.
      order: the power ``p``, a positive number.
      weights: ``[D, D]``, not negative; ones if absent. Both ``w_ij`` and ``w_ji`` count.
      num_samples, reparameterize: as in :func:`energy_score`.

    Returns:
      :class:`~jaxmdn.mixture.Estimate`, ``[...]`` each, in the compute dtype; zero for ``D = 1``.
      Plugging means of ``S`` draws into the square would add ``Var / S`` in expectation; that is
      taken off, so an estimate may be negative. The standard error is the jackknife's over groups,
      up to ``sqrt(2)`` too large where the score is near zero.

    Raises:
      ValueError: on wrong sizes, weights below zero (NumPy), an order that is not positive, fewer
        than two samples. TypeError: for classes, which have no distance.

    Limits: memory ``O(D^2)`` a row. NaN in gives NaN out. Differentiable as :func:`energy_score`;
    where ``y_i = y_j`` and ``p < 1`` the slope, infinite, is taken as zero.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 2)), scale=1e-6 * jnp.ones((1, 2)))
    >>> point = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> y = jnp.array([3.0, 4.0])  # variogram 1, predicted 0, counted for ij and ji
    >>> score = jaxmdn.scoring.variogram_score(jax.random.key(0), point, y, order=1.0)
    >>> round(float(score.value), 3)
    2.0

    References:
      Scheuerer and Hamill (2015), Variogram-based proper scoring rules for probabilistic forecasts
      of multivariate quantities, eq. 12-13.
    """
    _check("variogram_score", density, y, num_samples)
    checks.require_number("variogram_score", "order", order, lower=0.0, strict_lower=True)
    size = density.event_dim
    if weights is None:
        weights = np.ones((size, size), np.float32)
    if np.shape(weights) != (size, size):
        raise ValueError(
            f"variogram_score: expected weights of shape [{size}, {size}] (a row and a column per "
            f"dimension), got {list(np.shape(weights))}."
        )
    if not isinstance(weights, jax.Array) and np.any(np.asarray(weights) < 0):
        raise ValueError(
            "variogram_score: weights must not be negative: the score would not be proper."
        )
    options = (order, num_samples, reparameterize)
    return _variogram(key, density, y, jnp.asarray(weights), options)


@partial(meshes.jit, static_argnums=4)
def _variogram(
    key: Array, density: Density, y: Array, weights: Array, options: tuple[float, int, bool]
) -> Estimate:
    order, num_samples, reparameterize = options
    density, y = numerics.upcast_tree(density, _real(y, density))
    i, j = np.triu_indices(y.shape[-1], 1)  # each pair once, with both its weights
    weights = (weights + weights.T)[i, j].astype(y.dtype)

    def variogram(values: Array) -> Array:
        difference = jnp.abs(values[..., i] - values[..., j])
        equal = difference == 0
        return jnp.where(equal, 0, jnp.where(equal, 1, difference) ** order)

    observed = variogram(y)  # [..., D (D - 1) / 2]

    def sums(draws: Array) -> tuple[Array, Array]:
        excess = variogram(draws) - observed
        return jnp.sum(excess, axis=0), jnp.sum(excess * excess, axis=0)

    sampling = (key, density, y, num_samples, reparameterize)
    (totals, squares), _, count = _over_blocks(sums, *sampling)  # [G, ..., D (D - 1) / 2]

    def estimate(total: Array, squares: Array, count: int) -> Array:
        # mean^2 - variance / S, with the unbiased variance, without its cancellation.
        return jnp.sum(weights * (total * total - squares), axis=-1) / (count * (count - 1))

    groups, (total, square) = totals.shape[0], (jnp.sum(part, axis=0) for part in (totals, squares))
    value = estimate(total, square, groups * count)
    if groups == 1:
        return Estimate(value, jnp.full_like(value, jnp.nan))
    without = estimate(total - totals, square - squares, (groups - 1) * count)
    return Estimate(value, (groups - 1) * _standard_error(without))


def _standard_error(values: Float[Array, "G ..."]) -> Float[Array, "..."]:
    """Of the mean of independent values; NaN of a single one."""
    values = jax.lax.stop_gradient(values)
    count = values.shape[0]
    spread = jnp.sum((values - jnp.mean(values, axis=0)) ** 2, axis=0)
    return jnp.sqrt(spread / count / (count - 1 or jnp.nan))


def _check(function: str, density: Density, y: Array, num_samples: int) -> None:
    check_target(function, density, y)
    family: Density = density
    while isinstance(family, Mixture):
        family = family.components
    if isinstance(family, Categorical):
        raise TypeError(f"{function}: classes have no distance; use log_score for Categorical.")
    checks.require_count(function, "num_samples", num_samples, minimum=2)


def _real(y: Array, density: Density) -> Array:
    """Counts as real numbers."""
    return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(numerics.compute_dtype(density))


def _norm(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Euclidean length along the last axis; its slope at zero is zero."""
    squared = jnp.sum(x * x, axis=-1)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def _over_blocks(
    function: Callable[[Array], Any],
    key: Array,
    density: Density,
    y: Array,
    num_samples: int,
    reparameterize: bool,
) -> tuple[Any, int, int]:
    """Sum ``function(draws [B, ..., D])`` over the blocks of each group, ``[G, ...]``.

    Also the number of blocks and of draws in a group. The draws' leading axes are aligned with
    those of ``y``.
    """
    size = min(num_samples, BLOCK)
    blocks = -(-num_samples // size)
    groups = min(blocks, GROUPS)
    blocks = -(-blocks // groups)
    batch = density.batch_shape
    gap = (1,) * max(y.ndim - 1 - len(batch), 0)

    @jax.checkpoint
    def of_block(key: Array) -> Any:
        draws: Any = sample(key, density, (size,), reparameterize=reparameterize)
        draws = draws.astype(y.dtype)  # counts are integers
        return function(draws.reshape(size, *gap, *batch, y.shape[-1]))

    def add(totals: Any, step: tuple[Array, Array]) -> tuple[Any, None]:
        group, key = step
        return jax.tree.map(
            lambda total, new: total.at[group].add(new), totals, of_block(key)
        ), None

    like = jax.eval_shape(of_block, key)
    start = jax.tree.map(lambda leaf: jnp.zeros((groups, *leaf.shape), leaf.dtype), like)
    which = jnp.arange(groups * blocks) % groups
    totals, _ = meshes.scan(add, start, (which, jax.random.split(key, groups * blocks)))
    return totals, blocks, blocks * size
