"""Normals with covariance ``C = F F^T + diag(scale^2)``: log-density and pullback.

:mod:`jaxmdn.components.low_rank_normal` reduces the log-density to modified Gram-Schmidt on
``[A; I] = Q R`` with ``A = F / scale``: ``Q`` has a top part ``Q1 [D, r]`` and a bottom part
``Q2 [r, r]`` (the inverse of ``R``), and ``[z; 0]`` leaves the residual ``[rho; -t]``:

    rho = z - Q1 Q1^T z,    t = Q2 Q1^T z,    l = -(|rho|^2 + |t|^2) / 2 - log det.

Everything the gradient needs is in these. With the precision ``P = C^-1`` and ``v = P (y - loc)``,
``dl/dloc = v``, ``dl/dF = v v^T F - P F`` and ``dl/dscale_d = scale_d (v_d^2 - P_dd)``; and

    v = rho / scale,    F^T v = t,    P F = Q1 Q2^T / scale,    P_dd = (1 - |Q1_d|^2) / scale_d^2.

Proof of the two middle ones: the normal equations of ``min_t |t|^2 + |z - A t|^2`` read
``A^T rho = t``; and ``P F = (A - Q1 Q1^T A) / scale`` with ``A = Q1 R`` and
``Q1^T Q1 = I - Q2^T Q2`` is ``Q1 Q2^T Q2 R / scale = Q1 Q2^T / scale``. No difference of large
numbers is left but ``1 - |Q1_d|^2``, whose absolute error is that of one rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.low_rank_normal import orthonormalize
from jaxmdn.components.normal_pullback import sum_to
from jaxmdn.typing import Array, Float


def low_rank_normal(
    loc: Float[Array, "n K D"],
    scale: Float[Array, "n #K D"],
    factor: Float[Array, "n #K D r"],
    y: Float[Array, "n D"],
) -> tuple[Float[Array, "n K"], Callable[[Float[Array, "n K"]], tuple[Array, Array, Array]]]:
    """Return ``log_prob [n, K]`` and ``pullback(r)``: minus ``sum r dl`` of loc, scale, factor."""
    dim, rank = factor.shape[-2:]
    inverse = 1.0 / scale
    z = (y[:, None, :] - loc) * inverse
    directions, log_det = orthonormalize(factor * inverse[..., None])  # r times [n, K or 1, D + r]
    log_det = log_det + jnp.sum(jnp.log(scale), axis=-1)
    residual = jnp.concatenate([z, jnp.zeros((*z.shape[:-1], rank), z.dtype)], axis=-1)
    for direction in directions:
        residual = residual - jnp.sum(direction * residual, axis=-1, keepdims=True) * direction
    quadratic = jnp.sum(residual * residual, axis=-1)
    log_prob = -0.5 * quadratic - log_det - 0.5 * dim * numerics.LOG_2PI

    def pullback(r: Float[Array, "n K"]) -> tuple[Array, Array, Array]:
        r, again = r[..., None], residual
        # What rounding has left of the directions goes by projecting once more: next to a narrow
        # dimension it is not small. (The derivative of the loop above does the same.)
        for direction in reversed(directions):
            again = again - jnp.sum(direction * again, axis=-1, keepdims=True) * direction
        rho, t = again[..., :dim], -again[..., dim:]
        r_rho = r * rho  # before anything else: a far component has r = 0, and v may be infinite
        rv = r_rho * inverse
        remaining = jnp.ones_like(scale)  # 1 - |Q1_d|^2
        precision_factor = jnp.zeros_like(factor)  # P F
        for direction in directions:
            top, bottom = direction[..., :dim], direction[..., dim:]
            remaining = remaining - top * top
            precision_factor = precision_factor + (top * inverse)[..., None] * bottom[..., None, :]
        scale_gradient = (r * remaining - r_rho * rho) * inverse
        factor_gradient = r[..., None] * precision_factor - rv[..., None] * t[..., None, :]
        return (
            -rv,
            sum_to(scale_gradient, scale.shape[-2:]),
            sum_to(factor_gradient, factor.shape[-3:]),
        )

    return log_prob, pullback
