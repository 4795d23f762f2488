"""``jaxmdn fit``: a density network for a user's own table."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxmdn import __version__
from jaxmdn.cli import evaluate, pictures, split, training
from jaxmdn.cli.errors import UsageError, nonnegative_float, positive_int
from jaxmdn.cli.inputs import Inputs, detect, require_columns
from jaxmdn.cli.reading import Format, add_format, read_table
from jaxmdn.cli.targets import Targets
from jaxmdn.cli.trained import Trained
from jaxmdn.heads import COVARIANCES
from jaxmdn.train import Columns, EnsembleResult, folders
from jaxmdn.train.recipe import EFFORTS

MIN_ROWS = 20
FORMATS = ("png", "svg", "pdf")
HELD_BACK = "held_back.csv"
OUTPUTS = {"model", "summary.json", HELD_BACK, "report.html"} | {
    f"{name}.{kind}" for name in pictures.NAMES for kind in FORMATS
}


def add_parser(commands: Any) -> None:
    """Add ``fit`` to the command line."""
    parser = commands.add_parser(
        "fit",
        help="train on your own table; write the model, its scores and pictures",
        description=(
            "Train a mixture density network on a CSV or Parquet table. Columns that are not "
            "targets become inputs: numbers as they are (a gap becomes the median, with an "
            "indicator), dates as days, text with few distinct values as categories. Scores are "
            "measured on held-back rows, in the targets' own units."
        ),
        epilog="Numbers that are not given are those of the recipe, with --ensemble.",
    )
    add, count, share = parser.add_argument, positive_int, nonnegative_float
    add("file", nargs="?", help="CSV file with a header line, or a Parquet file")
    add(
        "--target", action="append", default=[], metavar="COL[:FAMILY]",
        help="a column to predict: price (real numbers), price:lognormal, n:poisson, "
        "n:hurdle(base=poisson), kind:classes, ...; repeat for several",
    )  # fmt: skip
    add("--config", metavar="FILE", help="TOML file with any of these options, by their names")
    add("--out", default="fit", help="folder to write (default: fit)")
    add("--force", action="store_true", help="replace a folder that an earlier fit wrote")

    add = parser.add_argument_group("columns").add_argument
    add("--drop", action="append", default=[], metavar="COL", help="ignore a column; repeatable")
    add(
        "--keep", action="append", default=[], metavar="COL",
        help="use a column that looks like a key, or has many values; repeatable",
    )  # fmt: skip
    add(
        "--categorical", action="append", default=[], metavar="COL",
        help="numbers that are names of things, such as codes; repeatable",
    )  # fmt: skip
    add("--max-categories", type=count, default=20, metavar="N", help="most values of a category")
    add("--weights", metavar="COL", help="column of row weights")
    add("--split-by", metavar="COL", help="hold rows of the same value back together")
    add("--time", metavar="COL", help="hold the last rows back")
    add("--test", type=share, default=0.2, help="share of rows held back (default: 0.2)")

    add_format(parser.add_argument_group("file").add_argument)

    add = parser.add_argument_group("density").add_argument
    add("--components", type=count, metavar="K", help="components of the mixture (default: 5)")
    add("--covariance", choices=COVARIANCES, help="by default full for several real targets")
    add("--min-scale", type=share, help="scale floor, in standard deviations (default: 0.001)")
    add("--min-weight", type=share, help="floor of every mixing coefficient (default: 0)")

    add = parser.add_argument_group("training").add_argument
    add("--ensemble", action="store_true", help="many networks, calibrated: takes longer")
    add("--effort", choices=EFFORTS, default="default", help="of --ensemble")
    add(
        "--hidden", type=count, nargs="+", action="extend", metavar="N",
        help="layer widths (default: 64 64)",
    )  # fmt: skip
    add("--dropout", type=share, help="share of units dropped in training (default: 0)")
    add("--epochs", type=count, help="passes over the rows, at most (default: 500)")
    add("--patience", type=count, help="epochs without improvement until it stops (default: 50)")
    add("--batch-size", type=count, help="rows a step (default: 64)")
    add("--learning-rate", type=share, help="of AdamW (default: 0.002)")
    add("--weight-decay", type=share, help="of AdamW (default: 0.01)")
    add("--checkpoint", metavar="DIR", help="folder in which the run is saved while it goes on")
    add("--resume", action="store_true", help="go on with the run in --checkpoint")
    add("--seed", type=int, default=0, help="of the split, the network and the shuffling")
    add("--format", choices=FORMATS, default="png", help="of the pictures (default: png)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command: everything is written at the end, all of it or nothing."""
    _check_options(arguments)
    form = Format.of(arguments)
    frame = read_table(arguments.file, form)
    if len(frame) < MIN_ROWS:
        raise UsageError(f"the table has {len(frame)} row(s); at least {MIN_ROWS} are needed.")
    targets = Targets.of(frame, arguments.target)
    inputs, lines = _inputs(arguments, frame, targets)
    frame, left_out = _with_targets(frame, targets)
    y = targets.values(frame)
    weights = split.row_weights(frame, arguments.weights)
    groups = split.group_labels(frame, arguments.split_by)
    times = split.times_of(frame, arguments.time)
    if times is not None:  # neighbours in time are neighbours in the table
        order = np.argsort(times, kind="stable")
        frame, y, times = frame.iloc[order], y[order], times[order]
        weights = None if weights is None else weights[order]
    components, floors = training.head_options(arguments)
    try:
        head = targets.head(components, arguments.covariance, **floors)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    targets.check(head, y)
    test = split.held_back(len(y), arguments.test, arguments.seed, groups=groups, times=times)
    out = Path(arguments.out)
    _check_out(out, arguments.force)

    print(f"{arguments.file}: {len(frame)} rows")
    print("\n".join(f"  {line}" for line in [*lines, *left_out]))
    repeated = int(frame.duplicated().sum())
    if repeated:
        print(f"  note         {repeated} rows repeat others: the scores may flatter")
    print()

    def rest(values: Any) -> Any:
        return None if values is None else values[~test]

    columns = Columns.fit(
        inputs.prepare(frame[~test]), rest(weights), categorical=inputs.categories,
        function="jaxmdn fit",
    )  # fmt: skip
    prepared, own = inputs.prepare(frame[~test]), y.astype(np.int32) if targets.classes else y
    result: Any
    if arguments.ensemble:
        named = any(targets.families.values()) or arguments.covariance or arguments.min_weight
        result = training.ensemble(
            arguments, head if named else None, prepared, rest(own), rest(weights),
            categorical=inputs.categories, groups=rest(groups), ordered=times is not None,
        )  # fmt: skip
    else:
        inner = None
        if groups is not None or times is not None:
            inner = split.held_back(
                len(prepared), 0.1, arguments.seed, groups=rest(groups), times=rest(times)
            )
        result = training.one_network(
            arguments, head, columns(prepared), rest(own), rest(weights), inner
        )
    trained = Trained(result, inputs, targets, columns, form)
    known = trained.is_known(frame) & test
    if known.sum() < test.sum():
        print(f"{test.sum() - known.sum()} held-back rows have gaps that no other has: left out.")
    rows = _scores(trained, frame, y, known, ~test)
    print(f"\nOn {known.sum()} held-back rows:")
    print(evaluate.format_table(rows))
    print(evaluate.CLASS_LEGEND if targets.classes else evaluate.LEGEND)
    drawn = _write(out, arguments, trained, rows, frame[known])
    print(f"\nwritten to {out}/: model/, summary.json, {HELD_BACK}, {', '.join(drawn)}")
    print(f"predict with: jaxmdn predict {out} NEW.csv")
    print(f"look at it:   jaxmdn report {out}")


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.file is None:
        raise UsageError("name the table to train on: jaxmdn fit TABLE.csv --target COLUMN")
    if not arguments.target:
        raise UsageError("name what to predict: --target COLUMN; --help shows all options.")
    if not 0.0 < arguments.test < 1.0:
        raise UsageError(f"--test must lie between 0 and 1, got {arguments.test:g}.")
    if arguments.split_by and arguments.time:
        raise UsageError("--split-by and --time exclude each other; leave one of them out.")
    for option in ("patience", "checkpoint"):
        if arguments.ensemble and getattr(arguments, option):
            raise UsageError(f"--{option} is for a single network; leave it or --ensemble out.")
    if arguments.resume and not arguments.checkpoint:
        raise UsageError("--resume goes on with a run in a folder: pass --checkpoint DIR, too.")


def _inputs(
    arguments: argparse.Namespace, frame: pd.DataFrame, targets: Targets
) -> tuple[Inputs, list[str]]:
    """The input columns, and what is said of all of them."""
    roles = {
        "--weights": ("row weights", arguments.weights),
        "--split-by": ("keeps rows together", arguments.split_by),
        "--time": ("orders the rows", arguments.time),
    }
    others = dict.fromkeys(targets.names, "")
    for option in ("drop", "keep", "categorical"):
        require_columns(frame, getattr(arguments, option), f"--{option}")
    for option, name in [("--drop", name) for name in arguments.drop] + [
        (option, name) for option, (_, name) in roles.items() if name
    ]:
        require_columns(frame, [name], option)
        if name in targets.names:
            raise UsageError(f"column {name!r} is named by both --target and {option}.")
        others[name] = roles[option][0] if option in roles else "left out with --drop"
    for name in arguments.keep:  # an input, too
        if others.get(name) in ("keeps rows together", "orders the rows"):
            del others[name]
    found = detect(
        frame, others, keep=arguments.keep, categorical=arguments.categorical,
        max_categories=arguments.max_categories,
    )  # fmt: skip
    return found, [*targets.describe(), *found.describe()]


def _with_targets(frame: pd.DataFrame, targets: Targets) -> tuple[pd.DataFrame, list[str]]:
    """The rows that have all targets, and a word about the others."""
    known = frame[targets.names].notna().all(axis=1)
    if known.sum() < MIN_ROWS:
        raise UsageError(
            f"the table has {known.sum()} row(s) with targets; at least {MIN_ROWS} are needed."
        )
    missing = int((~known).sum())
    return frame[known], [f"note         {missing} rows lack a target: left out"] if missing else []


def _check_out(out: Path, force: bool) -> None:
    """Only an empty folder, or one this command wrote, may be replaced."""
    ours = (out / "summary.json").is_file() and (out / "model" / "config.json").is_file()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        if not ours:
            raise UsageError(
                f"{out} exists already and was not written by jaxmdn fit; choose another --out."
            )
        if not force:
            raise UsageError(f"{out} exists already; choose another --out, or pass --force.")
        foreign = {path.name for path in out.iterdir()} - OUTPUTS
        if foreign:
            raise UsageError(
                f"{out} also holds {', '.join(sorted(foreign))}, which --force would delete; move "
                f"it away or choose another --out."
            )
    parent = next(path for path in out.absolute().parents if path.exists())
    if out.resolve() == Path.cwd() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{out} cannot be written; choose another --out.")


def _scores(
    trained: Trained, frame: pd.DataFrame, y: np.ndarray, test: np.ndarray, rest: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of the table of scores: the density beside baselines."""
    result, own = trained.result, trained.as_targets(y)
    several = isinstance(result, EnsembleResult)
    network = "ensemble" if several else "network"
    found = {
        network: trained.predict(frame[test]),
        "same for every row": evaluate.marginal_density(result, own[rest], int(test.sum())),
    }
    if not any(found[network].jumps):
        x = np.asarray(trained.columns(trained.inputs.prepare(frame)))
        found["linear Gaussian"] = evaluate.linear_gaussian(x[rest], y[rest], x[test])
    return [
        row for name, density in found.items() for row in trained.scores(name, density, y[test])
    ]


def _write(
    out: Path,
    arguments: argparse.Namespace,
    trained: Trained,
    rows: list[dict[str, Any]],
    test: pd.DataFrame,
) -> list[str]:
    """Write the folder; the names of the pictures."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    result, targets = trained.result, trained.targets
    numbers = (test.index + 1).tolist()
    try:
        trained.save(scratch / "model")
        test.to_csv(scratch / HELD_BACK, index=False)
        summary = {
            "jaxmdn": __version__,
            "jax": jax.__version__,
            "file": Path(arguments.file).name,
            "options": {key: value for key, value in vars(arguments).items() if key != "run"},
            "test_rows": len(test),
            "held_back_rows": numbers,
            "best_epoch": getattr(result, "best_epoch", None),
            "inputs": trained.inputs.kinds,
            "dropped": trained.inputs.dropped,
            "scores": rows,
        }
        evaluate.write_json(scratch / "summary.json", summary)
        density, drawn = trained.predict(test), []
        y = targets.values(test)
        for name, figure in pictures.draw(
            result, density, y, targets.names, numbers, targets.classes
        ):
            drawn.append(f"{name}.{arguments.format}")
            evaluate.save_figure(figure, scratch / drawn[-1])
        scratch.chmod(0o755)
        folders.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return drawn
