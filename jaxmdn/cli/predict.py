"""``jaxmdn predict``: apply a saved network to new rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxmdn.cli.errors import UsageError, positive_int, probability
from jaxmdn.cli.evaluate import class_probabilities
from jaxmdn.cli.inputs import require_columns
from jaxmdn.cli.reading import Format, add_format, read_table
from jaxmdn.cli.trained import Trained
from jaxmdn.export.program import parameters
from jaxmdn.inference import hdr_intervals, quantile
from jaxmdn.mixture import mean, sample, variance
from jaxmdn.train import padding

PIECE = padding.MOST  # rows at a time, so that memory does not grow with the table
DIGITS = "%.9g"  # what a 32-bit number holds


def add_parser(commands: Any) -> None:
    """Add ``predict`` to the command line."""
    parser = commands.add_parser(
        "predict",
        help="predict with a model that `jaxmdn fit` wrote",
        description=(
            "Write, for each row of a table, the mean and standard deviation of each target (of "
            "classes their probabilities), what else is asked for, and the log-density (nats) "
            "where the table holds the targets. A row that lacks what no row lacked in training "
            "has empty predictions."
        ),
    )
    add = parser.add_argument
    add("model", help="the folder that `jaxmdn fit` wrote")
    add("file", help="CSV or Parquet file with the input columns")
    add("--out", help="CSV file to write (default: standard output)")
    add("--keep", action="append", default=[], metavar="COL", help="copy a column; repeatable")
    add(
        "--quantile", type=probability, action="append", default=[], metavar="P",
        help="also this quantile, for example 0.95; repeatable",
    )  # fmt: skip
    add(
        "--interval", type=probability, action="append", default=[], metavar="LEVEL",
        help="also the ends of this central interval; repeatable",
    )  # fmt: skip
    add(
        "--region", type=probability, metavar="LEVEL",
        help="also the intervals of this highest-density region, of a single real target",
    )  # fmt: skip
    add("--samples", type=positive_int, metavar="N", help="also N draws of each target")
    add("--seed", type=int, default=0, help="of the draws")
    add("--parameters", action="store_true", help="also the parameters of each row's mixture")
    add_format(add, "default: as in fit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    trained = Trained.load(arguments.model)
    if arguments.out is not None:
        out = Path(arguments.out)
        if out.resolve() == Path(arguments.file).resolve():
            raise UsageError(f"--out {out} is the table itself; choose another file.")
        if out.is_dir() or not out.absolute().parent.is_dir():
            raise UsageError(f"--out {out} cannot be written: name a file in an existing folder.")
    if trained.targets.classes and (arguments.quantile or arguments.interval or arguments.region):
        raise UsageError("classes have no order: no quantiles, intervals or regions of them.")
    frame = read_table(arguments.file, Format.of(arguments, trained.form))
    require_columns(frame, arguments.keep, "--keep")
    _say_what_is_new(trained, trained.inputs.prepare(frame))
    y = np.full((len(frame), len(trained.targets.names)), np.nan)
    if all(target in frame.columns for target in trained.targets.names):
        y = trained.targets.values(frame)
    parts = []
    for start in range(0, len(frame), PIECE):
        own = slice(start, start + PIECE)
        parts.append(_predicted(arguments, trained, frame.iloc[own], y[own], start))
    output = pd.concat([frame[arguments.keep], pd.concat(parts)], axis=1)
    text = output.to_csv(index=False, float_format=DIGITS, lineterminator="\n")
    if arguments.out is None:
        print(text, end="")
    else:
        Path(arguments.out).write_text(text)
        print(f"{len(frame)} rows written to {arguments.out}")


def _predicted(
    arguments: argparse.Namespace, trained: Trained, frame: pd.DataFrame, y: np.ndarray, start: int
) -> pd.DataFrame:
    """The answers for some rows and their targets ``y [N, D]``, the first of number ``start``."""
    known, density = trained.is_known(frame), trained.predict(frame)
    key = jax.random.fold_in(jax.random.key(arguments.seed), start)
    found: dict[str, Any] = {}
    for name, values in _answers(arguments, trained, density, key):
        nothing: Any = "" if values.dtype == object else np.nan
        found[name] = np.where(known, values, nothing)
    if all(target in frame.columns for target in trained.targets.names):
        scored = known & np.isfinite(y).all(axis=1)  # a new table may lack some answers
        filled = np.where(scored[:, None], y, y[scored][:1] if scored.any() else 0.0)
        log_density = np.where(scored, trained.log_prob(frame, filled), np.nan)
        found["log_probability" if density.discrete else "log_density"] = log_density
    return pd.DataFrame(found, index=frame.index)


def _say_what_is_new(trained: Trained, frame: pd.DataFrame) -> None:
    """Notes on standard error: categories never met, gaps where there were none."""
    columns = trained.columns
    for number, name in enumerate(trained.inputs.kinds):
        unseen = columns.unseen(frame[name], number)
        if unseen:
            shown = ", ".join(map(repr, unseen[:5]))
            print(
                f"note: column {name!r} holds values not seen in training ({shown}); they count as "
                f"none of its categories",
                file=sys.stderr,
            )
        gaps = int(frame[name].isna().sum())
        if gaps and not columns.gaps[number] and not columns.categories[number]:
            print(
                f"note: column {name!r} is empty in {gaps} row(s), but never was in training; "
                f"nothing is predicted for them",
                file=sys.stderr,
            )


def _answers(
    arguments: argparse.Namespace, trained: Trained, density: Any, key: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Names of columns and values ``[N]``."""
    names = trained.targets.names
    if trained.targets.classes:
        shares = class_probabilities(density).T
        yield names[0], np.array(trained.targets.classes, object)[shares.argmax(axis=0)]
        for label, share in zip(trained.targets.classes, shares, strict=True):
            yield f"{names[0]}={label}", share
    else:
        means, deviations = np.asarray(mean(density)), np.sqrt(np.asarray(variance(density)))
        levels = {f"q{p:g}": p for p in arguments.quantile}
        for level in arguments.interval:
            levels |= {
                f"{level:g}_low": 0.5 - 0.5 * level, f"{level:g}_high": 0.5 + 0.5 * level
            }  # fmt: skip
        quantiles = {name: np.asarray(quantile(density, p)) for name, p in levels.items()}
        for d, target in enumerate(names):
            yield f"{target}_mean", means[:, d]
            yield f"{target}_sd", deviations[:, d]
            for name, values in quantiles.items():
                yield f"{target}_{name}", values[:, d]
    if arguments.region:
        yield from _region(names, density, arguments.region)
    if arguments.samples:
        draws: Any = np.asarray(sample(key, density, arguments.samples))
        if trained.targets.classes:
            draws = np.array(trained.targets.classes, object)[draws.astype(int)]
        for number, d in np.ndindex(len(draws), len(names)):
            yield f"{names[d]}_draw{number + 1}", draws[number, :, d]
    if arguments.parameters:
        for name, leaf in parameters(density).items():
            table = np.broadcast_to(leaf, (density.batch_shape[0], *leaf.shape[1:]))
            for place in np.ndindex(table.shape[1:]):
                yield "_".join([name, *(str(i + 1) for i in place)]), table[:, *place]


def _region(names: list[str], density: Any, level: float) -> Iterator[tuple[str, np.ndarray]]:
    if len(names) > 1 or density.discrete:
        raise UsageError("--region is for a single target of real numbers; try --interval.")
    region = hdr_intervals(density, level)
    lower, upper = np.asarray(region.lower), np.asarray(region.upper)
    used = np.isfinite(lower) & np.isfinite(upper)
    order = np.argsort(np.where(used, lower, np.inf), axis=1, kind="stable")
    for place in range(int(used.sum(axis=1).max())):
        chosen = order[:, place, None]
        own = np.take_along_axis(used, chosen, axis=1)[:, 0]
        for end, values in (("low", lower), ("high", upper)):
            picked = np.take_along_axis(values, chosen, axis=1)[:, 0]
            yield f"{names[0]}_hdr{level:g}_{end}{place + 1}", np.where(own, picked, np.nan)
