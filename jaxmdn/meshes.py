"""Programs that run whatever surrounds them: on any mesh of devices, under JAX's strict settings.

To an array's type belongs how it lies over a mesh: over which axes its rows are spread (explicit
axes), over which it varies inside ``shard_map`` (manual axes). Zeros lie nowhere, and what is
computed from them lies where the inputs do, so that what runs without a mesh may be refused on one.
Two places deal with that for all others: :func:`jit`, and loops, whose carry must have one type in
every step. Without a mesh both add nothing.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Each part of a carry may take its type from another, one step later each time.
MOST_ROUNDS = 8


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Return ``jax.jit(function)`` for a function of rows: explicit axes are automatic inside it.

    A result is spread along the axes that it has from the rows: those that would be longer if there
    were twice as many rows. It is whole on every device along all others, and altogether where an
    argument that is not spread has as many rows.
    """

    @functools.wraps(function)
    def on_any_mesh(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        arrays = [leaves[i] for i in places]  # all others are static
        mesh = next((jax.typeof(x).sharding.mesh for x in arrays if any(_spread(x))), None)
        if mesh is None:
            return any_rank(function)(*args, **kwargs)

        def call(*arrays: Any) -> Any:
            new = dict(zip(places, arrays, strict=True))
            args, kwargs = jax.tree.unflatten(
                structure, [new.get(i, x) for i, x in enumerate(leaves)]
            )
            return any_rank(function)(*args, **kwargs)

        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(call, out_sharding=_rows(call, arrays, mesh))(*arrays)

    compiled = jax.jit(on_any_mesh, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except TypeError as error:
            if not str(error).startswith("Error interpreting argument"):
                raise
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            tables = [name for name, value in given.items() if hasattr(value, "to_numpy")]
            if not tables:
                raise
            name = tables[0]
            raise TypeError(
                f"{function.__name__}: {name} must be an array, got {type(given[name]).__name__}; "
                f"pass jax.numpy.asarray({name}.to_numpy())."
            ) from None

    return call


def _spread(array: Any) -> tuple:
    """For each axis of an array, over which explicit axis or axes of the mesh it is spread."""
    spec = jax.typeof(array).sharding.spec
    return (*spec, *(None,) * (array.ndim - len(spec)))


def _rows(function: Callable[..., Any], arrays: list, mesh: Any) -> Any:
    """Over which axes of the mesh each axis of the results is spread."""

    def shapes(doubled: Any) -> Any:
        """The results' shapes where all that is spread over ``doubled`` is twice as long."""
        sizes = [
            [n * (1 + (name == doubled)) for n, name in zip(x.shape, _spread(x), strict=True)]
            for x in arrays
        ]
        like = [jax.ShapeDtypeStruct(n, x.dtype) for n, x in zip(sizes, arrays, strict=True)]
        return jax.eval_shape(function, *like)

    names = sorted({name for x in arrays for name in _spread(x)} - {None}, key=str)
    devices = [math.prod(mesh.shape[n] for n in jax.tree.leaves(name)) for name in names]
    plain = shapes("")
    try:
        longer = [shapes(name) for name in names]
    except (TypeError, ValueError):
        return jax.tree.map(lambda leaf: P(), plain)

    def spec(leaf: Any, *others: Any) -> P:
        choices = list(zip(names, devices, others, strict=True))
        return P(*(
            next((name for name, m, x in choices if x.shape[i] != n and n % m == 0), None)
            for i, n in enumerate(leaf.shape)
        ))  # fmt: skip

    return jax.tree.map(spec, plain, *longer)


def any_rank(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function in which leading axes broadcast, whatever ``jax_numpy_rank_promotion``.

    They do so by rule in this library, and every public function checks the shapes it is given. A
    derivative's rule, which JAX runs when it differentiates, needs this as well as the function.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapper


def whole(array: jax.Array) -> jax.Array:
    """Return an array of the host that is whole on every device, if explicit axes spread it.

    Traced ones, which lie nowhere yet, stay as they are.
    """
    if isinstance(array, jax.core.Tracer):
        return array
    sharding = array.sharding
    if isinstance(sharding, NamedSharding) and any(_spread(array)):
        return jax.device_put(array, NamedSharding(sharding.mesh, P()))
    return array


def fori_loop(
    lower: int, upper: int, body: Callable[[Any, Any], Any], init: Any, **options: Any
) -> Any:
    """Return ``init`` after ``body(i, carry)`` for ``i`` from ``lower`` to ``upper - 1``."""
    first = functools.partial(body, jnp.asarray(lower))
    return jax.lax.fori_loop(lower, upper, body, vary(first, init), **options)


def while_loop(test: Callable[[Any], Any], body: Callable[[Any], Any], init: Any) -> Any:
    """Return ``init`` after ``body(carry)`` for as long as ``test(carry)`` holds."""
    return jax.lax.while_loop(test, body, vary(body, init))


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any = None, **options: Any
) -> tuple[Any, Any]:
    """Return the last carry, and what ``body(carry, x)`` gave beside it, along ``xs``."""

    def first(carry: Any) -> Any:
        return body(carry, jax.tree.map(lambda leaf: leaf[0], xs))[0]

    return jax.lax.scan(body, vary(first, init), xs, **options)


def vary(body: Callable[[Any], Any], carry: Any) -> Any:
    """Return ``carry`` that varies over the mesh as ``body(carry)`` does, inside ``shard_map``.

    Only types are looked at: ``body`` is traced, not run.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return carry
    for _ in range(MOST_ROUNDS):
        before = [_axes(leaf) for leaf in jax.tree.leaves(carry)]
        after = jax.eval_shape(body, carry)
        carry = jax.tree.map(lambda leaf, new: _vary_over(leaf, _axes(new)), carry, after)
        if before == [_axes(leaf) for leaf in jax.tree.leaves(carry)]:
            break
    return carry


def vary_alike(*arrays: Any) -> tuple[Any, ...]:
    """Return arrays each of which varies over the mesh wherever any of them does."""
    joint = frozenset().union(*map(_axes, arrays))
    return tuple(_vary_over(array, joint) for array in arrays)


def _vary_over(array: Any, axes: frozenset) -> Any:
    missing = axes - _axes(array)
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def _axes(leaf: Any) -> frozenset:
    """The manual axes over which an array varies."""
    kind = (
        jax.typeof(leaf).manual_axis_type if isinstance(leaf, jax.Array) else leaf.manual_axis_type
    )
    return frozenset() if kind is None else kind.varying


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
