"""``python -m benchmarks.uci --data DIR``: the standard splits of every set in a folder."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import environment
from benchmarks.uci import contenders, report, splits
from benchmarks.uci.scores import scores

RESULTS = Path(__file__).parents[1] / "results" / "uci"
DEFAULT = ("linear", "plain", "fit", "ensemble")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.uci",
        description=(
            "Train on the standard splits and score NLL, RMSE, CRPS, CDE loss and 90 % intervals. "
            "Every split is kept as a file of its own, so that a run can be stopped and continued."
        ),
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with a folder for each set")
    add("--sets", nargs="+", help="names of folders (default: all, small ones first)")
    add("--splits", default="", help="such as 0:5 or 0,3,7 (default: all that are published)")
    add("--contenders", nargs="+", default=DEFAULT, help=", ".join(contenders.CONTENDERS))
    add("--peer", metavar="MODULE:CLASS", help="a scikit-learn regressor that predicts quantiles")
    add("--published", type=Path, help="CSV of published figures: dataset, method, metric, mean")
    add("--out", type=Path, default=RESULTS, help="folder of the results")
    add("--jobs", type=int, default=1, help="processes that share the splits")
    add("--job", type=int, help=argparse.SUPPRESS)  # which of them this one is
    add("--report", action="store_true", help="train nothing: print the tables of what is there")
    return parser


def chosen(text: str, count: int) -> list[int]:
    """Split numbers: all, a slice ``a:b``, or a list ``a,b``."""
    if ":" in text:
        start, stop = (int(part) if part else None for part in text.split(":"))
        return list(range(count))[start:stop]
    return [int(part) for part in text.split(",")] if text else list(range(count))


def run(arguments: argparse.Namespace) -> None:
    """Train what has no file yet."""
    names = list(arguments.contenders)
    known = dict(contenders.CONTENDERS)
    if arguments.peer:
        names.append(arguments.peer)
        known[arguments.peer] = contenders.peer(arguments.peer)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--contenders: {unknown} are not known; choose among {sorted(known)}.")
    found = {name: splits.read(arguments.data / name) for name in arguments.sets}
    for name, (x, y) in sorted(found.items(), key=lambda item: item[1][0].size):
        numbers = chosen(arguments.splits, splits.num_splits(len(x)))
        for number in numbers[arguments.job or 0 :: arguments.jobs]:
            for contender in names:
                file = contender.replace(":", "-")
                path = arguments.out / name / f"{file}-{number:02d}.json"
                if path.exists():
                    continue
                part, start = splits.split(x, y, number), time.perf_counter()
                prediction = known[contender](part, number)
                seconds = time.perf_counter() - start
                record = {
                    "set": name,
                    "contender": contender,
                    "split": number,
                    "scores": scores(prediction, part) | {"seconds": seconds},
                    "notes": prediction.notes,
                    **environment.describe(),
                }
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record, indent=1))
                shown = ", ".join(f"{k} {v:.3f}" for k, v in record["scores"].items() if v)
                print(f"{name} {number} {contender}: {shown}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run, in one process or several, and print the tables."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    arguments.sets = arguments.sets or splits.find_sets(arguments.data)
    if arguments.jobs > 1 and arguments.job is None and not arguments.report:
        command = [sys.executable, "-m", "benchmarks.uci", *argv, "--job"]
        jobs = [subprocess.Popen([*command, str(job)]) for job in range(arguments.jobs)]
        codes = [job.wait() for job in jobs]
        if any(codes):
            raise SystemExit("a process failed; what the others finished is kept.")
    elif not arguments.report:
        run(arguments)
    if arguments.job is None:
        print(report.text(arguments.out, arguments.published))


if __name__ == "__main__":
    main()
