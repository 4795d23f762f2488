"""Normals with independent dimensions: the log-density of every component and its pullback.

    l_k = -sum_d [ z_kd^2 / 2 + log scale_kd ] - D log(2 pi) / 2,     z = (y - loc) / scale,
    dl/dloc = z / scale,        dl/dscale = (z^2 - 1) / scale.

``scale [n, K or 1, D or 1]``: an axis of size one is shared (tied, isotropic), and its gradient is
the sum over what shares it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.typing import Array, Float


def sum_to(array: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sum over the axes along which an array of ``shape`` was broadcast."""
    axes = [axis for axis, size in enumerate(shape) if size == 1 and array.shape[axis] != 1]
    return jnp.sum(array, axis=tuple(axes), keepdims=True) if axes else array


def normal(
    loc: Float[Array, "n K D"], scale: Float[Array, "n #K #D"], y: Float[Array, "n D"]
) -> tuple[Float[Array, "n K"], Callable[[Float[Array, "n K"]], tuple[Array, Array]]]:
    """Return ``log_prob [n, K]`` and ``pullback(r) -> (-sum r dl/dloc, -sum r dl/dscale)``."""
    dim = loc.shape[-1]
    inverse = 1.0 / scale
    z = (y[:, None, :] - loc) * inverse
    copies = dim // scale.shape[-1]
    log_det = copies * jnp.sum(jnp.log(scale), axis=-1)  # [n, K or 1]
    log_prob = -0.5 * jnp.sum(z * z, axis=-1) - log_det - 0.5 * dim * numerics.LOG_2PI

    def pullback(r: Float[Array, "n K"]) -> tuple[Array, Array]:
        r = r[..., None]
        rz = r * z  # before anything else: a far component has r = 0, and z^2 may be infinite
        return -rz * inverse, sum_to(r - rz * z, scale.shape) * inverse

    return log_prob, pullback
