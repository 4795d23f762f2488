"""Optimizers by what they are made of, so that an equal one finds the program that is compiled.

An Optax transformation is a pair of functions, equal to itself alone: with a new
``optax.adam(1e-3)`` each, all fits of one architecture would be compiled again.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from jaxmdn.train.state import Optimizer

# Their functions depend on what they close over, and on nothing that is changed later.
KNOWN = ("optax", "jax", "jaxmdn", "functools")
MOST = 256  # that are remembered
_met: dict[Any, Optimizer] = {}


def shared(optimizer: Optimizer) -> Optimizer:
    """The first optimizer made of the same: Optax's functions, with equal numbers in them.

    Functions from elsewhere (a schedule of your own) are equal to themselves alone.

    >>> import optax
    >>> first = shared(optax.adam(1e-3))
    >>> first is shared(optax.adam(1e-3)), first is shared(optax.adam(1e-2))
    (True, False)
    """
    try:
        key = _content(optimizer)
    except (RecursionError, ValueError):  # it closes over itself, or over nothing yet
        return optimizer
    found = _met.setdefault(key, optimizer)
    if len(_met) > MOST:
        del _met[next(iter(_met))]
    return found


def _content(part: Any) -> Any:
    """A key: equal where two parts compute the same; objects that may change stand for themselves.

    The identity of such an object is that of no other, since the optimizer that is kept keeps it.
    """
    if isinstance(part, types.FunctionType) and (part.__module__ or "").split(".")[0] in KNOWN:
        cells = [cell.cell_contents for cell in part.__closure__ or ()]
        return (part.__code__, _content((part.__defaults__, part.__kwdefaults__, cells)))
    if isinstance(part, types.MethodType):
        return (types.MethodType, _content((part.__func__, part.__self__)))
    if isinstance(part, tuple | list):
        return (type(part), *map(_content, part))
    if isinstance(part, dict):
        return (dict, *((name, _content(value)) for name, value in part.items()))
    if type(part).__module__.startswith("optax.") and hasattr(part, "__dict__"):
        return (type(part), _content(vars(part)))
    if isinstance(part, float):
        return (float, part.hex())
    if isinstance(part, bool | int | str | bytes | type(None) | np.dtype):
        return (type(part), part)
    return id(part)
