"""How much a mixture leaves unknown, and how far two mixtures are apart.

Neither a mixture's entropy nor the divergence of two has a closed form. There are bounds, made of
the closed forms between pairs of normal components, and an estimate by samples.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import FullNormal, LowRankNormal, Normal, NormalDensity
from jaxmdn.components.base import Density
from jaxmdn.mixture import NUM_SAMPLES, Estimate, Mixture, require_mixture
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.typing import Array, Float, Key


class Bounds(NamedTuple):
    """What a number lies between.

    Attributes:
      lower: ``[...]``.
      upper: ``[...]``.
    """

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]


@meshes.jit
def entropy_bounds(mixture: Mixture) -> Bounds:
    """Lower and upper bound of a normal mixture's differential entropy, ``[...]`` each, nats.

    With the components' entropies ``h_i`` and distances ``d(i, j)``,
    ``sum_i w_i (h_i - log sum_j w_j exp(-d(i, j)))`` lies below the entropy for the Bhattacharyya
    distance and above it for the Kullback-Leibler divergence. The larger of the former and
    ``-sum_i w_i log E_i[p(y)]`` is returned, and the smaller of the latter and the entropy of a
    normal with the mixture's covariance.

    Args:
      mixture: a mixture of normals, with any covariance, of batch shape ``[...]``.

    Returns:
      :class:`Bounds`, in the compute dtype. Both equal the entropy for K = 1, and approach it where
      the components coincide or lie far apart. Time ``O(K^2)``.

    Raises:
      TypeError: if the mixture is none, or its components are not normal.

    Limits: components of weight zero count for nothing; NaN gives NaN; differentiable.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [2.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> [round(float(bound), 3) for bound in jaxmdn.entropy_bounds(mixture)]
    [1.645, 1.766]

    References:
      Kolchinsky and Tracey (2017), Estimating mixture entropy with pairwise distances, eq. 10-13;
      Huber et al. (2008), On entropy approximation for Gaussian mixture random vectors, theorem 2.
    """
    flat = _normals("entropy_bounds", mixture)
    K, components, log_weights = flat.num_components, flat.components, flat.log_weights()
    lead = (*flat.batch_shape, K)
    log_weights = jnp.broadcast_to(log_weights, lead)
    weights = jnp.exp(log_weights)
    loc = jnp.broadcast_to(components.mean(), (*lead, flat.event_dim))
    peak = jnp.broadcast_to(components.log_prob(loc), lead)  # log density at its own centre
    entropy = 0.5 * flat.event_dim - peak

    def visit(sums: Any, j: Array) -> tuple[Any, None]:
        other = _pick(components, j)
        weight = jax.lax.dynamic_slice_in_dim(log_weights, j, 1, -1)
        pair = _convolve(components, other)
        overlap = pair.log_prob(loc)  # log of the integral of p_i p_j
        top = pair.log_prob(jnp.broadcast_to(other.mean(), loc.shape))
        # Bhattacharyya: with S the sum of both covariances, (m_i - m_j)^T S^-1 (m_i - m_j) / 4
        # + log det(S / 2) / 2 - (log det S_i + log det S_j) / 4.
        other_peak = jax.lax.dynamic_slice_in_dim(peak, j, 1, -1)
        shape = 0.5 * (peak + other_peak) - top - 0.5 * flat.event_dim * math.log(2.0)
        distance = 0.5 * (top - overlap) + shape
        divergence = -entropy - _expected_log_prob(components, other)
        terms = (weight - distance, weight + overlap, weight - divergence)
        return tuple(jnp.logaddexp(s, t) for s, t in zip(sums, terms, strict=True)), None

    start = jnp.full(lead, -jnp.inf, log_weights.dtype)
    sums, _ = meshes.scan(visit, (start, start, start), jnp.arange(K))
    near, overlap, far = (numerics.weighted_sum(weights, part, -1) for part in sums)
    mean_entropy = numerics.weighted_sum(weights, entropy, -1)
    single = _log_det(_root(flat)) + 0.5 * flat.event_dim * (1 + numerics.LOG_2PI)
    return Bounds(
        lower=jnp.maximum(mean_entropy - near, -overlap),
        upper=jnp.minimum(mean_entropy - far, single),
    )


def kl_divergence(
    key: Key[Array, ""], p: Density, q: Density, *, num_samples: int = NUM_SAMPLES
) -> Estimate:
    """Monte Carlo estimate of the Kullback-Leibler divergence ``E_p[log p(Y) - log q(Y)]``, nats.

    Args:
      key: a typed key, ``jax.random.key(seed)``.
      p: a density of batch shape ``[...]``; the samples are its own.
      q: a density over the same targets; leading axes broadcast.
      num_samples: how many (static).

    Returns:
      :class:`Estimate`: the unbiased mean, ``[...]``, and its standard error. The divergence is
      nonnegative; its estimate need not be.

    Raises:
      TypeError: if ``p`` or ``q`` is no density, or one is discrete and the other not.
      ValueError: if event sizes differ, batch shapes do not broadcast, or ``num_samples < 1``.

    Limits: infinite where ``q`` is zero at a sample of ``p``; heavy-tailed, so that the standard
    error deceives, where ``q``'s tails are much lighter than ``p``'s. The derivative in ``q``'s
    parameters is unbiased; in ``p``'s it leaves out how the weights steer the samples.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> p = jaxmdn.components.Normal(loc=jnp.zeros(1), scale=jnp.ones(1))
    >>> q = jaxmdn.components.Normal(loc=jnp.ones(1), scale=jnp.ones(1))  # KL = 1 / 2
    >>> estimate = jaxmdn.kl_divergence(jax.random.key(0), p, q, num_samples=10000)
    >>> bool(abs(estimate.value - 0.5) < 4 * estimate.standard_error)
    True
    """
    for name, density in (("p", p), ("q", q)):
        if not isinstance(density, Density):
            raise TypeError(
                f"kl_divergence: {name} must be a density, got {type(density).__name__}; the "
                f"order is kl_divergence(key, p, q)."
            )
    if p.discrete != q.discrete:
        raise TypeError("kl_divergence: p and q must be both discrete or both continuous.")
    _check_pair("kl_divergence", p, q)
    checks.require_count("kl_divergence", "num_samples", num_samples)
    return _kl_divergence(key, p, q, num_samples)


@partial(meshes.jit, static_argnums=3)
def _kl_divergence(key: Array, p: Density, q: Density, num_samples: int) -> Estimate:
    if not p.discrete:
        p, q = numerics.upcast_tree(p, q)
    y = p.sample(key, (num_samples,))
    # One more axis lets q's batch be the larger one.
    missing = max(len(q.batch_shape) - len(p.batch_shape), 0)
    y = y.reshape(num_samples, *(1,) * missing, *y.shape[1:])
    gaps = p.log_prob(y) - q.log_prob(y)
    value = jnp.mean(gaps, axis=0)
    spread = jnp.sum((gaps - value) ** 2, axis=0)
    freedom = num_samples - 1
    error = jnp.sqrt(spread / (freedom * num_samples)) if freedom else jnp.full_like(value, jnp.nan)
    return Estimate(value=value, standard_error=error)


def kl_upper_bound(p: Mixture, q: Mixture, *, num_iterations: int = 30) -> Float[Array, "..."]:
    """Variational upper bound of the divergence of two normal mixtures, ``KL(p || q)``, ``[...]``.

    Splitting both into pieces, ``p = sum_ab phi_ab p_a`` and ``q = sum_ab psi_ab q_b``,
    ``KL(p || q) <= sum_ab phi_ab (log(phi_ab / psi_ab) + KL(p_a || q_b))``, nats; phi and psi are
    improved in turn. The result is never above the convexity bound
    ``sum_ab w_a v_b KL(p_a || q_b)``, nor, for equal numbers of components, above the matched one,
    ``sum_a w_a (log(w_a / v_a) + KL(p_a || q_a))``.

    Args:
      p, q: mixtures of normals of one family over the same targets; K may differ and leading axes
        broadcast.
      num_iterations: rounds of improvement (static). The bound falls with each.

    Returns:
      ``[...]``, in the compute dtype: the divergence itself for single components, zero for
      ``p = q`` with the components in the same order. Memory ``O(K_p K_q)``.

    Raises:
      TypeError: if one is no mixture of normals, or their families differ.
      ValueError: if event sizes differ or batch shapes do not broadcast.

    Limits: components of weight zero count for nothing; NaN gives NaN; differentiable.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [2.0]]), scale=jnp.ones((2, 1)))
    >>> p, q = (jaxmdn.Mixture(logits=jnp.array([0.0, x]), components=normal) for x in (0.0, 1.0))
    >>> round(float(jaxmdn.kl_upper_bound(p, q)), 3)
    0.12

    References:
      Hershey and Olsen (2007), Approximating the Kullback Leibler divergence between Gaussian
      mixture models, section 8.
    """
    first, second = _normals("kl_upper_bound", p), _normals("kl_upper_bound", q)
    if type(first.components) is not type(second.components):
        raise TypeError(
            f"kl_upper_bound: p and q must be mixtures of one family, got "
            f"{type(first.components).__name__} and {type(second.components).__name__}."
        )
    _check_pair("kl_upper_bound", p, q)
    checks.require_count("kl_upper_bound", "num_iterations", num_iterations, minimum=0)
    return _kl_upper_bound(p, q, num_iterations)


@partial(meshes.jit, static_argnums=2)
def _kl_upper_bound(p: Mixture, q: Mixture, num_iterations: int) -> Float[Array, "..."]:
    p, q = numerics.upcast_tree(p, q)
    p, q = flatten_mixture(p), flatten_mixture(q)
    lead = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    log_w = jnp.broadcast_to(p.log_weights(), (*lead, p.num_components))
    log_v = jnp.broadcast_to(q.log_weights(), (*lead, q.num_components))
    entropy = 0.5 * p.event_dim - p.components.log_prob(p.components.mean())

    def visit(_: None, b: Array) -> tuple[None, Array]:
        return None, jnp.broadcast_to(
            -entropy - _expected_log_prob(p.components, _pick(q.components, b)), log_w.shape
        )

    _, divergence = meshes.scan(visit, None, jnp.arange(q.num_components))
    divergence = jnp.moveaxis(divergence, 0, -1)  # [..., A, B]
    a_weight, b_weight = log_w[..., :, None], log_v[..., None, :]

    def improve(_: Array, psi: Array) -> Array:
        phi = a_weight + numerics.log_normalize(psi - divergence)
        share = numerics.log_normalize(jnp.swapaxes(phi, -1, -2))  # over a
        return b_weight + jnp.swapaxes(share, -1, -2)

    psi = meshes.fori_loop(0, num_iterations, improve, a_weight + b_weight)
    # The best phi for this psi leaves one logarithm.
    weights = jnp.exp(log_w)
    pieces = log_w - numerics.logsumexp(psi - divergence)
    bound = numerics.weighted_sum(weights, pieces, -1)
    if p.num_components == q.num_components:
        own = jnp.diagonal(divergence, axis1=-2, axis2=-1)
        matched = numerics.weighted_sum(weights, log_w - log_v + own, -1)
        bound = jnp.minimum(bound, matched)
    return bound


def _normals(function: str, mixture: Any) -> Mixture:
    """A mixture of plain normal components in the compute dtype, or raise ``TypeError``."""
    require_mixture(function, mixture)
    (mixture,) = numerics.upcast_tree(mixture)
    flat = flatten_mixture(mixture)
    if not isinstance(flat.components, NormalDensity):
        raise TypeError(
            f"{function}: the components must be normal, got {type(flat.components).__name__}; "
            f"kl_divergence and log_prob over samples serve any family."
        )
    return flat


def _check_pair(function: str, p: Density, q: Density) -> None:
    if p.event_dim != q.event_dim:
        raise ValueError(
            f"{function}: p and q must be over the same targets, got event dimensions "
            f"{p.event_dim} and {q.event_dim}."
        )
    checks.require_broadcastable(function, p=p.batch_shape, q=q.batch_shape)


def _pick(components: Density, index: Array) -> Any:
    """One component, with an axis of size one for K; tied parameters are everyone's."""

    def pick(leaf: Array, rank: int) -> Array:
        axis = leaf.ndim - 1 - rank
        if leaf.shape[axis] == 1:
            return leaf
        return jax.lax.dynamic_index_in_dim(leaf, index, axis)

    return components.map_parameters(pick)


def _convolve(components: Any, other: Any) -> Density:
    """Normals around ``other``'s centre with the sum of both covariances."""
    if isinstance(components, FullNormal):
        # From [M_i M_j], of which the covariance is the square: nothing is squared.
        roots = (components.square_root(), other.square_root())
        lead = jnp.broadcast_shapes(*(root.shape for root in roots))
        stacked = jnp.concatenate([jnp.broadcast_to(root, lead) for root in roots], axis=-1)
        return FullNormal.from_scale_tril(other.loc, numerics.triangular(stacked)[1])
    scale = jnp.hypot(components.scale, other.scale)
    if isinstance(components, Normal):
        return Normal(loc=other.loc, scale=scale)
    lead = jnp.broadcast_shapes(components.factor.shape[:-1], other.factor.shape[:-1])
    factors = [
        jnp.broadcast_to(family.factor, (*lead, family.factor.shape[-1]))
        for family in (components, other)
    ]
    return LowRankNormal(loc=other.loc, factor=jnp.concatenate(factors, axis=-1), scale=scale)


def _root(mixture: Mixture) -> Float[Array, "... D M"]:
    """A square root of a mixture's covariance: its components' beside their distances."""
    components, event = mixture.components, (mixture.event_dim,)
    half = jnp.exp(0.5 * mixture.log_weights())
    lead = (*mixture.batch_shape, mixture.num_components)
    weights, _, distance = mixture.centred()
    parts = [distance[..., None]]
    if isinstance(components, FullNormal):
        parts.append(components.square_root())
    else:
        variance = numerics.weighted_sum(weights, components.scale**2, -2)
        own = jnp.sqrt(jnp.broadcast_to(variance, (*mixture.batch_shape, *event)))
        if isinstance(components, LowRankNormal):
            parts.append(components.factor)

    def side_by_side(part: Array) -> Array:  # [..., K, D, M] -> [..., D, K M]
        wide = jnp.broadcast_to(part, (*lead, *part.shape[-2:]))
        wide = jnp.moveaxis(numerics.silent_product(half[..., None, None], wide), -3, -2)
        return wide.reshape(*wide.shape[:-2], -1)

    columns = [side_by_side(part) for part in parts]
    if not isinstance(components, FullNormal):
        columns.append(own[..., None] * jnp.eye(*event, dtype=own.dtype))
    return jnp.concatenate(columns, axis=-1)


def _log_det(root: Float[Array, "... D M"]) -> Float[Array, "..."]:
    """Logarithm of the standard volume, half that of ``det(root root^T)``."""
    return jnp.sum(jnp.log(jnp.diagonal(numerics.triangular(root)[1], axis1=-2, axis2=-1)), axis=-1)


def _expected_log_prob(components: Any, other: Any) -> Float[Array, "... K"]:
    """``E[log p_j(Y)]`` for ``Y`` from each component i, ``[..., K]``.

    ``log p_j(m_i) - tr(P_j S_i) / 2`` with the precision ``P_j`` and the covariance ``S_i``.
    """
    return other.log_prob(components.mean()) - 0.5 * _trace(components, other)


def _trace(components: Any, other: Any) -> Float[Array, "... K"]:
    """``tr(P_j S_i)``: sums of squares, no inverse and no difference."""
    if isinstance(components, Normal):  # D numbers instead of D^3
        ratio = components.scale / other.scale
        return jnp.sum(ratio**2, axis=-1) * (components.event_dim // ratio.shape[-1])
    root = jnp.einsum(
        "...ij,...jk->...ik", other.whitening(), components.square_root(), precision="highest"
    )
    return jnp.sum(root**2, axis=(-2, -1))
