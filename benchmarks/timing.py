"""Compile, warm up, run in alternation: how a number is measured.

Contenders of a case take turns, so that a machine that slows down slows all of them. A sample of a
short function is the mean of several calls, of at least ``SAMPLE_SECONDS`` together, since a clock
has its own cost. On a CPU every call is waited for. Accelerators work through a queue: there the
calls of a sample follow one another without a pause, as the steps of a training loop do, and the
last one is waited for; waiting has a cost of its own, many times that of a short function.
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
      launch: runs once and returns the result, which may not be there yet.
      compile_seconds: from the Python function to something that runs; None if nothing compiles.
      temporary_bytes: what the compiler sets aside beyond arguments and results; None if unknown.
      steps: how many of the operation one call does.
      wait: returns a result when it is there.
    """

    launch: Callable[[], Any]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    steps: int = 1
    wait: Callable[[Any], Any] = jax.block_until_ready

    def call(self) -> Any:
        """Run once, wait, and return the result."""
        return self.wait(self.launch())


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
    return Runner(lambda: compiled(*arguments), seconds, temporary, steps)


def alternate(runners: Sequence[Runner], repeats: int, budget: float) -> list[np.ndarray]:
    """Seconds per call of every runner, up to ``repeats`` samples each, taken in turns.

    Args:
      runners: already warmed up.
      repeats: samples wanted.
      budget: seconds after which one that has ``MIN_REPEATS`` samples stops.
    """
    first = [min(_seconds(runner, 1) for _ in range(2)) for runner in runners]
    inner = [min(1000, max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-7)))) for seconds in first]
    samples: list[list[float]] = [[] for _ in runners]
    spent = np.zeros(len(runners))
    order = np.random.default_rng(0)
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats):
            # Nobody always follows the same one.
            for i in map(int, order.permutation(len(runners))):
                if turn >= MIN_REPEATS and spent[i] > budget:
                    continue
                if first[i] < SETTLE_SECONDS:
                    runners[i].call()
                seconds = _seconds(runners[i], inner[i])
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


def _seconds(runner: Runner, count: int) -> float:
    queued = jax.default_backend() != "cpu"
    result = None
    start = time.perf_counter()
    for _ in range(count):
        result = runner.launch()
        if not queued:
            runner.wait(result)
    runner.wait(result)
    return time.perf_counter() - start
