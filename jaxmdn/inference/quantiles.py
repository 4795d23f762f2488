"""Quantiles of each dimension's marginal.

A mixture's quantile has no closed form, but the smallest and the largest quantile of its
components bracket it: below the smallest every component has less than ``p`` on its left, so the
mixture has too. Each half of the distribution is measured from its own end, by the smaller tail.
Inside the bracket a fixed number of Newton's steps for the logarithm of the nearer
tail bring every element to the dtype's floor at once. Where such a step would leave the bracket or
does not pay, the bracket is split where a component begins or ends: a narrow one between wide ones
is a jump of the cdf, which halvings would have to look for.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
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
from jaxmdn.special.sides import nearer_side
from jaxmdn.typing import Array, ArrayLike, Bool, Float

# Evaluations of the cdf and its slope. Of 100,000 mixtures of components whose widths differ by up
# to 10,000 and that lie ten times the widest apart, 115 miss float64's floor after 14, none after
# 18.
STEPS = 20
# Probability on either side of where a component "is": three standard deviations of a normal.
EDGE = 0.00135


def quantile(
    density: Density, p: Float[ArrayLike, "..."] | Sequence[float], *, upper: bool = False
) -> Float[Array, "..."]:
    """Quantile of each dimension's marginal: the ``y`` with ``P(Y_d <= y_d) = p``, ``[..., D]``.

    With ``upper`` the ``y`` with ``P(Y_d > y_d) = p``, the inverse of ``survival``: in float32,
    where ``1 - 1e-8`` is one, that is the way to the upper tail.

    Args:
      density: a density with batch shape ``[...]``, univariate or not.
      p: probabilities in [0, 1]: a number, or a vector of L levels, which lead the result,
        ``[L, ..., D]``. Arrays of more axes hold a level for every entry of the result,
        ``[levels..., ..., D]``: they have the axes of ``[..., D]`` at least, and those broadcast.
      upper: whether ``p`` is the probability above, not below (static).

    Returns:
      ``[levels..., ..., D]``, in the compute dtype.

    Raises:
      ValueError: if ``p`` is a number, list or NumPy array that lies outside [0, 1], has fewer axes
        than ``[..., D]`` and yet more than one, or does not broadcast. TypeError: for a density
        without an order.

    Limits: ``p = 0`` and ``p = 1`` give the support's ends (``-inf`` and ``inf`` for normals); NaN
    and JAX arrays outside [0, 1] give NaN. Where the cdf is flat (between modes so far apart
    that the dtype sees no mass between them) every point of the flat stretch is a quantile, and one
    of them is returned. The derivative, in ``p`` and in every parameter, is that of the implicit
    function, ``dy = (dp - dF) / f(y)``; it is zero where the density is zero.

    >>> import jax.numpy as jnp, jaxmdn
    >>> normal = jaxmdn.components.Normal(loc=jnp.array([[0.0], [9.0]]), scale=jnp.ones((2, 1)))
    >>> mixture = jaxmdn.Mixture(logits=jnp.zeros(2), components=normal)
    >>> jaxmdn.quantile(mixture, [0.25, 0.75])[:, 0].round(3).tolist() == [0, 9]
    True
    >>> round(float(jaxmdn.quantile(mixture, 1e-8, upper=True)[0]), 2)
    14.49
    """
    if not isinstance(density, Density):
        raise TypeError(f"quantile: expected a density, got {type(density).__name__}.")
    return quantile_at(density, check_levels("quantile", density, p), upper=upper)


def check_levels(function: str, density: Density, p: Any) -> Float[Array, "..."]:
    """Levels as they broadcast against ``[..., D]``, or raise: a vector's come first."""
    p = np.asarray(p) if isinstance(p, (list, tuple)) else p
    if isinstance(p, (int, float, np.ndarray, np.number)) and not np.all(
        (np.asarray(p) >= 0) & (np.asarray(p) <= 1) | np.isnan(p)
    ):
        raise ValueError(f"{function}: p must lie in [0, 1], got {p}.")
    level = jnp.asarray(p, numerics.compute_dtype(density))
    event = (*density.batch_shape, density.event_dim)
    if level.ndim == 1:
        return level.reshape(-1, *(1,) * len(event))
    if 1 < level.ndim < len(event):
        raise ValueError(
            f"{function}: expected p to be a number, a vector of levels or an array "
            f"[levels..., {', '.join(map(str, event))}] (sizes of one broadcast), got shape "
            f"{list(level.shape)}; write out the axes of the batch and of D."
        )
    checks.require_broadcastable(function, density=event, p=level.shape)
    return level


def quantile_at(
    density: Density, p: Float[Array, "..."], *, upper: bool = False
) -> Float[Array, "... D"]:
    """:func:`quantile` at a level for each entry of ``[..., D]``, with which ``p`` broadcasts."""
    return _solve(density, p, jnp.full((), upper))


def central(density: Density, outside: Float[Array, ""]) -> tuple[Array, Array]:
    """The ends ``[..., D]`` that leave the probability ``outside`` on each side, by one search."""
    axes = (1,) * (len(density.batch_shape) + 1)
    ends = _solve(density, outside, jnp.arange(2).reshape(2, *axes) == 1)
    return ends[0], ends[1]


@meshes.jit
def _solve(
    density: Density, q: Float[Array, "..."], upper: Bool[Array, "..."]
) -> Float[Array, "... D"]:
    event = (*density.batch_shape, density.event_dim)
    shape = jnp.broadcast_shapes(event, q.shape, upper.shape)
    density, q = numerics.upcast_tree(density, q)
    return _invert(density, jnp.broadcast_to(q, shape), jnp.broadcast_to(upper, shape))


def _invert(density: Any, q: Float[Array, "... D"], upper: Array) -> Float[Array, "... D"]:
    if isinstance(density, Independent):
        return density.apply(_invert, q, upper)
    if not isinstance(density, Mixture):
        return density.tail_quantile(q, upper)
    flat = flatten_mixture(density)
    inner = flat.components
    if isinstance(inner, Independent) and any(isinstance(part, Mixture) for part in inner.parts):
        return inner.apply(
            lambda part, *own: _invert(dataclasses.replace(flat, components=part), *own), q, upper
        )
    discrete = [own is not None for own in lattices(flat)]
    if all(discrete):
        return _first_step(flat, q, upper)
    near, side = nearer_side(q, upper)
    valid = (q >= 0) & (q <= 1)
    found = _quantile(flat, jnp.where(valid, near, jnp.nan), side)
    if any(discrete):
        found = jnp.where(np.array(discrete), _first_step(flat, q, upper), found)
    return found


def _first_step(
    mixture: Mixture, q: Float[Array, "... D"], upper: Bool[Array, "... D"]
) -> Float[Array, "... D"]:
    """The smallest value with ``cdf >= q`` in the discrete dimensions, between the components'."""
    mixture, q = jax.lax.stop_gradient((mixture, q))
    steps = np.array([own or (0.0, 1.0) for own in lattices(mixture)])
    origin, width = (jnp.asarray(column, q.dtype) for column in steps.T)
    components = mixture.components.tail_quantile(q[..., None, :], upper[..., None, :])
    index = jnp.round((components - origin) / width)  # [..., K, D]
    likely = mixture.weights()[..., None] > 0
    lower = jnp.min(jnp.where(likely, index, jnp.inf), axis=-2)
    most = jnp.max(jnp.where(likely, index, -jnp.inf), axis=-2)
    inside = (q > 0) & (q < 1) & jnp.isfinite(lower) & jnp.isfinite(most)
    ends = (jnp.where(inside, lower - 1, -1), jnp.where(inside, most, 0))
    found = first_whole(lambda k: reaches(mixture, origin + width * k, q, upper), *ends)
    first = jnp.logical_xor(q < 0.5, upper)
    index = jnp.where(inside, found, jnp.where(first, lower, most))
    broken = jnp.isnan(components).any(axis=-2)
    return jnp.where(broken, jnp.nan, origin + width * index)


@jax.custom_jvp
def _quantile(
    mixture: Mixture, near: Float[Array, "... D"], side: Bool[Array, "... D"]
) -> Float[Array, "... D"]:
    """The ``y`` with ``tail(y, side) = near``, at most one half."""
    mixture = mixture.marginals()
    lower, upper, guess, edges = _bracket(mixture, near, side)
    steps = list(_steps(mixture, near, side))
    for atom, before, beyond in steps:  # on which side of the step the quantile lies, if not on it
        upper = jnp.where(before, jnp.minimum(upper, atom), upper)
        lower = jnp.where(beyond, jnp.maximum(lower, atom), lower)
    inside = jnp.isfinite(lower) & jnp.isfinite(upper)
    lower_end, upper_end = jnp.where(inside, lower, -1), jnp.where(inside, upper, 1)
    root = invert_tail(
        tail_of(mixture, side),
        jnp.where(inside, near, 0.5),
        side,
        jnp.clip(guess, lower_end, upper_end),
        lower_end,
        upper_end,
        split=functools.partial(nearest_inside, edges),
        steps=STEPS,
    )
    for atom, before, beyond in steps:
        root = jnp.where(~(before | beyond | jnp.isnan(atom + near)), atom, root)
    ends = jnp.where(side, upper, lower)  # infinite, or NaN for what is no probability
    return jnp.where(inside, root, jnp.where(jnp.isnan(guess), jnp.nan, ends))


def _atoms(mixture: Mixture, dtype: Any) -> list[Array]:
    """Points of positive probability, ``[D]`` each; NaN in dimensions that have fewer."""
    by_dim = [own.atoms for own in mixture.support]
    columns = itertools.zip_longest(*by_dim, fillvalue=float("nan"))
    return [jnp.asarray(column, dtype) for column in columns]


def _steps(mixture: Mixture, near: Array, side: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Each atom, and whether the quantile lies before it or beyond it; NaN where there is none."""
    for atom in _atoms(mixture, near.dtype):
        y = jnp.broadcast_to(atom, near.shape)
        before, mass = mixture.jump(y)
        above = mixture.survival(y)
        yield (
            atom,
            jnp.where(side, near >= above + mass, near <= before),
            jnp.where(side, near < above, near > before + mass),
        )


def _bracket(mixture: Mixture, near: Array, side: Array) -> tuple[Array, Array, Array, Array]:
    """Bounds of the quantile, a guess between them, and where each component begins and ends.

    The quantile lies between the smallest and the largest of the components'. Since ``F >= w_k
    F_k``, and so for the other tail, it is not farther in than any component's quantile at
    ``near / w_k``, nor farther out than any at ``(1 - near) / w_k`` of the other tail. Where a
    component has both of these, its own lies between them, so that two levels serve each. A
    component's quantile may be a long program, which is therefore written once: for all levels
    together, and for one component after another.
    """
    eps = float(jnp.finfo(near.dtype).eps)
    slack = 1 + 256 * eps  # so that rounding cannot put a bound on the wrong side
    batch = list(mixture.batch_shape)
    while batch and batch[0] == 1:
        batch.pop(0)
    own = near.shape[near.ndim - 1 - len(batch) :]  # the edges need no axes that only levels have
    edges = jnp.full((2, *own), EDGE, near.dtype)
    edge_sides = jnp.broadcast_to(jnp.arange(2).reshape(2, *(1,) * len(own)) == 1, (2, *own))

    def narrow(state: tuple[Array, ...], part: tuple) -> tuple[tuple, Array]:
        component, weight = part
        alive, safe = weight > 0, jnp.where(weight > 0, weight, 1)
        # A level that rounds to one has no quantile to bound anything with.
        has_in, has_out = near * slack < weight, (1 - near) * slack < (1 - 8 * eps) * weight
        both = has_in & has_out
        inner = jnp.minimum(near * slack / safe, 1)
        outer = jnp.minimum((1 - near) * slack / safe + 4 * eps, 1)
        other = has_out & ~has_in
        levels = jnp.stack(
            [
                jnp.where(both, outer, near),
                jnp.where(has_in, inner, jnp.where(has_out, outer, near)),
            ]
        )  # [2, ..., D]
        sides = jnp.stack([side != both, side != other])
        count = math.prod(levels.shape[: levels.ndim - len(own)])  # a batch may be empty
        found = component.tail_quantile(
            jnp.concatenate([levels.reshape(count, *own), edges]),
            jnp.concatenate([sides.reshape(count, *own), edge_sides]),
        ).reshape(count + 2, *own)  # less the component's leading axes of one
        first, second = found[:-2].reshape(levels.shape)
        # The outer bound lies below where the nearer tail is the lower one.
        low, high = jnp.where(side, second, first), jnp.where(side, first, second)
        some = has_in | has_out
        above, below = some & (has_in != side), some & (has_in == side)
        least, most, lower, upper, guess = state
        state = (
            jnp.minimum(least, jnp.where(alive, jnp.where(both, low, first), jnp.inf)),
            jnp.maximum(most, jnp.where(alive, jnp.where(both, high, first), -jnp.inf)),
            jnp.maximum(lower, jnp.where(both, low, jnp.where(below, second, -jnp.inf))),
            jnp.minimum(upper, jnp.where(both, high, jnp.where(above, second, jnp.inf))),
            guess + jnp.where(jnp.isnan(first), jnp.nan, jnp.where(alive, weight * first, 0)),
        )
        return state, found[-2:]

    weights = jnp.moveaxis(mixture.weights(), -1, 0)[..., None]  # [K, ..., 1]
    zero = 0 * (near + weights[0])
    start = (zero + jnp.inf, zero - jnp.inf, zero - jnp.inf, zero + jnp.inf, zero)
    (least, most, lower, upper, guess), edges = meshes.scan(
        narrow, start, (components_first(mixture), weights)
    )
    lower, upper = jnp.maximum(least, lower), jnp.minimum(most, upper)
    edges = jax.lax.collapse(edges, 0, 2)
    return jnp.minimum(lower, upper), jnp.maximum(lower, upper), guess, edges


@_quantile.defjvp
@meshes.any_rank
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (mixture, near, side), (dmixture, dnear, _) = primals, tangents
    y = _quantile(mixture, near, side)
    _, dtail = jax.jvp(lambda mixture: mixture.tail(y, side), (mixture,), (dmixture,))
    _, density = jax.jvp(mixture.cdf, (y,), (jnp.ones_like(y),))
    # Below the smallest normal number its inverse overflows.
    flat = ~(density > float(jnp.finfo(density.dtype).tiny))
    for atom in _atoms(mixture, y.dtype):  # on a step the quantile stands still
        flat = flat | (y == atom)
    missing = jnp.where(side, dtail - dnear, dnear - dtail)
    return y, jnp.where(flat, 0, missing / jnp.where(flat, 1, density))
