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
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import jaxmdn
from benchmarks import environment, plain_families, problem
from benchmarks.cases import Case
from benchmarks.densities import PLAIN, loss_runner
from benchmarks.report import replace_file
from jaxmdn.cli import timing
from jaxmdn.cli.bench import draw

RESULTS = Path(__file__).parent / "results"
Shapes = tuple[Sequence[int], Sequence[int], Sequence[int]]
SHAPES = ((1, 64, 4096, 65536), (1, 2, 5, 32, 256), (1, 2, 8, 32))  # rows, components, dimensions
OTHERS = ((64, 4096, 65536), (1, 5, 32), (1, 8))  # of other families
QUICK = (((64, 65536), (1, 5, 32), (1, 8)), ((64, 65536), (5,), (1,)))
LINKS = ("softplus", "exp")
MAX_ENTRIES = 2**24  # raw outputs of one problem
AIM_WORST, AIM_MEAN = 0.95, 2.0


class Question(NamedTuple):
    """One shape of one family: is the default slower than plain JAX?"""

    family: str
    rows: int
    components: int
    dim: int
    link: str
    operation: str

    def runners(self) -> list[timing.Runner]:
        """jaxmdn's default and plain JAX on the same numbers."""
        if self.family == "normal":
            case = Case(**{k: v for k, v in self._asdict().items() if k != "family"}, peers=False)
            arrays = problem.create(case)
            own = functools.partial(jaxmdn.nll, case.head)
            return [
                loss_runner(case, own, arrays.arguments("whitening")),
                PLAIN.prepare(case, arrays),
            ]
        head = plain_families.create(self.family, self.components, self.dim, self.link)
        raw, y = draw(head, self.rows, "float32")
        plain = plain_families.nll(self.family, head, self.link)
        losses = [functools.partial(jaxmdn.nll, head), plain]
        if self.operation == "nll_gradient":
            losses = [jax.value_and_grad(loss) for loss in losses]
        return [timing.jax_runner(loss, raw, y) for loss in losses]

    @property
    def entries(self) -> int:
        """Raw outputs, about."""
        return self.rows * self.components * (2 * self.dim + 1)


def questions(shapes: Shapes, others: Shapes) -> Iterator[Question]:
    """Every shape, link and operation, the largest left out; of other families, some shapes."""
    for family in ("normal", *plain_families.NAMES):
        rows, components, dims = shapes if family == "normal" else others
        classes = family == "categorical"
        links, dims = (LINKS[:1], (1,)) if classes else (LINKS, dims)
        for parts in itertools.product(rows, components, dims, links, ("nll_gradient", "nll")):
            found = Question(family, *parts)
            if found.entries <= MAX_ENTRIES and not (classes and found.components == 1):
                yield found


def measure(question: Question, *, repeats: int, budget: float) -> dict[str, Any]:
    """Seconds of jaxmdn's default and of plain JAX, and what the second takes of the first."""
    runners = question.runners()
    for runner in runners:
        runner.call()
    own, plain = (found["median"] for found in timing.alternate(runners, repeats, budget))
    return {**question._asdict(), "seconds": own, "plain": plain, "ratio": plain / own}


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
        "without its gradient, float32. Aims: every ratio at least "
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
        "| run | family | operation | N, K, D | link | ms | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, record in sorted(slow, key=lambda item: item[1]["ratio"]):
        shape = f"{record['rows']}, {record['components']}, {record['dim']}"
        lines.append(
            f"| {name} | {record['family']} | {record['operation']} | {shape} | {record['link']} "
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
    selected = list(questions(*(QUICK if arguments.quick else (SHAPES, OTHERS))))
    bar = tqdm(selected, desc="grid", file=sys.stderr, disable=arguments.quiet, leave=False)
    records = [measure(each, repeats=arguments.repeats, budget=0.3) for each in bar]
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
    text = json.dumps(found, allow_nan=False) + "\n"
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
