"""``python -m benchmarks.scaling``: what a training step on many devices costs beyond its work.

One step of ``make_train_step``, the one that ``fit(mesh=)`` scans over: rows spread, parameters on
every device. Eight virtual devices and two processes (gloo) share the cores of one device, so that
what they take longer is what the step costs beyond its work; what it exchanges is read from the
compiled program. Both are carried over to GPUs on paper.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxmdn
from benchmarks import environment
from benchmarks.report import replace_file
from jaxmdn.cli import timing

RESULTS = Path(__file__).parent / "results"
STEPS = {64: 30, 256: 15, 1024: 3}  # of a block, by hidden units
BLOCKS, ROWS, INPUTS = 7, 1024, 16
# Data sheets of H100 / H200 SXM: NVLink 4 gives 450 GB/s each way, one 400 Gb/s InfiniBand port a
# GPU 50 GB/s. A hop takes about 2 and 5 microseconds (assumed), a step's arithmetic runs at
# 50 TFLOP/s (assumed: a tenth of the sheet's TF32).
NVLINK, INFINIBAND, NVLINK_HOP, INFINIBAND_HOP, FLOPS = 450e9, 50e9, 2e-6, 5e-6, 50e12
IN_A_NODE = 8
MEASURED = """\
`python -m benchmarks.scaling` on {machine}, with a load of {load:.1f} by all that ran there; jax
{jax}. {rows} rows a step, float32. Eight virtual devices and two processes (gloo) share the cores
of the one device, so that all steps do the same work, but for Adam, which runs on each of them; the
fastest of seven blocks."""
PAPER = """\
On paper, with NVLink 4 (450 GB/s each way, 2 us a hop) between the 8 GPUs of a node and a 400 Gb/s
InfiniBand port a GPU (50 GB/s, 5 us a hop) between nodes; nothing of it is hidden behind the
backward pass. The rows are a GPU's share of a batch at which the exchange is a tenth of the step,
at 6 operations a parameter and row and 50 TFLOP/s."""


def exchanged(text: str) -> int:
    """Bytes of all that a compiled program adds up between devices; it must not gather anything."""
    if found := re.findall(r"(?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text):
        raise AssertionError(f"a training step must only add up gradients, found {found}")
    sums = re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", text)
    shapes = [one for kinds in sums for one in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", kinds)]
    return sum(int(bits) // 8 * math.prod(int(n) for n in s.split(",") if n) for bits, s in shapes)


def measure(width: int) -> dict[str, Any]:
    """Seconds a step, its best block of several, and the bytes exchanged, on all devices here."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    y = (x[:, :1] + rng.normal(size=(ROWS, 1))).astype(np.float32)
    head, rngs = jaxmdn.NormalHead(5, 1), nnx.Rngs(0)
    model = jaxmdn.nn.MDN(INPUTS, head, hidden_features=(width, width), rngs=rngs)
    graphdef, params, other = nnx.split(model, nnx.Param, ...)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    every, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    optimizer = optax.adam(1e-3)
    params, other = jax.device_put(jax.tree.map(np.asarray, (params, other)), every)
    key = jax.random.wrap_key_data(jax.device_put(np.zeros(2, np.uint32), every))
    state = jaxmdn.train.TrainState.create(params, optimizer, key)
    step = jaxmdn.train.make_train_step(
        lambda params, batch, key: nnx.merge(graphdef, params, other).nll(*batch), optimizer
    )
    batch = jax.device_put((x, y), rows)
    text = step.lower(state, batch).compile().as_text()
    seconds = []
    for _ in range(BLOCKS):  # as many steps in every process, which wait for each other
        start = time.perf_counter()
        for _ in range(STEPS[width]):
            # Each is waited for: virtual devices of two steps would wait for each other's cores.
            state, _ = jax.block_until_ready(step(state, batch))
        seconds.append((time.perf_counter() - start) / STEPS[width])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "width": width,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "parameters": size,
        "gradient_bytes": 4 * size,
        "exchanged_bytes": exchanged(text),
        "seconds": min(seconds),
    }


def collect() -> list[dict[str, Any]]:
    """Every network on one device, eight virtual ones, and two processes with a device each."""
    found, command = [], [sys.executable, "-m", "benchmarks.scaling"]
    for width in STEPS:
        for devices, processes in ((1, 1), (8, 1), (1, 2)):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            flags = f"--xla_force_host_platform_device_count={devices}"
            variables = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            started = [
                subprocess.Popen(
                    [*command, "--width", str(width), "--process", f"{port},{processes},{number}"],
                    env=variables,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number in range(processes)
            ]
            answers = [one.communicate()[0] for one in started]
            found.append(json.loads(answers[0].splitlines()[-1]))
    return found


def on_gpus(size: float) -> dict[str, float]:
    """Seconds that adding up ``size`` bytes takes over 8 GPUs of a node and over 32 such nodes.

    In a node: reduce-scatter and all-gather, ``2 (n - 1) / n`` of the bytes through each link, in
    ``2 log2 n`` hops. Between nodes each GPU does the same of the eighth that it holds.
    """
    node = 2 * (1 - 1 / IN_A_NODE) * size / NVLINK + 2 * math.log2(IN_A_NODE) * NVLINK_HOP
    nodes = 256 // IN_A_NODE
    between = 2 * (1 - 1 / nodes) * size / IN_A_NODE / INFINIBAND
    return {"8": node, "256": node + between + 2 * math.log2(nodes) * INFINIBAND_HOP}


def report(record: dict[str, Any]) -> str:
    """The tables as Markdown."""
    machine = timing.device_title(record["environment"]["device"])
    jax_version = record["environment"]["versions"]["jax"]
    lines = [
        "# A training step on many devices",
        "",
        MEASURED.format(machine=machine, load=record["load"], jax=jax_version, rows=ROWS),
        "",
        "| hidden units | parameters | gradient | exchanged | of the gradient | one device "
        "| eight devices | two processes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    paper = []
    for width in sorted({case["width"] for case in record["cases"]}):
        one, eight, two = (case for case in record["cases"] if case["width"] == width)
        size, gradient = eight["exchanged_bytes"], eight["gradient_bytes"]
        assert two["exchanged_bytes"] == size
        times = (f"{1e3 * case['seconds']:.2f} ms" for case in (one, eight, two))
        lines.append(
            f"| 2 x {width} | {one['parameters']:,} | {gradient:,} B | {size:,} B "
            f"| {size / gradient:.4f} | {' | '.join(times)} |"
        )
        gpus = on_gpus(size)
        rows = [9 * seconds * FLOPS / (6 * one["parameters"]) for seconds in gpus.values()]
        paper.append(
            f"| 2 x {width} | {1e6 * gpus['8']:.0f} us | {1e6 * gpus['256']:.0f} us "
            f"| {rows[0]:,.0f} | {rows[1]:,.0f} |"
        )
    titles = "exchange, 8 GPUs | exchange, 256 GPUs | rows a GPU, of 8 | rows a GPU, of 256"
    head = [f"| hidden units | {titles} |", "|---|---|---|---|---|"]
    return "\n".join([*lines, "", PAPER, "", *head, *paper, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        port, processes, number = map(int, options.process.split(","))
        if processes > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(f"localhost:{port}", processes, number)
        print(json.dumps(measure(options.width)))
        return
    record = {"environment": environment.describe(), "cases": collect()}
    record["load"] = os.getloadavg()[0]
    name = f"{environment.slug(record['environment']['device'])}-many-devices"
    replace_file(
        RESULTS / f"{name}.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n")
    )
    replace_file(RESULTS / f"{name}.md", lambda path: path.write_text(report(record)))
    print(report(record))


if __name__ == "__main__":
    main()
