"""Head biases from data: a network that starts as the data's own marginal density.

A mixture whose components start at random places wastes its first epochs finding the data, and
components far from everything die. ``from_targets`` returns the raw outputs of a mixture whose
mean and covariance are the data's; used as the last layer's bias, beside a small kernel, every
input starts from there.

The locations are group means, of quantile groups (D = 1) or of k-means++ clusters (D > 1). The
components share one shape: what is left of the data's covariance when the covariance between the
locations is subtracted (the analysis-of-variance identity).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Categorical, FullNormal, Independent, LowRankNormal, Normal
from jaxmdn.heads.base import Head
from jaxmdn.heads.categorical import CategoricalHead
from jaxmdn.heads.class_conditional import ClassConditionalHead
from jaxmdn.heads.factorized import FactorizedHead
from jaxmdn.heads.groups import assign, group_means
from jaxmdn.heads.independent import IndependentHead
from jaxmdn.heads.normal import NormalHead
from jaxmdn.mixture import Mixture
from jaxmdn.mixture.class_conditional import Labeled
from jaxmdn.typing import Array, ArrayLike, Float, Int, Key


def from_targets(
    key: Key[Array, ""], head: Head, y: Any, *, weights: Float[ArrayLike, "N"] | None = None
) -> Float[Array, "P"]:
    """Return raw outputs ``[P]`` whose density has the data's mean and covariance.

    What is recovered: the mean and the marginal variances always (isotropic: their sum). The whole
    covariance for ``"full"`` always; for the other types if ``K > D`` (components without
    correlations can only express one through their locations, and K locations span K - 1
    directions) and the columns are not nearly collinear, else roughly. Scales the head cannot
    reach (below ``min_scale``, above a bounded link) are moved to the nearest one it can. With a
    graph, each dimension is regressed on its parents alone: within the components that is the
    likeliest covariance the graph allows; other dependence, and the variance it adds, is lost.

    Args:
      key: a typed random key (k-means++ draws its seeds).
      head: a head.
      y: targets ``[N, D]``, or ``Labeled`` for a class-conditional head; N at least 1.
      weights: nonnegative row weights ``[N]``.

    Raises:
      TypeError: for a head without a rule. ValueError: for no rows or a wrong event size.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> y = jnp.array([[0.0], [1.0], [5.0], [6.0]])
    >>> head = jaxmdn.NormalHead(2, 1)
    >>> mixture = head(jaxmdn.heads.initializers.from_targets(jax.random.key(0), head, y))
    >>> print(f"{jaxmdn.mean(mixture)[0]:.3f} {jaxmdn.variance(mixture)[0]:.3f}")
    3.000 6.500

    References:
      Arthur and Vassilvitskii (2007), k-means++; Tipping and Bishop (1999) for the loadings;
      Olkin and Pukelsheim (1982) for the optimal map between two covariances.
    """
    leaves = jax.tree.leaves(y)
    for leaf in leaves:
        checks.require_array("from_targets", "y", leaf)
        if leaf.ndim < 1 or leaf.shape[0] == 0:
            raise ValueError(
                f"from_targets: y must have at least one row, got shape {list(leaf.shape)}."
            )
    if leaves[-1].ndim > 2:
        raise ValueError(
            f"from_targets: expected y of shape [N, D], got {list(leaves[-1].shape)}; flatten the "
            f"leading axes first: y.reshape(-1, D)."
        )
    count = leaves[-1].shape[0]
    rows = jnp.ones(count, numerics.compute_dtype(*leaves)) if weights is None else weights
    checks.require_floating("from_targets", "weights", rows)
    for name, value in (("weights", rows), *(("label", leaf) for leaf in leaves[:-1])):
        if value.shape != (count,):
            raise ValueError(
                f"from_targets: {name} must have one entry per row of y, shape [{count}], "
                f"got {list(value.shape)}."
            )
    return initial_bias(head, key, y, _relative(rows, numerics.compute_dtype(*leaves)))


@partial(meshes.jit, static_argnums=1)
def _relative(weights: Array, dtype: Any) -> Array:
    """Weights of mean one."""
    weights = weights.astype(dtype)
    return weights / jnp.mean(weights)


@singledispatch
def initial_bias(head: Head, key: Key[Array, ""], y: Any, weights: Array) -> Array:
    """The rule of one head type; register another with ``initial_bias.register``."""
    raise TypeError(
        f"from_targets: no initialiser for {type(head).__name__}; "
        f"register one with jaxmdn.heads.initializers.initial_bias.register."
    )


@initial_bias.register
@partial(meshes.jit, static_argnums=0)
def _categorical(head: CategoricalHead, key: Key[Array, ""], y: Array, weights: Array) -> Array:
    checks.require_last_axis("from_targets", "y", y, 1, "event dimension D")
    labels = y[..., 0].astype(jnp.int32)
    return head.inverse(Categorical(logits=_log_frequency(labels, weights, head)))


def _log_frequency(labels: Int[Array, "N"], weights: Array, head: Any) -> Array:
    """Log class frequencies with one pseudo-count, so that an unseen class can still be learnt."""
    member = jax.nn.one_hot(labels, head.num_classes, dtype=weights.dtype)
    counts = 1.0 + weights @ member
    frequency = counts / jnp.sum(counts)
    return jnp.log(_floored(frequency, getattr(head, "min_weight", 0.0)))


@initial_bias.register
def _class_conditional(
    head: ClassConditionalHead, key: Key[Array, ""], y: Any, weights: Array
) -> Array:
    keys = jax.random.split(key, head.num_classes)
    if isinstance(y, Labeled):
        logits = _log_frequency(y.label, weights, head)
        members = jax.nn.one_hot(y.label, head.num_classes, axis=0, dtype=weights.dtype)
        # A class without rows (or with none that count) starts from all of them.
        shares = members * weights
        seen = jnp.sum(shares, axis=1, keepdims=True) > 0
        shares = jnp.where(seen, shares, weights)
        y = y.y
    else:
        logits = jnp.zeros(head.num_classes, weights.dtype)
        shares = jnp.broadcast_to(weights, (head.num_classes, *weights.shape))
    inner = [initial_bias(head.head, k, y, share) for k, share in zip(keys, shares, strict=True)]
    return jnp.concatenate([logits, *inner])


@initial_bias.register
def _independent(head: IndependentHead, key: Key[Array, ""], y: Array, weights: Array) -> Array:
    checks.require_last_axis("from_targets", "y", y, head.event_dim, "event dimension D")
    keys = jax.random.split(key, len(head.heads))
    groups = zip(head.heads, keys, (y[:, np.array(dims)] for dims in head.dims), strict=True)
    return jnp.concatenate([initial_bias(part, k, group, weights) for part, k, group in groups])


@initial_bias.register
@partial(meshes.jit, static_argnums=0)
def _factorized(head: FactorizedHead, key: Key[Array, ""], y: Array, weights: Array) -> Array:
    """Groups of targets, each a component with the group's own mean and variance per output."""
    checks.require_last_axis("from_targets", "y", y, head.event_dim, "event dimension D")
    y = y.astype(weights.dtype)
    weights = weights / jnp.sum(weights)
    mean = weights @ y
    variance = weights @ (y - mean) ** 2
    spread = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    count = head.num_components
    z = (y - mean) / spread
    assignment = assign(key, z, weights, count)
    share, loc = group_means(assignment, z, weights, count)
    _, square = group_means(assignment, z**2, weights, count)
    # A group of equal targets keeps a little of the overall variance, an empty one all of it.
    within = jnp.where((share > 0)[:, None], jnp.maximum(square - loc**2, 1e-2), 1.0)
    means, variances = mean + spread * loc, spread**2 * within  # [K, D]
    parts = []
    for group, (family, own) in enumerate(head.groups):
        columns = np.array(own)
        values = family.from_moments(means[:, columns], variances[:, columns])
        if values is None:
            member = jax.nn.one_hot(assignment, count, dtype=y.dtype) * weights[:, None]
            values = _likeliest(head, group, y[:, columns], member)
        values = {name: head.within_reach(group, name, value) for name, value in values.items()}
        parts.append(family.build(values, ()))
    components = Independent(parts=tuple(parts), dims=tuple(own for _, own in head.groups))
    logits = jnp.log(_floored(share, head.min_weight))
    return head.inverse(Mixture(logits=logits, components=components))


def _likeliest(
    head: FactorizedHead, group: int, y: Float[Array, "N D"], member: Float[Array, "N K"]
) -> dict[str, Array]:
    """Parameters of each group's likeliest component, for a family without ``from_moments``.

    By BFGS in the raw numbers, from zeros, where those are worse; groups without rows, and those
    where it diverges, stay at zeros.
    """
    family, outputs = head.groups[group][0], y.shape[1]
    names = tuple(family.parameters)
    shapes = {name: family.event_shape(name, outputs) for name in names}
    sizes = [math.prod(shapes[name]) for name in names]
    share = member / jnp.maximum(jnp.sum(member, axis=0), float(jnp.finfo(y.dtype).tiny))

    def values(raw: Array) -> dict[str, Array]:  # one component: [1, ...]
        found = {}
        for name, piece in zip(names, jnp.split(raw, np.cumsum(sizes)[:-1]), strict=True):
            found[name] = head.from_raw(group, name, piece.reshape(1, *shapes[name]))
        return found

    def best(share: Array) -> dict[str, Array]:
        def loss(raw: Array) -> Array:
            log_prob = family.build(values(raw), ()).log_prob(y[:, None, :])[:, 0]
            return -jnp.sum(jnp.where(share > 0, share * log_prob, 0))

        zeros = jnp.zeros(sum(sizes), y.dtype)
        found = minimize(loss, zeros, method="BFGS", options={"maxiter": 200}).x
        sound = jnp.all(jnp.isfinite(found)) & (loss(found) < loss(zeros))
        return values(jnp.where(sound, found, zeros))

    stacked = jax.vmap(best, in_axes=1)(share)
    return {name: value[:, 0] for name, value in stacked.items()}  # [K, 1, ...] -> [K, ...]


@initial_bias.register
@partial(meshes.jit, static_argnums=0)
def _normal(head: NormalHead, key: Key[Array, ""], y: Array, weights: Array) -> Array:
    checks.require_floating("from_targets", "y", y)
    checks.require_last_axis("from_targets", "y", y, head.event_dim, "event dimension D")
    y = y.astype(numerics.compute_dtype(y))
    weights = weights.astype(y.dtype) / jnp.sum(weights, dtype=y.dtype)
    mean = weights @ y
    spread = jnp.sqrt(weights @ (y - mean) ** 2)
    if head.covariance == "isotropic":  # one unit for all dimensions, or it would not stay so
        spread = jnp.sqrt(jnp.mean(spread**2, keepdims=True))
    spread = jnp.where(spread > 0, spread, 1.0)
    y = (y - mean) / spread
    jitter = 1e-6 * jnp.eye(head.event_dim, dtype=y.dtype)  # constant or collinear columns
    total = jnp.einsum("n,ni,nj->ij", weights, y, y, precision="highest") + jitter

    assignment = assign(key, y, weights, head.num_components)
    share, loc = group_means(assignment, y, weights, head.num_components)
    share = _floored(share, head.min_weight)
    deviation = loc - share @ loc
    with jax.default_matmul_precision("highest"):
        components = _matched_components(head, share, deviation, total).affine(mean, spread)
    return head.inverse(Mixture(logits=jnp.log(share), components=_reachable(head, components)))


def _floored(share: Float[Array, "K"], min_weight: float) -> Float[Array, "K"]:
    """Lift shares that are zero, or that the head's weight floor cannot express."""
    lowest = min_weight + 1e-3 * (1.0 / share.shape[0] - min_weight)
    share = jnp.maximum(share, lowest)
    slack = 1.0 - share.shape[0] * lowest
    excess = share - lowest
    return lowest + slack * excess / jnp.maximum(jnp.sum(excess), 1e-30)


def _matched_components(
    head: NormalHead, share: Array, deviation: Float[Array, "K D"], total: Float[Array, "D D"]
) -> Normal | FullNormal | LowRankNormal:
    """Components at (a linear image of) ``deviation`` whose mixture has covariance ``total``."""
    K, D = deviation.shape
    between = _outer(deviation * jnp.sqrt(share)[:, None])
    if head.covariance == "full":
        # What lies between the groups is subtracted; if nothing were left within, shrink it.
        shrink = jnp.minimum(1.0, 0.99 / _largest_ratio(between, total))
        within = total - shrink * between
        loc = jnp.sqrt(shrink) * deviation
        if head.graph is not None:
            whitening = _whitening_of(head.graph, within)
        else:
            whitening = FullNormal.from_covariance(loc, within).whitening_tril
        whitening = jnp.broadcast_to(whitening, (1 if head.tied else K, D, D))
        return FullNormal(loc=loc, whitening_tril=whitening)

    within = jnp.maximum(jnp.diagonal(total - between), 1e-3 * jnp.diagonal(total))
    if head.covariance == "isotropic":
        within = jnp.full_like(within, jnp.mean(within))
    factor = jnp.zeros((D, 0), total.dtype)
    if head.covariance == "low_rank":
        factor = _loadings(total - between, head.rank)
        within = jnp.maximum(within - jnp.sum(factor**2, axis=-1), 1e-3 * within)
    if K > D:
        # Move the locations so that between + within is exactly total. Nearly collinear data would
        # need scales so small that the start is worse than a rough match: stop at a tenth.
        model = jnp.diag(within) + _outer(factor.T)
        shrink = jnp.clip(0.9 / _largest_ratio(model, total), 0.1, 1.0)
        root = jnp.linalg.cholesky(between)
        values, vectors = jnp.linalg.eigh(root.T @ (total - shrink * model) @ root)
        middle = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T
        inverse = numerics.invert_tril(root)
        # The symmetric map from covariance `between` to the one wanted: it moves points least.
        matched = deviation @ (inverse.T @ middle @ inverse)
        solved = jnp.all(jnp.isfinite(matched))  # false where the groups span too few directions
        deviation = jnp.where(solved, matched, deviation)
        within = jnp.where(solved, shrink, 1.0) * within
        factor = jnp.where(solved, jnp.sqrt(shrink), 1.0) * factor
    shared = 1 if head.tied else K
    scale = jnp.sqrt(within)[: 1 if head.covariance == "isotropic" else D]
    scale = jnp.broadcast_to(scale, (shared, *scale.shape))
    if head.covariance != "low_rank":
        return Normal(loc=deviation, scale=scale)
    return LowRankNormal(
        loc=deviation, factor=jnp.broadcast_to(factor, (shared, *factor.shape)), scale=scale
    )


def _whitening_of(
    graph: Sequence[Sequence[int]], covariance: Float[Array, "D D"]
) -> Float[Array, "D D"]:
    """The likeliest whitening factor with the graph's zeros: a regression on the parents a row."""
    mask = np.zeros(covariance.shape, bool)
    for d, parents in enumerate(graph):
        mask[d, list(parents)] = True

    def row(d: Array, mask: Array) -> Array:
        pairs = mask[:, None] & mask  # elsewhere the identity, so that one solve serves every row
        normal = jnp.where(pairs, covariance, jnp.eye(len(covariance), dtype=covariance.dtype))
        target = jnp.where(mask, covariance[d], 0)
        slope = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(normal, lower=True), target)
        scale = jnp.sqrt(covariance[d, d] - slope @ target)
        return jnp.where(jnp.arange(len(covariance)) == d, 1, -slope) / scale

    return jax.vmap(row)(jnp.arange(len(covariance)), jnp.asarray(mask))


def _outer(rows: Float[Array, "N D"]) -> Float[Array, "D D"]:
    return jnp.einsum("ni,nj->ij", rows, rows, precision="highest")


def _largest_ratio(part: Float[Array, "D D"], whole: Float[Array, "D D"]) -> Float[Array, ""]:
    """The largest generalised eigenvalue: how much of ``whole`` one direction of ``part`` holds."""
    inverse = numerics.invert_tril(jnp.linalg.cholesky(whole))
    return jnp.linalg.eigvalsh(inverse @ part @ inverse.T)[-1]


def _loadings(covariance: Float[Array, "D D"], rank: int) -> Float[Array, "D r"]:
    """Probabilistic-PCA loadings; never all zero, where the likelihood has a saddle."""
    values, vectors = jnp.linalg.eigh(covariance)
    noise = jnp.mean(values[:-rank]) if rank < len(values) else 0.5 * values[0]
    signal = jnp.maximum(values[-rank:] - noise, 1e-2 * values[-rank:])
    return vectors[:, -rank:] * jnp.sqrt(jnp.maximum(signal, 1e-6))


def _reachable(
    head: NormalHead, components: Normal | FullNormal | LowRankNormal
) -> Normal | FullNormal | LowRankNormal:
    """Move scales strictly inside the interval that the head's link can express."""
    if not isinstance(components, FullNormal):
        scale = head.link.within_reach(components.scale, head.min_scale)
        return dataclasses.replace(components, scale=scale)
    whitening = components.whitening_tril
    scale = 1.0 / jnp.diagonal(whitening, axis1=-2, axis2=-1)
    ratio = scale / head.link.within_reach(scale, head.min_scale)
    return dataclasses.replace(components, whitening_tril=whitening * ratio[..., None])
