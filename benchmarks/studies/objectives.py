"""``python -m benchmarks.studies.objectives --data DIR``: epochs, seconds and NLL by objective.

Every objective trains the same network from the same start with the same optimizer, and is stopped
by its own validation loss. "Epochs to" counts those until the validation NLL is within 0.05 nats of
the best that the likelihood itself reaches on that seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import jaxmdn
from benchmarks.studies import cells, problems
from jaxmdn import losses, train

PROBLEMS = ("inverse", "boston", "concrete", "energy", "taxi")
NEAR = 0.05  # nats


def _fit(model: Any, problem: problems.Problem, seed: int, **options: Any) -> Any:
    return train.fit(model, problem.x, problem.y, seed=seed, progress=False, **options)


def _plain(loss: Any) -> Callable[..., Any]:
    options = {} if loss is None else {"loss": loss}
    return lambda model, problem, seed: _fit(model, problem, seed, **options)


def _winners(model: Any, problem: problems.Problem, seed: int) -> Any:
    """Half of the components learn each target for 20 epochs, then one; then the likelihood."""
    count = model.head.num_components
    for winners in (count // 2, 1):
        loss = train.objective(losses.winner_takes_all, num_winners=winners)
        options = {"num_epochs": 20, "patience": None, "initialize": winners > 1}
        _fit(model, problem, seed, loss=loss, **options)
    return _fit(model, problem, seed, initialize=False)


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "nll": _plain(None),
    "beta_nll 0.5": _plain(train.objective(losses.beta_nll, beta=0.5)),
    "natural_em": _plain(train.objective(losses.natural_em)),
    "crps": _plain(train.objective(jaxmdn.crps)),
    "energy": _plain(train.objective(jaxmdn.energy_score, num_samples=8, reparameterize=True)),
    "noise 0.05": _plain(train.objective(jaxmdn.nll, x_noise=0.05, y_noise=0.05)),
    "winners, nll": _winners,
}


def run(data: Path | None, problem: str, objective: str, seed: int) -> dict[str, Any] | None:
    """Train once; the validation NLL of every epoch, the test NLL of the one that was kept."""
    rows = problems.load(problem, data, seed)
    if objective == "beta_nll 0.5" and rows.y.shape[1] > 1:
        return None  # full covariance has no scale of its own in every dimension
    model = jaxmdn.nn.MDN(rows.x.shape[1], rows.head, rngs=nnx.Rngs(seed))
    result = OBJECTIVES[objective](model, rows, seed)
    return {
        "valid_nll": [round(float(value), 4) for value in result.history["valid_nll"]],
        "seconds": [round(float(value), 3) for value in result.history["seconds"]],
        "best_epoch": int(result.best_epoch),
        "test_nll": -float(np.mean(result.log_prob(rows.x_test, rows.y_test))),
    }


def summary(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """By problem and objective, over the seeds: test NLL, epochs to the goal, seconds of an epoch.

    The latter are the median of a run, so that those of compiling do not count.
    """
    goals = {
        (record["problem"], record["seed"]): min(record["valid_nll"]) + NEAR
        for record in records
        if record["objective"] == "nll"
    }
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for record in records:
        near = np.asarray(record["valid_nll"]) <= goals[record["problem"], record["seed"]]
        first = int(np.argmax(near)) if near.any() else None
        epochs = np.nan if first is None else first
        seconds = float(np.median(np.diff(record["seconds"])))
        key = (record["problem"], record["objective"])
        rows.setdefault(key, []).append((record["test_nll"], epochs, seconds))
    names = ("test_nll", "epochs", "seconds")
    return {
        key: dict(zip(names, np.array(values, float).T, strict=True))
        for key, values in rows.items()
    }


def table(found: dict[tuple[str, str], dict[str, np.ndarray]]) -> str:
    """Test NLL and its standard error; in brackets the median epochs to the goal, and how often.

    Beside it the milliseconds of an epoch.
    """

    def cell(own: dict[str, np.ndarray]) -> str:
        reached = np.isfinite(own["epochs"])
        epochs = f"{np.median(own['epochs'][reached]):.0f}" if reached.any() else "-"
        return f"{cells.show(own['test_nll'])} ({epochs}; {reached.sum()}/{len(reached)})"

    def pace(own: dict[str, np.ndarray]) -> str:
        return f"{1000 * np.median(own['seconds']):.2g}"

    problems, objectives = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    return "\n\n".join(
        cells.table(
            corner,
            problems,
            {
                objective: [
                    show(found[name, objective]) if (name, objective) in found else ""
                    for name in problems
                ]
                for objective in objectives
            },
        )
        for corner, show in (("", cell), ("ms an epoch", pace))
    )


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Validation NLL by epoch, a panel a problem, the first seed."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["problem"] for record in records))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.6), squeeze=False)
    colors = {name: f"C{number}" for number, name in enumerate(OBJECTIVES)}
    for ax, name in zip(axes[0], names, strict=True):
        own = [r for r in records if r["problem"] == name]
        first = min(r["seed"] for r in own)
        lowest = min(min(r["valid_nll"]) for r in own if r["seed"] == first)
        for record in own:
            if record["seed"] == first:
                label = record["objective"]
                ax.plot(record["valid_nll"], lw=1.2, color=colors[label], label=label)
        ax.set(title=name, xlabel="epoch", xscale="symlog", ylim=(lowest - 0.1, lowest + 1.5))
    axes[0, 0].set_ylabel("validation NLL, nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside lower center")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, a table and a plot."""
    parser = cells.parser("objectives", __doc__, seeds=5)
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    given = parser.parse_args(argv)
    wanted = [
        {"problem": problem, "objective": objective, "seed": seed}
        for problem in given.problems
        for objective in given.objectives
        for seed in range(given.seeds)  # innermost: a program serves them all
    ]
    records = cells.complete(
        given.out / "objectives.json", wanted, partial(run, given.data), report=given.report
    )
    text = table(summary(records))
    (given.out / "objectives.md").write_text(text + "\n")
    draw(records, given.out / "objectives.png")
    print(text)


if __name__ == "__main__":
    main()
