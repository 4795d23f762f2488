"""Each device on its own rows, where the compiler spreads rows over several.

How rows lie over automatic axes is known to the compiler alone, which would gather them for a loop
over blocks. ``custom_partitioning`` has it ask, and every device runs the same function of its own
rows. (``shard_map`` must be told while tracing, when nothing is known yet; inside it this module
adds nothing.)
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmdn.typing import Array


def even(num_rows: Any) -> bool:
    """Whether the compiler can give all devices in sight equally many of so many rows."""
    if not getattr(
        jax.config, "jax_use_shardy_partitioner", True
    ):  # the former one is not told how
        return False
    return isinstance(num_rows, int) and num_rows > 0 and num_rows % jax.device_count() == 0


def _settings() -> Callable[[], contextlib.ExitStack]:
    """What holds here, for the compiler's own thread; and there is one device, without a mesh."""
    config: Any = jax.config
    x64, precision = config.jax_enable_x64, config.jax_default_matmul_precision
    promotion = config.jax_numpy_dtype_promotion

    def enter() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(jax.sharding.use_abstract_mesh(AbstractMesh((), ())))
        stack.enter_context(jax.enable_x64(x64))
        stack.enter_context(jax.default_matmul_precision(precision))
        stack.enter_context(jax.numpy_dtype_promotion(promotion))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        return stack

    return enter


def by_rows(function: Callable[[Any, Any], tuple[Any, Any]], rows: Any, shared: Any = ()) -> Any:
    """Return ``along, sums = function(rows, shared)``, where each device takes its own rows.

    Args:
      function: row i of every leaf of ``along`` is made of row i of ``rows``; ``sums`` are sums
        over all rows.
      rows: a pytree of arrays ``[N, ...]``, or ``[1, ...]`` where all rows share it.
      shared: a pytree of arrays that every device needs whole.

    Limits: its derivatives, and what ``vmap`` makes of it, are those of ``function`` of all rows.
    """
    lengths = [leaf.shape[0] for leaf in jax.tree.leaves(rows)]
    if jax.device_count() == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return function(rows, shared)
    if not even(max(lengths)):
        return function(rows, shared)
    count, parts = max(lengths), jax.device_count()
    leaves, structure = jax.tree.flatten((rows, shared))
    spread = [length == count for length in lengths] + [False] * (len(leaves) - len(lengths))
    outputs = jax.eval_shape(function, rows, shared)
    num_along = len(jax.tree.leaves(outputs[0]))

    settings = _settings()

    def flat(*leaves: Array) -> list[Array]:
        """The leaves; sums in the first of as many rows as there are parts: ``[parts, ...]``."""
        along, sums = function(*jax.tree.unflatten(structure, leaves))
        more = leaves[spread.index(True)].shape[0] * parts // count - 1
        rest = [jnp.pad(x[None], [(0, more)] + [(0, 0)] * x.ndim) for x in jax.tree.leaves(sums)]
        return [*jax.tree.leaves(along), *rest]

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        mesh, spec = (getattr(arguments[spread.index(True)].sharding, n) for n in ("mesh", "spec"))
        own, whole = NamedSharding(mesh, P(*spec[:1])), NamedSharding(mesh, P())
        if parts % math.prod(mesh.shape[name] for name in jax.tree.leaves(tuple(spec[:1]))):
            own = whole

        def local(*leaves: Array) -> list[Array]:
            with settings():
                return flat(*leaves)

        return mesh, local, [own] * len(results), tuple(own if one else whole for one in spread)

    split = count > parts and len(jax.tree.leaves(outputs[1])) > 0
    row, names = "(part row)" if split else "part", (f"x{i}" for i in itertools.count())

    def term(leading: str, rank: int) -> str:
        return " ".join([leading, *itertools.islice(names, rank)])

    rule = ", ".join(
        term(row, leaf.ndim - 1) if one else term("", leaf.ndim)
        for leaf, one in zip(leaves, spread, strict=True)
    )
    rule += " -> " + ", ".join(
        term(row, leaf.ndim - 1) if i < num_along else term("part", leaf.ndim)
        for i, leaf in enumerate(jax.tree.leaves(outputs))
    )
    partitioned = custom_partitioning(jax.jit(flat))  # which keeps constants, refused otherwise
    sizes = {"row": count // parts} if split else {}
    partitioned.def_partition(partition, sharding_rule=rule, **sizes)

    @jax.custom_batching.custom_vmap
    def mapped(*leaves: Array) -> list[Array]:
        return partitioned(*leaves)

    @mapped.def_vmap
    def _(size: int, batched: list[bool], *leaves: Array) -> Any:
        axes = tuple(0 if one else None for one in batched)
        found = jax.vmap(flat, in_axes=axes, axis_size=size)(*leaves)
        return found, [True] * len(found)

    @jax.custom_jvp
    def call(*leaves: Array) -> list[Array]:
        return mapped(*leaves)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(flat, primals, tangents)

    found = call(*leaves)
    found[num_along:] = [jnp.sum(leaf, axis=0) for leaf in found[num_along:]]
    return jax.tree.unflatten(jax.tree.structure(outputs), found)
