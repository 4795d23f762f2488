"""A floor of a function's time: its transcendental functions and divisions, each kind in one loop.

They are counted in what XLA compiles with its fusion switched off, where nothing is computed twice.
Multiplications, additions and the passes over memory come on top.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn.cli import timing

#: By the names of XLA's operations.
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "exponential": jnp.exp,
    "exponential-minus-one": jnp.expm1,
    "log": jnp.log,
    "log-plus-one": jnp.log1p,
    "tanh": jnp.tanh,
    "cosine": jnp.cos,
    "sine": jnp.sin,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "power": lambda x: x**1.5,
    "divide": lambda x: 1 / x,
}
FUSIONS = "fusion,cpu-instruction-fusion,instruction-fusion"
DEFINED = re.compile(r"= \w+\[([\d,]*)\]\S* ([\w\-]+)\(")


def count(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """How many of each operation a call computes (the body of a loop counts once)."""
    lowered = jax.jit(function).lower(*arguments)
    text = lowered.compile(compiler_options={"xla_disable_hlo_passes": FUSIONS}).as_text()
    found: collections.Counter[str] = collections.Counter()
    for sides, operation in DEFINED.findall(text):
        if operation in OPERATIONS:
            found[operation] += math.prod(int(side) for side in sides.split(",") if side)
    return dict(found)


def seconds_each(entries: int, *, repeats: int = 21, budget: float = 1.0) -> dict[str, float]:
    """What one of each operation takes, of so many in one loop."""
    x = jnp.linspace(0.5, 2.0, entries)
    runners = [
        timing.jax_runner(lambda x, own=own: jnp.sum(own(x)), x) for own in OPERATIONS.values()
    ]
    times = timing.alternate(runners, repeats, budget)
    return {name: found["median"] / entries for name, found in zip(OPERATIONS, times, strict=True)}
