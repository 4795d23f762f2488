"""Normals with independent dimensions: the log-density of every component and its pullback.

    l_k = -sum_d [ z_kd^2 / 2 + log scale_kd ] - D log(2 pi) / 2,     z = (y - loc) / scale,
    dl/dloc = z / scale,        dl/dscale = (z^2 - 1) / scale.

``scale [..., K or 1, D or 1]``: an axis of size one is shared (tied, isotropic), and its gradient
is the sum over what shares it. One dimension has a way of its own: XLA's loops over arrays whose
last axis has length one take two to four times as long as those over ``[..., K]``; and there the
scale serves its inverse alone, since for a second use XLA would compute the link once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.typing import Array, Float


class Pullback(NamedTuple):
    """Log-densities of the components, and how they pull weights back.

    Attributes:
      log_prob: ``[..., K]``, nats.
      pull: from weights ``r [..., K]`` to ``-sum r dl`` of every parameter, location first.
    """

    log_prob: Float[Array, "... K"]
    pull: Callable[[Float[Array, "... K"]], tuple[Array, ...]]


def sum_to(array: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Sum over the last axes along which an array of ``shape [K, ...]`` was broadcast."""
    axes = [i for i in range(-len(shape), 0) if shape[i] == 1 and array.shape[i] != 1]
    return jnp.sum(array, axis=tuple(axes), keepdims=True) if axes else array


def normal(
    loc: Float[Array, "... K D"],
    scale: Float[Array, "... #K #D"],
    y: Float[Array, "... D"],
) -> Pullback:
    """Return the components' densities and the pullback to ``loc`` and ``scale``."""
    if loc.shape[-1] == 1:
        scalar = _scalar(loc[..., 0], scale[..., 0], y)
        return scalar._replace(pull=lambda r: tuple(part[..., None] for part in scalar.pull(r)))
    dim = loc.shape[-1]
    inverse = 1.0 / scale
    z = (y[..., None, :] - loc) * inverse
    copies = dim // scale.shape[-1]
    log_det = copies * jnp.sum(jnp.log(scale), axis=-1)  # [..., K or 1]
    log_prob = -0.5 * jnp.sum(z * z, axis=-1) - log_det - 0.5 * dim * numerics.LOG_2PI

    def pull(r: Float[Array, "... K"]) -> tuple[Array, Array]:
        r = r[..., None]
        rz = r * z  # before anything else: a far component has r = 0, and z^2 may be infinite
        return -rz * inverse, sum_to(r - rz * z, scale.shape[-2:]) * inverse

    return Pullback(log_prob, pull)


def _scalar(
    loc: Float[Array, "... K"], scale: Float[Array, "... #K"], y: Float[Array, "... 1"]
) -> Pullback:
    inverse = 1.0 / scale
    z = (y - loc) * inverse

    def pull(r: Float[Array, "... K"]) -> tuple[Array, Array]:
        rz = r * z  # before anything else, as above
        return -rz * inverse, sum_to(r - rz * z, scale.shape[-1:]) * inverse

    log_prob = -0.5 * z * z + jnp.log(inverse) - 0.5 * numerics.LOG_2PI
    return Pullback(log_prob, pull)
