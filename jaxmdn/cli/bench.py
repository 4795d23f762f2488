"""``jaxmdn bench``: time jaxmdn beside its peers on this device."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from jaxmdn.cli.errors import UsageError, positive_int


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser(
        "bench",
        help="time jaxmdn beside its peers on this device; write JSON, tables and plots",
        description=(
            "Time jaxmdn beside plain JAX and whichever of distrax, TensorFlow Probability, "
            "numpyro and torch are installed, in one process, every result checked against "
            "float64 first. Writes JSON, a Markdown report and plots, named after the device."
        ),
    )
    parser.add_argument("--quick", action="store_true", help="few and small cases: about a minute")
    parser.add_argument("--only", metavar="OPERATION", help="one operation, such as nll_gradient")
    parser.add_argument(
        "--families", action="store_true", help="every component family beside the normal instead"
    )
    parser.add_argument(
        "--out", help="folder (default: benchmarks/results in a checkout, else ./jaxmdn-bench)"
    )
    parser.add_argument(
        "--repeats", type=positive_int, help="samples of every time (default: 21; quick: 7)"
    )
    parser.add_argument(
        "--minutes",
        type=positive_int,
        help="begin no case after so many; what was left out is named in the report",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the suite and write its report."""
    try:  # all that the report needs, before anything is timed
        cases, suite, report, files, families, environment = (
            importlib.import_module(f"benchmarks.{module}")
            for module in ("cases", "suite", "report", "files", "families", "environment")
        )
    except ImportError as error:
        raise UsageError(
            f"the benchmark needs {error.name or error}; install it with: "
            f"pip install 'jaxmdn[bench]'"
        ) from None
    for option in ("only", "minutes"):
        if arguments.families and getattr(arguments, option) is not None:
            raise UsageError(f"--families and --{option} exclude each other; choose one.")
    if arguments.only is not None and arguments.only not in cases.OPERATIONS:
        known = ", ".join(cases.OPERATIONS)
        raise UsageError(f"--only {arguments.only}: no such operation; there are {known}.")
    out = Path(arguments.out) if arguments.out else default_folder(Path.cwd())
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder.")
    if arguments.families:
        _run_families(families, arguments, out)
        return
    large = environment.device()["platform"] != "cpu"
    selected = [
        case
        for case in cases.suite(quick=arguments.quick, large=large)
        if arguments.only in (None, case.operation)
    ]
    found = suite.run(
        selected,
        repeats=arguments.repeats or (7 if arguments.quick else 21),
        budget=0.5 if arguments.quick else 5.0,
        quick=arguments.quick,
        progress=not arguments.quiet,
        minutes=arguments.minutes or float("inf"),
    )
    # A partial run never replaces the results of a whole one.
    suffix = "-quick" * arguments.quick + (f"-{arguments.only}" if arguments.only else "")
    suffix += f"-{arguments.minutes}-minutes" if arguments.minutes else ""
    paths = files.write(found, out, suffix)
    names = ", ".join(path.name for path in paths)
    print(report.summary(found))
    print(f"{found['seconds']:.0f} s; written to {out}: {names}")


def _run_families(families: Any, arguments: argparse.Namespace, out: Path) -> None:
    sizes = {"rows": 1024, "components": 8} if arguments.quick else {}
    found = families.run(
        **sizes,
        repeats=arguments.repeats or (7 if arguments.quick else 21),
        budget=0.5 if arguments.quick else 5.0,
    )
    paths = families.write(found, out, "-quick" * arguments.quick)
    print(families.markdown(found))
    print(f"written to {out}: {', '.join(path.name for path in paths)}")


def default_folder(start: Path) -> Path:
    """``benchmarks/results`` of the checkout that ``start`` is in, else ``./jaxmdn-bench``."""
    for folder in (start, *start.parents):
        if (folder / "benchmarks").is_dir() and (folder / "jaxmdn" / "__init__.py").is_file():
            return folder / "benchmarks" / "results"
    return Path("jaxmdn-bench")
