"""The continuous ranked probability score: the mean absolute error of a distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Independent, LogNormal, Normal, StudentT
from jaxmdn.components.base import Density
from jaxmdn.components.counts import CountDensity, lattices
from jaxmdn.inference.quantiles import quantile_at
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.scoring.integrals import squared_distance
from jaxmdn.typing import Array, Float, Num

#: Levels of :func:`quantile_crps` unless told otherwise.
NUM_LEVELS = 32


@meshes.jit
def crps(density: Density, y: Num[Array, "..."]) -> Float[Array, "..."]:
    """Continuous ranked probability score of each dimension's marginal, ``[..., D]``.

    ``CRPS = E|Y - y| - E|Y - Y'| / 2``, in the target's unit; for a point forecast it is the
    absolute error. Time ``O(K^2)``, memory ``O(K)``.

    In closed form for mixtures of normals (of any covariance), of Laplace and of log-normal
    densities, and for one Student-t density of 1.5 degrees of freedom or more. Of logistic
    densities the pairs of different components are integrated, to rounding. Levels are summed one
    by one, and counts where no row's reach beyond 128. All else is ``int (F(t) - [t >= y])^2 dt``
    by quadrature, cut at the target, at cusps and at masses: of hundreds of random mixtures the
    relative error is below 1e-6 as a rule in float64 (1e-9 of Student-t; 1e-5 in float32), 2e-5 for
    the worst, of about one degree of freedom; where components are hundreds of their widths apart
    up to 1e-3 for Student-t and positive numbers, and 2e-2 where densities have cusps. Of positive
    numbers, shares, hurdles and counts that lie ``d`` standard deviations from zero, float32 leaves
    1e-6 ``d``; of counts at most 3e-4, since from ``d^2 = 1 / eps`` on they are taken as normal.

    At K = 10 that takes the time of 10 to 100 log-densities in float32; of Poisson densities beyond
    128, whose log-density costs least, 220.

    Args:
      density: a mixture of batch shape ``[...]``, or independent ones.
      y: targets ``[..., D]``; leading axes broadcast.

    Returns:
      ``[..., D]``, in the compute dtype; lower is better.

    Raises:
      TypeError: if ``density`` is no mixture, or its dimensions have no cdf (categorical).
      ValueError: on a wrong event size.

    Limits: a score with half a degree of freedom or less is infinite, which is not seen; from there
    up to one degree of freedom the far tail, left out, may be a hundredth of it. Angles are scored
    as numbers in ``[-pi, pi]``, whose ends are apart.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.crps(mixture, jnp.zeros(1))[0]), 4)
    0.2337

    References:
      Grimit et al. (2006), The continuous ranked probability score for circular variables, eq. 5.
      Jordan, Krueger and Lerch (2019), Evaluating probabilistic forecasts with scoringRules,
      appendix A (one component of each family).
    """
    check_target("crps", density, y)
    if isinstance(density, Independent):
        return density.apply(crps, y)
    if not isinstance(density, Mixture):
        raise TypeError(f"crps: expected a Mixture, got {type(density).__name__}.")
    y = y.astype(numerics.compute_dtype(y, jnp.zeros((), density.dtype)))
    return _score(*numerics.upcast_tree(flatten_mixture(density).marginals(), y))


def _score(flat: Mixture, y: Array) -> Array:
    if isinstance(flat.components, Independent):

        def of_part(part: Density, columns: Array) -> Array:
            return _score(flatten_mixture(dataclasses.replace(flat, components=part)), columns)

        return flat.components.apply(of_part, y)
    family = flat.components
    family.cdf  # noqa: B018 - classes have none, and say so
    shape = (*jnp.broadcast_shapes(flat.batch_shape, y.shape[:-1]), flat.event_dim)
    # Without any weight there is no distribution: no score, least of all zero.
    none = jnp.sum(flat.weights(), axis=-1, keepdims=True) == 0
    return jnp.where(none, jnp.nan, _of_each(flat, jnp.broadcast_to(y, shape)))


def _of_each(flat: Mixture, y: Array) -> Array:
    if flat.event_dim == 1:
        return _of_one(flat, y)

    # One dimension after another: loops over a last axis of a few numbers are slow.
    @jax.checkpoint
    def body(d: Array) -> Array:
        def pick(leaf: Array, rank: int) -> Array:
            shared = rank == 0 or leaf.shape[-1] == 1
            return leaf if shared else jax.lax.dynamic_index_in_dim(leaf, d, -1)

        own = dataclasses.replace(flat, components=flat.components.map_parameters(pick))
        return _of_one(own, jax.lax.dynamic_index_in_dim(y, d, -1))[..., 0]

    each = meshes.scan(lambda _, d: (None, body(d)), None, jnp.arange(flat.event_dim))[1]
    return jnp.moveaxis(each, 0, -1)


def _of_one(flat: Mixture, y: Float[Array, "... 1"]) -> Float[Array, "... 1"]:
    family = flat.components
    if isinstance(family, LogNormal):
        moment = family.reduced_moment(y[..., None, :])
        return _of_distances(flat, moment, family.own_reduced, "mean_reduced")
    if isinstance(family, CountDensity):
        # Of counts so narrow beside their size steps are lost, and what is left is normal.
        mean, variance = numerics.upcast(family.mean(), family.variance())
        eps = float(jnp.finfo(y.dtype).eps)
        narrow = (eps * mean > 1) & (eps * mean * mean > variance) & (variance > 0)
        loc, scale = jnp.where(narrow, mean, 0), jnp.sqrt(jnp.where(narrow, variance, 1))
        normals = dataclasses.replace(flat, components=Normal(loc=loc, scale=scale))
        every = jnp.all(narrow | (flat.weights()[..., None] == 0), axis=-2)
        return jnp.where(every, _by_distances(normals, y), squared_distance(flat, y))
    if not family.absolute_moments:
        return squared_distance(flat, y)
    if not isinstance(family, StudentT):
        return _by_distances(flat, y)
    # A pair of different Student variables costs more than the quadrature.
    if flat.num_components > 1:
        return squared_distance(flat, y)
    # Where a tail is so heavy that mean distances are infinite, or nearly, the integral is finite.
    moderate, light = family.light()
    exact = _by_distances(dataclasses.replace(flat, components=moderate), y)
    return jnp.where(light[..., 0, :], exact, squared_distance(flat, y))


def _by_distances(flat: Mixture, y: Array) -> Array:
    family = flat.components
    moment = family.absolute_moment(y[..., None, :])
    return _of_distances(flat, moment, family.own_difference, "mean_difference")


def _of_distances(flat: Mixture, distance: Array, of_one: Callable[[], Array], pair: str) -> Array:
    weights, distance = numerics.upcast(flat.weights(), distance)
    accuracy = numerics.weighted_sum(weights[..., None], distance, -2)  # [..., K, D] -> [..., D]
    return accuracy - 0.5 * _over_pairs(flat, accuracy.dtype, of_one, pair)


def mean_difference(mixture: Mixture, dtype: np.dtype) -> Float[Array, "..."]:
    """``E|Y - Y'|`` of two independent draws, ``[..., D]``."""
    return _over_pairs(mixture, dtype, mixture.components.own_difference, "mean_difference")


def _over_pairs(
    mixture: Mixture, dtype: np.dtype, of_one: Callable[[], Array], pair: str
) -> Float[Array, "..."]:
    """The mean of what each component has with itself, and with others by the method ``pair``.

    Component k meets component ``k + shift``, for one shift after another: each pair once.
    """
    family, count = mixture.components, mixture.num_components
    weights = mixture.weights()[..., None].astype(dtype)  # [..., K, 1]
    own = numerics.weighted_sum(weights**2, of_one().astype(dtype), -2)
    shape = (*mixture.batch_shape, mixture.event_dim)

    @jax.checkpoint
    def add_pairs(total: Array, shift: Array) -> tuple[Array, None]:
        def roll(parameter: Array, rank: int) -> Array:
            tied = parameter.ndim == rank or parameter.shape[-1 - rank] == 1
            return parameter if tied else jnp.roll(parameter, shift, axis=-1 - rank)

        pairs = getattr(family, pair)(family.map_parameters(roll)).astype(dtype)
        joint = weights * jnp.roll(weights, shift, axis=-2)
        # A shift of half the count meets every pair twice.
        times = jnp.where(2 * shift == count, 1, 2).astype(dtype)
        return total + times * numerics.weighted_sum(joint, pairs, -2), None

    total = jnp.broadcast_to(own, shape)
    if count == 1:
        return total
    return meshes.scan(add_pairs, total, jnp.arange(1, count // 2 + 1))[0]


def quantile_crps(
    density: Density, y: Num[Array, "..."], *, num_levels: int = NUM_LEVELS
) -> Float[Array, "..."]:
    """CRPS of each dimension's marginal by its quantiles, ``[..., D]``, for any family.

    ``CRPS = 2 int_0^1 pinball_u(y) du``. The levels are cut at ``F(y)``, where the pinball score
    has a kink, and at the cumulated weights of the components in order of their medians, where the
    quantiles jump if the components stand apart; on each piece Gauss-Legendre, its nodes crowded
    towards both ends.

    Args:
      density: a density of batch shape ``[...]`` with a cdf and quantiles.
      y: targets ``[..., D]``; leading axes broadcast.
      num_levels: quantiles on each of the ``K + 1`` pieces (static).

    Returns:
      ``[..., D]``, in the compute dtype.

    Raises:
      ValueError: if ``num_levels`` is below one, or on a wrong event size.
      TypeError: for a density without quantiles.

    Limits: the relative error of one smooth component is below 1e-5 with 16 levels and 1e-7 with 32
    (1e-4 where the density has a cusp). Of mixtures it is 1e-7 as a rule, whether or not their
    modes stand apart, and 2e-3 for the worst of hundreds, where the quantiles rise steeply inside a
    piece. Quantiles of integers jump everywhere: there the integral is the sum of :func:`crps`, and
    exact. Where the mean is infinite so is the score, which is not seen. Time is that of all the
    quantiles, ``O(K^2)``; memory that of one.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((1, 1)), scale=jnp.ones((1, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(1), components=normal)
    >>> round(float(jaxmdn.scoring.quantile_crps(mixture, jnp.zeros(1))[0]), 4)
    0.2337

    References:
      Gneiting and Ranjan (2011), Comparing density forecasts using threshold- and
      quantile-weighted scoring rules, eq. 13.
    """
    check_target("quantile_crps", density, y)
    checks.require_count("quantile_crps", "num_levels", num_levels)
    if isinstance(density, Independent):
        return density.apply(partial(quantile_crps, num_levels=num_levels), y)
    if isinstance(density, Mixture) and isinstance(density.components, Independent):

        def of_part(part: Density, columns: Array) -> Array:
            own = dataclasses.replace(density, components=part)
            return quantile_crps(own, columns, num_levels=num_levels)

        return density.components.apply(of_part, y)
    stepped = [isinstance(density, Mixture) and own is not None for own in lattices(density)]
    if not any(stepped):
        return _by_levels(density, y, num_levels)
    if all(stepped):
        return crps(density, y)
    whole, rest = np.flatnonzero(stepped), np.flatnonzero(np.logical_not(stepped))
    scores = [
        quantile_crps(density.marginal(tuple(own.tolist())), y[..., own], num_levels=num_levels)
        for own in (whole, rest)
    ]
    joined = jnp.concatenate(numerics.upcast(*scores), axis=-1)
    return joined[..., np.argsort(np.concatenate([whole, rest]))]


@partial(meshes.jit, static_argnums=2)
def _by_levels(density: Density, y: Num[Array, "..."], num_levels: int) -> Float[Array, "..."]:
    reached, target = numerics.upcast(density.cdf(y), y)
    edges = jax.lax.stop_gradient(_cuts(density, reached))  # [pieces + 1, ..., D]
    reached_level = jax.lax.stop_gradient(reached)
    x, weights = np.polynomial.legendre.leggauss(num_levels)
    x, weights = 0.5 * (x + 1), 0.5 * weights
    # At both ends of a piece the quantile may grow like a logarithm or a power; a share whose first
    # two derivatives vanish there takes the edge off.
    share = x**3 * (10 - 15 * x + 6 * x**2)
    weights = 30 * (x * (1 - x)) ** 2 * weights
    pieces = edges.shape[0] - 1
    nodes = np.stack([np.tile(share, pieces), np.tile(weights, pieces)], axis=-1)
    which = jnp.asarray(np.repeat(np.arange(pieces), num_levels))

    info = jnp.finfo(reached.dtype)
    least, most = 8 * float(info.tiny), 1 - 8 * float(info.eps)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        (share, weight), piece = node[0], node[1]
        start, end = edges[piece], edges[piece + 1]
        level = start + (end - start) * share
        # Next to the ends, where a level rounds to one, there is no weight.
        none = (level <= least) | (level >= most) | (start == end)
        gap = quantile_at(density, jnp.where(none, 0.5, level)) - target
        gap = jnp.where(none, 0, gap)
        slope = jnp.where(start < reached_level, -level, 1 - level)
        return total + 2 * weight * numerics.silent_product(end - start, slope * gap), None

    zero = jnp.zeros(edges.shape[1:], reached.dtype)
    return meshes.scan(jax.checkpoint(add), zero, (jnp.asarray(nodes, zero.dtype), which))[0]


def _cuts(density: Density, reached: Float[Array, "... D"]) -> Float[Array, "S ... D"]:
    """Ascending levels from 0 to 1: ``F(y)``, and those at which the quantiles may jump."""
    cuts = [jnp.zeros_like(reached), jnp.ones_like(reached), reached]
    for atom in sorted({atom for own in density.support for atom in own.atoms}):
        below, at = numerics.upcast(*density.jump(jnp.full_like(reached, atom)))
        cuts += [below, jnp.minimum(below + at, 1)]
    if isinstance(density, Mixture):
        flat = flatten_mixture(density)
        half = jnp.full((flat.num_components, flat.event_dim), 0.5, reached.dtype)
        medians, weights = numerics.upcast(
            flat.components.quantile(half), flat.weights()[..., None]
        )
        order = jnp.argsort(medians, axis=-2)
        weights = jnp.take_along_axis(jnp.broadcast_to(weights, medians.shape), order, axis=-2)
        levels = jnp.cumsum(weights, axis=-2)[..., :-1, :].astype(reached.dtype)
        levels = jnp.broadcast_to(levels, (*reached.shape[:-1], *levels.shape[-2:]))
        cuts += [jnp.minimum(levels[..., k, :], 1) for k in range(levels.shape[-2])]
    return jnp.sort(jnp.stack(cuts), axis=0)
