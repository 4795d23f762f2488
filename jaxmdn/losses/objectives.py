"""Objectives beside the likelihood: pure functions of ``(head, raw, y)``, to be minimised.

| function | what it changes |
|---|---|
| ``beta_nll`` | a row's pull no longer fades where its scale is large |
| ``winner_takes_all`` | only the components nearest to a target learn from it |
| ``cell_nll`` | the probability of a cell of a grid, in place of a density |
| ``smoothed_nll`` | classes: no label is believed altogether |
| ``dirichlet_penalty``, ``entropy_penalty`` | what is believed of weights beforehand |
| ``scale_penalty`` | what is believed of scales |

In ``fit``: ``loss=jaxmdn.train.objective(jaxmdn.losses.beta_nll, beta=0.5)``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.heads import CategoricalHead, Head
from jaxmdn.inference.cells import cell_log_prob, pick, univariate_parts
from jaxmdn.losses.reductions import (
    check_rows,
    kept_rows,
    reduce,
    silence,
    silence_targets,
)
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.typing import Array, ArrayLike, Bool, Float, Num

Weights = Float[Array, "..."] | None
Mask = Bool[Array, "..."] | None


@partial(meshes.jit, static_argnames=("head", "reduction", "beta"))
def beta_nll(
    head: Head,
    raw: Float[Array, "... P"],
    y: Float[Array, "... D"],
    *,
    beta: float = 0.5,
    weights: Weights = None,
    mask: Mask = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """The likelihood's gradient with each component's share multiplied by ``scale^(2 beta)``.

    ``-sum_k [r_k] (log w_k + sum_d [s_kd^(2 beta)] log p_kd(y_d))``, brackets around what is held
    constant: responsibilities ``r_k`` and scales. The gradient in a location is then
    ``r_k s^(2 beta - 2) (y - loc)``: the likelihood's at ``beta = 0``, that of squared errors at 1,
    so that rows with a large scale still pull.

    Args:
      head: a head of mixtures whose components have a ``scale`` in every dimension.
      raw: raw outputs ``[..., P]``.
      y: targets ``[..., D]``.
      beta: in [0, 1].
      weights, mask, reduction: as in :func:`jaxmdn.nll`.

    Returns:
      A scalar, or ``[...]``. Only its gradient means something; at ``beta = 0`` it is that of the
      likelihood, the value differs from it by the responsibilities' entropy.

    Raises:
      TypeError: for components without a scale of their own in every dimension.

    References:
      Seitzer et al. (2022), On the pitfalls of heteroscedastic uncertainty estimation with
      probabilistic neural networks, eq. 5 (one normal).

    >>> import jax.numpy as jnp, jaxmdn
    >>> head = jaxmdn.NormalHead(1, 1, scale_link="exp", min_scale=0.0)
    >>> raw = jnp.array([[0.0, 0.0, 1.0]])  # one normal of scale e
    >>> slope = jax.grad(lambda raw: jaxmdn.losses.beta_nll(head, raw, jnp.ones((1, 1)), beta=1.0))
    >>> round(float(slope(raw)[0, 1]), 4)  # that of (y - loc)^2 / 2
    -1.0
    """
    checks.require_number("beta_nll", "beta", beta, lower=0.0, upper=1.0 + 1e-9)
    raw, y = rows("beta_nll", head, raw, y, weights, mask)
    mixture = _mixture("beta_nll", head, raw)
    parts = univariate_parts("beta_nll", mixture.components)
    each = [
        jax.lax.stop_gradient(part.scale ** (2 * beta)) * part.marginal_log_prob(pick(y, dims))
        for part, dims in parts
    ]
    log_prob = sum(jnp.sum(part, axis=-1) for part in numerics.upcast(*each))
    share = jax.lax.stop_gradient(jnp.exp(numerics.log_normalize(mixture.joint_log_prob(y))))
    values = -numerics.weighted_sum(share, mixture.log_weights() + log_prob, -1)
    return reduce(values, weights, mask, reduction)


@partial(meshes.jit, static_argnames=("head", "reduction", "num_winners"))
def winner_takes_all(
    head: Head,
    raw: Float[Array, "... P"],
    y: Float[Array, "... D"],
    *,
    num_winners: int = 1,
    weights: Weights = None,
    mask: Mask = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """The likelihood of the few components that explain a target best.

    ``-log sum_{k in winners} w_k - sum_{k in winners} log p_k(y) / n``: the ``n`` components of the
    highest density at the target learn it, the others do not. Anneal ``n`` from K to 1, halving it,
    and go on with the likelihood: components settle on different modes instead of sharing one.

    Args:
      head: a head of mixtures.
      raw: raw outputs ``[..., P]``.
      y: targets ``[..., D]``.
      num_winners: n, from 1 to K (static).
      weights, mask, reduction: as in :func:`jaxmdn.nll`.

    References:
      Makansi et al. (2019), Overcoming limitations of mixture density networks: a sampling and
      fitting framework for multimodal future prediction, section 3.2 (evolving winner-takes-all).
    """
    name = "winner_takes_all"
    checks.require_count(name, "num_winners", num_winners)
    raw, y = rows(name, head, raw, y, weights, mask)
    mixture = _mixture(name, head, raw)
    if num_winners > mixture.num_components:
        raise ValueError(
            f"{name}: num_winners must be at most K = {mixture.num_components}, got {num_winners}."
        )
    each = numerics.upcast(mixture.components.log_prob(y[..., None, :]))[0]
    best, index = jax.lax.top_k(each, num_winners)
    chosen = jnp.take_along_axis(jnp.broadcast_to(mixture.log_weights(), each.shape), index, -1)
    values = -numerics.logsumexp(chosen) - jnp.mean(best, axis=-1)
    return reduce(values, weights, mask, reduction)


@partial(meshes.jit, static_argnames=("head", "reduction"))
def cell_nll(
    head: Head,
    raw: Float[Array, "... P"],
    y: Float[Array, "... D"],
    width: Float[ArrayLike, "..."],
    *,
    weights: Weights = None,
    mask: Mask = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Negative log-probability of the cell around a target that was rounded, in nats.

    ``-log sum_k w_k prod_d P(y_d - width_d / 2 < Y_kd <= y_d + width_d / 2)``. Targets on a grid
    (ratings, years, a sensor's digits) have no density: one that spikes on the grid's points would
    have a likelihood without bound. The probability of a cell is at most one.

    Args:
      head: a head of mixtures of continuous components, independent in their dimensions.
      raw: raw outputs ``[..., P]``.
      y: targets ``[..., D]``, centres of cells.
      width: the cells' widths, positive: a number, ``[D]`` or ``[..., D]``, in the target's unit.
      weights, mask, reduction: as in :func:`jaxmdn.nll`.

    Limits: a cell far narrower than the scale counts as density times width, where that is exact
    to the dtype and a difference of distribution functions is not.

    References:
      Heitjan (1989), Inference from grouped continuous data, section 2.
    """
    raw, y = rows("cell_nll", head, raw, y, weights, mask)
    log_prob = cell_log_prob(_mixture("cell_nll", head, raw), y, width, function="cell_nll")
    return reduce(-log_prob, weights, mask, reduction)


@partial(meshes.jit, static_argnames=("head", "smoothing", "reduction"))
def smoothed_nll(
    head: CategoricalHead,
    raw: Float[Array, "... P"],
    y: Num[Array, "... 1"],
    *,
    smoothing: float = 0.1,
    weights: Weights = None,
    mask: Mask = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """The cross-entropy with labels of which a share is spread evenly over all classes.

    ``-(1 - s) log p_y - s sum_c log p_c / C``: the best probability of a label is
    ``1 - s (1 - 1 / C)``, so that logits do not grow without bound.

    Args:
      head: a :class:`~jaxmdn.CategoricalHead`.
      raw: raw outputs ``[..., P]``.
      y: classes ``[..., 1]``.
      smoothing: the share s, in [0, 1).
      weights, mask, reduction: as in :func:`jaxmdn.nll`.

    References:
      Szegedy et al. (2016), Rethinking the Inception architecture for computer vision, section 7.

    >>> import jax.numpy as jnp, jaxmdn
    >>> head, y = jaxmdn.CategoricalHead(4), jnp.zeros((1, 1))
    >>> round(float(jaxmdn.losses.smoothed_nll(head, jnp.zeros((1, 4)), y)), 4)
    1.3863
    """
    name = "smoothed_nll"
    checks.require_number(name, "smoothing", smoothing, lower=0.0, upper=1.0)
    if not isinstance(head, CategoricalHead):
        raise TypeError(f"{name}: expected a CategoricalHead, got {head!r}.")
    raw, y = rows(name, head, raw, y, weights, mask)
    density = head.build(raw)
    every = jnp.mean(numerics.log_normalize(density.logits), axis=-1)
    values = -(1 - smoothing) * density.log_prob(y) - smoothing * every
    return reduce(values, weights, mask, reduction)


@partial(meshes.jit, static_argnames="head")
def entropy_penalty(head: Head, raw: Float[Array, "... P"]) -> Float[Array, "..."]:
    """Minus the entropy of the mixing coefficients, ``sum_k w_k log w_k``, ``[...]``, nats.

    A multiple of it is added to a loss: of positive sign it spreads the weights over the components
    of a row, of negative sign it gathers them on few. A weight of zero counts zero.

    References:
      Pereyra et al. (2017), Regularizing neural networks by penalizing confident output
      distributions, eq. 1.
    """
    head.check_raw("entropy_penalty", raw)
    log_weights = _mixture("entropy_penalty", head, raw).log_weights()
    return numerics.weighted_sum(jnp.exp(log_weights), log_weights, -1)


@partial(meshes.jit, static_argnames=("head", "concentration"))
def dirichlet_penalty(
    head: Head, raw: Float[Array, "... P"], *, concentration: float = 1.1
) -> Float[Array, "..."]:
    """Minus the log-density of a symmetric Dirichlet prior on the weights, up to a constant.

    ``-(alpha - 1) sum_k log w_k``, ``[...]``, to be added to a loss: above one it pulls the weights
    towards each other, so that no component dies; below one towards few components.

    References:
      Bishop (2006), Pattern Recognition and Machine Learning, eq. 2.38.
    """
    checks.require_number("dirichlet_penalty", "concentration", concentration, lower=0.0)
    head.check_raw("dirichlet_penalty", raw)
    log_weights = _mixture("dirichlet_penalty", head, raw).log_weights()
    return -(concentration - 1) * jnp.sum(log_weights, axis=-1)


@partial(meshes.jit, static_argnames=("head", "shape", "rate"))
def scale_penalty(
    head: Head, raw: Float[Array, "... P"], *, shape: float = 2.0, rate: float = 0.01
) -> Float[Array, "..."]:
    """Minus the log-density of an inverse-gamma prior on every variance, up to a constant.

    ``sum_kd (shape + 1) log s_kd^2 + rate / s_kd^2``, ``[...]``, to be added to a loss (times the
    share of a row, such as 1 / N): its mode is ``s^2 = rate / (shape + 1)``, and no scale can
    collapse, since ``rate / s^2`` outgrows every likelihood.

    References:
      Fraley and Raftery (2007), Bayesian regularization for normal mixture estimation, section 3.
    """
    name = "scale_penalty"
    checks.require_number(name, "shape", shape, lower=0.0, strict_lower=True)
    checks.require_number(name, "rate", rate, lower=0.0)
    head.check_raw(name, raw)
    parts = univariate_parts(name, _mixture(name, head, raw).components)
    terms = [
        jnp.sum(2 * (shape + 1) * jnp.log(part.scale) + rate / part.scale**2, axis=(-2, -1))
        for part, _ in parts
    ]
    return sum(numerics.upcast(*terms), jnp.zeros(()).astype(terms[0].dtype))


def rows(
    function: str, head: Head, raw: Array, y: Array, weights: Weights, mask: Mask
) -> tuple[Array, Array]:
    """Check the arguments; replace what rows hold that are left out."""
    head.check_raw(function, raw)
    batch = checks.require_broadcastable(function, raw=raw.shape[:-1], y=y.shape[:-1])
    check_rows(function, batch, weights, mask)
    kept = kept_rows(weights, mask)
    raw = jnp.broadcast_to(numerics.upcast(raw)[0], (*batch, raw.shape[-1]))
    y = jnp.broadcast_to(y, (*batch, y.shape[-1]))
    raw, y = silence(raw, kept), silence_targets(head.support, y, kept)
    check_target(function, head.density_shape, y)
    return raw, y


def _mixture(function: str, head: Head, raw: Array) -> Mixture:
    density = head.build(raw)
    if not isinstance(density, Mixture) or isinstance(density.components, Mixture):
        raise TypeError(f"{function}: expected a head of plain mixtures, got {head!r}.")
    return density
