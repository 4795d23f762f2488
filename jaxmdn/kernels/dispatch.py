"""Which implementation serves a call.

``None`` takes the fastest that serves; a name that cannot serve raises and says why. What is known
statically decides: the head, the number of rows, the devices. The choices are those that the
benchmark found never to be slower than ``"xla"``; a kernel not measured on a device is not chosen
there by itself.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax

from jaxmdn import checks
from jaxmdn.heads import Head
from jaxmdn.kernels.rows import has_closed_form

# Raw outputs narrower than this are cheaper to store than to produce block by block.
NARROW = 32
IMPLEMENTATIONS = ("xla", "xla_chunked", "pallas_triton")


def choose(
    function: str,
    implementation: str | None,
    head: Head,
    array: Any = None,
    *,
    linear: bool = False,
) -> str:
    """Return the name of the implementation that serves.

    Args:
      function: the caller's name, for messages.
      implementation: what the user asked for, or None.
      head: the head.
      array: the raw outputs or hidden features, for where their rows live; may be left out.
      linear: whether the output layer is part of the loss. Its point is memory: blocks of rows are
        the default on every device and for every head but the narrowest.

    Raises:
      ValueError: for an unknown name. NotImplementedError: for one that cannot serve.
    """
    if implementation is not None:
        checks.require_option(function, "implementation", implementation, IMPLEMENTATIONS)
        if implementation == "pallas_triton":
            _require_triton(function, head)
        return implementation
    if _rows_may_be_spread(array):
        # A loop over blocks of rows would gather rows that live on several devices.
        return "xla"
    on_cpu = jax.default_backend() == "cpu"
    if linear:
        narrow = on_cpu and has_closed_form(head) and head.num_outputs < NARROW
        return "xla" if narrow else "xla_chunked"
    return "xla_chunked" if on_cpu and _gains_on_cpu(head) else "xla"


def _gains_on_cpu(head: Head) -> bool:
    # Tied scales have few exponentials and logarithms to save.
    return has_closed_form(head) and (not head.tied or head.covariance in ("full", "low_rank"))


def triton() -> Any:
    """Return the module of GPU kernels, which is loaded on first use."""
    return importlib.import_module("jaxmdn.kernels.triton")


def _rows_may_be_spread(array: Any) -> bool:
    """Whether the rows may be sharded: several devices, outside a ``shard_map`` over them."""
    meshes = [jax.sharding.get_abstract_mesh()]
    if array is not None:
        meshes.append(jax.typeof(array).sharding.mesh)
    for mesh in meshes:
        if not mesh.empty:
            return not mesh.are_all_axes_manual
    return jax.device_count() > 1


def _require_triton(function: str, head: Head) -> None:
    covariance = getattr(head, "covariance", None)
    if not has_closed_form(head) or covariance not in ("isotropic", "diagonal"):
        raise NotImplementedError(
            f'{function}: implementation="pallas_triton" serves NormalHead with isotropic or '
            f"diagonal covariance, got {head!r}; leave implementation out."
        )
    if jax.default_backend() != "gpu":
        raise NotImplementedError(
            f'{function}: implementation="pallas_triton" needs a GPU, but the default backend is '
            f'"{jax.default_backend()}"; leave implementation out.'
        )
