"""``python -m benchmarks.studies.rows --data DIR``: learning curves, from 50 rows to 5,000."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import cells, problems
from benchmarks.uci import contenders, splits
from benchmarks.uci.scores import scores

SIZES = (50, 100, 200, 500, 1000, 5000)
NAMES = ("linear", "ngboost", "boosted_quantiles", "ensemble")
METRICS = {"nll": "NLL", "crps": "CRPS", "cde": "CDE loss", "coverage": "in 90 %"}
SCORED = 4000  # test rows


def load(data: Path, problem: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a set."""
    if problem == "taxi fares":
        return problems.taxi_fares(data / "taxi" / "nyc_traffic_a.csv")
    folder = {"power": "power-plant", "protein": "protein-tertiary-structure"}[problem]
    return splits.read(data / "uci" / folder)


def run(data: Path, problem: str, size: int, contender: str, seed: int) -> dict[str, Any]:
    """Train on ``size`` rows drawn at random; score on others."""
    x, y = load(data, problem)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[-size:], order[: min(SCORED, len(x) - size)]
    own = splits.Split(x[train], y[train], x[test], y[test], np.zeros(len(test), bool))
    found = scores(contenders.CONTENDERS[contender](own, seed), own)
    return {name: value for name, value in found.items() if name != "nll_fresh"}


def draw(records: list[cells.Cell], path: Path) -> None:
    """NLL and CRPS against the number of rows, a column a set."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["problem"] for record in records))
    size = (4.0 * len(names), 6.0)
    figure, axes = plt.subplots(2, len(names), figsize=size, squeeze=False, sharex=True)
    for column, name in zip(axes.T, names, strict=True):
        column[0].set_title(name)
        for ax, metric in zip(column, ("nll", "crps"), strict=True):
            for number, contender in enumerate(NAMES):
                own = {"problem": name, "contender": contender}
                each = {size: cells.values(records, metric, size=size, **own) for size in SIZES}
                each = {size: values for size, values in each.items() if len(values)}
                if each:
                    means = [values.mean() for values in each.values()]
                    ax.plot(list(each), means, "o-", ms=4, color=f"C{number}", label=contender)
            ax.set(xscale="log", ylabel=METRICS[metric])
            ax.grid(alpha=0.2)
        column[1].set_xlabel("rows to train on")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)


def report(records: list[cells.Cell]) -> str:
    """A table a set and metric, a column a size."""
    parts = []
    for name in dict.fromkeys(record["problem"] for record in records):
        for metric, title in METRICS.items():
            rows = {}
            for contender in NAMES:
                own = {"problem": name, "contender": contender}
                found = [cells.values(records, metric, size=size, **own) for size in SIZES]
                if any(map(len, found)):
                    rows[contender] = [cells.show(values) for values in found]
            parts.append(cells.table(f"{name}, {title}", [f"{size:,}" for size in SIZES], rows))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, tables and a plot."""
    parser = cells.parser("rows", __doc__, seeds=5)
    parser.add_argument("--problems", nargs="+", default=["power", "protein", "taxi fares"])
    parser.add_argument("--contenders", nargs="+", default=NAMES)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    given = parser.parse_args(argv)
    wanted = [
        {"problem": problem, "size": size, "contender": contender, "seed": seed}
        for size in given.sizes
        for problem in given.problems
        for contender in given.contenders
        for seed in range(given.seeds)  # innermost: a program serves them all
    ]
    records = cells.complete(
        given.out / "rows.json", wanted, partial(run, given.data), report=given.report
    )
    (given.out / "rows.md").write_text(report(records) + "\n")
    draw(records, given.out / "rows.png")
    print(report(records))


if __name__ == "__main__":
    main()
