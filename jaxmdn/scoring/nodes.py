"""What the quadratures of ``scoring`` share: nodes, ends of panels, the density at nodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes
from jaxmdn.components import StudentT
from jaxmdn.inference.sums import components_first
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Float


def rule(count: int) -> tuple[np.ndarray, ...]:
    """Gauss-Legendre on [0, 1]: nodes, weights, integrals up to each node, second derivatives.

    The matrices act on the values at the nodes, through the polynomial that passes through them;
    the last one gives its values at both ends.
    """
    basis = np.polynomial.legendre
    z, weights = basis.leggauss(count)
    one = np.eye(count)
    degrees = np.arange(count)[:, None]
    # Values at the nodes to coefficients of Legendre polynomials, which are orthogonal there too.
    series = (degrees + 0.5) * basis.legvander(z, count - 1).T * weights
    upto = 0.5 * basis.legval(z, basis.legint(one, lbnd=-1)).T @ series
    second = 4 * basis.legval(z, basis.legder(one, 2)).T @ series
    ends = basis.legvander(np.array([-1.0, 1.0]), count - 1) @ series
    x, weights = 0.5 * (z + 1), 0.5 * weights
    return x, weights, upto, second, ends


def merge(parts: Float[Array, "L K ... D"], more: list[Array]) -> Float[Array, "P ... D"]:
    """Ascending ends of the panels: those of all components, and some more ``[..., D]``.

    NaN becomes the last of them, a panel of length zero.
    """
    shape, count = more[-1].shape, parts.shape[0] * parts.shape[1]
    missing = (1,) * (len(shape) + 2 - parts.ndim)
    merged = parts.reshape(count, *missing, *parts.shape[2:])
    merged = jnp.concatenate([jnp.broadcast_to(merged, (count, *shape)), jnp.stack(more)])
    merged = jnp.where(jnp.isnan(merged), more[-1], merged)
    return _sorted(merged)


def _sorted(values: Float[Array, "P ..."]) -> Float[Array, "P ..."]:
    """As ``jnp.sort(values, axis=0)`` in a tenth of its time: Batcher's bitonic network (1968)."""
    count, rest = values.shape[0], values.shape[1:]
    power = (count - 1).bit_length()
    filled = jnp.full((2**power - count, *rest), jnp.inf, values.dtype)
    values = jnp.concatenate([values, filled])
    for size in (2**i for i in range(power)):
        half, mirrored = size, True
        while half:
            pairs = values.reshape(2**power // (2 * half), 2, half, *rest)
            low, high = pairs[:, 0], pairs[:, 1, ::-1] if mirrored else pairs[:, 1]
            low, high = jnp.minimum(low, high), jnp.maximum(low, high)
            high = high[:, ::-1] if mirrored else high
            values = jnp.stack([low, high], axis=1).reshape(values.shape)
            half, mirrored = half // 2, False
    return values[:count]


def density_of(
    mixture: Mixture,
    points: Float[Array, "n P ... D"],
    parts: Array,
    log_density: Callable,
    measure: tuple[Array, Array, Array] | None = None,
) -> Float[Array, "n P ... D"]:
    """``sum_k w_k p_k``, each component between its own outermost edges alone.

    ``log_density(component, first, last)`` is one's at all points, those beyond its edges moved to
    them. With a ``measure``, the nodes' weights, slopes and lengths, each one's is made to have
    the integral that it should have.

    Outside of them a density may overflow, or its derivative may. One component after another, so
    that nothing of ``[n, P, ..., K, D]`` is stored and the loops are vectorised.
    """
    weights = mixture.weights()
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    least = math.log(float(jnp.finfo(points.dtype).tiny))
    own = mixture.components.domain
    if own.kind == "circle":
        parts = jnp.stack([jnp.full_like(parts[0], end) for end in (own.lower, own.upper)])
    # A power's tail reaches over the other components, and its logarithm far beyond.
    axes = (0, 1) if isinstance(mixture.components, StudentT) else 0
    ends = [
        jnp.where(jnp.isnan(end), own.inside, end)
        for end in (
            jnp.broadcast_to(reach(parts, axis=axes, keepdims=True)[0], parts.shape[1:])
            for reach in (jnp.nanmin, jnp.nanmax)
        )
    ]

    @jax.checkpoint
    def add(total: Array, part: tuple) -> tuple[Array, None]:
        component, weight, first, last = part
        value = log_density(component, first, last)
        # Numbers below the smallest normal one are slow.
        some = (points >= first) & (points <= last) & (value > least) & (value < jnp.inf)
        value = jnp.where(some, jnp.exp(jnp.where(some, value, 0)), 0)
        if measure is not None:
            weights, rise, length = measure
            value = rise * value
            found = sum_first(length * jnp.tensordot(weights, value, 1))
            atoms = [component.jump(jnp.full_like(found, atom))[1] for atom in own.atoms]
            whole = 1 - sum(atoms, jnp.zeros_like(found))
            if reaches_beyond(mixture, found.dtype):
                whole -= component.cdf(first) + component.survival(last)
            most = 2 * found > whole
            value = value * jnp.where(most, whole / jnp.where(most, found, 1), 1)
        return total + weight[..., None] * value, None

    each = (components_first(mixture), jnp.moveaxis(weights, -1, 0), *ends)
    return meshes.scan(add, jnp.zeros_like(points), each)[0]


def sum_first(values: Float[Array, "P ..."]) -> Float[Array, "..."]:
    """As ``jnp.sum(values, axis=0)``, for which XLA takes ten times as long."""
    while values.shape[0] > 1:
        half = values.shape[0] // 2
        pairs = values[:half] + values[half : 2 * half]
        values = jnp.concatenate([pairs, values[2 * half :]])
    return values[0]


def reaches_beyond(mixture: Mixture, dtype: np.dtype) -> bool:
    """Whether what lies beyond all panels counts: of a power's tail, but not in float32."""
    return isinstance(mixture.components, StudentT) and dtype.itemsize == 8


def probability(values: Array) -> Array:
    """Within [0, 1], which rounding may have left."""
    return jnp.where(values < 0, 0, jnp.where(values > 1, 1, values))
