"""Devices for training: a batch's rows, parameters by a rule, or networks spread over them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rule = Callable[[Any], P]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run lies over devices. The rows of a batch are spread over all of them.

    Attributes:
      mesh: the devices, with automatic axes; None: JAX's default device, and nothing is moved.
      rule: of each array of the training state (parameters, their averages and moments), over
        which axes of the mesh it is spread; None: every device holds all of it.
      function: the caller's name, for messages.
    """

    mesh: Mesh | None = None
    rule: Rule | None = None
    function: str = dataclasses.field(default="fit", compare=False)

    @classmethod
    def create(cls, function: str, mesh: Any, rule: Any) -> Layout:
        """Check what a user gave.

        Raises:
          TypeError: for something else than a mesh of devices or a function.
          ValueError: for a rule without a mesh.
        """
        if rule is not None and not callable(rule):
            raise TypeError(
                f"{function}: sharding must be a function of an array that returns a "
                f"jax.sharding.PartitionSpec, got {type(rule).__name__}."
            )
        if rule is not None and mesh is None:
            raise ValueError(f"{function}: sharding says how the state lies over mesh=; pass both.")
        return cls(automatic(function, mesh), rule, function)

    @property
    def num_devices(self) -> int:
        """Over how many devices rows are spread."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def num_processes(self) -> int:
        """Of how many processes the devices are."""
        return (
            1 if self.mesh is None else len({one.process_index for one in self.mesh.devices.flat})
        )

    def set(self) -> contextlib.AbstractContextManager[Any]:
        """Where ``jax.set_mesh`` has set a mesh, this one in its place."""
        if self.mesh is None or jax.sharding.get_abstract_mesh().empty:
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh)

    def anywhere(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each of them is true in any process, which all processes ask at once."""
        mesh = self.mesh
        if mesh is None or self.num_processes == 1:
            return flags
        shape, own = (mesh.size, len(flags)), np.array([flags])
        rows = NamedSharding(mesh, P(mesh.axis_names))
        every = jax.make_array_from_callback(shape, rows, lambda index: own)
        return tuple(np.asarray(_anywhere(self, every).addressable_data(0)).tolist())

    def over_rows(self, tree: Any) -> Any:
        """Inside a program: spread the leading axis of every leaf over all devices."""
        if self.mesh is None:
            return tree
        rows = NamedSharding(self.mesh, P(self.mesh.axis_names))
        return jax.lax.with_sharding_constraint(tree, rows)

    def on_every_device(self, tree: Any) -> Any:
        """Inside a program: a copy of every leaf on each device."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, P()))

    def by_rule(self, tree: Any) -> Any:
        """Inside a program: a training state, or a part of one, as the rule has it."""
        if self.rule is None:
            return self.on_every_device(tree)
        return jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, self._of(leaf)), tree
        )

    def place(self, tree: Any) -> Any:
        """Bring arrays and random keys, the same in every process, to every device."""
        return self._put(tree, lambda leaf: P())

    def place_by_rule(self, tree: Any) -> Any:
        """Bring parameters to where the rule has them."""
        return tree if self.mesh is None else self._put(tree, lambda leaf: self._of(leaf).spec)

    def gather(self, tree: Any) -> Any:
        """Arrays of a state as arrays of this process on its own device; by a rule, as they lie."""
        if self.mesh is None or self.rule is not None:
            return tree
        return _each(lambda leaf: jax.device_put(np.asarray(leaf.addressable_data(0))), tree)

    def _put(self, tree: Any, spec: Rule) -> Any:
        mesh = self.mesh
        if mesh is None:
            return tree
        return _each(
            lambda leaf: jax.device_put(np.asarray(leaf), NamedSharding(mesh, spec(leaf))), tree
        )

    def _of(self, leaf: Any) -> NamedSharding:
        """Where the rule has an array; numbers and random keys are on every device."""
        mesh, rule = self.mesh, self.rule
        assert mesh is not None
        if rule is None or not leaf.ndim or not jnp.issubdtype(leaf.dtype, jnp.number):
            return NamedSharding(mesh, P())
        spec = rule(leaf)
        try:
            found = NamedSharding(mesh, spec)
            found.shard_shape(leaf.shape)
        except (AttributeError, TypeError, ValueError) as error:  # of what is no PartitionSpec, too
            raise ValueError(
                f"{self.function}: sharding must return a jax.sharding.PartitionSpec over axes "
                f"{mesh.axis_names} of {tuple(mesh.shape.values())} devices that divides an array "
                f"{list(leaf.shape)}, got {spec}; PartitionSpec() is a copy on every device."
            ) from error
        return found


@partial(jax.jit, static_argnums=0)
def _anywhere(layout: Layout, flags: Any) -> Any:
    return layout.on_every_device(jnp.any(flags, axis=0))


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


ONE_DEVICE = Layout()


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


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every array, and to the numbers of every random key."""

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = function(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return function(leaf)

    return jax.tree.map(one, tree)
