"""``jaxmdn predict``: apply a saved network to new rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmdn.cli.errors import UsageError, probability
from jaxmdn.cli.table import (
    Encoding,
    add_format,
    read_table,
    require_columns,
    require_finite,
    require_numeric,
)
from jaxmdn.inference import quantile
from jaxmdn.mixture import mean, variance
from jaxmdn.train import checkpoint, folders


def add_parser(commands: Any) -> None:
    """Add ``predict`` to the command line."""
    parser = commands.add_parser(
        "predict",
        help="predict with a model that `jaxmdn fit` wrote",
        description=(
            "Write, for each row of a CSV table, the mean and standard deviation of each target, "
            "the quantiles asked for, and the log-density (nats) where the table holds the targets."
        ),
    )
    parser.add_argument("model", help="the folder that `jaxmdn fit` wrote")
    parser.add_argument("file", help="CSV file with the input columns")
    parser.add_argument("--out", help="CSV file to write (default: standard output)")
    parser.add_argument(
        "--quantile", type=probability, action="append", default=[], metavar="P",
        help="also write this quantile, for example 0.95; repeatable",
    )  # fmt: skip
    add_format(parser.add_argument)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder = folders.find(Path(arguments.model))
    if (folder / "model" / "config.json").is_file():  # the folder that `jaxmdn fit` wrote
        folder = folder / "model"
    try:
        result = checkpoint.load(folder)
        encoding = Encoding(**checkpoint.load_notes(folder)["encoding"])
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from None
    except (KeyError, TypeError):
        raise UsageError(
            f"{arguments.model} was not written by `jaxmdn fit`: it does not say how a table's "
            f"columns become inputs. Load it in Python with jaxmdn.train.checkpoint.load."
        ) from None
    if arguments.out is not None:
        out = Path(arguments.out)
        if out.resolve() == Path(arguments.file).resolve():
            raise UsageError(f"--out {out} is the table itself; choose another file.")
        if out.is_dir() or not out.absolute().parent.is_dir():
            raise UsageError(f"--out {out} cannot be written: name a file in an existing folder.")
    frame = read_table(arguments.file, arguments.sep, arguments.decimal)
    inputs = [*encoding.numeric, *encoding.categorical]
    require_columns(frame, inputs, "input")
    require_numeric(frame, encoding.numeric)
    require_finite(frame, inputs, "Fill in or delete those rows.")
    for name, categories in encoding.categorical.items():
        unseen = sorted(set(frame[name].astype(str)) - set(categories))
        if unseen:
            shown = ", ".join(map(repr, unseen[:5]))
            print(
                f"note: column {name!r} holds values not seen in training ({shown}); they count as "
                f"none of its categories",
                file=sys.stderr,
            )
    x = encoding.inputs(frame)
    density = result.predict(x)
    means, deviations = np.asarray(mean(density)), np.sqrt(np.asarray(variance(density)))
    quantiles = {p: np.asarray(quantile(density, p)) for p in arguments.quantile}
    output = pd.DataFrame(index=frame.index)
    for d, target in enumerate(encoding.targets):
        output[f"{target}_mean"] = means[:, d]
        output[f"{target}_sd"] = deviations[:, d]
        for p, values in quantiles.items():
            output[f"{target}_q{p:g}"] = values[:, d]
    if all(target in frame.columns for target in encoding.targets):
        require_numeric(frame, encoding.targets)
        y = encoding.outputs(frame.apply(pd.to_numeric, errors="coerce"))
        known = np.isfinite(y).all(axis=1)  # a new table may lack some answers
        filled = np.where(known[:, None], y, 0.0)
        output["log_density"] = np.where(known, np.asarray(result.log_prob(x, filled)), np.nan)
    text = output.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if arguments.out is None:
        print(text, end="")
    else:
        Path(arguments.out).write_text(text)
        print(f"{len(frame)} rows written to {arguments.out}")
