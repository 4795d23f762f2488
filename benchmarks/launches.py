"""``python -m benchmarks.launches``: what a GPU would launch, counted without one.

JAX compiles for a GPU that is only described, on any machine that has ``jax-cuda12-plugin`` and
``nvidia-cuda-nvcc-cu12`` (in an environment of their own: they are large). In the compiled program
every instruction of its entry is one launch, which reads its operands and writes its results. These
bytes decide the time as far as launches reach the copy's speed (measured on an H100, at 2.7 TB/s:
0.35 ms for 0.30 counted, 1.1 for 1.0, 1.2 for 0.92); what a launch computes, and what a matrix
product reads again, is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

import jaxmdn
from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.densities import JAX, textbook
from benchmarks.report import replace_file
from benchmarks.suite import necessary_bytes
from jaxmdn.losses.kernels import dispatch

RESULTS = Path(__file__).parent / "results"
NAME, CORES = "NVIDIA H200", 132
# XLA's GpuTargetConfigProto, from the data sheet and the limits of compute capability 9.0.
DESCRIPTION = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""
COPY = 4.2e12  # bytes a second that a plain copy reaches (assumed: 88 % of the sheet's 4.8e12)
FREE = ("parameter", "constant", "get-tuple-element", "bitcast", "tuple")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


class Launch(NamedTuple):
    """One kernel: its name, and the bytes that it reads and writes."""

    name: str
    read: int
    written: int


def launches(text: str) -> list[Launch]:
    """What a compiled program launches; of an operand that is only sliced, the slices count."""
    parts = {name: list(_instructions(body)) for name, body in _computations(text)}
    entry = text[text.index("ENTRY") :]
    sizes, found = {}, []
    for name, kind, operation, rest in _instructions(entry[: entry.index("\n}")]):
        sizes[name] = _bytes(kind)
        if operation in FREE:
            continue
        operands = [one for one in _operands(rest) if one in sizes]
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        sliced = _sliced(parts.get(called.group(1), [])) if called else {}
        read = sum(sliced.get(i, sizes[one]) for i, one in enumerate(operands))
        found.append(Launch(name, read, sizes[name]))
    return found


def _computations(text: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.S | re.M):
        yield found.group(1), found.group(2)


def _instructions(body: str) -> Iterator[tuple[str, str, str, str]]:
    for line in body.splitlines():
        if found := INSTRUCTION.match(line):
            yield found.groups()  # type: ignore[misc]


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.split(")")[0])


def _bytes(kind: str) -> int:
    """Bytes of an array, or of all in a tuple."""
    total = 0
    for name, sides in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", kind):
        bits = int(re.sub(r"\D", "", name) or 8)  # pred
        total += bits // 8 * math.prod(int(side) for side in sides.split(",") if side)
    return total


def _sliced(instructions: list[tuple[str, str, str, str]]) -> dict[int, int]:
    """Of parameters that a fusion only slices, by number, the bytes of the slices."""
    users: dict[str, list[tuple[str, str, str]]] = {}
    for name, kind, operation, rest in instructions:
        for one in _operands(rest):
            users.setdefault(one, []).append((name, kind, operation))
    found = {}
    for name, kind, operation, rest in instructions:
        if operation == "parameter":
            uses = [
                last
                for use in users.get(name, [])
                for last in (users.get(use[0], []) if use[2] == "bitcast" else [use])
            ]
            if uses and all(last[2] == "slice" for last in uses):
                read = sum(_bytes(last[1]) for last in uses)
                found[int(rest.split(")")[0])] = min(read, _bytes(kind))
    return found


def functions(case: Case) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Everyone's value and gradient, and the shapes of the arguments."""
    head, P, dtype = case.head, case.head.num_outputs, jnp.dtype(case.dtype)
    y = jax.ShapeDtypeStruct((case.rows, case.dim), jnp.float32)
    raw = (jax.ShapeDtypeStruct((case.rows, P), dtype),)
    sides = ((case.rows, case.hidden), (case.hidden, P), (P,))
    arguments = tuple(jax.ShapeDtypeStruct(s, dtype) for s in sides) if case.linear else raw

    def output(*arguments: Any) -> Any:
        raw = arguments[0] @ arguments[1] + arguments[2] if case.linear else arguments[0]
        return raw.astype(jnp.float32)

    def fused(implementation: str) -> Callable[..., Any]:
        loss = jaxmdn.linear_nll if case.linear else jaxmdn.nll
        return lambda *all_: loss(head, *all_, implementation=implementation)

    losses: dict[str, Callable[..., Any]] = {name: fused(name) for name in dispatch.IMPLEMENTATIONS}
    if not case.linear:
        losses["-log_prob(head(raw), y).mean()"] = lambda raw, y: (
            -jaxmdn.log_prob(head(raw), y).mean()
        )
    losses["plain JAX"] = lambda *all_: -textbook(JAX, case, output(*all_[:-1]), all_[-1]).mean()
    numbers = tuple(range(len(arguments)))
    return {
        name: (jax.value_and_grad(loss, argnums=numbers), (*arguments, y))
        for name, loss in losses.items()
    }


def count(case: Case, device: Any) -> list[dict[str, Any]]:
    """Compile everyone's value and gradient for the device; one record each."""
    kind = AbstractDevice(device_kind=NAME, num_cores=CORES, platform="gpu")
    records = []
    for name, (function, shapes) in functions(case).items():
        placed = [s.update(sharding=SingleDeviceSharding(device)) for s in shapes]
        with (
            mock.patch.object(jax, "default_backend", return_value="gpu"),
            jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)),
        ):
            lowered = jax.jit(function).trace(*placed).lower(lowering_platforms=("cuda",))
        found = launches(lowered.compile().as_text())
        moved = sum(launch.read + launch.written for launch in found)
        records.append(
            {
                "operation": case.operation, "case": case.label, "contender": name,
                "launches": len(found), "bytes": moved, "necessary": necessary_bytes(case),
            }
        )  # fmt: skip
    return records


def markdown(found: dict[str, Any]) -> str:
    """The report."""
    lines = [
        f"# Launches and traffic on an {found['device']}, counted",
        "",
        "`python -m benchmarks.launches` compiles for a GPU without having one: nothing was timed.",
        "Value and gradient; MB read and written by all launches, how many times what must be",
        f"(arguments and results, once), and the microseconds that takes at {COPY / 1e12} TB/s.",
        f"jax {found['jax']}, no autotuning.",
        "",
        "| operation | N, K, D | contender | launches | MB | times the least | us |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in found["records"]:
        moved, least = record["bytes"], record["necessary"]
        lines.append(
            f"| {record['operation']} | {record['case']} | {record['contender']} "
            f"| {record['launches']} | {moved / 1e6:,.2f} | {moved / least:.1f} "
            f"| {1e6 * moved / COPY:,.2f} |"
        )
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> None:
    """Count, print, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    home = Path(importlib.import_module("nvidia.cuda_nvcc").__path__[0])  # with the assembler
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={home}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["PATH"] = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    options = {"topology": "1x1x1", "target_config": DESCRIPTION}
    device = topologies.get_topology_desc(platform="cuda", **options).devices[0]
    selected = [
        case
        for case in cases.suite(large=True)
        if case.operation in ("nll_gradient", "linear_nll_gradient")
        and (case.sweep, case.link) == ("figures", "softplus")
    ]
    records = [record for case in selected for record in count(case, device)]
    found = {"device": NAME, "jax": jax.__version__, "records": records}
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / "gpu-nvidia-h200-launches"
    text = json.dumps(found, indent=1) + "\n"
    replace_file(stem.with_suffix(".json"), lambda path: path.write_text(text))
    replace_file(stem.with_suffix(".md"), lambda path: path.write_text(markdown(found)))
    print(markdown(found))


if __name__ == "__main__":
    main()
