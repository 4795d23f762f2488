"""Quantiles of each dimension's marginal.

A mixture's quantile has no closed form, but the smallest and the largest quantile of its
components bracket it: below the smallest every component has less than ``p`` on its left, so the
mixture has too. Inside the bracket a fixed number of Newton's steps for the logarithm of the nearer
tail bring every element to the dtype's floor at once. Where such a step would leave the bracket or
does not pay, the bracket is split where a component begins or ends: a narrow one between wide ones
is a jump of the cdf, which halvings would have to look for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import checks, meshes, numerics
from jaxmdn.components import Independent
from jaxmdn.components.base import Density
from jaxmdn.components.counts import lattices, reaches
from jaxmdn.inference.sums import components_first, nearest_inside, tail_of
from jaxmdn.mixture import Mixture
from jaxmdn.mixture.class_conditional import flatten_mixture
from jaxmdn.special.roots import first_whole, invert_tail
from jaxmdn.typing import Array, ArrayLike, Float

# Evaluations of the cdf and its slope. Of 100,000 mixtures of components whose widths differ by up
# to 10,000 and that lie ten times the widest apart, 115 miss float64's floor after 14, none after
# 18.
STEPS = 20
# Levels between which a component "is": three standard deviations of a normal.
EDGES = (0.00135, 0.99865)


def quantile(density: Density, p: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Quantile of each dimension's marginal: the ``y`` with ``P(Y_d <= y_d) = p``, ``[..., D]``.

    Args:
      density: a density with batch shape ``[...]``, univariate or not.
      p: probabilities in [0, 1]; broadcasts against ``[..., D]``. For several levels of a batch
        ``[N]``, pass shape ``[L, 1, 1]``.

    Returns:
      ``[..., D]`` (after broadcasting), in the compute dtype.

    Raises:
      ValueError: if ``p`` is a number or a NumPy array that lies outside [0, 1], or does not
        broadcast. TypeError: for a density without an order.

    Limits: ``p = 0`` and ``p = 1`` give the support's ends (``-inf`` and ``inf`` for normals); NaN
    and JAX arrays outside [0, 1] give NaN. Where the cdf is flat (between modes so far apart
    that the dtype sees no mass between them) every point of the flat stretch is a quantile, and one
    of them is returned. The derivative, in ``p`` and in every parameter, is that of the implicit
    function, ``dy = (dp - dF) / f(y)``; it is zero where the density is zero.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [9.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> round(float(jaxmdn.quantile(mixture, 0.75)[0]), 3)
    9.0
    """
    if not isinstance(density, Density):
        raise TypeError(f"quantile: expected a density, got {type(density).__name__}.")
    if isinstance(p, (int, float, np.ndarray)) and not np.all(
        (np.asarray(p) >= 0) & (np.asarray(p) <= 1) | np.isnan(p)
    ):
        raise ValueError(f"quantile: p must lie in [0, 1], got {p}.")
    level = jnp.asarray(p, density.dtype)
    event = (*density.batch_shape, density.event_dim)
    checks.require_broadcastable("quantile", density=event, p=level.shape)
    return _solve(density, level)


@meshes.jit
def _solve(density: Density, p: Float[Array, "..."]) -> Float[Array, "... D"]:
    event = (*density.batch_shape, density.event_dim)
    p = jnp.broadcast_to(p, jnp.broadcast_shapes(event, p.shape))
    return _invert(*numerics.upcast_tree(density, p))


def _invert(density: Any, level: Float[Array, "... D"]) -> Float[Array, "... D"]:
    if isinstance(density, Independent):
        return density.apply(_invert, level)
    if isinstance(density, Mixture):
        flat = flatten_mixture(density)
        discrete = [own is not None for own in lattices(flat)]
        if not any(discrete):
            return _quantile(flat, level)
        steps = _first_step(flat, level)
        return (
            steps if all(discrete) else jnp.where(np.array(discrete), steps, _quantile(flat, level))
        )
    return density.quantile(level)


def _first_step(mixture: Mixture, p: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """The smallest value with ``cdf >= p`` in the discrete dimensions, between the components'."""
    mixture, p = jax.lax.stop_gradient((mixture, p))
    steps = np.array([own or (0.0, 1.0) for own in lattices(mixture)])
    origin, width = (jnp.asarray(column, p.dtype) for column in steps.T)
    components = mixture.components.quantile(p[..., None, :])  # [..., K, D]
    index = jnp.round((components - origin) / width)
    likely = mixture.weights()[..., None] > 0
    lower = jnp.min(jnp.where(likely, index, jnp.inf), axis=-2)
    upper = jnp.max(jnp.where(likely, index, -jnp.inf), axis=-2)
    inside = (p > 0) & (p < 1) & jnp.isfinite(lower) & jnp.isfinite(upper)
    ends = (jnp.where(inside, lower - 1, -1), jnp.where(inside, upper, 0))
    found = first_whole(lambda k: reaches(mixture, origin + width * k, p), *ends)
    index = jnp.where(inside, found, jnp.where(p < 0.5, lower, upper))
    broken = jnp.isnan(components).any(axis=-2)
    return jnp.where(broken, jnp.nan, origin + width * index)


@jax.custom_jvp
def _quantile(mixture: Mixture, p: Float[Array, "... D"]) -> Float[Array, "... D"]:
    mixture = mixture.marginals()
    lower, upper, guess, edges = _bracket(mixture, p)
    steps = list(_steps(mixture, p))
    for atom, before, reached in steps:  # on which side of the step the quantile lies, if not on it
        upper = jnp.where(p <= before, jnp.minimum(upper, atom), upper)
        lower = jnp.where(p > reached, jnp.maximum(lower, atom), lower)
    # Each half of the distribution is measured from its own end, where 1 - p is exact.
    upper_half = p > 0.5
    probability = jnp.where(upper_half, 1 - p, p)
    inside = jnp.isfinite(lower) & jnp.isfinite(upper)
    lower_end, upper_end = jnp.where(inside, lower, -1), jnp.where(inside, upper, 1)
    root = invert_tail(
        tail_of(mixture, upper_half),
        jnp.where(inside, probability, 0.5),
        upper_half,
        jnp.clip(guess, lower_end, upper_end),
        lower_end,
        upper_end,
        split=functools.partial(nearest_inside, edges),
        steps=STEPS,
    )
    for atom, before, reached in steps:
        root = jnp.where((p > before) & (p <= reached), atom, root)
    ends = jnp.where(p < 0.5, lower, upper)  # infinite, or NaN for a p that is no probability
    return jnp.where(inside, root, jnp.where(jnp.isnan(guess), jnp.nan, ends))


def _atoms(mixture: Mixture, dtype: Any) -> list[Array]:
    """Points of positive probability, ``[D]`` each; NaN in dimensions that have fewer."""
    by_dim = [own.atoms for own in mixture.support]
    columns = itertools.zip_longest(*by_dim, fillvalue=float("nan"))
    return [jnp.asarray(column, dtype) for column in columns]


def _steps(mixture: Mixture, p: Float[Array, "... D"]) -> Iterator[tuple[Array, Array, Array]]:
    """Each atom, and the distribution function before it and at it; NaN where there is none."""
    for atom in _atoms(mixture, p.dtype):
        before, mass = mixture.jump(jnp.broadcast_to(atom, p.shape))
        yield atom, before, before + mass


def _bracket(mixture: Mixture, p: Float[Array, "... D"]) -> tuple[Array, Array, Array, Array]:
    """Bounds of the quantile, a guess between them, and where each component begins and ends.

    The quantile lies between the smallest and the largest of the components'; and, since ``F >=
    w_k F_k``, not above any component's quantile at ``p / w_k``, nor below any at
    ``1 - (1 - p) / w_k``. Where a component has both of these, ``p`` lies between them, so that two
    levels serve each. A component's quantile may be a long program, which is therefore written
    once: for all levels together, and for one component after another.
    """
    eps = float(jnp.finfo(p.dtype).eps)
    slack = 1 + 256 * eps  # so that rounding cannot put a bound on the wrong side
    batch = list(mixture.batch_shape)
    while batch and batch[0] == 1:
        batch.pop(0)
    own = p.shape[p.ndim - 1 - len(batch) :]  # the edges need no axes that only p has
    edges = jnp.broadcast_to(jnp.array(EDGES, p.dtype).reshape(2, *(1,) * len(own)), (2, *own))

    def narrow(state: tuple[Array, ...], part: tuple) -> tuple[tuple, Array]:
        component, weight = part
        alive, safe = weight > 0, jnp.where(weight > 0, weight, 1)
        has_above, has_below = p * slack < weight, (1 - p) * slack < weight
        both = has_above & has_below
        above = jnp.minimum(p * slack / safe + 4 * eps, 1)
        below = jnp.maximum(1 - (1 - p) * slack / safe - 4 * eps, 0)
        second = jnp.where(has_above, above, jnp.where(has_below, below, p))
        levels = jnp.stack([jnp.where(both, below, p), second])  # [2, ..., D]
        found = component.quantile(jnp.concatenate([levels.reshape(-1, *own), edges]))
        first, second = found[:-2].reshape(levels.shape)
        least, most, lower, upper, guess = state
        state = (
            jnp.minimum(least, jnp.where(alive, first, jnp.inf)),
            jnp.maximum(most, jnp.where(alive, jnp.where(both, second, first), -jnp.inf)),
            jnp.maximum(lower, jnp.where(has_below, jnp.where(both, first, second), -jnp.inf)),
            jnp.minimum(upper, jnp.where(has_above, second, jnp.inf)),
            guess + jnp.where(jnp.isnan(first), jnp.nan, jnp.where(alive, weight * first, 0)),
        )
        return state, found[-2:]

    weights = jnp.moveaxis(mixture.weights(), -1, 0)[..., None]  # [K, ..., 1]
    zero = 0 * (p + weights[0])
    start = (zero + jnp.inf, zero - jnp.inf, zero - jnp.inf, zero + jnp.inf, zero)
    (least, most, lower, upper, guess), edges = meshes.scan(
        narrow, start, (components_first(mixture), weights)
    )
    lower, upper = jnp.maximum(least, lower), jnp.minimum(most, upper)
    edges = edges.reshape(-1, *edges.shape[2:])
    return jnp.minimum(lower, upper), jnp.maximum(lower, upper), guess, edges


@_quantile.defjvp
@meshes.any_rank
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (mixture, p), (dmixture, dp) = primals, tangents
    y = _quantile(mixture, p)
    _, dcdf = jax.jvp(lambda mixture: mixture.cdf(y), (mixture,), (dmixture,))
    _, density = jax.jvp(mixture.cdf, (y,), (jnp.ones_like(y),))
    flat = ~(density > 0)
    for atom in _atoms(mixture, y.dtype):  # on a step the quantile stands still
        flat = flat | (y == atom)
    return y, jnp.where(flat, 0, (dp - dcdf) / jnp.where(flat, 1, density))


__all__ = ["quantile"]
