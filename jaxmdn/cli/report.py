"""``jaxmdn report``: one HTML page about a fit, that needs nothing beside it."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from jaxmdn import __version__, plots
from jaxmdn.cli import evaluate, pictures
from jaxmdn.cli.errors import UsageError
from jaxmdn.cli.reading import Format, add_format, read_table
from jaxmdn.cli.trained import Trained
from jaxmdn.inference import quantile
from jaxmdn.train import EnsembleResult

WORST, REPEATS, MOST_ROWS = 10, 3, 2000
TITLES = {
    "training": ("Training", "Loss by epoch, and the parameters that were kept."),
    "components": ("Components", "Average weight of each by epoch; one at zero has died."),
    "pit": ("Calibration", "Probabilities of what came: bars within the band, if calibrated."),
    "reliability": ("Reliability", "Share of targets below each predicted quantile."),
    "predictions": ("Predictions", "What came, against the predicted mean and deviation."),
    "densities": ("Six rows", "Predicted, and what came."),
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem;
  color: #1a1a1a; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem }
p { margin: .3rem 0 .8rem; max-width: 48rem; color: #444 }
.wide { overflow-x: auto } img { max-width: 100%; height: auto; display: block }
.wide img { min-width: 44rem } section.wide { grid-column: 1 / -1 }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0 }
dt { color: #555 } dd { margin: 0; overflow-wrap: anywhere }
"""


def add_parser(commands: Any) -> None:
    """Add ``report`` to the command line."""
    parser = commands.add_parser(
        "report",
        help="write one HTML page about a fit",
        description=(
            "Write a page about the rows that `jaxmdn fit` held back, or those of another table "
            "with the targets: scores, calibration, what each input is worth, the worst rows. "
            "Pictures are inside the page."
        ),
    )
    add = parser.add_argument
    add("model", help="the folder that `jaxmdn fit` wrote")
    add("--table", metavar="FILE", help="rows to judge by (default: those held back)")
    add("--out", metavar="FILE", help="page to write (default: report.html in the folder)")
    add_format(add, "default: as in fit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder = Path(arguments.model)
    trained = Trained.load(arguments.model)
    summary_path, held_back = folder / "summary.json", next(folder.glob("held_back.*"), None)
    if not summary_path.is_file() or not (arguments.table or held_back):
        raise UsageError(f"{folder} was not written by `jaxmdn fit`: summary.json is missing.")
    out = Path(arguments.out or folder / "report.html")
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise UsageError(f"--out {out} cannot be written: name a file in an existing folder.")
    summary = json.loads(summary_path.read_text())
    if arguments.table:
        frame = read_table(arguments.table, Format.of(arguments, trained.form))
        numbers, scores = np.arange(len(frame)) + 1, None
    elif held_back is not None:
        frame = read_table(held_back, Format(sep=","))
        numbers, scores = np.array(summary["held_back_rows"]), summary["scores"]
    y = trained.targets.values(frame)
    known = trained.is_known(frame) & np.isfinite(y).all(axis=1)
    if known.sum() < 2:
        raise UsageError("fewer than two rows have all inputs and targets; name another --table.")
    frame, y, numbers = frame[known], y[known], numbers[known]
    out.write_text(page(trained, summary, scores, frame, y, numbers), encoding="utf-8")
    print(f"{len(frame)} rows: written to {out}")


def page(
    trained: Trained,
    summary: dict[str, Any],
    scores: list[dict[str, Any]] | None,
    frame: pd.DataFrame,
    y: np.ndarray,
    numbers: np.ndarray,
) -> str:
    """The page as text.

    Args:
      trained: what was trained.
      summary: of ``fit``.
      scores: rows of the table of scores; None: of these rows.
      frame, y, numbers: rows to judge by, their targets ``[N, D]`` and numbers in their file.
    """
    targets, density = trained.targets, trained.predict(frame)
    own = trained.targets.whole(y)
    if scores is None:
        scores = trained.scores("network", density, y)
    log_prob = trained.log_prob(frame, y)
    body = [
        f"<h1>{html.escape(', '.join(targets.names))}</h1>",
        _facts(trained, summary, len(frame)),
        "<h2>Scores</h2>",
        f"<p>{evaluate.CLASS_LEGEND if targets.classes else evaluate.LEGEND}</p>",
        _table(scores),
    ]
    result, names = trained.result, targets.names
    drawn = pictures.draw(result, density, y, names, numbers.tolist(), targets.classes)
    sections = []
    for name, figure in drawn:
        title, text = TITLES[name]
        kind = "wide" if figure.get_size_inches()[0] > 6 else "narrow"
        picture = f'<div class="{kind}">{_picture(figure, title)}</div>'
        sections.append(f'<section class="{kind}"><h2>{title}</h2><p>{text}</p>{picture}</section>')
    body.append(f'<div class="grid">{"".join(sections)}</div>')
    if targets.classes:
        body += ["<h2>Classes</h2><p>What came (rows) and the likeliest class (columns).</p>"]
        body.append(_table(_confusion(density, own, targets.classes)))
    body += [
        "<h2>What each input is worth</h2>",
        "<p>Nats a row that are lost where its column is shuffled, with twice the standard error "
        f"over {REPEATS} shuffles. Inputs that say the same share their worth.</p>",
        _importance(trained, frame, y, log_prob),
        "<h2>The least likely rows</h2>",
        "<p>What came, what was predicted, and the logarithm of its "
        f"{'probability' if density.discrete else 'density'} (nats).</p>",
        _table(list(_worst(trained, density, own, numbers, log_prob))),
    ]
    title = html.escape(f"jaxmdn: {', '.join(targets.names)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _facts(trained: Trained, summary: dict[str, Any], rows: int) -> str:
    result = trained.result
    several = isinstance(result, EnsembleResult)
    kinds = {name: "" if k == "number" else f" ({k})" for name, k in trained.inputs.kinds.items()}
    facts = {
        "table": f"{summary['file']}, {rows} rows judged here",
        "density": repr(result.model.head),
        "network": str(result) if several else "one",
        "inputs": ", ".join(name + kind for name, kind in kinds.items()),
        "left out": "; ".join(f"{name}: {why}" for name, why in trained.inputs.dropped.items()),
        "versions": f"jaxmdn {__version__}; trained with {summary['jaxmdn']}, jax {summary['jax']}",
    }  # fmt: skip
    cells = [f"<dt>{key}</dt><dd>{html.escape(text)}</dd>" for key, text in facts.items() if text]
    return f"<dl>{''.join(cells)}</dl>"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [name.replace("coverage_", "in ").replace("hdr_", "in hdr ") for name in names]
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in shown)]
    for row in rows:
        cells = (row.get(name) for name in names)
        lines.append("".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in cells))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _picture(figure: Any, title: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    plt.close(figure)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{text}">'


def _confusion(density: Any, y: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    likeliest = evaluate.class_probabilities(density).argmax(axis=1)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (y[:, 0].astype(int), likeliest), 1)
    return [
        {"": label, **{name: int(count) for name, count in zip(classes, row, strict=True)}}
        for label, row in zip(classes, counts, strict=True)
    ]


def _importance(trained: Trained, frame: pd.DataFrame, y: np.ndarray, log_prob: np.ndarray) -> str:
    """Bars of permutation importance (Breiman 2001, section 10), of the table's own columns."""
    rng, names = np.random.default_rng(0), list(trained.inputs.kinds)
    rows = rng.permutation(len(frame))[:MOST_ROWS]
    frame, y, before = frame.iloc[rows], y[rows], log_prob[rows].mean()
    lost = np.empty((REPEATS, len(names)))
    for (repeat, column), _ in np.ndenumerate(lost):
        own = frame[names[column]].to_numpy()[rng.permutation(len(frame))]
        shuffled = frame.assign(**{names[column]: pd.Series(own, index=frame.index)})
        lost[repeat, column] = before - trained.log_prob(shuffled, y).mean()
    mean, error = lost.mean(axis=0), lost.std(axis=0, ddof=1) / REPEATS**0.5
    order = np.argsort(mean)[-20:]
    figure, ax = plt.subplots(figsize=(7, 0.6 + 0.32 * len(order)), layout="constrained")
    ax.barh(range(len(order)), mean[order], xerr=2 * error[order], color=plots.BLUE)
    ax.set_yticks(range(len(order)), [names[i][:40] for i in order])
    ax.set(xlabel="nats a row")
    return _picture(figure, "What each input is worth")


def _worst(
    trained: Trained, density: Any, y: np.ndarray, numbers: np.ndarray, log_prob: np.ndarray
) -> Iterator[dict[str, Any]]:
    targets, order = trained.targets, np.argsort(log_prob)[:WORST]
    if targets.classes:
        share = evaluate.class_probabilities(density)
        for i in order:
            yield {
                "data row": int(numbers[i]),
                targets.names[0]: targets.classes[int(y[i, 0])],
                "likeliest": targets.classes[int(share[i].argmax())],
                "log-probability": float(log_prob[i]),
            }
        return
    ends = np.asarray(quantile(density, [0.05, 0.5, 0.95]))  # [3, N, D]
    for i in order:
        row: dict[str, Any] = {"data row": int(numbers[i])}
        for d, name in enumerate(targets.names):
            row[name] = float(y[i, d])
            row[f"{name}: median"] = float(ends[1, i, d])
            row[f"{name}: 90 % interval"] = f"{ends[0, i, d]:.4g} to {ends[2, i, d]:.4g}"
        log = "log-probability" if density.discrete else "log-density"
        yield {**row, log: float(log_prob[i])}
