"""``python -m benchmarks``: measure, print a summary, write JSON, Markdown and plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from benchmarks import cases, environment, families, report, suite
from jaxmdn.cli import timing
from jaxmdn.cli.errors import positive_int

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=(
            "Time jaxmdn beside plain JAX and whichever of distrax, TensorFlow Probability, "
            "numpyro and torch are installed, in one process, every result checked against "
            "float64 first. Writes JSON, a Markdown report and plots, named after the device."
        ),
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few and small cases: about a minute")
    add("--only", choices=cases.OPERATIONS, metavar="OPERATION", help="one, such as nll_gradient")
    add("--families", action="store_true", help="every family beside the normal instead")
    add("--report", metavar="FILE", help="write Markdown and plots of an earlier FILE.json again")
    add("--out", type=Path, help="folder (default: benchmarks/results; --report: the file's)")
    add("--repeats", type=positive_int, help="samples of every time (default: 21; quick: 7)")
    add("--minutes", type=positive_int, help="begin no case after so many; the rest is named")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run, or write the report of an earlier run."""
    options = parser()
    arguments = options.parse_args(argv)
    alone = [name for name in ("families", "report", "only") if getattr(arguments, name)]
    if len(alone) > 1 or (alone not in ([], ["only"]) and arguments.minutes):
        names = ", ".join(f"--{name}" for name in (*alone, *["minutes"] * bool(arguments.minutes)))
        options.error(f"{names} exclude each other; choose one.")
    if arguments.out and arguments.out.exists() and not arguments.out.is_dir():
        options.error(f"--out {arguments.out} is a file; name a folder.")
    if arguments.report:
        path = Path(arguments.report)
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            options.error(f"--report {path} cannot be read: {error}")
        _write(found, (arguments.out or path.parent) / path.stem, arguments.report)
        return
    jax.config.update("jax_enable_compilation_cache", False)  # or its seconds would say nothing
    found, suffix = measure(arguments)
    _write(found, (arguments.out or RESULTS) / (environment.slug(found["device"]) + suffix))


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What was asked for, and how its files' names end: a part never replaces the whole."""
    effort = {
        "repeats": arguments.repeats or (7 if arguments.quick else 21),
        "budget": 0.5 if arguments.quick else 5.0,
    }
    suffix = "-quick" * arguments.quick
    if arguments.families:
        sizes = {"rows": 1024, "components": 8} if arguments.quick else {}
        return families.run(**sizes, **effort), "-families" + suffix
    suffix += f"-{arguments.only}" if arguments.only else ""
    suffix += f"-{arguments.minutes}-minutes" if arguments.minutes else ""
    large = timing.device()["platform"] != "cpu"
    selected = cases.suite(quick=arguments.quick, large=large)
    found = suite.run(
        [case for case in selected if arguments.only in (None, case.operation)],
        peers=suite.densities.PEERS[: -1 if arguments.quick else None],  # a slow compiler
        quick=arguments.quick,
        progress=not arguments.quiet,
        minutes=arguments.minutes or float("inf"),
        **effort,
    )
    return found, suffix


def _write(found: dict[str, Any], stem: Path, source: str | None = None) -> None:
    paths = report.write(found, stem, keep_json=source is not None)
    print(report.summary(found))
    print(f"written to {stem.parent}: {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
