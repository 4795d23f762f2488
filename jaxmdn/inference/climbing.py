"""Climbing a density of several dimensions whose components are products of unimodal ones.

Component ``k`` pulls along dimension ``d`` towards its own mode ``m_kd``, with the slope
``g_kd = d log p_k / dx_d``. Each step goes to

    x_d = sum_k r_k w_kd m_kd / sum_k r_k w_kd,    w_kd = g_kd / (m_kd - x_d) > 0,

``r`` the responsibilities: at rest ``sum_k r_k g_k = 0``. Of normals it is mean-shift, of Student-t
components their EM step. Where it would not rise it is shortened. All modes lie between the
components' own. Newton's steps follow, where the density is log-concave.

References:
  Carreira-Perpinan (2007), Gaussian mean-shift is an EM algorithm, section 2;
  Lange, Hunter and Yang (2000), Optimization transfer using surrogate objective functions.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmdn import meshes, numerics
from jaxmdn.components.base import Density
from jaxmdn.mixture import Mixture
from jaxmdn.typing import Array, Bool, Float

# Steps of each kind, and the shares of one that are tried.
CLIMB_STEPS, NEWTON_STEPS, SHARES = 60, 20, (1.0, 0.5, 0.125, 0.015625)


class Products(NamedTuple):
    """What does not change on the way up.

    Attributes:
      mixture: with components of independent dimensions.
      centres: their own modes, ``[..., K, D]``.
      precision: one over their squared widths, which serves at a centre, ``[..., K, D]``.
    """

    mixture: Mixture
    centres: Float[Array, "... K D"]
    precision: Float[Array, "... K D"]


def gradient(mixture: Density, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Of the log-density."""
    value, pull = jax.vjp(mixture.log_prob, x)
    return pull(jnp.ones_like(value))[0]


def hessian(mixture: Density, x: Float[Array, "... D"]) -> Float[Array, "... D D"]:
    """Of the log-density, one column after another."""

    def column(direction: Array) -> Array:
        along = (jnp.broadcast_to(direction, x.shape),)
        return jax.jvp(partial(gradient, mixture), (x,), along)[1]

    return jnp.moveaxis(jax.lax.map(column, jnp.eye(x.shape[-1], dtype=x.dtype)), 0, -1)


def look(products: Products, x: Float[Array, "... D"]) -> tuple[Array, Array]:
    """The gradient at ``x``, and the weights ``sum_k r_k w_k``, ``[..., D]`` each."""
    mixture, centres, precision = products
    share = jnp.exp(numerics.log_normalize(mixture.joint_log_prob(x)))[..., None]  # [..., K, 1]
    y = jnp.broadcast_to(
        x[..., None, :], jnp.broadcast_shapes(centres.shape, x[..., None, :].shape)
    )
    value, pull = jax.vjp(mixture.components.log_prob, y)
    (slopes,) = pull(jnp.ones_like(value))
    gap = centres - y
    towards = gap * slopes > 0
    weights = jnp.where(towards, slopes / jnp.where(towards, gap, 1), precision)
    return numerics.weighted_sum(share, slopes, -2), numerics.weighted_sum(share, weights, -2)


def climb(products: Products, x: Float[Array, "... D"]) -> tuple[Array, Bool[Array, "..."]]:
    """Where ``x`` climbs to, and whether that is a mode."""
    mixture = products.mixture
    eps = float(jnp.finfo(x.dtype).eps)

    def rise(x: Array, step: Array) -> Array:
        """The best of some shares of a step, and of none."""
        tried = jnp.stack([x, *(x + share * step for share in SHARES)])
        height = mixture.log_prob(tried)
        # Equal up to rounding, the whole step is as good as the best.
        room = 8 * eps * (1 + jnp.abs(height[0]))
        height = height.at[1].add(jnp.where(jnp.abs(height[1] - height[0]) <= room, room, 0))
        best = jnp.argmax(jnp.where(jnp.isnan(height), -jnp.inf, height), axis=0)
        return jnp.take_along_axis(tried, best[None, ..., None], axis=0)[0]

    def shift(_: Array, x: Array) -> Array:
        slope, weight = look(products, x)
        return rise(x, slope / weight)

    def newton(_: Array, x: Array) -> Array:
        slope, weight = look(products, x)
        root = jnp.sqrt(weight)
        bend = -hessian(mixture, x) / (root[..., None] * root[..., None, :])
        lower = jnp.linalg.cholesky(bend)  # NaN where the density is not log-concave
        known = jnp.all(jnp.isfinite(lower), axis=(-2, -1), keepdims=True)
        lower = jnp.where(known, lower, jnp.eye(x.shape[-1], dtype=x.dtype))
        return rise(
            x, jax.scipy.linalg.cho_solve((lower, True), (slope / root)[..., None])[..., 0] / root
        )

    x = meshes.fori_loop(0, CLIMB_STEPS, shift, x)
    x = meshes.fori_loop(0, NEWTON_STEPS, newton, x)
    slope, weight = look(products, x)
    root, tolerance = jnp.sqrt(weight), eps**0.25
    bend = -hessian(mixture, x) / (root[..., None] * root[..., None, :])
    slack = tolerance**2 * jnp.eye(x.shape[-1], dtype=x.dtype)
    peaked = jnp.all(jnp.isfinite(jnp.linalg.cholesky(bend + slack)), axis=(-2, -1))
    at_rest = jnp.sum((slope / root) ** 2, axis=-1) <= tolerance**4
    return x, peaked & at_rest
