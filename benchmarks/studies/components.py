"""``python -m benchmarks.studies.components --data DIR``: held-out NLL against K."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import jaxmdn
from benchmarks.studies import cells, problems
from jaxmdn import heads, train

COUNTS = (1, 2, 3, 5, 10, 20)
NAMES = ("inverse", "boston", "taxi")
FAMILIES = ("normal", "student_t")


def run(data: Path, problem: str, family: str, num_components: int, seed: int) -> Any:
    """One network of ``fit``, not trained again on all rows: NLL on new ones, components in use."""
    own = problems.load(problem, data, seed)
    if family == "normal":
        head = dataclasses.replace(own.head, num_components=num_components)
    elif problem not in problems.UCI:  # outliers are a matter of real data; taxi has two outputs
        return None
    else:
        head = heads.FactorizedHead(family, num_components)
    start = time.process_time()
    model = jaxmdn.nn.MDN(own.x.shape[1], head, rngs=nnx.Rngs(seed))
    result = train.fit(model, own.x, own.y, refit=False, seed=seed, progress=False)
    predicted = result.predict(own.x_test)
    return {
        "test_nll": -float(np.mean(result.log_prob(own.x_test, own.y_test))),
        "in_use": float(np.mean(jaxmdn.effective_num_components(predicted))),
        "epochs": len(result.history["seconds"]) - 1,
        "processor_seconds": time.process_time() - start,
    }


def draw(records: list[cells.Cell], path: Path) -> None:
    """NLL against K with its standard error, a panel a problem, a line a family."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["problem"] for record in records))
    figure, axes = plt.subplots(1, len(names), figsize=(3.1 * len(names), 3.2), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        for color, family in zip(("#0072b2", "#d55e00"), FAMILIES, strict=True):
            own = {"problem": name, "family": family}
            each = {k: cells.values(records, "test_nll", num_components=k, **own) for k in COUNTS}
            each = {k: nll for k, nll in each.items() if len(nll)}
            if each:
                means = [nll.mean() for nll in each.values()]
                errors = [nll.std() / max(len(nll) - 1, 1) ** 0.5 for nll in each.values()]
                ax.errorbar(list(each), means, errors, fmt="o-", ms=4, color=color, label=family)
        ax.set(title=name, xscale="log", xlabel="K", xticks=COUNTS, xticklabels=COUNTS)
        ax.minorticks_off()
    axes[0, 0].set_ylabel("NLL of new rows, nats")
    named = {line.get_label(): line for ax in axes[0] for line in ax.containers}
    figure.legend(named.values(), named, frameon=False, ncols=2, loc="outside upper center")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)


def report(records: list[cells.Cell]) -> str:
    """A row a problem and family: NLL by K, and the components in use in brackets."""
    rows = {}
    for problem in NAMES:
        for family in FAMILIES:
            own = {"problem": problem, "family": family}
            line = []
            for k in COUNTS:
                nll = cells.values(records, "test_nll", num_components=k, **own)
                used = cells.values(records, "in_use", num_components=k, **own)
                line.append(f"{cells.show(nll, 2)} ({used.mean():.1f})" if len(nll) else "")
            if any(line):
                rows[f"{problem}, {family}"] = line
    return cells.table("NLL (components in use), by K", list(map(str, COUNTS)), rows)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, a table and a plot."""
    given = cells.parser("components", __doc__, seeds=2).parse_args(argv)
    wanted = [
        {"problem": problem, "family": family, "num_components": k, "seed": seed}
        for problem in NAMES
        for family in FAMILIES
        for k in COUNTS
        for seed in range(given.seeds)  # innermost: a program serves them all
    ]
    records = cells.complete(
        given.out / "components.json", wanted, partial(run, given.data), report=given.report
    )
    (given.out / "components.md").write_text(report(records) + "\n")
    draw(records, given.out / "components.png")
    print(report(records))


if __name__ == "__main__":
    main()
