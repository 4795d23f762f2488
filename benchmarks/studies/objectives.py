"""``python -m benchmarks.studies.objectives --data DIR``: epochs, seconds and NLL by objective.

Every objective trains the same network from the same start with the same optimizer, and is stopped
by its own validation loss. "Epochs to" counts those until the validation NLL is within 0.05 nats of
the best that the likelihood itself reaches on that seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import jaxmdn
from benchmarks import environment
from benchmarks.studies import problems
from jaxmdn import losses, train

RESULTS = Path(__file__).parents[1] / "results"
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


def run(name: str, objective: str, data: Path | None, seed: int) -> dict[str, Any]:
    """Train once; the validation NLL of every epoch, the test NLL of the one that was kept."""
    problem = problems.load(name, data, seed)
    if objective == "beta_nll 0.5" and problem.y.shape[1] > 1:
        return {}  # full covariance has no scale of its own in every dimension
    model = jaxmdn.nn.MDN(problem.x.shape[1], problem.head, rngs=nnx.Rngs(seed))
    start = time.perf_counter()
    result = OBJECTIVES[objective](model, problem, seed)
    seconds = time.perf_counter() - start
    return {
        "problem": name,
        "objective": objective,
        "seed": seed,
        "valid_nll": [round(float(value), 4) for value in result.history["valid_nll"]],
        "seconds": [round(float(value), 3) for value in result.history["seconds"]],
        "best_epoch": int(result.best_epoch),
        "test_nll": -float(np.mean(result.log_prob(problem.x_test, problem.y_test))),
        "total_seconds": seconds,
    }


def summary(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """By problem and objective, over the seeds: test NLL, epochs and seconds to the goal."""
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
        seconds = np.nan if first is None else record["seconds"][first]
        key = (record["problem"], record["objective"])
        rows.setdefault(key, []).append((record["test_nll"], epochs, seconds))
    names = ("test_nll", "epochs", "seconds")
    return {
        key: dict(zip(names, np.array(values, float).T, strict=True))
        for key, values in rows.items()
    }


def table(found: dict[tuple[str, str], dict[str, np.ndarray]]) -> str:
    """Test NLL and its standard error; in brackets the median epochs to the goal, and how often."""
    names = list(dict.fromkeys(problem for problem, _ in found))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for objective in dict.fromkeys(objective for _, objective in found):
        cells = []
        for name in names:
            if (name, objective) not in found:
                cells.append("")
                continue
            own = found[name, objective]
            values, reached = own["test_nll"], np.isfinite(own["epochs"])
            spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            epochs = f"{np.median(own['epochs'][reached]):.0f}" if reached.any() else "-"
            cells.append(
                f"{values.mean():.3f} ± {spread:.3f} ({epochs}; {reached.sum()}/{len(values)})"
            )
        lines.append(f"| {objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Validation NLL by epoch, a panel a problem, the first seed."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["problem"] for record in records))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        own = [r for r in records if r["problem"] == name]
        first = min(r["seed"] for r in own)
        lowest = min(min(r["valid_nll"]) for r in own if r["seed"] == first)
        for record in own:
            if record["seed"] == first:
                ax.plot(record["valid_nll"], lw=1.2, label=record["objective"])
        ax.set(title=name, xlabel="epoch", xscale="symlog", ylim=(lowest - 0.1, lowest + 1.5))
    axes[0, 0].set_ylabel("validation NLL, nats")
    axes[0, -1].legend(frameon=False, fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, a table and a plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.objectives")
    parser.add_argument("--data", type=Path, help="folder with uci/ and taxi/")
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "objectives.json"
    records = json.loads(path.read_text())["records"] if path.exists() else []
    done = {(r["problem"], r["objective"], r["seed"]) for r in records}
    for seed in range(arguments.seeds):
        for name in arguments.problems:
            for objective in arguments.objectives:
                if (name, objective, seed) in done:
                    continue
                record = run(name, objective, arguments.data, seed)
                if not record:
                    continue
                records.append(record)
                path.write_text(json.dumps({**environment.describe(), "records": records}))
                shown = f"{record['test_nll']:.3f} after {record['total_seconds']:.0f} s"
                print(f"{name} {seed} {objective}: {shown}", flush=True)
    (arguments.out / "objectives.md").write_text(table(summary(records)) + "\n")
    draw(records, arguments.out / "objectives.png")
    print(table(summary(records)))


if __name__ == "__main__":
    main()
