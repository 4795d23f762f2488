"""The roofs that the device was measured to have, and the versions of everything that ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxmdn.cli import timing

VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "XLA_FLAGS")  # that change what is measured
PACKAGES = ("jaxmdn", "jax", "jaxlib", "flax", "optax", "numpy")


def slug(described: dict[str, Any]) -> str:
    """The device as part of a file name."""
    title = timing.device_title(described).removesuffix(" x 1")
    return re.sub(r"[^a-z0-9]+", "-", f"{described['platform']} {title}".lower()).strip("-")


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """The device, versions of Python, PACKAGES and ``packages``, the variables that are set."""
    found = {package: version(package) for package in (*PACKAGES, *packages)}
    return {
        "device": timing.device(),
        "versions": {"python": platform.python_version()} | {k: v for k, v in found.items() if v},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


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
    """What the device can do at most: :func:`timing.copy_rates`, and matrix products.

    ``matmul``: floating-point operations per second by dtype, at JAX's default precision.
    """
    size = (8192 if jax.default_backend() != "cpu" else 2048) // (2 if quick else 1)
    matmul = {}
    for dtype in ("float32", "bfloat16"):
        matrix = jnp.full((size, size), 1 / size, jnp.dtype(dtype))
        runner = timing.jax_runner(jnp.matmul, matrix, matrix)
        seconds = timing.alternate([runner], 5 if quick else 15, budget=2.0)[0]
        matmul[dtype] = 2 * size**3 / seconds["median"]
    return {**timing.copy_rates(quick=quick), "matmul": matmul}
