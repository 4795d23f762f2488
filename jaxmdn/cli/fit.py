"""``jaxmdn fit``: a density network for a user's own table."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxmdn import __version__
from jaxmdn.cli import evaluate, large, pictures, training
from jaxmdn.cli.errors import UsageError, nonnegative_float, positive_int
from jaxmdn.cli.reading import PARQUET, Format, add_format, read_table
from jaxmdn.cli.table import Table
from jaxmdn.cli.trained import Trained, is_known
from jaxmdn.heads import COVARIANCES
from jaxmdn.train import Columns, EnsembleResult, folders
from jaxmdn.train.recipe import EFFORTS

FORMATS = ("png", "svg", "pdf")
HELD_BACK = ("held_back.csv", "held_back.parquet")
OUTPUTS = {"model", "summary.json", *HELD_BACK, "report.html"} | {
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
    add(
        "--stream", action="store_true",
        help="read the table in pieces, as is done anyway where it would not fit into memory "
        f"(then by default {training.STREAM_EPOCHS} passes, {training.STREAM_BATCH} rows a step)",
    )  # fmt: skip
    add("--checkpoint", metavar="DIR", help="folder in which the run is saved while it goes on")
    add("--resume", action="store_true", help="go on with the run in --checkpoint")
    add("--seed", type=int, default=0, help="of the split, the network and the shuffling")
    add("--format", choices=FORMATS, default="png", help="of the pictures (default: png)")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command: everything is written at the end, all of it or nothing."""
    _check_options(arguments)
    form, streamed = Format.of(arguments), _streams(arguments)
    if streamed:
        frame, count = large.sample(arguments.file, form, arguments.seed)
    else:
        frame = read_table(arguments.file, form)
        count = len(frame)
    table = Table.of(frame, arguments, form)
    head = training.head_of(arguments, table.targets)
    table.targets.check(head, table.y)
    test = table.held_back(arguments.test, arguments.seed)
    rest, out = table.take(~test), Path(arguments.out)
    columns = Columns.fit(
        rest.prepared, rest.weights, categorical=table.inputs.categories, function="jaxmdn fit"
    )
    known = is_known(columns, table.prepared) & test
    if not known.any():
        raise UsageError(
            "all held-back rows have a gap in a column that is complete elsewhere; find it, and "
            "pass --drop, or hold other rows back."
        )
    _check_out(out, arguments.force)

    print(f"{arguments.file}: {count if streamed else len(table.y)} rows")
    if streamed:
        print(f"  streamed     {len(table.y)} rows, drawn at random, say what the columns are")
    print("\n".join(f"  {line}" for line in table.describe()))
    lost = int(test.sum() - known.sum())
    print(f"  note         {lost} held-back rows have new gaps: not judged\n" if lost else "")

    if streamed:
        result: Any = large.train(arguments, head, table.take(test), rest, columns)
    elif arguments.ensemble:
        result = training.ensemble(arguments, head, rest, columns)
    else:
        result = training.one_network(arguments, head, rest, columns)
    trained = Trained(result, table.inputs, table.targets, columns, table.form)
    judged = table.take(known)
    rows = _scores(trained, rest, judged)
    print(f"\nOn {len(judged.y)} held-back rows:")
    print(evaluate.format_table(rows))
    print(evaluate.CLASS_LEGEND if table.targets.classes else evaluate.LEGEND)
    drawn = _write(out, arguments, trained, rows, judged.frame)
    print(f"\nwritten to {out}/: model/, summary.json, {', '.join(drawn)}")
    print(f"predict with: jaxmdn predict {out} NEW.csv")
    print(f"look at it:   jaxmdn report {out}")


def _streams(arguments: argparse.Namespace) -> bool:
    """Whether the table is read in pieces: if asked for, or if memory would not hold it."""
    if not arguments.stream and not large.is_large(Path(arguments.file)):
        return False
    if arguments.ensemble:
        why = "--stream" if arguments.stream else f"{arguments.file} is larger than memory: it"
        raise UsageError(
            f"{why} trains a single network, row by row; leave --ensemble out, or pass it a table "
            f"of some of the rows."
        )
    return True


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


def _scores(trained: Trained, rest: Table, judged: Table) -> list[dict[str, Any]]:
    """Rows of the table of scores: the density beside baselines."""
    result, count = trained.result, len(judged.y)
    name = "ensemble" if isinstance(result, EnsembleResult) else "network"
    found = {
        name: trained.predict(judged.frame),
        "same for every row": evaluate.marginal_density(
            result, trained.targets.whole(rest.y), count
        ),
    }
    if not any(found[name].jumps):
        x, x_new = (np.asarray(trained.columns(part.prepared)) for part in (rest, judged))
        found["linear Gaussian"] = evaluate.linear_gaussian(x, rest.y, x_new)
    return [
        row for name, density in found.items() for row in trained.scores(name, density, judged.y)
    ]


def _write(
    out: Path,
    arguments: argparse.Namespace,
    trained: Trained,
    rows: list[dict[str, Any]],
    test: pd.DataFrame,
) -> list[str]:
    """Write the folder; the names of its files, but for the model and the summary."""
    result, targets = trained.result, trained.targets
    numbers = (test.index + 1).tolist()
    with folders.replacing(out) as scratch:
        trained.save(scratch / "model")
        if Path(arguments.file).suffix in PARQUET:  # which keeps the columns' types
            test.to_parquet(scratch / HELD_BACK[1])
        else:
            test.to_csv(scratch / HELD_BACK[0], index=False)
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
        drawn = [path.name for path in scratch.glob("held_back.*")]
        density = trained.predict(test)
        y = targets.values(test)
        for name, figure in pictures.draw(
            result, density, y, targets.names, numbers, targets.classes
        ):
            drawn.append(f"{name}.{arguments.format}")
            evaluate.save_figure(figure, scratch / drawn[-1])
    return drawn
