"""The device, the roofs it was measured to have, and the versions of everything that ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing

VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "XLA_FLAGS")  # that change what is measured
PACKAGES = ("jaxmdn", "jax", "jaxlib", "flax", "optax", "numpy")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device() -> dict[str, Any]:
    """Describe the device: platform, model, number of devices, cores of the host."""
    first = jax.devices()[0]
    model = _cpu_model() if first.platform == "cpu" else first.device_kind
    return {
        "platform": first.platform,
        "model": model,
        "devices": jax.device_count(),
        "cores": cores(),
    }


def title(described: dict[str, Any]) -> str:
    """The device in words."""
    if described["platform"] == "cpu":
        return f"{described['model']}, {_cores(described)}"
    return f"{described['model']} x {described['devices']}"


def slug(described: dict[str, Any]) -> str:
    """The device as part of a file name."""
    words = [described["platform"], described["model"]]
    if described["platform"] == "cpu":
        words.append(_cores(described))
    elif described["devices"] > 1:
        words += ["x", str(described["devices"])]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def _cores(described: dict[str, Any]) -> str:
    count = described["cores"]
    return "1 core" if count == 1 else f"{count} cores"


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of Python, of what jaxmdn stands on, and of ``packages``; absent ones left out."""
    found = {package: version(package) for package in (*PACKAGES, *packages)}
    return {"python": platform.python_version()} | {k: v for k, v in found.items() if v}


def variables() -> dict[str, str]:
    """The environment variables that are set and change what is measured."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def free_bytes() -> int | None:
    """Memory that arrays may still take on the device, if that can be known."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        stats = first.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else int(limit - stats.get("bytes_in_use", 0))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def roofs(*, quick: bool = False) -> dict[str, Any]:
    """Measure what the device can do at most: memory traffic and matrix products.

    Returns:
      ``copy``: bytes read and written per second by a scaled copy in place (the buffer is donated);
      ``fresh_copy``: the same into a new buffer, as every function that returns an array must;
      ``matmul``: floating-point operations per second by dtype, at JAX's default precision.
    """
    large = jax.devices()[0].platform != "cpu"
    entries = (2**28 if large else 2**25) // (8 if quick else 1)
    size = (8192 if large else 2048) // (2 if quick else 1)
    buffer = jnp.ones(entries, jnp.float32)
    scale = timing.compile_jax(lambda x: x * jnp.float32(1.0), buffer)[0]
    scale_in_place = timing.compile_jax(_negate, buffer, donate=(0,))[0]
    state = [jnp.copy(buffer)]

    def in_place() -> Any:
        state[0] = scale_in_place(state[0])
        return state[0]

    copies = [timing.Runner(in_place), timing.Runner(lambda: scale(buffer))]
    for runner in copies:
        runner.call()
    repeats = 5 if quick else 15
    traffic = 2 * 4 * entries
    rates = [traffic / np.median(s) for s in timing.alternate(copies, repeats, budget=2.0)]
    matmul = {}
    for dtype in ("float32", "bfloat16"):
        matrix = jnp.full((size, size), 1 / size, jnp.dtype(dtype))
        runner = timing.jax_runner(jnp.matmul, matrix, matrix)
        runner.call()
        seconds = timing.alternate([runner], repeats, budget=2.0)[0]
        matmul[dtype] = 2 * size**3 / float(np.median(seconds))
    return {
        "copy": float(rates[0]),
        "fresh_copy": float(rates[1]),
        "matmul": matmul,
    }


def _negate(x: jax.Array) -> jax.Array:
    return -x


def _cpu_model() -> str:
    """The processor's name as its maker writes it."""
    if sys.platform == "linux" and Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return re.sub(r"\s+", " ", found[1]).strip()
    return platform.processor() or platform.machine() or "unknown"
