"""``python -m benchmarks.studies.effort --data DIR``: what more networks and longer training buy.

The cost of an ensemble is the number of passes of one network over the rows: networks times epochs.
It is the same on every machine; how many seconds it takes stands beside it.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import cells
from benchmarks.studies.problems import UCI
from benchmarks.uci import splits
from jaxmdn import train

SHORT, LONG = (10, 20, 40), (10, 20, 40, 80, 160, 320)
RECIPES = {
    "3 folds, 1 kind, 70 epochs": train.Recipe(folds=3, frequency_scales=(0.5,), cycles=SHORT),
    "3 folds, 70 epochs": train.Recipe(folds=3, cycles=SHORT),
    "5 folds, 70 epochs": train.Recipe(folds=5, cycles=SHORT),
    "fast": None,
    "5 folds": train.Recipe(folds=5, cycles=LONG),
    "default": None,
    "twice the networks": train.Recipe(members=2, cycles=LONG),
}


def run(data: Path, problem: str, recipe: str, split: int) -> dict[str, Any]:
    """One ensemble: test NLL, passes, seconds."""
    own = splits.split(*splits.read(data / "uci" / UCI[problem]), split)
    chosen, effort = RECIPES[recipe], recipe if RECIPES[recipe] is None else "default"
    start = time.process_time()
    result = train.fit_ensemble(
        own.x, own.y, recipe=chosen, effort=effort, seed=split, progress=False
    )
    epochs = int(result.history["epochs"][-1])
    arms = len((chosen or train.Recipe()).frequency_scales)
    networks = (int(result.folds.max()) + 1) * arms * (chosen.members if chosen else 1)
    return {
        "test_nll": -float(np.mean(result.log_prob(own.x_test, own.y_test))),
        "out_of_fold_nll": float(result.history["out_of_fold_nll"].min()),
        "passes": networks * epochs,
        "processor_seconds": time.process_time() - start,
    }


def draw(records: list[cells.Cell], path: Path) -> None:
    """Test NLL beside the default's on the same split, against passes; a panel a set."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["problem"] for record in records))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        default = _by_split(records, name, "default", "test_nll")
        for number, recipe in enumerate(RECIPES):
            nll = _by_split(records, name, recipe, "test_nll")
            gap = np.array([nll[split] - default[split] for split in nll if split in default])
            if not len(gap):
                continue
            passes = np.mean(list(_by_split(records, name, recipe, "passes").values()))
            error = gap.std(ddof=1) / len(gap) ** 0.5 if len(gap) > 1 else 0.0
            marker = "s" if recipe in ("fast", "default") else "o"
            point = (passes, gap.mean(), error)
            ax.errorbar(*point, fmt=marker, color=f"C{number}", capsize=3, label=recipe)
        ax.axhline(0, color="0.5", lw=1, ls=":")
        ax.set(title=name, xscale="log", xlabel="networks x epochs", xlim=(100, 1e5))
    axes[0, 0].set_ylabel("test NLL beside the default's, nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside lower center")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)


def _by_split(records: list[cells.Cell], problem: str, recipe: str, measured: str) -> Any:
    """What was measured on each split."""
    own = {"problem": problem, "recipe": recipe}
    return {one["split"]: one[measured] for one in records if own.items() <= one.items()}


def report(records: list[cells.Cell]) -> str:
    """A row a recipe: NLL, passes and processor seconds on each set."""
    names = list(dict.fromkeys(record["problem"] for record in records))
    rows = {}
    for recipe in RECIPES:
        rows[recipe] = []
        for name in names:
            own = {"problem": name, "recipe": recipe}
            passes, seconds = (
                cells.values(records, key, **own) for key in ("passes", "processor_seconds")
            )
            nll = cells.show(cells.values(records, "test_nll", **own))
            cost = f" ({passes.mean():,.0f}; {seconds.mean():.0f} s)" if len(passes) else ""
            rows[recipe].append(nll + cost)
    return cells.table("NLL (passes; processor seconds with compiling)", names, rows)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, a table and a plot."""
    parser = cells.parser("effort", __doc__, seeds=4)
    parser.add_argument("--problems", nargs="+", default=list(UCI))
    given = parser.parse_args(argv)
    wanted = [
        {"problem": problem, "recipe": recipe, "split": split}
        for split in range(given.seeds)
        for problem in given.problems
        for recipe in RECIPES
    ]
    records = cells.complete(
        given.out / "effort.json", wanted, partial(run, given.data), report=given.report
    )
    (given.out / "effort.md").write_text(report(records) + "\n")
    draw(records, given.out / "effort.png")
    print(report(records))


if __name__ == "__main__":
    main()
