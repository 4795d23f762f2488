"""``python -m benchmarks.studies.generalisation --data DIR``: does a density help the mean?

One trunk (that of ``nn.MDN``), one optimizer and one rule to stop, trained with squared error, a
normal, a mixture of five normals, a mixture of five Student-t; on clean rows, on few rows, and with
the training targets spoilt in three ways. Error of the mean and of the median are measured on clean
test targets, which is what generalisation means; NLL and coverage on test targets spoilt like those
of training, which is what a density is asked to describe.

Spoilt targets, in units of their standard deviation s (of the whole set):

label noise       0.5 s of normal noise on every target
heteroscedastic   the same on average, in proportion to |z|, the first input standardised
outliers          one target in ten moved by 3 s in either direction, on average
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmdn
from benchmarks.studies import cells
from benchmarks.uci import splits
from jaxmdn import train

SETS = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "power": "power-plant",
    "protein": "protein-tertiary-structure",
}
MOST_ROWS = 2000  # to train on
NOISES = ("label noise", "heteroscedastic", "outliers")
SHARES = ("5 %", "10 %", "25 %", "50 %", "100 %")
METRICS = ("rmse_mean", "rmse_median", "mae_mean", "mae_median", "nll", "coverage")


def squared_error(model: Any, x: Any, y: Any, weights: Any, key: Any) -> Any:
    """Weighted mean of the squared distance from the mean."""
    gap = jnp.sum((jaxmdn.mean(model(x)) - y) ** 2, axis=-1)
    return jnp.sum(weights * gap) / jnp.sum(weights)


HEADS: dict[str, Callable[[], Any]] = {
    "squared error": lambda: jaxmdn.NormalHead(1, 1),
    "normal": lambda: jaxmdn.NormalHead(1, 1),
    "mixture": lambda: jaxmdn.NormalHead(5, 1),
    "Student-t mixture": lambda: jaxmdn.FactorizedHead(
        (jaxmdn.heads.Family("student_t", df=5.0),), 5
    ),
}


def spoil(kind: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Targets with what the condition adds."""
    unit, noise = y.std(), rng.normal(size=y.shape)
    if kind == "label noise":
        return y + 0.5 * unit * noise
    if kind == "heteroscedastic":
        size = np.abs(x[:, :1] - x[:, :1].mean()) / x[:, :1].std()
        return y + 0.5 * unit * size / np.sqrt(np.mean(size**2)) * noise
    if kind == "outliers":
        return y + 3.0 * unit * noise * (rng.random(y.shape) < 0.1)
    return y


def run(data: Path, problem: str, condition: str, model: str, seed: int) -> dict[str, Any]:
    """Train one network; scores of its mean, its median and its density."""
    x, y = splits.read(data / "uci" / SETS[problem])
    rng = np.random.default_rng(seed)
    noisy = spoil(condition, x, y, rng)
    order = rng.permutation(len(x))
    test, rest = order[: len(x) // 10], order[len(x) // 10 :][:MOST_ROWS]
    if condition in SHARES:
        rest = rest[: round(len(rest) * int(condition.split()[0]) / 100)]
    held, used = np.split(rest, [max(2, len(rest) // 10)])
    network = jaxmdn.nn.MDN(x.shape[1], HEADS[model](), rngs=nnx.Rngs(seed))
    options = {"loss": squared_error} if model == "squared error" else {}
    result = train.fit(
        network,
        x[used],
        noisy[used],
        validation=(x[held], noisy[held]),
        seed=seed,
        progress=False,
        **options,
    )
    density, y_test = result.predict(x[test]), noisy[test]
    mean, median = np.asarray(jaxmdn.mean(density)), np.asarray(jaxmdn.quantile(density, 0.5))
    if model == "squared error":  # a normal, as wide everywhere as the residuals held out
        residual = noisy[held] - np.asarray(jaxmdn.mean(result.predict(x[held])))
        scale = np.sqrt(np.mean(residual**2))
        components = jaxmdn.components.Normal(
            loc=jnp.asarray(mean)[:, None], scale=jnp.full((len(mean), 1, 1), scale)
        )
        density = jaxmdn.Mixture(logits=jnp.zeros((len(mean), 1)), components=components)
    y_test = jnp.asarray(y_test, jnp.float32)
    level = np.asarray(jaxmdn.cdf(density, y_test))
    clean = y[test]
    return {
        "rmse_mean": float(np.sqrt(np.mean((mean - clean) ** 2))),
        "rmse_median": float(np.sqrt(np.mean((median - clean) ** 2))),
        "mae_mean": float(np.mean(np.abs(mean - clean))),
        "mae_median": float(np.mean(np.abs(median - clean))),
        "nll": -float(np.mean(jaxmdn.log_prob(density, y_test))),
        "coverage": float(np.mean((level > 0.05) & (level < 0.95))),
    }


def ratios(records: list[cells.Cell], metric: str, model: str, condition: str) -> np.ndarray:
    """The metric over that of the squared error's mean on the same rows, one number a set."""
    found = []
    for problem in SETS:
        own = {"problem": problem, "condition": condition}
        base = "rmse_mean" if metric.startswith("rmse") else "mae_mean"
        theirs = cells.values(records, base, model="squared error", **own)
        ours = cells.values(records, metric, model=model, **own)
        if len(ours) and len(ours) == len(theirs):
            found.append(np.exp(np.mean(np.log(ours) - np.log(theirs))))
    return np.array(found)


def report(records: list[cells.Cell]) -> str:
    """Error beside the squared error's, NLL beside the normal's, coverage, by condition."""
    conditions = [*SHARES[::-1], *NOISES]
    parts = []
    for metric, title in (
        ("rmse_mean", "RMSE of the mean / that of squared error (geometric mean over sets; range)"),
        ("mae_median", "MAE of the median / that of squared error's mean"),
    ):
        rows = {}
        for model in HEADS:
            rows[model] = []
            for condition in conditions:
                own = ratios(records, metric, model, condition)
                text = f"{np.exp(np.log(own).mean()):.2f} ({own.min():.2f} to {own.max():.2f})"
                rows[model].append(text if len(own) else "")
        parts.append(cells.table(title, conditions, rows))
    for metric, title in (("nll", "NLL, mean over sets"), ("coverage", "in 90 % intervals")):
        rows = {}
        for model in HEADS:
            own = [
                cells.values(records, metric, model=model, condition=condition)
                for condition in conditions
            ]
            rows[model] = [f"{found.mean():.2f}" if len(found) else "" for found in own]
        parts.append(cells.table(title, conditions, rows))
    return "\n\n".join(parts)


def draw(records: list[cells.Cell], path: Path) -> None:
    """RMSE of the mean beside the squared error's: a dot a set, a bar their geometric mean."""
    import matplotlib.pyplot as plt

    conditions = [*SHARES[::-1], *NOISES]
    figure, axes = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    titles = {"rmse_mean": "RMSE of the mean", "mae_median": "MAE of the median"}
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for number, model in enumerate(list(HEADS)[1:]):
            for place, condition in enumerate(conditions):
                own = ratios(records, metric, model, condition)
                if not len(own):
                    continue
                at = place + 0.22 * (number - 1)
                ax.plot(np.full(len(own), at), own, "o", ms=4, alpha=0.5, color=f"C{number}")
                label = model if place == 0 else None
                middle = np.exp(np.log(own).mean())
                ax.plot([at - 0.09, at + 0.09], [middle] * 2, lw=3, color=f"C{number}", label=label)
        ax.axhline(1, color="0.5", lw=1, ls=":")
        ax.set(yscale="log", ylabel=f"{title}\nbeside squared error")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    axes[1].set_xticks(range(len(conditions)), conditions)
    axes[0].legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and write JSON, tables and a plot."""
    parser = cells.parser("generalisation", __doc__.split("\n")[0], seeds=10)
    given = parser.parse_args(argv)
    wanted = [
        {"problem": problem, "condition": condition, "model": model, "seed": seed}
        for problem in SETS
        for condition in [*SHARES, *NOISES]
        for model in HEADS
        for seed in range(given.seeds)  # innermost: a program serves them all
    ]
    records = cells.complete(
        given.out / "generalisation.json", wanted, partial(run, given.data), report=given.report
    )
    (given.out / "generalisation.md").write_text(report(records) + "\n")
    draw(records, given.out / "generalisation.png")
    print(report(records))


if __name__ == "__main__":
    main()
