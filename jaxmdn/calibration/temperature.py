"""Temperatures: a few numbers, fitted to rows that were held out, that make densities come true.

Networks trained to the end are over-confident. What is wrong is mostly the same everywhere: scales
too small by a factor, too small by a constant, and no allowance for outliers. Four kinds of number
mend that, and a weight for each model makes one exact mixture of several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.components.declare import register
from jaxmdn.inference.cells import log_likelihood
from jaxmdn.inference.widening import has_scales, placed, widen
from jaxmdn.mixture import Mixture, check_target
from jaxmdn.mixture.merging import merge, pool
from jaxmdn.typing import Array, ArrayLike, Float, Num, Parameter

MAX_OUTLIERS = 0.1  # the largest share of outliers
MOST_STEPS = 100
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
    temperature: Temperature,
    models: Density | Sequence[Density],
    *,
    floor: Float[ArrayLike, "..."] = 0.0,
) -> Any:
    """One calibrated density of several models' densities.

    ``p(y) = (1 - eps) sum_a w_a p_a(y; T_a, c) + eps p_out(y)``, where every scale of ``p_a`` is
    ``sqrt((T_a s)^2 + max(c, floor)^2)`` and ``p_out`` is a wide component of the same family.
    Where the components have no scale, the weights alone act.

    Args:
      temperature: from :func:`fit_temperature`.
      models: the models' densities side by side: a mixture of batch shape ``[A, ...]``. Models with
        other numbers of components follow as further mixtures, in a sequence, ``A`` counting all.
      floor: the least ``noise``, ``[D]`` or a number, in the target's unit.

    Returns:
      A mixture of batch shape ``[...]`` with ``A K + 1`` components; without scales, what
      :func:`jaxmdn.mixture.pool` makes of them.
    """
    groups = _groups("apply_temperature", models)
    count = sum(group.batch_shape[0] for group in groups)
    if (count,) != temperature.weights.shape:
        raise ValueError(
            f"apply_temperature: expected a mixture of batch shape "
            f"[{temperature.weights.shape[0]}, ...], one density for each model, got "
            f"{[list(group.batch_shape) for group in groups]}."
        )
    return _apply(
        temperature, groups, jnp.asarray(floor, numerics.compute_dtype(temperature.weights))
    )


def _groups(function: str, models: Any) -> tuple[Any, ...]:
    """Densities of models, those with equally many components in one."""
    groups = tuple(models) if isinstance(models, (list, tuple)) else (models,)
    shapes = [getattr(group, "batch_shape", type(group).__name__) for group in groups]
    if not groups or not all(isinstance(shape, tuple) and shape for shape in shapes):
        raise ValueError(
            f"{function}: expected a mixture of batch shape [A, ...], one density for each model, "
            f"or several of them, got {shapes}."
        )
    if len(groups) > 1 and not all(map(has_scales, groups)):
        raise ValueError(
            f"{function}: several mixtures must have components with a location and a scale; pass "
            f"models of other families as one, [A, ...]."
        )
    return groups


@meshes.jit
def _apply(temperature: Temperature, groups: tuple[Any, ...], floor: Array) -> Any:
    if not has_scales(groups[0]):
        return pool(groups[0], temperature.weights)
    noise = jnp.maximum(temperature.noise, floor)
    parts, shares, start = [], [], 0
    for group in groups:
        lead = group.batch_shape
        own = slice(start, start := start + lead[0])
        scale = temperature.scale[own].reshape(lead[0], *(1,) * (len(lead) - 1))
        parts.append(pool(widen(group, scale, noise), temperature.weights[own]))
        shares.append((1 - temperature.outliers) * jnp.sum(temperature.weights[own]))
    first = parts[0].components.map_parameters(
        lambda leaf, rank: jax.lax.slice_in_dim(leaf, 0, 1, axis=leaf.ndim - 1 - rank)
    )
    outliers = Mixture(
        logits=jnp.zeros((*parts[0].batch_shape, 1), parts[0].logits.dtype),
        components=placed(first, temperature.loc, temperature.spread),
    )
    return merge((*parts, outliers), jnp.stack([*shares, temperature.outliers]))


@meshes.jit
def fit_temperature(
    models: Density | Sequence[Density],
    y: Num[Array, "N D"],
    *,
    weights: Float[Array, "N"] | None = None,
    floor: Float[ArrayLike, "..."] = 0.0,
    width: Float[ArrayLike, "..."] | None = None,
) -> Temperature:
    """Temperatures and weights of several models by the NLL of rows that none was trained on.

    Maximises ``sum_i v_i log p(y_i)`` of :func:`apply_temperature`'s density over the factors
    ``T_a`` of the scales, the noise ``c``, the models' weights and the share of outliers, with
    priors as weak as a row: ``log T_a`` and the weights' logits of standard deviation one, ``c``
    and the outliers' share within a factor ``e^2`` of ``e^-4``.

    Args:
      models: the models' densities of the rows, side by side: a mixture of batch shape ``[A, N]``,
        or several, as in :func:`apply_temperature`.
      y: targets ``[N, D]`` that no model has seen: out-of-fold rows, say.
      weights: nonnegative row weights ``[N]``; a row of weight two counts as two rows,
        one of weight zero not at all.
      floor: the least ``noise`` of :func:`apply_temperature`, ``[D]`` or a number.
      width: of the cells of targets on a grid, ``[D]`` or a number: their probability takes the
        place of the density.

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
    groups = _groups(name, models)
    for group in groups:
        if len(group.batch_shape) != 2:
            raise ValueError(
                f"{name}: expected a density of batch shape [A, N] (models, rows), got "
                f"{list(group.batch_shape)}."
            )
        check_target(name, group, y)
    (groups, y) = numerics.upcast_tree(groups, y)
    dtype = numerics.compute_dtype(*jax.tree.leaves(groups))
    share = jnp.ones(len(y), dtype) if weights is None else _weights(weights, dtype)
    if share.shape != (len(y),):
        raise ValueError(f"{name}: expected weights of shape [{len(y)}], got {list(share.shape)}.")
    kept = share > 0
    y = jnp.where(kept[:, None], y, y[jnp.argmax(kept)])  # what left-out rows hold does not matter
    rows = jnp.sum(share)
    share = share / rows
    loc = share @ y.astype(dtype)
    deviation = jnp.sqrt(share @ (y.astype(dtype) - loc) ** 2)
    deviation = jnp.where(deviation > 0, deviation, 1)
    count = sum(group.batch_shape[0] for group in groups)

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

    def log_prob(theta: Array) -> Array:
        density = _apply(build(theta), groups, jnp.asarray(floor, dtype))
        return jnp.where(kept, log_likelihood(density, y, width), 0)

    deviations = jnp.asarray([1.0] * (2 * count) + [2.0] * 2, dtype)
    return build(_climb(log_prob, share, 1 / (rows * deviations**2)))


# Logarithms of the factors that are tried; a parabola refines the best.
STEP, MOST_FACTORS = 0.1, 31


@meshes.jit
def fit_scale_factor(
    density: Mixture,
    y: Num[Array, "... D"],
    *,
    weights: Float[Array, "..."] | None = None,
    width: Float[ArrayLike, "..."] | None = None,
) -> Float[Array, ""]:
    """The factor of all scales, at least one, under which rows held out are most likely.

    ``T = argmax_{T >= 1} sum_i v_i log p(y_i; T) - (log T)^2 / 2``, where ``p(y; T)`` is
    ``jaxmdn.inference.widen(density, T)``: every component is stretched about its location. A
    network that was trained for long errs in its scales, by much the same factor everywhere; its
    locations are good. The factor is never below one, so that floors of scales hold. The last term
    is a prior as weak as a row.

    Args:
      density: a mixture of components with a location and a scale, batch shape ``[...]``.
      y: targets ``[..., D]`` that it was not fitted to.
      weights: nonnegative row weights ``[...]``; a row of weight two counts as two.
      width: as in :func:`fit_temperature`.

    Returns:
      T, a scalar. Limits: at most ``e^3``, to within about one percent; one without any weight;
      NaN where a row that counts is NaN or likely under no factor, or a weight is negative.

    Raises:
      TypeError: for components without a location and a scale.

    >>> import jax, jax.numpy as jnp, jaxmdn
    >>> y = 3.0 * jax.random.normal(jax.random.key(0), (4000, 1))
    >>> normal = jaxmdn.components.Normal(loc=jnp.zeros((4000, 1, 1)), scale=jnp.ones(1))
    >>> narrow = jaxmdn.Mixture(logits=jnp.zeros((4000, 1)), components=normal)
    >>> print(f"{jaxmdn.calibration.fit_scale_factor(narrow, y):.1f}")
    3.0

    References:
      Guo et al. (2017), On calibration of modern neural networks, section 4.2 (for classes).
    """
    check_target("fit_scale_factor", density, y)
    logs = STEP * jnp.arange(MOST_FACTORS, dtype=numerics.compute_dtype(y))
    share = jnp.ones((), logs.dtype) if weights is None else _weights(weights, logs.dtype)
    share = jnp.broadcast_to(share, y.shape[:-1])
    mass = jnp.sum(share)

    def score(log: Array) -> Array:
        each = log_likelihood(widen(density, jnp.exp(log)), y, width)
        total = jnp.sum(share * jnp.where(share > 0, each, 0).astype(share.dtype))
        return (total - 0.5 * log**2) / jnp.where(mass == 0, 1, mass)

    scores = jax.lax.map(score, logs)
    known = jnp.isfinite(jnp.max(scores))
    return jnp.where(known, jnp.exp(STEP * peak(scores)), jnp.nan)


def _weights(weights: Any, dtype: Any) -> Array:
    """Row weights; a negative one is none: NaN."""
    weights = jnp.asarray(weights, dtype)
    return jnp.where(weights < 0, jnp.nan, weights)


def peak(scores: Float[Array, "S ..."]) -> Float[Array, "..."]:
    """The place of the highest score along the first axis, refined by a parabola."""
    place = jnp.clip(jnp.argmax(scores, axis=0), 1, len(scores) - 2)
    before, here, after = (
        jnp.take_along_axis(scores, place[None] + shift, axis=0)[0] for shift in (-1, 0, 1)
    )
    bend = before - 2 * here + after
    vertex = jnp.where(bend < 0, 0.5 * (before - after) / jnp.where(bend < 0, bend, 1), 0)
    vertex = jnp.where(jnp.isfinite(vertex), jnp.clip(vertex, -1, 1), 0)
    return place.astype(vertex.dtype) + vertex


def _climb(
    log_prob: Callable[[Array], Array], share: Float[Array, "N"], prior: Float[Array, "P"]
) -> Float[Array, "P"]:
    """Maximise ``sum_i share_i l_i(theta) - sum_p prior_p theta_p^2 / 2``, from zeros.

    Steps ``(B + damping)^-1 slope``, at most one long, with ``B = sum_i share_i s_i s_i^T + prior``
    of the rows' scores ``s_i = dl_i / dtheta`` in place of the Hessian: positive definite, and no
    line search, which in float32 no longer resolves what the slope still shows.

    References:
      Berndt, Hall, Hall and Hausman (1974), Estimation and inference in nonlinear structural
      models, section 4; Marquardt (1963) for the damping.
    """

    def at(theta: Array) -> tuple[Array, Array, Array]:
        rows, scores = log_prob(theta), jax.jacfwd(log_prob)(theta)  # [N], [N, P]
        value = share @ rows - 0.5 * prior @ theta**2
        slope = share @ scores - prior * theta
        return value, slope, (scores * share[:, None]).T @ scores + jnp.diag(prior)

    start = jnp.zeros_like(prior)
    enough = 0.1 * float(jnp.finfo(prior.dtype).eps) ** 0.5

    def step(carry: Any) -> Any:
        theta, (value, slope, information), damping, count = carry
        move = jnp.linalg.solve(
            information + damping * jnp.eye(len(prior), dtype=prior.dtype), slope
        )
        move = move / jnp.maximum(1, jnp.linalg.norm(move))
        new = at(theta + move)
        better = (new[0] >= value) & jnp.all(jnp.isfinite(new[1]))
        theta, found = jax.tree.map(
            lambda a, b: jnp.where(better, a, b),
            (theta + move, new),
            (theta, (value, slope, information)),
        )
        return theta, found, jnp.where(better, damping / 10, damping * 10), count + 1

    def more(carry: Any) -> Array:
        _, (_, slope, _), damping, count = carry
        return (jnp.max(jnp.abs(slope)) > enough) & (damping < 1e4) & (count < MOST_STEPS)

    first = (start, at(start), jnp.asarray(1e-3, prior.dtype), jnp.int32(0))
    return meshes.while_loop(more, step, first)[0]
