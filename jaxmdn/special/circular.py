"""The von Mises distribution about zero: normaliser, tails, quantile, for any concentration.

With ``1 - cos t = 2 sin^2(t / 2)`` nothing cancels around the mode, and both halves of the
distribution are integrals of ``exp(-2 k sin^2(t / 2))`` that a few Gauss nodes give to rounding
once the interval is cut where the integrand is negligible, from the uniform (``k = 0``) to the
normal (``k`` large): no series, no expansion, no case in between.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, i1e

from jaxmdn.special.elementary import chebyshev, chebyshev_fit, legendre
from jaxmdn.typing import Array, Float

# By the dtype's bytes: Gauss nodes, where integrands exp(-g) are cut, steps of the quantile.
_NODES, _CUT, _STEPS = {4: 14, 8: 32}, {4: 18.0, 8: 40.0}, {4: 12, 8: 14}
# Beyond this concentration 1 - I1 / I0 comes from a polynomial in its inverse, of so many terms.
_FAR, _TERMS = 8.0, {4: 8, 8: 26}


@functools.cache
def _far_coefficients(count: int) -> np.ndarray:
    """``2 k (1 - I1(k) / I0(k))`` as a Chebyshev series in ``16 / k - 1``, by quadrature."""

    def scaled(nodes: np.ndarray) -> np.ndarray:
        k = 2 * _FAR / np.maximum(nodes + 1, 1e-9)
        t, weights = legendre(80)
        end = 2 * np.arcsin(np.minimum(1, np.sqrt(20 / k)))[:, None]
        sine = np.sin(0.5 * end * t) ** 2
        density = weights * np.exp(-2 * k[:, None] * sine)
        return 4 * k * np.sum(density * sine, axis=1) / np.sum(density, axis=1)

    return chebyshev_fit(scaled, count)


def resultant_gap(k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``1 - I1(k) / I0(k)`` for ``k >= 0``; ``1 / (2 k)`` for large ``k``, without cancelling."""
    near = k < _FAR
    small, large = jnp.where(near, k, 0), jnp.where(near, _FAR, k)
    series = chebyshev(2 * _FAR / large - 1, _far_coefficients(_TERMS[k.dtype.itemsize]))
    return jnp.where(near, 1 - i1e(small) / i0e(small), 0.5 * series / large)


@jax.custom_jvp
def log_i0e(k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log I0(k) - k`` for ``k >= 0``."""
    return jnp.log(i0e(k))


@log_i0e.defjvp
def _log_i0e_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (k,), (dk,) = primals, tangents
    return log_i0e(k), -resultant_gap(k) * dk


def log_density(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``k (cos z - 1) - log(2 pi I0(k) exp(-k))``."""
    return -2 * k * jnp.sin(0.5 * z) ** 2 - log_i0e(k) - math.log(2 * math.pi)


def _reach(k: Array, start: Array) -> Array:
    """From ``0 <= start <= pi``, where the exponent has grown by the cut, or pi."""
    level = jnp.sin(0.5 * start) ** 2 + 0.5 * _CUT[k.dtype.itemsize] / k
    return jnp.where(level < 1, 2 * jnp.arcsin(jnp.sqrt(jnp.where(level < 1, level, 0))), math.pi)


def _integral(z: Array, k: Array, length: Array) -> tuple[Array, Array]:
    """``int_z^(z + length) exp(-2 k (sin^2(t / 2) - sin^2(z / 2))) dt``, and its slope in ``k``."""
    nodes, weights = (jnp.asarray(v, k.dtype) for v in legendre(_NODES[k.dtype.itemsize]))
    s = length[..., None] * nodes
    rise = 2 * jnp.sin(z[..., None] + 0.5 * s) * jnp.sin(0.5 * s)
    values = weights * jnp.exp(-k[..., None] * rise)
    return length * jnp.sum(values, axis=-1), -length * jnp.sum(values * rise, axis=-1)


def _upper(z: Array, k: Array) -> tuple[Array, Array]:
    """``P(Z > z)`` for ``0 <= z <= pi``, with relative accuracy, and its derivative in ``k``."""
    bulge = jnp.sin(0.5 * z) ** 2
    near = (k * bulge < 0.5) & (z < 1.5)
    start = jnp.where(near, 0, z)
    # A node at the far end would lie beyond it for a rounded pi.
    length = jnp.where(near, z, jnp.maximum(_reach(k, start) - start, 0))
    integral, slope = _integral(start, k, jax.lax.stop_gradient(length))
    log_scale = -log_i0e(k) - math.log(2 * math.pi)
    scale = jnp.exp(log_scale - jnp.where(near, 0, 2 * k * bulge))
    part = scale * integral
    change = scale * slope + part * (resultant_gap(k) - jnp.where(near, 0, 2 * bulge))
    return jnp.where(near, 0.5 - part, part), jnp.where(near, -change, change)


@jax.custom_jvp
def survival(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``P(Z > z)`` for ``-pi <= z <= pi``, with relative accuracy in the upper tail."""
    upper, _ = _upper(jnp.abs(z), k)
    return jnp.where(z < 0, 1 - upper, upper)


@survival.defjvp
def _survival_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z, k), (dz, dk) = primals, tangents
    upper, slope = _upper(jnp.abs(z), k)
    value = jnp.where(z < 0, 1 - upper, upper)
    return value, jnp.where(z < 0, -slope, slope) * dk - jnp.exp(log_density(z, k)) * dz


@jax.custom_jvp
def upper_moments(
    z: Float[Array, "..."], k: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``E[Z; Z > z]`` and ``E[Z^2; Z > 0]`` for ``0 <= z <= pi``."""
    (partial, _), (half, _) = _moments(z, k)
    return partial, half


@upper_moments.defjvp
def _upper_moments_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    (z, k), (dz, dk) = primals, tangents
    (partial, slope), (half, slope_half) = _moments(z, k)
    return (partial, half), (slope * dk - z * jnp.exp(log_density(z, k)) * dz, slope_half * dk)


def _moments(z: Array, k: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The two moments, each with its derivative in ``k``."""
    nodes, weights = (jnp.asarray(v, k.dtype) for v in legendre(_NODES[k.dtype.itemsize]))
    gap = resultant_gap(k)[..., None]

    def moment(start: Array, power: int) -> tuple[Array, Array]:
        length = jax.lax.stop_gradient(_reach(k, start) - start)
        t = start[..., None] + length[..., None] * nodes
        values = weights * jnp.exp(log_density(t, k[..., None])) * t**power
        slopes = values * (gap - 2 * jnp.sin(0.5 * t) ** 2)
        return length * jnp.sum(values, axis=-1), length * jnp.sum(slopes, axis=-1)

    return moment(z, 1), moment(jnp.zeros_like(z), 2)


@jax.custom_jvp
def quantile(p: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """The ``z`` with ``P(Z <= z) = p``, from -pi to pi; NaN for a p outside [0, 1]."""
    q = jnp.minimum(p, 1 - p)
    inside = q > 0
    q = jnp.where(inside, q, 0.25)
    # P(Z > z) <= exp(-2 k sin^2(z / 2)); Newton's steps, or halving where they leave the bracket.
    level = -0.5 * jnp.log(q) / k
    far = jnp.where(level < 1, 2 * jnp.arcsin(jnp.sqrt(jnp.where(level < 1, level, 0))), math.pi)

    def step(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, z = state
        upper, _ = _upper(z, k)
        above = upper > q
        low, high = jnp.where(above, z, low), jnp.where(above, high, z)
        density = jnp.exp(log_density(z, k))
        # In the logarithm of the tail where that is close to a parabola; a flat tail is a line.
        ratio = jnp.maximum(upper, 1e-30)
        steep = k * jnp.sin(z) * (math.pi - z) > 1.5
        new = z + jnp.where(steep, ratio * jnp.log(ratio / q), upper - q) / density
        return low, high, jnp.where((new >= low) & (new <= high), new, 0.5 * (low + high))

    zero = jnp.zeros_like(far)
    z = jax.lax.fori_loop(0, _STEPS[q.dtype.itemsize], step, (zero, far, 0.5 * far))[2]
    z = jnp.where(inside, z, math.pi)  # the ends
    return jnp.where((p >= 0) & (p <= 1), jnp.where(p < 0.5, -z, z), jnp.nan)


@quantile.defjvp
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (p, k), (dp, dk) = primals, tangents
    z = quantile(p, k)
    density = jnp.exp(log_density(z, k))
    sloped = density > 0  # it is not where a quantile of 0 or 1 lies far out
    change = dp + _survival_slope(jnp.where(sloped, z, 0), k) * dk
    return z, jnp.where(sloped, change / jnp.where(sloped, density, 1), 0)


def _survival_slope(z: Array, k: Array) -> Array:
    slope = _upper(jnp.abs(z), k)[1]
    return jnp.where(z < 0, -slope, slope)


@jax.custom_jvp
def attach(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``z``, moving with ``k`` so that ``P(Z <= z)`` stays (implicit reparameterisation)."""
    return z


@attach.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (z, k), (_, dk) = primals, tangents
    return attach(z, k), _survival_slope(z, k) * dk / jnp.exp(log_density(z, k))


def draw(key: Array, k: Float[Array, "..."]) -> Float[Array, "..."]:
    """One draw for every concentration, by rejection from a wrapped Cauchy density.

    Best and Fisher's method (1979) in ``x = sin^2(z / 2)``, where the proposal's density is that
    of ``1 / (a + x)`` and neither end cancels. At least two proposals in three are accepted.
    """
    k = jnp.maximum(jax.lax.stop_gradient(k), 1e-6)
    root = jnp.sqrt(1 + 4 * k * k)
    offset = 1 / (2 * k * (1 + 2 * k / (1 + root)))  # their s = 1 + 2 a
    width = jnp.sqrt(offset / (1 + offset))
    tiny = float(jnp.finfo(k.dtype).tiny)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, z, done = state
        key, key_angle, key_height = jax.random.split(key, 3)
        angle = jax.random.uniform(key_angle, k.shape, k.dtype, -0.5 * math.pi, 0.5 * math.pi)
        height = jax.random.uniform(key_height, k.shape, k.dtype, tiny)
        new = 2 * jnp.arctan(width * jnp.tan(angle))
        level = 2 * k * (offset + jnp.sin(0.5 * new) ** 2)
        accept = jnp.log(height) <= 1 - level + jnp.log(level)
        return key, jnp.where(done, z, new), done | accept

    def waiting(state: tuple[Array, Array, Array]) -> Array:
        return ~jnp.all(state[2])

    start = (key, jnp.where(jnp.isfinite(k), 0, jnp.nan).astype(k.dtype), ~jnp.isfinite(k))
    return jax.lax.while_loop(waiting, attempt, start)[1]


__all__ = ["attach", "draw", "log_density", "quantile", "resultant_gap", "survival"]
