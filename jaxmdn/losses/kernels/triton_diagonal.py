"""Isotropic and diagonal normals in a GPU kernel (Pallas, Triton backend).

The equations are those of :mod:`jaxmdn.components.normal_pullback`. Locations and raw scales are
``[R, K, D]``, as they adjoin each other in memory; with one dimension that axis is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxmdn import numerics
from jaxmdn.heads import NormalHead
from jaxmdn.losses.kernels.triton_program import Block, Outputs, Sides, span
from jaxmdn.typing import Array


def diagonal(
    head: NormalHead, sides: Sides, block: Block, out: Outputs
) -> tuple[Array, Callable[[Array], None]]:
    """Return the log-densities ``[R, K]`` and what writes the gradient."""
    K, D = head.num_components, head.event_dim
    isotropic, line = head.covariance == "isotropic", sides.dims == 1
    rank = 2 if line else 3
    component, dim = span(1, sides.components, rank), span(2, sides.dims, rank)
    live = (component < K) & (dim < D)
    # Of a scale that components or dimensions share there is one column.
    of = span(1, 1, rank) if head.tied else component
    along = span(2, 1, rank) if isotropic else dim
    scales = (of < K) & (along < D)
    loc_index = K + D * component + dim
    scale_index = K + K * D + (1 if isotropic else D) * of + along

    raw_scale, slope = head.link.value_and_slope(block.raw(scale_index, scales))
    scale = jnp.where(scales, raw_scale + head.min_scale, 1.0)
    z = (block.y(dim, dim < D) - block.raw(loc_index, live)) / scale
    each = jnp.where(live, -0.5 * z * z - jnp.log(scale), 0.0)
    log_prob = (each if line else jnp.sum(each, axis=2)) - 0.5 * D * numerics.LOG_2PI

    def write_gradient(r: Array) -> None:
        r = r if line else r[:, :, None]
        rz = r * z  # before anything else: a far component has r = 0, and z^2 may be infinite
        loc_gradient = -rz / scale
        block.write(out.raw, loc_index, live, loc_gradient)
        change = jnp.where(live, r - rz * z, 0.0)
        if isotropic and not line:
            change = jnp.sum(change, axis=2, keepdims=True)
        change = change / scale * slope
        if head.tied:
            change = jnp.sum(change, axis=1, keepdims=True)
        block.write(out.raw, scale_index, scales, change)
        if out.y is not None:
            block.write(out.y, dim, dim < D, -jnp.sum(loc_gradient, axis=1, keepdims=True))

    return log_prob, write_gradient
