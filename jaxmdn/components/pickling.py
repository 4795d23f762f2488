"""What travels in a pickle: names of jaxmdn, NumPy arrays and plain configuration.

Arrays of JAX pickle themselves by functions that are private to it, so that another version may not
read them. Everything here goes as NumPy and becomes an array of JAX again where it is loaded, in
the precision that is enabled there.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Packed:
    """An array of JAX on its way: pickled, it comes out as an array of JAX."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed(copy.deepcopy(self.array, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        if jnp.issubdtype(self.array.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(self.array))
            return random_key, (data, str(jax.random.key_impl(self.array)))
        return as_jax, (np.asarray(self.array),)


def as_jax(array: np.ndarray) -> jax.Array:
    """A NumPy array as one of JAX."""
    return jnp.asarray(array)


def random_key(data: np.ndarray, implementation: str) -> jax.Array:
    """A typed random key of its data."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)


def pack(tree: Any) -> Any:
    """The same pytree with every array of JAX as a :class:`Packed`."""
    return jax.tree.map(lambda leaf: Packed(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def unpack(tree: Any) -> Any:
    """Undo :func:`pack`, where no pickle did: in a copy."""
    return jax.tree.map(lambda leaf: leaf.array if isinstance(leaf, Packed) else leaf, tree)


def build(cls: type[Any], arguments: dict[str, Any]) -> Any:
    """``cls(**arguments)``: what a pickle of an object names."""
    return cls(**unpack(arguments))


def require_importable(owner: str, name: str, function: Any) -> None:
    """Raise ``PicklingError`` for a function that no other process could import."""
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise pickle.PicklingError(
            f"{owner}: {name} is {function!r}, which cannot be imported by its name, so that no "
            f"other process could load the network; define it at the top level of a module, or "
            f"pass the name of one, such as 'silu'."
        ) from error
