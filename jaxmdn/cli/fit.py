"""``jaxmdn fit``: a density network for a user's own table."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from jaxmdn import __version__, calibration, plots
from jaxmdn.cli import evaluate
from jaxmdn.cli.errors import UsageError, nonnegative_float, positive_int
from jaxmdn.cli.table import (
    Encoding,
    add_format,
    detect,
    families_of,
    read_table,
    row_weights,
)
from jaxmdn.heads import COVARIANCES, FactorizedHead, Head, NormalHead
from jaxmdn.nn import MDN
from jaxmdn.train import FitResult, NonFiniteLossError, checkpoint, folders
from jaxmdn.train import fit as train
from jaxmdn.train.standardize import unresolved
from jaxmdn.train.targets import check_targets

PICTURES = ("training", "components", "pit", "reliability", "predictions", "densities")
OUTPUTS = {"model", "summary.json", *(f"{name}.png" for name in PICTURES)}


def add_parser(commands: Any) -> None:
    """Add ``fit`` to the command line."""
    parser = commands.add_parser(
        "fit",
        help="train on your own CSV table; write the model, a table and pictures",
        description=(
            "Train a mixture density network on a CSV table (one header line). Columns that are "
            "not targets become inputs: numbers as they are, text with few distinct values as "
            "categories. Scores are measured on held-back rows, in the targets' own units."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, count, share = parser.add_argument, positive_int, nonnegative_float
    add("file", help="CSV file with a header line")
    add(
        "--target", action="append", required=True, metavar="COL[:FAMILY]",
        help="a column to predict, with its family (price:lognormal); repeat for several",
    )  # fmt: skip
    add("--out", default="fit", help="folder to write")
    add("--force", action="store_true", help="replace a folder that an earlier fit wrote")
    add("--drop", action="append", default=[], metavar="COL", help="ignore a column; repeatable")
    add("--weights", metavar="COL", help="column of row weights")
    add_format(add)
    add("--max-categories", type=count, default=20, metavar="N", help="most values of a category")
    add("--components", type=count, default=5, metavar="K", help="components of the mixture")
    add("--covariance", choices=COVARIANCES, help="by default full for several targets")
    add("--min-scale", type=share, default=1e-3, help="scale floor, in standard deviations")
    add("--min-weight", type=share, default=0.0, help="floor of every mixing coefficient")
    add("--hidden", type=count, nargs="+", default=[64, 64], metavar="N", help="layer widths")
    add("--dropout", type=share, default=0.0, help="share of units dropped in training")
    add("--epochs", type=count, default=500, help="passes over the rows, at most")
    add("--patience", type=count, default=50, help="epochs without improvement before stopping")
    add("--batch-size", type=count, default=64, help="rows a step")
    add("--learning-rate", type=share, default=2e-3, help="of AdamW")
    add("--weight-decay", type=share, default=1e-2, help="of AdamW")
    add("--test", type=share, default=0.2, help="share of rows held back for the scores")
    add("--seed", type=int, default=0, help="of the split, the network and the shuffling")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command: everything is written at the end, all of it or nothing."""
    out = Path(arguments.out)
    if not 0.0 < arguments.test < 1.0:
        raise UsageError(f"--test must lie between 0 and 1, got {arguments.test:g}.")
    frame = read_table(arguments.file, arguments.sep, arguments.decimal)
    families = families_of(frame, arguments.target)
    encoding = detect(
        frame, list(families), arguments.drop, arguments.max_categories, arguments.weights
    )
    weights = row_weights(frame, arguments.weights)
    _check_out(out, arguments.force)
    x, y = encoding.inputs(frame), encoding.outputs(frame)
    fine = unresolved(y)
    if len(fine):
        raise UsageError(
            f"the target {encoding.targets[fine[0]]!r} varies little around a large value "
            f"({y[:, fine[0]].mean():.6g}), which 32-bit numbers cannot resolve; subtract a "
            f"constant from the column."
        )
    model = _build(arguments, encoding, tuple(families.values()))
    try:
        check_targets(model.head, y)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(f"{arguments.file}: {len(frame)} rows")
    print("\n".join("  " + line for line in encoding.describe()))
    repeated = int(frame.duplicated().sum())
    if repeated:
        print(f"  note         {repeated} rows repeat others: the scores may flatter")
    print()

    order = np.random.default_rng(abs(arguments.seed)).permutation(len(x))
    count = min(max(1, round(arguments.test * len(x))), len(x) - 2)
    test, rest = order[:count], order[count:]
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(arguments.learning_rate, weight_decay=arguments.weight_decay),
    )
    try:
        result = train(
            model, x[rest], y[rest], optimizer=optimizer, num_epochs=arguments.epochs,
            weights=None if weights is None else weights[rest],
            batch_size=arguments.batch_size, patience=arguments.patience, seed=arguments.seed,
            progress=not arguments.quiet,
        )  # fmt: skip
    except NonFiniteLossError as error:
        raise UsageError(str(error)) from None

    density = result.predict(x[test])
    linear = evaluate.linear_gaussian(x[rest], y[rest], x[test])
    rows = evaluate.scores("mixture density network", density, y[test], encoding.targets)
    rows += evaluate.scores("linear Gaussian", linear, y[test], encoding.targets)
    print(f"\nOn {len(test)} held-back rows:")
    print(evaluate.format_table(rows) + "\n" + evaluate.LEGEND)
    notes = {"encoding": encoding.to_config(), "file": Path(arguments.file).name}
    _write(out, arguments, result, notes, rows, (x[test], y[test]), encoding)
    print(f"\nwritten to {out}/: model/, summary.json, {', '.join(f'{n}.png' for n in PICTURES)}")
    print(f"predict with: jaxmdn predict {out} NEW.csv")


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


def _build(arguments: argparse.Namespace, encoding: Encoding, families: tuple[str, ...]) -> MDN:
    dim = len(encoding.targets)
    covariance = arguments.covariance or ("full" if dim > 1 else "diagonal")
    try:
        floors = {"min_scale": arguments.min_scale, "min_weight": arguments.min_weight}
        head: Head = NormalHead(arguments.components, dim, covariance=covariance, **floors)
        if set(families) != {"normal"}:
            if arguments.covariance not in (None, "diagonal"):
                raise UsageError("--covariance is for normal targets; leave one of them out.")
            head = FactorizedHead(families, arguments.components, **floors)
            jumps = np.flatnonzero(head.density_shape.jumps)
            if len(jumps):
                raise UsageError(
                    f"--target {encoding.targets[jumps[0]]}:{families[jumps[0]]}: this command's "
                    f"regions and pictures need a density, and counts have none; in Python, "
                    f"jaxmdn.estimator.MDNRegressor(family={families[jumps[0]]!r}) takes them."
                )
        return MDN(
            encoding.num_features, head, hidden_features=arguments.hidden,
            dropout=arguments.dropout, rngs=nnx.Rngs(arguments.seed),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def _write(
    out: Path, arguments: argparse.Namespace, result: FitResult, notes: dict[str, Any],
    rows: list[dict[str, Any]], held_back: tuple[np.ndarray, np.ndarray], encoding: Encoding,
) -> None:  # fmt: skip
    x, y = held_back
    density = result.predict(x)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        checkpoint.save(scratch / "model", result, notes=notes)
        options = {key: value for key, value in vars(arguments).items() if key != "run"}
        summary = {
            "jaxmdn": __version__,
            "jax": jax.__version__,
            "options": options,
            "test_rows": len(x),
            "best_epoch": result.best_epoch,
            "scores": rows,
            **notes,
        }
        evaluate.write_json(scratch / "summary.json", summary)
        _draw(scratch, result, density, y, encoding.targets)
        scratch.chmod(0o755)
        folders.replace(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _draw(
    folder: Path, result: FitResult, density: Any, y: np.ndarray, targets: Sequence[str]
) -> None:
    def save(name: str, figure: Any) -> None:
        evaluate.save_figure(figure, folder / f"{name}.png")

    best = result.best_epoch
    save("training", plots.training_curve(result.history, best_epoch=best).figure)
    save("components", plots.component_usage(result.history, best_epoch=best).figure)
    pit = np.asarray(calibration.pit(density, jnp.asarray(y)))
    drawn = {name: _panels(len(targets)) for name in ("pit", "reliability", "predictions")}
    for d, target in enumerate(targets):
        pit_ax, curve_ax, points_ax = (axes[d] for _, axes in drawn.values())
        plots.pit_histogram(pit[:, d], num_bins=_bins(len(y)), ax=pit_ax).set_title(target)
        plots.reliability_curve(pit[:, d], ax=curve_ax).set_title(target)
        plots.predicted_against_actual(density, y, dim=d, name=target, ax=points_ax)
    for name, (figure, _) in drawn.items():
        save(name, figure)
    rows = np.linspace(0, len(y) - 1, min(6, len(y))).astype(int)
    figure, axes = _panels(len(rows))
    for row, ax in zip(rows, axes, strict=True):
        single = density[row]
        if len(targets) == 1:
            plots.density(single, value=y[row, 0], ylabel=targets[0], ax=ax)
        else:
            plots.contours(single, ax=ax, xlabel=targets[0], ylabel=targets[1])
            ax.plot(*y[row, :2], "k*", ms=9, label="observed")
            ax.legend(frameon=False)
        ax.set_title(f"held-back row {row + 1}", fontsize=10)
    save("densities", figure)


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def _bins(count: int) -> int:
    return int(np.clip(count // 15, 5, 20))
