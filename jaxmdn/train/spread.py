"""A mesh of devices for training: a batch's rows, or networks, spread over it, the rest on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def automatic(function: str, mesh: Any) -> Mesh | None:
    """The same devices with automatic axes, whatever the axes of ``mesh``; None stays.

    Raises:
      TypeError: for something else than a mesh of devices.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{function}: mesh must be a mesh of devices such as jax.make_mesh((8,), ('data',)), "
            f"got {type(mesh).__name__}."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def own_devices(function: str, mesh: Any) -> list[Any]:
    """The devices of a mesh, all of this process; None stands for all that it has.

    Raises:
      TypeError: for something else than a mesh of devices.
      ValueError: for one of several processes.
    """
    mesh = automatic(function, mesh)
    if mesh is None:
        return jax.local_devices()
    others = mesh.size - mesh.local_mesh.size if mesh.is_multi_process else 0
    if others:
        raise ValueError(
            f"{function}: mesh must have devices of this process alone, got {others} of others; "
            f"pass jax.sharding.Mesh(jax.local_devices(), ('networks',))."
        )
    return list(mesh.devices.flat)


def over_members(devices: Sequence[Any], count: int, tree: Any) -> Any:
    """Spread the leading axis, of length ``count``, over as many devices as divide it."""
    parts = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    mesh = Mesh(np.array(devices[:parts]), ("networks",))
    return jax.device_put(tree, NamedSharding(mesh, P("networks")) if parts > 1 else devices[0])


def over_rows(mesh: Mesh, tree: Any) -> Any:
    """Inside a program: spread the leading axis of every leaf over all devices."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P(mesh.axis_names)))


def on_every_device(mesh: Mesh, tree: Any) -> Any:
    """Inside a program: a copy of every leaf on each device."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def place(mesh: Mesh | None, tree: Any) -> Any:
    """Bring arrays and random keys, the same in every process, to every device."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())
    return _each(lambda leaf: jax.device_put(np.asarray(leaf), everywhere), tree)


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays that every device holds, as arrays of this process on its own device."""
    if mesh is None:
        return tree
    return _each(lambda leaf: jnp.asarray(np.asarray(leaf.addressable_data(0))), tree)


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every array, and to the numbers of every random key."""

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = function(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return function(leaf)

    return jax.tree.map(one, tree)
