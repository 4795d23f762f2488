"""Static checks with messages that teach.

Everything that can be known without looking at an array's values is checked where the user enters
the library: rank, trailing sizes, dtype kind, option names. Each message names the function, the
argument, what was expected, what came and what to do. Values are never inspected here, so the
checks also run, once, while a function is being traced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np


def require_array(function: str, name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` has a shape and a dtype."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(
            f"{function}: {name} must be an array, got {type(value).__name__}; "
            f"wrap it in jax.numpy.asarray."
        )


def require_floating(function: str, name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a real floating-point array."""
    require_array(function, name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must have a real floating dtype, got {value.dtype}; "
            f"convert it with {name}.astype(jax.numpy.float32)."
        )


def require_integer(function: str, name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is an integer array."""
    require_array(function, name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"{function}: {name} must have an integer dtype, got {value.dtype}; "
            f"convert it with {name}.astype(jax.numpy.int32)."
        )


def require_last_axis(function: str, name: str, value: Any, size: int, meaning: str) -> None:
    """Raise ``ValueError`` unless the last axis of ``value`` has ``size`` entries."""
    shape = tuple(value.shape)
    if not shape or shape[-1] != size:
        remedy = ""
        if size == 1:
            remedy = (
                f" A scalar {meaning} keeps an axis of size one: use {name}[..., None] "
                f"(of a table's column: {name}.to_numpy()[:, None])."
            )
        raise ValueError(
            f"{function}: expected {name} of shape [..., {size}] (the last axis is the {meaning}), "
            f"got {list(shape)}.{remedy}"
        )


def require_broadcastable(function: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the common batch shape, or raise ``ValueError`` naming every argument's own."""
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(
            f"{function}: leading (batch) axes must broadcast against each other, got {listed}; "
            f"insert axes of size one where an argument is to be shared."
        ) from None


def require_option(function: str, name: str, value: Any, options: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``options``."""
    options = tuple(options)
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{function}: {name} must be one of {listed}; got {value!r}.")


def require_count(function: str, name: str, value: Any, *, minimum: int = 1) -> None:
    """Raise unless ``value`` is a Python integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"{function}: {name} must be a Python int, got {type(value).__name__} ({value!r})."
        )
    if value < minimum:
        raise ValueError(f"{function}: {name} must be at least {minimum}, got {value}.")


def require_number(
    function: str,
    name: str,
    value: Any,
    *,
    lower: float = -np.inf,
    upper: float = np.inf,
    strict_lower: bool = False,
) -> None:
    """Raise unless ``value`` is a Python number with ``lower <= value < upper``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(
            f"{function}: {name} must be a Python number, got {type(value).__name__} ({value!r})."
        )
    above = value > lower if strict_lower else value >= lower
    if not (above and value < upper):
        bracket = "(" if strict_lower or lower == -np.inf else "["
        raise ValueError(
            f"{function}: {name} must lie in {bracket}{lower:g}, {upper:g}), got {value!r}."
        )
