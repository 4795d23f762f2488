"""How a time is measured: compile apart, warm up, take turns, wait for the result.

Functions that are compared take turns, so that a machine that slows down slows all of them. A
sample of a short function is the mean of several calls, of at least ``SAMPLE_SECONDS`` together,
since a clock has its own cost. On a CPU every call is waited for. Accelerators work through a
queue: there the calls of a sample follow one another without a pause, as the steps of a training
loop do, and the last one is waited for; waiting costs many times what a short function does.
"""

from __future__ import annotations

import gc
import math
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmdn import meshes

SAMPLE_SECONDS = 2e-3
MIN_REPEATS = 5
# Shorter functions run once, unmeasured, before every sample: another's threads may still be
# spinning, and the caches hold another's arrays.
SETTLE_SECONDS = 2e-2


class Runner(NamedTuple):
    """Something compiled, ready to run.

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
    return compiled, seconds, getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)


def jax_runner(function: Callable[..., Any], *arguments: Any) -> Runner:
    """Compile a function of fixed arguments."""
    compiled, seconds, temporary = compile_jax(function, *arguments)
    return Runner(lambda: compiled(*arguments), seconds, temporary)


def alternate(runners: Sequence[Runner], repeats: int, budget: float) -> list[dict[str, Any]]:
    """Time runners in turns; return, for each, the :func:`summary` of its seconds per step.

    Args:
      runners: already warmed up.
      repeats: samples wanted.
      budget: seconds after which one that has ``MIN_REPEATS`` samples stops.
    """
    first = [min(_seconds(runner, 1) for _ in range(2)) for runner in runners]
    inner = [min(1000, max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-7)))) for seconds in first]
    samples: list[list[float]] = [[] for _ in runners]
    spent, order, enabled = np.zeros(len(runners)), np.random.default_rng(0), gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats):
            for i in map(int, order.permutation(len(runners))):  # nobody always follows the same
                if turn >= MIN_REPEATS and spent[i] > budget:
                    continue
                if first[i] < SETTLE_SECONDS:
                    runners[i].call()
                seconds = _seconds(runners[i], inner[i])
                samples[i].append(seconds / inner[i] / runners[i].steps)
                spent[i] += seconds
    finally:
        if enabled:
            gc.enable()
    return [summary(np.asarray(values)) for values in samples]


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


def summary(seconds: np.ndarray) -> dict[str, Any]:
    """Median, quartiles and minimum of the samples."""
    lower, median, upper = map(float, np.quantile(seconds, [0.25, 0.5, 0.75]))
    return {
        "median": median, "lower_quartile": lower, "upper_quartile": upper,
        "minimum": float(seconds.min()), "repeats": len(seconds),
    }  # fmt: skip


def copy_rates(*, quick: bool = False) -> dict[str, float]:
    """Measure memory traffic: bytes read and written per second.

    Returns:
      ``copy``: of a negation in place (the buffer is donated); ``fresh_copy``: the same into a new
      buffer, as every function that returns an array must.
    """
    entries = 2 ** (28 if jax.default_backend() != "cpu" else 25) // (8 if quick else 1)
    buffer = jnp.ones(entries, jnp.float32)
    in_place = compile_jax(lambda x: -x, buffer, donate=(0,))[0]
    state = [jnp.copy(buffer)]

    def launch() -> Any:
        state[0] = in_place(state[0])
        return state[0]

    runners = [Runner(launch), jax_runner(lambda x: -x, buffer)]
    times = alternate(runners, 5 if quick else 15, budget=2.0)
    rates = [2 * 4 * entries / seconds["median"] for seconds in times]
    return dict(zip(("copy", "fresh_copy"), rates, strict=True))


def device() -> dict[str, Any]:
    """Describe the device: platform, model, number of devices, cores of the host."""
    first = jax.devices()[0]
    model = _cpu_model() if first.platform == "cpu" else first.device_kind
    return {
        "platform": first.platform,
        "model": model,
        "devices": jax.device_count(),
        "cores": meshes.cores(),
    }


def device_title(described: dict[str, Any]) -> str:
    """The device in words."""
    count, devices = described["cores"], described["devices"]
    if described["platform"] == "cpu":
        return f"{described['model']}, {count} core" + "s" * (count != 1)
    return f"{described['model']} x {devices}"


def _cpu_model() -> str:
    """The processor's name as its maker writes it."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    if found:
        return re.sub(r"\s+", " ", found[1]).strip()
    return platform.processor() or platform.machine() or "unknown"
