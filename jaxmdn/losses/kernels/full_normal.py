"""Normals with full covariance by the whitening factor ``W = diag(1 / scale) U``, ``U`` unit lower.

With ``x = y - loc``, ``u = U x`` and ``z = u / scale``:

    l_k = -sum_d [ z_d^2 / 2 + log scale_d ] - D log(2 pi) / 2,
    dl/dU_dj = -(z_d / scale_d) x_j  (j < d),   dl/dscale_d = (z_d^2 - 1) / scale_d,
    dl/dloc = U^T (z / scale),

from ``d l = -z . dz`` and ``dz = (dU x - U dloc - z dscale) / scale`` (Williams 1996, eq. 4-9, in
this parameterisation). Row ``d`` of ``U`` is stored as ``d`` numbers; the loops below run over rows
while tracing, so that no ``D x D`` matrix is ever built, and the work is ``D^2 / 2``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.components.normal_pullback import sum_to
from jaxmdn.typing import Array, Float


def full_normal(
    loc: Float[Array, "n K D"],
    scale: Float[Array, "n #K D"],
    packed: Float[Array, "n #K T"],
    y: Float[Array, "n D"],
) -> tuple[Float[Array, "n K"], Callable[[Float[Array, "n K"]], tuple[Array, Array, Array]]]:
    """Return ``log_prob [n, K]`` and ``pullback(r)``: minus ``sum r dl`` of loc, scale, packed."""
    dim = loc.shape[-1]
    rows = [packed[..., numerics.tril_size(d) : numerics.tril_size(d + 1)] for d in range(dim)]
    inverse = 1.0 / scale
    x = y[:, None, :] - loc
    inner = [jnp.sum(rows[d] * x[..., :d], axis=-1) for d in range(1, dim)]
    u = x + jnp.stack([jnp.zeros_like(x[..., 0]), *inner], axis=-1)
    z = u * inverse
    log_det = jnp.sum(jnp.log(scale), axis=-1)
    log_prob = -0.5 * jnp.sum(z * z, axis=-1) - log_det - 0.5 * dim * numerics.LOG_2PI

    def pullback(r: Float[Array, "n K"]) -> tuple[Array, Array, Array]:
        r = r[..., None]
        rz = r * z
        v = rz * inverse
        loc_gradient = -v
        for d in range(1, dim):
            column = rows[d] * v[..., d : d + 1]
            loc_gradient = loc_gradient - jnp.pad(column, ((0, 0), (0, 0), (0, dim - d)))
        outer = [v[..., d : d + 1] * x[..., :d] for d in range(1, dim)]
        packed_gradient = jnp.concatenate(outer, axis=-1) if outer else jnp.zeros_like(packed)
        scale_gradient = sum_to(r - rz * z, scale.shape[-2:]) * inverse
        return loc_gradient, scale_gradient, sum_to(packed_gradient, packed.shape[-2:])

    return log_prob, pullback
