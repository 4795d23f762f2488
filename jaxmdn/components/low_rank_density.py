"""The log-density of a normal with covariance ``C = F F^T + diag(scale^2)``, and its derivative.

With ``A = F / scale`` and ``z = (y - loc) / scale``, the determinant lemma and Woodbury's identity
reduce both parts of the log-density to one least-squares problem with the ``D + r`` rows of
``[A; I] = Q R``:

    log det C = 2 sum(log scale) + 2 sum(log diag(R)),
    (y - loc)^T C^-1 (y - loc) = min_u |u|^2 + |z - A u|^2,

which modified Gram-Schmidt solves, ``r`` steps of vector arithmetic. Woodbury's difference would
cancel when the factor dominates, and forming ``R^T R = I + A^T A`` squares its condition number:
in float32 its Cholesky factor is NaN for two nearly parallel loadings of size 1e4.

``Q`` has a top part ``Q1 [D, r]`` and a bottom part ``Q2 [r, r]`` (the inverse of ``R``), and
``[z; 0]`` leaves the residual ``[rho; -t]``:

    rho = z - Q1 Q1^T z,    t = Q2 Q1^T z,    l = -(|rho|^2 + |t|^2 + log det C + D log 2 pi) / 2.

Everything the gradient needs is in these. With the precision ``P = C^-1`` and ``v = P (y - loc)``,
``dl/dloc = v``, ``dl/dF = v v^T F - P F`` and ``dl/dscale_d = scale_d (v_d^2 - P_dd)``; and

    v = rho / scale,    F^T v = t,    P F = Q1 Q2^T / scale,    P_dd = (1 - |Q1_d|^2) / scale_d^2.

Proof of the two middle ones: the normal equations of ``min_t |t|^2 + |z - A t|^2`` read
``A^T rho = t``; and ``P F = (A - Q1 Q1^T A) / scale`` with ``A = Q1 R`` and
``Q1^T Q1 = I - Q2^T Q2`` is ``Q1 Q2^T Q2 R / scale = Q1 Q2^T / scale``. No difference of large
numbers is left but ``1 - |Q1_d|^2``, whose absolute error is that of one rounding. Autodiff of the
algorithm has more of them: in float32, beside a scale of .003, it keeps two digits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxmdn import meshes, numerics
from jaxmdn.typing import Array, Float


@jax.custom_jvp
def log_prob(
    loc: Float[Array, "... D"],
    scale: Float[Array, "... D"],
    factor: Float[Array, "... D r"],
    y: Float[Array, "... D"],
) -> Float[Array, "..."]:
    """Return ``log N(y; loc, factor factor^T + diag(scale^2))``, nats; leading axes broadcast."""
    return _solve(loc, scale, factor, y)[0]


def _solve(loc: Array, scale: Array, factor: Array, y: Array) -> tuple[Array, list[Array], Array]:
    """Return the log-density, the ``r`` columns of ``Q`` and the residual ``[..., D + r]``."""
    dim, rank = factor.shape[-2:]
    z = numerics.standardize(y, loc, scale)
    directions, log_det = orthonormalize(numerics.divide(factor, scale[..., None]))
    log_det = log_det + jnp.sum(jnp.log(scale), axis=-1)
    residual = jnp.concatenate([z, jnp.zeros((*z.shape[:-1], rank), z.dtype)], axis=-1)
    for direction in directions:
        share = jnp.sum(direction * residual, axis=-1, keepdims=True)
        residual = residual - share * direction
    quadratic = jnp.sum(residual**2, axis=-1)
    value = -0.5 * quadratic - log_det - 0.5 * numerics.LOG_2PI * dim
    return value, directions, residual


@partial(log_prob.defjvp, symbolic_zeros=True)
@meshes.any_rank
def _log_prob_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (loc, scale, factor, y), (dloc, dscale, dfactor, dy) = primals, tangents
    value, directions, residual = _solve(loc, scale, factor, y)
    # What rounding has left of the directions goes by projecting once more: next to a narrow
    # dimension it is not small.
    for direction in reversed(directions):
        share = jnp.sum(direction * residual, axis=-1, keepdims=True)
        residual = residual - share * direction
    dim = loc.shape[-1]
    inverse, rho, t = 1.0 / scale, residual[..., :dim], -residual[..., dim:]
    # Tangents are multiplied by one number after another, so that where a component is far and
    # its cotangent zero, no product of large numbers becomes infinite before it meets that.
    total: Any = 0
    for tangent, sign in ((dloc, 1), (dy, -1)):
        if not isinstance(tangent, SymbolicZero):
            total = total + sign * jnp.sum(rho * (tangent * inverse), axis=-1)
    if not isinstance(dscale, SymbolicZero):
        remaining = 1.0 - sum(direction[..., :dim] ** 2 for direction in directions)
        change = dscale * inverse
        total = total + jnp.sum(rho * (rho * change) - remaining * change, axis=-1)
    if not isinstance(dfactor, SymbolicZero):
        change = dfactor * inverse[..., None]  # [..., D, r]
        pull = jnp.sum(t[..., None, :] * change, axis=-1)
        total = total + jnp.sum(rho * pull, axis=-1)
        for direction in directions:
            pull = jnp.sum(direction[..., None, dim:] * change, axis=-1)
            total = total - jnp.sum(direction[..., :dim] * pull, axis=-1)
    return value, jnp.broadcast_to(total, value.shape)


def orthonormalize(
    loading: Float[Array, "... D r"],
) -> tuple[list[Float[Array, "..."]], Float[Array, "..."]]:
    """Return an orthonormal basis of the columns of ``[loading; I]`` and ``sum(log diag(R))``.

    ``r`` vectors ``[..., D + r]``; ``R`` is the triangular factor. Each column is divided by its
    largest entry before it is squared, so that loadings up to the dtype's largest number pass.
    """
    identity = jnp.eye(loading.shape[-1], dtype=loading.dtype)
    identity = jnp.broadcast_to(identity, (*loading.shape[:-2], *identity.shape))
    remaining = jnp.concatenate([jnp.swapaxes(loading, -1, -2), identity], axis=-1)  # [..., r, D+r]
    directions: list[Array] = []
    log_det = jnp.zeros((), loading.dtype)
    while remaining.shape[-2]:
        column, remaining = remaining[..., 0, :], remaining[..., 1:, :]
        peak = jax.lax.stop_gradient(jnp.max(jnp.abs(column), axis=-1, keepdims=True))
        column = column / peak
        for direction in directions:  # once more: beside a narrow dimension rounding left some
            share = jnp.sum(column * direction, axis=-1, keepdims=True)
            column = column - share * direction
        norm = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        direction = column / norm
        log_det = log_det + jnp.sum(jnp.log(peak) + jnp.log(norm), axis=-1)
        share = numerics.matvec(remaining, direction)  # [..., r]
        remaining = remaining - share[..., None] * direction[..., None, :]
        directions.append(direction)
    return directions, log_det
