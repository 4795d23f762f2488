"""``python -m benchmarks.grid``: is any default slower than plain JAX?

Many small problems, jaxmdn's default beside the textbook's formula under autodiff, in turns. Every
run adds its column (version of JAX, instructions) to one file per device, so that
``XLA_FLAGS=--xla_cpu_max_isa=AVX2`` and another JAX stand beside each other.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import jaxmdn
from benchmarks import environment, problem
from benchmarks.cases import Case
from benchmarks.densities import PLAIN, loss_runner
from benchmarks.report import replace_file
from jaxmdn.cli import timing

RESULTS = Path(__file__).parent / "results"
ROWS, COMPONENTS, DIMS = (1, 64, 4096, 65536), (1, 2, 5, 32, 256), (1, 2, 8, 32)
QUICK = ((64, 65536), (1, 5, 32), (1, 8))
LINKS = ("softplus", "exp")
MAX_ENTRIES = 2**24  # raw outputs of one problem
AIM_WORST, AIM_MEAN = 0.95, 2.0


def cases(rows: Sequence[int], components: Sequence[int], dims: Sequence[int]) -> Iterator[Case]:
    """Every shape, link and operation, the largest left out."""
    for n, k, d, link, operation in itertools.product(
        rows, components, dims, LINKS, ("nll_gradient", "nll")
    ):
        case = Case(
            operation=operation, rows=n, components=k, dim=d, link=link, peers=False
        )  # fmt: skip
        if n * case.head.num_outputs <= MAX_ENTRIES:
            yield case


def measure(case: Case, *, repeats: int, budget: float) -> dict[str, Any]:
    """Seconds of jaxmdn's default and of plain JAX, and what the second takes of the first."""
    arrays = problem.create(case)
    own = loss_runner(case, functools.partial(jaxmdn.nll, case.head), arrays.arguments("whitening"))
    runners = [own, PLAIN.prepare(case, arrays)]
    for runner in runners:
        runner.call()
    own_seconds, plain = (
        found["median"] for found in timing.alternate(runners, repeats, budget)
    )  # fmt: skip
    return {
        "rows": case.rows, "components": case.components, "dim": case.dim, "link": case.link,
        "operation": case.operation, "seconds": own_seconds, "plain": plain,
        "ratio": plain / own_seconds,
    }  # fmt: skip


def instructions() -> str:
    """The instructions that XLA was held to, or ``"all"``."""
    found = re.search(r"--xla_cpu_max_isa=(\S+)", os.environ.get("XLA_FLAGS", ""))
    return found.group(1) if found else "all"


def markdown(found: dict[str, Any]) -> str:
    """A table of the runs, and of every problem on which a default was slower than the aim."""
    lines = [
        f"# No default slower than plain JAX: {timing.device_title(found['device'])}",
        "",
        "`python -m benchmarks.grid`: plain JAX's time divided by jaxmdn's, mean NLL with and "
        "without its gradient, diagonal normals, float32. Aims: every ratio at least "
        f"{AIM_WORST}, the geometric mean at least {AIM_MEAN:g}.",
        "",
        "| JAX | instructions | problems | worst | below the aim | geometric mean | date |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    slow = []
    for name, run in sorted(found["runs"].items()):
        ratios = np.array([record["ratio"] for record in run["measurements"]])
        mean = np.exp(np.mean(np.log(ratios)))
        count = int(np.sum(ratios < AIM_WORST))
        lines.append(
            f"| {run['jax']} | {run['instructions']} | {len(ratios)} | {ratios.min():.2f} "
            f"| {count} | {mean:.2f} | {run['date']} |"
        )
        slow += [(name, record) for record in run["measurements"] if record["ratio"] < AIM_WORST]
    lines += [
        "",
        "| run | operation | N, K, D | link | ms | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in sorted(slow, key=lambda item: item[1]["ratio"]):
        shape = f"{record['rows']}, {record['components']}, {record['dim']}"
        lines.append(
            f"| {name} | {record['operation']} | {shape} | {record['link']} "
            f"| {1e3 * record['seconds']:.3f} | {record['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, add the run to the device's file, print the worst ratio and the mean."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    options.add_argument("--quick", action="store_true", help="a tenth of the problems")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder")
    options.add_argument("--repeats", type=int, default=9, help="samples of every time")
    options.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = options.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    selected = list(cases(*(QUICK if arguments.quick else (ROWS, COMPONENTS, DIMS))))
    bar = tqdm(selected, desc="grid", file=sys.stderr, disable=arguments.quiet, leave=False)
    records = [measure(case, repeats=arguments.repeats, budget=0.3) for case in bar]
    described = environment.describe()
    name = f"jax {jax.__version__}, {instructions()}" + ", quick" * arguments.quick
    stem = arguments.out / f"{environment.slug(described['device'])}-grid"
    path = stem.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    found["device"] = described["device"]
    found["runs"][name] = {
        "jax": jax.__version__, "instructions": instructions(), "measurements": records,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": described["versions"],
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    for target, content in ((path, text), (stem.with_suffix(".md"), markdown(found))):
        replace_file(target, functools.partial(_write, content))
    ratios = np.array([record["ratio"] for record in records])
    print(
        f"{name}: {len(ratios)} problems, worst {ratios.min():.2f}, "
        f"geometric mean {np.exp(np.mean(np.log(ratios))):.2f}; written to {path}"
    )


def _write(content: str, path: Path) -> None:
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
