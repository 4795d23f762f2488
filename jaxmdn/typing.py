"""Names for arrays, used in every public signature.

The annotations follow one vocabulary: ``...`` are batch axes, ``K`` components, ``D`` event
dimensions, ``P`` raw outputs. They cost nothing in use: without ``JAXMDN_CHECK_TYPES`` in the
environment the names below stand for plain arrays and jaxtyping is never imported. The test suite
sets the variable, so that every call in the tests is checked against its annotation.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING or os.environ.get("JAXMDN_CHECK_TYPES"):
    from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Num
else:

    class _AnyShape:
        """Stands for a jaxtyping dtype: ``Float[Array, "... K"]`` is then just ``Array``."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Array = jax.Array
    ArrayLike = jax.typing.ArrayLike
    Bool = Float = Int = Key = Num = _AnyShape

# A field of a registered pytree. JAX rebuilds instances with placeholders (None, object(), ints for
# vmap axes), so fields are never checked at run time; their shapes stand in the class docstrings.
if TYPE_CHECKING:
    Parameter = jax.Array
else:
    Parameter = Any

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Key", "Num", "Parameter"]
