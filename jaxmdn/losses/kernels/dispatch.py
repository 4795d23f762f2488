"""Which implementation serves a call.

``None`` takes the fastest that serves; a name that cannot serve raises and says why. What is known
statically decides: the head, the dtype, the devices. The choices are those that the benchmark found
no slower than ``"xla"`` on two CPU cores and on an H100, value and gradient together;
``docs/results/speed.md`` names where the value alone was.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn import checks
from jaxmdn.heads import Head, NormalHead
from jaxmdn.losses.kernels import rows
from jaxmdn.losses.kernels.devices import even
from jaxmdn.losses.kernels.rows import has_closed_form

# Raw outputs narrower than this are cheaper to store than to produce block by block.
NARROW = 32
# Of a row's locations or factors, which a program of the GPU kernels holds in registers.
MAX_ENTRIES, MAX_FACTOR_ENTRIES = 2**12, 2**14
IMPLEMENTATIONS = ("xla", "xla_chunked", "pallas_triton")


def choose(
    function: str,
    implementation: str | None,
    head: Head,
    array: Any = None,
    *,
    dtype: Any = jnp.float32,
    linear: bool = False,
    by_device: bool = True,
) -> str:
    """Return the name of the implementation that serves.

    Args:
      function: the caller's name, for messages.
      implementation: what the user asked for, or None.
      head: the head.
      array: the raw outputs or hidden features, for how many rows there are and where they live.
      dtype: in which the raw outputs are computed.
      linear: whether the output layer is part of the loss. Its point is memory: blocks of rows are
        the default on every device and for every head but the narrowest.
      by_device: whether the blocks are written so that the compiler can give each device its own.

    Raises:
      ValueError: for an unknown name. NotImplementedError: for one that cannot serve.
    """
    refusal = _why_not_triton(head, dtype)
    if implementation is not None:
        checks.require_option(function, "implementation", implementation, IMPLEMENTATIONS)
        if implementation == "pallas_triton" and refusal is not None:
            raise NotImplementedError(
                f'{function}: implementation="pallas_triton" {refusal}; leave implementation out.'
            )
        return implementation
    mesh = jax.sharding.get_abstract_mesh()
    if jax.device_count() > 1 and not mesh.are_all_axes_manual:
        shared = by_device and (array is None or even(math.prod(array.shape[:-1])))
        if mesh.manual_axes or not shared:  # a loop over blocks would gather the rows
            return "xla"
    measured = has_closed_form(head) and head.covariance != "full"
    if refusal is None and measured and not mesh.manual_axes:  # there a kernel would have to say
        return "pallas_triton"  # where its result varies
    backend = jax.default_backend()
    if linear:
        narrow = backend == "cpu" and has_closed_form(head) and head.num_outputs < NARROW
        return "xla" if narrow else "xla_chunked"
    return "xla_chunked" if has_closed_form(head) and _gains(backend, head) else "xla"


def _gains(backend: str, head: NormalHead) -> bool:
    """Whether the derivatives written by hand are faster than those of XLA's own fusions."""
    if head.covariance in ("full", "low_rank"):
        return backend in ("cpu", "gpu")
    # Tied scales and a single component have few exponentials and logarithms to save.
    single = head.num_components == head.event_dim == 1
    return backend == "cpu" and not (head.tied or single)


def rows_of(implementation: str) -> Any:
    """Return the module with a block's ``value`` and ``gradient``; kernels load on first use."""
    if implementation == "pallas_triton":
        return importlib.import_module("jaxmdn.losses.kernels.triton")
    return rows


def _why_not_triton(head: Head, dtype: Any) -> str | None:
    """Why GPU kernels cannot serve; None if they can."""
    if not has_closed_form(head) or head.covariance == "low_rank" or head.graph is not None:
        return f"serves NormalHead without low rank and without a graph, got {head!r}"
    if head.num_components * head.event_dim > MAX_ENTRIES:
        return f"serves at most {MAX_ENTRIES} locations (K x D), got {head!r}"
    padded = [2 ** (n - 1).bit_length() for n in (head.num_components, head.event_dim)]
    if head.covariance == "full" and padded[0] * padded[1] ** 2 > MAX_FACTOR_ENTRIES:
        limit = f"{MAX_FACTOR_ENTRIES} entries of full factors"
        return f"serves at most {limit} (K x D x D, powers of two), got {head!r}"
    if dtype != jnp.float32:
        return f"computes in float32, got {jnp.dtype(dtype).name}"
    if jax.default_backend() != "gpu":
        return f'needs a GPU, but the default backend is "{jax.default_backend()}"'
    return None
