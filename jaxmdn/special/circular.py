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

from jaxmdn import meshes
from jaxmdn.special.elementary import CUT, NODES, chebyshev, chebyshev_fit, integrate, legendre
from jaxmdn.special.sides import complete, log_complete, log_side, nearer_side
from jaxmdn.special.waves import sin_half
from jaxmdn.typing import Array, Bool, Float

TURN = 2 * math.pi
# By the dtype's bytes: steps of the quantile. Of 20,000 (concentrations from 1e-3 to 1e8, p from
# 1e-12 on) none misses float32's floor after 8 nor float64's after 10; a few are kept in hand.
_STEPS = {4: 12, 8: 14}
# Beyond this concentration, where 1 - I1 / I0 has lost a digit, it comes from a polynomial in its
# inverse; so many terms, by the dtype's bytes, give it to rounding.
_FAR, _TERMS = 8.0, {4: 8, 8: 26}


def representative(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """An angle in ``[-pi, pi]``; both ends stay where they are."""
    return y - TURN * jnp.round(y / TURN)


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


log_i0e.defjvps(lambda dk, _, k: -resultant_gap(k) * dk)


def log_density(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``k (cos z - 1) - log(2 pi I0(k) exp(-k))``."""
    return -2 * k * _bulge(z) - log_i0e(k) - math.log(2 * math.pi)


def _half_sine(z: Array) -> Array:
    """``sin(z / 2)``, ``0 <= z <= 2 pi``: in float32 in loops that vectorise, else exact."""
    return sin_half(z * (0.25 / math.pi)) if z.dtype == jnp.float32 else jnp.sin(0.5 * z)


def _bulge(z: Array) -> Array:
    return jnp.sin(0.5 * z) ** 2


def _reach(k: Array, level: Array) -> Array:
    """Where ``2 k sin^2(z / 2)`` reaches a level, or pi: ``sin^2(z / 2)`` is at most one."""
    height = 0.5 * level / k
    inside = height < 1
    return jnp.where(inside, 2 * jnp.arcsin(jnp.sqrt(jnp.where(inside, height, 0))), math.pi)


def _end(z: Array, k: Array) -> Array:
    """From ``0 <= z <= pi``, where the exponent has grown by the cut, or pi."""
    return jax.lax.stop_gradient(_reach(k, CUT[k.dtype.itemsize] + 2 * k * _bulge(z)))


def _side(z: Array, k: Array) -> tuple[Array, Array, Any]:
    """``log P(Z > z)`` for ``0 <= z <= pi``, its derivative in ``z``, and one.

    Around the mode one half less the integral of ``exp(-2 k sin^2(t / 2))`` from zero to ``z``;
    else the integral from ``z`` on, of ``exp(-2 k (sin^2((z + s) / 2) - sin^2(z / 2)))``, where the
    difference is ``sin(z + s / 2) sin(s / 2)``.
    """
    near = (k * _bulge(z) < 0.5) & (z < 1.5)
    start = jnp.where(near, 0, z)
    # At pi a tail of zero has no logarithm; this one is nothing beside a last place of pi.
    least = float(jnp.finfo(z.dtype).eps) ** 2
    length = jnp.where(near, z, jnp.maximum(_end(start, k) - start, least))

    def integrand(node: Array) -> Array:
        s = length * node
        return jnp.exp(-2 * k * _half_sine(2 * start + s) * _half_sine(s))

    integral = length * integrate(integrand, NODES[k.dtype.itemsize], length + k)
    log_scale = log_density(start, k)
    half = 0.5 - jnp.exp(jnp.where(near, log_scale, 0)) * jnp.where(near, integral, 0)
    rest = jnp.where(near, 1, integral)
    log = jnp.where(near, jnp.log(half), log_scale + jnp.log(rest))
    # Of the two exponents' difference no digit would be left far out.
    hazard = jnp.exp(jnp.where(near, log_density(z, k) - log, 0)) / rest
    return log, -hazard, 1.0


def _sides(z: Array, k: Array) -> tuple[Array, Array]:
    left = z < 0
    # An angle of which the dtype does not know the turn may come out as any number.
    return left, log_side(_side, (jnp.minimum(jnp.where(left, -z, z), 4),), (k,))


def log_tails(
    z: Float[Array, "..."], k: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``log P(Z < z)`` and ``log P(Z > z)`` for ``-pi < z < pi``."""
    return log_complete(*_sides(z, k))


def survival(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``P(Z > z)`` for ``-pi <= z <= pi``, with relative accuracy in the upper tail."""
    value = complete(*_sides(z, k))[1]
    # Nothing lies beyond pi, exactly; the slope there is the density's all the same.
    return jnp.where(z >= math.pi, value - jax.lax.stop_gradient(value), value)


def upper_moments(
    z: Float[Array, "..."], k: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """``E[Z; Z > z]`` and ``E[Z^2; Z > 0]`` for ``0 <= z <= pi``."""
    scale = jnp.exp(log_density(jnp.zeros_like(k), k))

    def moment(start: Array, power: int) -> Array:
        length = _end(start, k) - start

        def integrand(node: Array) -> Array:
            t = start + length * node
            return t**power * jnp.exp(-2 * k * _bulge(t))

        return scale * length * integrate(integrand, NODES[k.dtype.itemsize], length + k)

    return moment(z, 1), moment(jnp.zeros_like(z), 2)


@jax.custom_jvp
def quantile(
    q: Float[Array, "..."], k: Float[Array, "..."], upper: Bool[Array, "..."] | bool = False
) -> Float[Array, "..."]:
    """The ``z`` with ``P(Z > z) = q`` where ``upper``, else ``P(Z <= z) = q``, from -pi to pi.

    NaN for a q outside [0, 1].

    Newton's steps, or halving where they leave the bracket: ``P(Z > z) <= exp(-2 k sin^2(z / 2))``.
    """
    valid = (q >= 0) & (q <= 1)
    q, above = nearer_side(q, upper)
    inside = q > 0
    q = jnp.where(inside, q, 0.25)
    far = _reach(k, -jnp.log(q))

    def step(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, z = state
        log, slope, _ = _side(z, k)
        gap = log - jnp.log(q)
        low, high = jnp.where(gap > 0, z, low), jnp.where(gap > 0, high, z)
        # In the logarithm of the tail where that is close to a parabola; a flat tail is a line.
        steep = k * jnp.sin(z) * (math.pi - z) > 1.5
        new = z - jnp.where(steep, gap, -jnp.expm1(-gap)) / slope
        # Next to the root rounding may put the step outside, where halving would lead away again.
        good = ((new >= low) & (new <= high)) | (jnp.abs(gap) < 0.01)
        return low, high, jnp.where(good, jnp.clip(new, low, high), 0.5 * (low + high))

    zero = jnp.zeros_like(far)
    z = meshes.fori_loop(0, _STEPS[q.dtype.itemsize], step, (zero, far, 0.5 * far))[2]
    z = jnp.where(inside, z, math.pi)  # the ends
    return jnp.where(valid, jnp.where(above, z, -z), jnp.nan)


@quantile.defjvp
def _quantile_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (q, k, upper), (dq, dk, _) = primals, tangents
    z = quantile(q, k, upper)
    density = jnp.exp(log_density(z, k))
    sloped = density > 0  # it is not where a quantile of 0 or 1 lies far out
    change = jnp.where(upper, -dq, dq) + _change(jnp.where(sloped, z, 0), k, dk)
    return z, jnp.where(sloped, change / jnp.where(sloped, density, 1), 0)


def _change(z: Array, k: Array, dk: Array) -> Array:
    """The change of ``P(Z > z)`` with ``k``."""
    return jax.jvp(lambda k: survival(z, k), (k,), (dk,))[1]


@jax.custom_jvp
def attach(z: Float[Array, "..."], k: Float[Array, "..."]) -> Float[Array, "..."]:
    """``z``, moving with ``k`` so that ``P(Z <= z)`` stays (implicit reparameterisation)."""
    return z


attach.defjvps(None, lambda dk, _, z, k: _change(z, k, dk) / jnp.exp(log_density(z, k)))


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
        level = 2 * k * (offset + _bulge(new))
        accept = jnp.log(height) <= 1 - level + jnp.log(level)
        return key, jnp.where(done, z, new), done | accept

    def waiting(state: tuple[Array, Array, Array]) -> Array:
        return ~jnp.all(state[2])

    start = (key, jnp.where(jnp.isfinite(k), 0, jnp.nan).astype(k.dtype), ~jnp.isfinite(k))
    return meshes.while_loop(waiting, attempt, start)[1]
