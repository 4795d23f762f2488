"""Modes: the values that a mixture thinks most likely.

In one dimension all of them are found, as turning points of the density. In more, each component's
centre climbs: first by mean-shift steps ``x + A^-1 grad log p(x)``, ``A`` the components' mean
precision at ``x``, each of which raises the density; then by Newton's where the density is
log-concave around ``x``, which finish quadratically where mean-shift would crawl. Other components
than normals climb likewise (:mod:`jaxmdn.inference.climbing`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components import AsymmetricLaplace, Independent, Laplace, NormalDensity
from jaxmdn.components.base import Density
from jaxmdn.inference import climbing
from jaxmdn.inference.lengths import on_circle, plain, require_continuous, without_atoms
from jaxmdn.inference.turning_points import turning_points
from jaxmdn.mixture import Mixture
from jaxmdn.special.circular import representative
from jaxmdn.typing import Array, Bool, Float

# Steps of each kind. A mean-shift step removes a share of the distance that depends on the overlap
# of the components; what it leaves, Newton's takes.
SHIFT_STEPS, NEWTON_STEPS = 40, 20


class Modes(NamedTuple):
    """A density's modes, by falling density; unused slots hold ``inf``, their log-density ``-inf``.

    Attributes:
      location: ``[..., M, D]``, in the target's unit.
      log_prob: ``[..., M]``, nats.
    """

    location: Float[Array, "..."]
    log_prob: Float[Array, "..."]


@meshes.jit
def modes(density: Density) -> Modes:
    """Modes of a density, the highest first: ``modes(density).location[..., 0, :]``.

    Args:
      density: a mixture of batch shape ``[...]``; for D > 1 of normals, with any covariance, or of
        products of smooth unimodal densities (Student-t, gamma, beta ..., or several families). Or
        independent mixtures (:class:`~jaxmdn.IndependentHead`): their modes are all choices of one
        mode for each of them.

    Returns:
      :class:`Modes` with ``M = K`` slots (the components of all classes, for a class-conditional
      density; for D = 1 and other families than normal, ``2 K``), and one for each atom. Their
      derivative in the parameters is that of the implicit function, ``dx = -H^-1 d(grad log
      p(x))`` with the Hessian H of the log-density.

    Raises:
      TypeError: if the density is no mixture, or discrete, or for D > 1 has angles, values of
        positive probability or a corner (Laplace).

    Limits: for D = 1 all modes are found; a mixture of K normals has at most K. A value of positive
    probability (the zero of a hurdle) comes first, with a log-density of ``inf``. Angles lie in
    ``[-pi, pi]``. For D > 1 a mode is found if one of the components' centres climbs to it in 60
    steps. That misses modes that mixtures can have in addition (elongated components that cross can
    have one at the crossing); and where the density is nearly flat (two modes about to merge) the
    climb may end some way along the ridge. An end where the climb has not come to rest, or that is
    a saddle, is left out, the highest one excepted; two ends are one mode if they are closer than
    ``eps^(1/4)`` of the local scale (``A`` above; 1e-4 in float64, 0.02 in float32). A component
    that is highest at an end of its support (a gamma of concentration below one) gives NaN for
    D > 1. NaN gives NaN.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [9.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.array([0.0, 1.0]), components=normal)
    >>> jaxmdn.modes(mixture).location[..., 0].round(3).tolist()
    [9.0, 0.0]

    References:
      Carreira-Perpinan (2000), Mode-finding for mixtures of Gaussian distributions, sections 3-5;
      Carreira-Perpinan (2007), Gaussian mean-shift is an EM algorithm;
      Carreira-Perpinan and Williams (2003), On the number of modes of a Gaussian mixture.
    """
    if isinstance(density, Independent):
        return _choices(density, [modes(part) for part in density.parts])
    require_continuous("modes", density)
    flat: Mixture = plain(density, jnp.zeros((), density.dtype))[0]
    if flat.event_dim == 1:
        return _of_line(flat)
    fixed = jax.lax.stop_gradient(flat)
    if isinstance(flat.components, NormalDensity):
        whitening = fixed.components.whitening()
        starts, climb = fixed.components.mean(), partial(_climb, fixed, whitening)

        def unit(x: Array) -> Array:
            return _look(fixed, whitening, x).factor
    else:
        products = _products(fixed)
        starts, climb = products.centres, partial(climbing.climb, products)

        def unit(x: Array) -> Array:
            return jnp.sqrt(climbing.look(products, x)[1])[..., None] * jnp.eye(x.shape[-1])

    points, found = _by_height(fixed, *_climb_all(fixed, starts, climb))  # [K, ..., D], [K, ...]
    found = _distinct(unit, points, found)
    order = jnp.argsort(~found, axis=0, stable=True)
    return _settle(flat, _reorder(points, order[..., None]), _reorder(found, order))


def _products(mixture: Mixture) -> climbing.Products:
    """Components of independent dimensions with their own modes."""
    parts = getattr(mixture.components, "parts", (mixture.components,))
    for part in parts:
        domain = part.support[0]
        refused = domain.discrete or domain.atoms or domain.kind == "circle"
        if refused or isinstance(part, Laplace | AsymmetricLaplace):
            raise TypeError(
                f"modes: for D > 1 every dimension must be a smooth density over numbers, got "
                f"{type(part).__name__}; take one dimension first, jaxmdn.marginal(mixture, (d,))."
            )
    centres = []
    for d in range(mixture.event_dim):
        own: Mixture = plain(mixture.marginal((d,)), jnp.zeros((), mixture.dtype))[0]
        each = own.components.map_parameters(lambda leaf, rank: jnp.expand_dims(leaf, -1 - rank))
        logits = jnp.zeros((*each.batch_shape[:-1], 1), mixture.dtype)
        turns = turning_points(Mixture(logits=logits, components=each))
        height = jnp.where(turns.is_mode, turns.value[1::2], -jnp.inf)
        highest = jnp.argmax(height, axis=0)[None]
        centre = jnp.take_along_axis(turns.location[1::2], highest, axis=0)[0]
        # None where the density is highest at an end of its support.
        inner = jnp.max(height, axis=0) > jnp.maximum(turns.value[0], turns.value[-1])
        centres.append(jnp.where(inner, centre, jnp.nan))
    quarter = jnp.full((mixture.event_dim,), 0.25, mixture.dtype)
    spread = mixture.components.quantile(1 - quarter) - mixture.components.quantile(quarter)
    shape = (*mixture.batch_shape, mixture.num_components, mixture.event_dim)
    found = jnp.stack([jnp.broadcast_to(own, shape[:-1]) for own in centres], axis=-1)
    return climbing.Products(mixture, found, jnp.broadcast_to(1 / spread**2, shape))


def _of_line(mixture: Mixture) -> Modes:
    """Modes of plain components over one dimension."""
    rest = without_atoms(mixture)
    fixed = jax.lax.stop_gradient(rest.mixture)
    turns = turning_points(fixed)
    points = turns.location[1::2, ..., None]
    location, height = _settle(rest.mixture, *_by_height(fixed, points, turns.is_mode))
    if on_circle(rest.mixture):
        location = jnp.where(jnp.isinf(location), location, representative(location))
    if not rest.atoms:
        return Modes(location, height)
    height = height + rest.log_share[..., None]
    some = rest.log_share < 0
    for atom in rest.atoms:
        own = jnp.where(some, jnp.asarray(atom, height.dtype), jnp.inf)[..., None]
        location = jnp.concatenate([own[..., None], location], axis=-2)
        height = jnp.concatenate([jnp.where(some, jnp.inf, -jnp.inf)[..., None], height], axis=-1)
    order = jnp.argsort(-height, axis=-1, stable=True)
    location = jnp.take_along_axis(location, order[..., None], axis=-2)
    return Modes(location, jnp.take_along_axis(height, order, axis=-1))


def _choices(density: Independent, parts: list[Modes]) -> Modes:
    """Every choice of one mode for each of the independent parts."""
    counts = [part.log_prob.shape[-1] for part in parts]

    def spread(values: Array, index: int, rank: int) -> Array:
        """From ``[..., M_g]`` and ``rank`` more axes to ``[..., M]``, all choices, and those."""
        lead, event = values.shape[: values.ndim - rank - 1], values.shape[values.ndim - rank :]
        shape = [counts[i] if i == index else 1 for i in range(len(counts))]
        full = jnp.broadcast_to(values.reshape(*lead, *shape, *event), (*lead, *counts, *event))
        return full.reshape(*lead, math.prod(counts), *event)

    heights = numerics.upcast(*(spread(part.log_prob, i, 0) for i, part in enumerate(parts)))
    used = functools.reduce(jnp.logical_and, [~jnp.isneginf(height) for height in heights])
    location = density.join([spread(part.location, i, 1) for i, part in enumerate(parts)])
    height = jnp.where(used, sum(heights), -jnp.inf)
    order = jnp.argsort(-height, axis=-1, stable=True)
    location = jnp.where(used[..., None], location, jnp.inf)
    location = jnp.take_along_axis(location, order[..., None], axis=-2)
    return Modes(location, jnp.take_along_axis(height, order, axis=-1))


def _by_height(mixture: Mixture, points: Array, found: Array) -> tuple[Array, Array]:
    """Points ``[M, ..., D]``, the highest first; those that were not found last."""
    order = jnp.argsort(jnp.where(found, -mixture.log_prob(points), jnp.inf), axis=0, stable=True)
    return _reorder(points, order[..., None]), _reorder(found, order)


def _settle(mixture: Mixture, points: Array, found: Array) -> Modes:
    """Modes that move with the parameters."""
    broken = jnp.isnan(jax.lax.stop_gradient(mixture).log_prob(points))
    points = jax.lax.map(lambda slot: _follow(mixture, *slot), (points, found))
    height = jnp.where(found | broken, mixture.log_prob(points), -jnp.inf)
    points = jnp.where(found[..., None], points, jnp.where(broken, jnp.nan, jnp.inf)[..., None])
    return Modes(location=jnp.moveaxis(points, 0, -2), log_prob=jnp.moveaxis(height, 0, -1))


def _reorder(values: Array, order: Array) -> Array:
    return jnp.take_along_axis(values, order, axis=0)


@jax.custom_jvp
def _follow(
    mixture: Mixture, x: Float[Array, "... D"], found: Bool[Array, "..."]
) -> Float[Array, "... D"]:
    """Return a mode, which moves with the parameters so that the gradient stays zero."""
    return x


@_follow.defjvp
@meshes.any_rank
def _follow_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mixture, x, found = primals
    x = _follow(mixture, x, found)
    _, drift = jax.jvp(lambda mixture: climbing.gradient(mixture, x), (mixture,), (tangents[0],))
    hessian = climbing.hessian(mixture, x)
    # A slot without a mode, or a flat one, stands still: no NaN may reach the other slots.
    curved = jnp.all(jnp.isfinite(jnp.linalg.cholesky(jax.lax.stop_gradient(-hessian))), (-2, -1))
    still = ~(found & curved)
    hessian = jnp.where(still[..., None, None], -jnp.eye(x.shape[-1], dtype=x.dtype), hessian)
    moved = -jnp.linalg.solve(hessian, drift[..., None])[..., 0]
    return x, jnp.where(still[..., None], 0, moved)


class _Local(NamedTuple):
    """The density around a point, in coordinates in which the mean precision A is the identity."""

    factor: Float[Array, "... D D"]  # lower triangular, A = factor factor^T
    gradient: Float[Array, "... D"]
    curvature: Float[Array, "... D D"]  # minus the Hessian of the log-density


def _look(mixture: Mixture, whitening: Array, x: Float[Array, "... D"]) -> _Local:
    """``whitening [..., K, D, D]``: the components' own, found once for all points."""
    joint = mixture.joint_log_prob(x)
    share = jnp.exp(numerics.log_normalize(joint))  # [..., K]
    y = jnp.broadcast_to(x[..., None, :], (*share.shape, x.shape[-1]))
    value, pull = jax.vjp(mixture.components.log_prob, y)
    (pulls,) = pull(jnp.ones_like(value))  # [..., K, D]
    gradient = jnp.sum(share[..., None] * pulls, axis=-2)
    root = jnp.sqrt(share)[..., None]
    rows = root[..., None] * whitening
    precision = jnp.einsum("...kai,...kaj->...ij", rows, rows, precision="highest")
    factor = jnp.linalg.cholesky(precision)
    # H = -A + the pulls' covariance under the responsibilities.
    spread = _lower_solve(factor, root * (pulls - gradient[..., None, :]))  # [..., K, D]
    outer = jnp.einsum("...ki,...kj->...ij", spread, spread, precision="highest")
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    whitened = _lower_solve(factor, gradient[..., None, :])[..., 0, :]
    return _Local(factor=factor, gradient=whitened, curvature=identity - outer)


def _lower_solve(factor: Float[Array, "... D D"], rows: Array) -> Array:
    """Solve ``factor x = row`` for each of the rows ``[..., N, D]``."""
    return jax.lax.linalg.triangular_solve(
        factor, rows, left_side=False, lower=True, transpose_a=True
    )


def _climb_all(
    mixture: Mixture, starts: Float[Array, "... K D"], climb: Callable[[Array], tuple[Array, Array]]
) -> tuple[Float[Array, "K ... D"], Bool[Array, "K ..."]]:
    """Where the components' centres climb to, and whether each is a mode; one after another."""
    shape = (*mixture.batch_shape, mixture.num_components, mixture.event_dim)
    points, found = jax.lax.map(climb, jnp.moveaxis(jnp.broadcast_to(starts, shape), -2, 0))
    height = mixture.log_prob(points)
    highest = jnp.argmax(height, axis=0, keepdims=True) == jnp.arange(shape[-2]).reshape(
        -1, *(1,) * len(mixture.batch_shape)
    )
    return points, found | highest


def _climb(
    mixture: Mixture, whitening: Array, x: Float[Array, "... D"]
) -> tuple[Float[Array, "... D"], Bool[Array, "..."]]:
    eps = float(jnp.finfo(x.dtype).eps)

    def unwhiten(local: _Local, step: Array) -> Array:
        return jax.lax.linalg.triangular_solve(
            local.factor, step[..., None, :], left_side=False, lower=True
        )[..., 0, :]

    def shift(_: Array, x: Array) -> Array:
        local = _look(mixture, whitening, x)
        return x + unwhiten(local, local.gradient)

    def newton(_: Array, x: Array) -> Array:
        local = _look(mixture, whitening, x)
        root = jnp.linalg.cholesky(local.curvature)  # NaN where the density is not log-concave
        half = _lower_solve(root, local.gradient[..., None, :])
        step = jax.lax.linalg.triangular_solve(root, half, left_side=False, lower=True)[..., 0, :]
        near = jnp.sum(step**2, axis=-1) <= 1  # no further than one local standard deviation
        step = jnp.where(near[..., None], step, 0)
        target, here = x + unwhiten(local, step), mixture.log_prob(x)
        rises = mixture.log_prob(target) >= here - 8 * eps * (1 + jnp.abs(here))
        plain = x + unwhiten(local, local.gradient)
        return jnp.where((near & rises)[..., None], target, plain)

    x = meshes.fori_loop(0, SHIFT_STEPS, shift, x)
    x = meshes.fori_loop(0, NEWTON_STEPS, newton, x)
    local, tolerance = _look(mixture, whitening, x), eps**0.25
    slack = tolerance**2 * jnp.eye(x.shape[-1], dtype=x.dtype)
    peaked = jnp.all(jnp.isfinite(jnp.linalg.cholesky(local.curvature + slack)), axis=(-2, -1))
    at_rest = jnp.sum(local.gradient**2, axis=-1) <= tolerance**4
    return x, peaked & at_rest


def _distinct(
    unit: Callable[[Array], Array], points: Float[Array, "K ... D"], found: Bool[Array, "K ..."]
) -> Bool[Array, "K ..."]:
    """Drop each mode that lies next to a higher one; the points come by falling density.

    ``unit(x) [..., D, D]`` takes differences to units of the local scale.
    """
    eps = float(jnp.finfo(points.dtype).eps)
    slots = jnp.arange(points.shape[0])
    later = slots.reshape(-1, *(1,) * (points.ndim - 2))

    def visit(kept: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
        index, x = slot
        gap = jnp.einsum("k...i,...ij->k...j", points - x, unit(x), precision="highest")
        same = (jnp.sum(gap**2, axis=-1) < eps**0.5) & (later > index)
        return kept & ~(same & kept[index]), None

    return meshes.scan(visit, found, (slots, points))[0]
