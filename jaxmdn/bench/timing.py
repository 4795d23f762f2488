"""Compile, warm up, run in alternation: how a number is measured.

Contenders of a case take turns, so that a machine that slows down slows all of them; every call is
waited for. A sample of a very short function is the mean of several calls, of at least
``SAMPLE_SECONDS`` together, since a clock has its own cost.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

SAMPLE_SECONDS = 2e-3
MIN_REPEATS = 5
# Shorter functions run once, unmeasured, before every sample: another's threads may still be
# spinning, and the caches hold another's arrays.
SETTLE_SECONDS = 2e-2


class Runner(NamedTuple):
    """A compiled contender.

    Attributes:
      call: runs once, waits, and returns the result.
      compile_seconds: from the Python function to something that runs; None if nothing compiles.
      temporary_bytes: what the compiler sets aside beyond arguments and results; None if unknown.
      steps: how many of the operation one call does.
    """

    call: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    steps: int = 1


def compile_jax(
    function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()
) -> tuple[Any, float, int | None]:
    """Return the compiled function, the seconds that took and its temporary bytes."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    return compiled, seconds, getattr(analysis, "temp_size_in_bytes", None)


def jax_runner(function: Callable[..., Any], *arguments: Any, steps: int = 1) -> Runner:
    """Compile a function of fixed arguments."""
    compiled, seconds, temporary = compile_jax(function, *arguments)
    return Runner(lambda: jax.block_until_ready(compiled(*arguments)), seconds, temporary, steps)


def alternate(calls: Sequence[Callable[[], Any]], repeats: int, budget: float) -> list[np.ndarray]:
    """Seconds per call of every function, up to ``repeats`` samples each, taken in turns.

    Args:
      calls: functions that wait for their result, already warmed up.
      repeats: samples wanted.
      budget: seconds after which a function that has ``MIN_REPEATS`` samples stops.
    """
    first = [min(_seconds(call, 1) for _ in range(2)) for call in calls]
    inner = [min(1000, max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-7)))) for seconds in first]
    samples: list[list[float]] = [[] for _ in calls]
    spent = np.zeros(len(calls))
    order = np.random.default_rng(0)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats):
            for i in map(int, order.permutation(len(calls))):  # nobody always follows the same one
                if turn >= MIN_REPEATS and spent[i] > budget:
                    continue
                if first[i] < SETTLE_SECONDS:
                    calls[i]()
                seconds = _seconds(calls[i], inner[i])
                samples[i].append(seconds / inner[i])
                spent[i] += seconds
    finally:
        if enabled:
            gc.enable()
    return [np.asarray(values) for values in samples]


def summary(seconds: np.ndarray) -> dict[str, Any]:
    """Median, quartiles and extremes of the samples."""
    lower, median, upper = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "median": float(median),
        "lower_quartile": float(lower),
        "upper_quartile": float(upper),
        "minimum": float(seconds.min()),
        "repeats": len(seconds),
    }


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start
