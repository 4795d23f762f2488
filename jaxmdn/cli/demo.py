"""``jaxmdn demo``: one synthetic problem with a known answer, one real one, with pictures."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxmdn import __version__, calibration, plots, scoring
from jaxmdn.cli import evaluate
from jaxmdn.datasets import InverseProblem
from jaxmdn.heads import NormalHead
from jaxmdn.mixture.merging import merge
from jaxmdn.nn import MDN
from jaxmdn.train import FitResult, fit

TRAIN_ROWS, TEST_ROWS, EPOCHS, BATCH = 10_000, 10_000, 120, 256
ENSEMBLE = 2


def add_parser(commands: Any) -> None:
    """Add ``demo`` to the command line."""
    parser = commands.add_parser(
        "demo",
        help="train on Bishop's inverse problem and on real data; write a table and pictures",
        description=(
            "Train mixture density networks on Bishop's inverse problem (whose exact density is "
            "known) and on the diabetes data; print a table, write pictures and summary.json."
        ),
    )
    parser.add_argument("--out", default="demo", help="folder for pictures and summary.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    progress = not arguments.quiet
    print(f"jaxmdn {__version__} on {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    inverse = inverse_problem(arguments.seed, out, progress)
    real = diabetes(arguments.seed, out, progress)
    seconds = time.perf_counter() - start
    summary = {
        "jaxmdn": __version__,
        "jax": jax.__version__,
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "inverse_problem": inverse,
        "diabetes": real,
    }
    evaluate.write_json(out / "summary.json", summary)
    pictures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    print(f"{seconds:.0f} s; written to {out}{'/' if out.name else ''}: {pictures}, summary.json")


def inverse_problem(seed: int, out: Path, progress: bool) -> dict[str, Any]:
    """Bishop's inverse problem: the network beside the exact density and one normal."""
    print("1. Bishop's inverse problem: x = t + 0.3 sin(2 pi t) + noise, predict t from x")
    problem = InverseProblem()
    key_train, key_test = jax.random.split(jax.random.key(seed))
    x, t = problem.sample(key_train, TRAIN_ROWS)
    x_test, t_test = problem.sample(key_test, TEST_ROWS)
    exact = -float(jnp.mean(problem.log_prob(x_test, t_test)))
    rows: list[dict[str, Any]] = [{"model": "exact density (quadrature)", "nll": exact}]
    results = {}
    for name, components in (("mixture of 10 normals", 10), ("a single normal", 1)):
        result = _train(x, t, components, seed, progress)
        scored = evaluate.scores(name, result.predict(x_test), t_test, ["t"])[0]
        rows.append({name: value for name, value in scored.items() if name != "target"})
        results[name] = result
    for row in rows:
        row["gap to exact"] = row["nll"] - exact
    print(evaluate.format_table([*rows[1:], rows[0]]) + "\n" + evaluate.LEGEND + "\n")

    result = results["mixture of 10 normals"]
    ax = plots.conditional_density(
        result.predict, np.linspace(-0.1, 1.1, 400), np.linspace(0.0, 1.0, 400),
        data=(x[:800], t[:800]), xlabel="x", ylabel="t",
    )  # fmt: skip
    ax.set_title("p(t | x), learnt, and 800 of the training points", fontsize=10)
    evaluate.save_figure(ax.figure, out / "inverse_density.png")
    ax = plots.training_curve(result.history, best_epoch=result.best_epoch)
    evaluate.save_figure(ax.figure, out / "inverse_training.png")
    ax = plots.component_usage(result.history, best_epoch=result.best_epoch)
    evaluate.save_figure(ax.figure, out / "inverse_components.png")
    slice_ = result.predict(jnp.full((1, 1), 0.5))[0]
    grid = np.linspace(0.0, 1.0, 1001, dtype=np.float32)
    ax = plots.density(slice_, grid, ylabel="t")
    truth = np.exp(problem.log_prob(jnp.full((len(grid), 1), 0.5), jnp.asarray(grid)[:, None]))
    ax.plot(grid, truth, "--", color=plots.BLACK, lw=1.0, label="exact density")
    ax.legend(frameon=False, fontsize="small")
    ax.set_title("p(t | x = 0.5)", fontsize=10)
    evaluate.save_figure(ax.figure, out / "inverse_region.png")
    values = calibration.pit(result.predict(x_test), t_test)
    evaluate.save_figure(plots.pit_histogram(values).figure, out / "inverse_pit.png")
    return {"test_rows": TEST_ROWS, "scores": rows}


def _train(x: Any, t: Any, components: int, seed: int, progress: bool) -> FitResult:
    head = NormalHead(components, 1)
    model = MDN(1, head, hidden_features=(64, 64), rngs=nnx.Rngs(seed))
    steps = EPOCHS * -(-round(0.9 * TRAIN_ROWS) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps))
    return fit(
        model, x, t, optimizer=optimizer, num_epochs=EPOCHS, batch_size=BATCH, seed=seed,
        progress=progress,
    )  # fmt: skip


def diabetes(seed: int, out: Path, progress: bool) -> dict[str, Any]:
    """The diabetes data, five-fold cross-validated, beside a linear-Gaussian baseline."""
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import KFold

    data = load_diabetes(scaled=False)
    x = np.asarray(data.data, np.float32)
    y = np.asarray(data.target, np.float32)[:, None]
    folds = list(KFold(5, shuffle=True, random_state=seed).split(x))
    print(f"2. Diabetes progression after a year: {len(x)} patients, 10 measurements, 5 folds")
    optimizer = optax.adamw(3e-3, weight_decay=0.1)
    network, baseline, history = [], [], []
    for i, (train, test) in enumerate(folds):
        members = [
            fit(
                MDN(x.shape[1], NormalHead(3, 1), hidden_features=(32,), rngs=nnx.Rngs(member)),
                x[train], y[train], optimizer=optimizer, batch_size=64,
                num_epochs=300, patience=40, validation=0.15, seed=100 * seed + 10 * i + member,
                progress=progress,
            )
            for member in range(ENSEMBLE)
        ]  # fmt: skip
        network.append(merge([member.predict(x[test]) for member in members]))
        baseline.append(evaluate.linear_gaussian(x[train], y[train], x[test]))
        history.append(members[0])
    # All held-back rows at once: the mean over rows, and one compilation instead of one a fold.
    held_back = jnp.asarray(y[np.concatenate([test for _, test in folds])])
    models = {f"mixture density network x {ENSEMBLE}": network, "linear Gaussian": baseline}
    rows, pits, nlls = [], [], []
    for name, parts in models.items():
        density = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        rows += evaluate.scores(name, density, held_back, ["y"])
        pits.append(np.asarray(calibration.pit(density, held_back)))
        nlls.append(np.asarray(scoring.log_score(density, held_back)))
    rows = [{name: value for name, value in row.items() if name != "target"} for row in rows]
    print(evaluate.format_table(rows))
    difference = rows[0]["nll"] - rows[1]["nll"]
    ends = np.cumsum([len(test) for _, test in folds])
    by_fold = [part.mean() for part in np.split(nlls[0] - nlls[1], ends[:-1])]
    error = np.std(by_fold) / np.sqrt(len(folds) - 1)
    ahead = "The network" if difference < 0 else "The linear model"
    verdict = "a clear difference" if abs(difference) > 2 * error else "no clear difference"
    print(
        f"{ahead} is ahead by {abs(difference):.3f} nats; standard error over the folds "
        f"{error:.3f}: {verdict}.\n"
    )
    ax = plots.training_curve(history[0].history, best_epoch=history[0].best_epoch)
    evaluate.save_figure(ax.figure, out / "diabetes_training.png")
    ax = plots.pit_histogram(pits[0], num_bins=10)
    evaluate.save_figure(ax.figure, out / "diabetes_pit.png")
    ax = plots.reliability_curve(pits[0], name="mixture density network")
    plots.reliability_curve(pits[1], name="linear Gaussian", ax=ax)
    evaluate.save_figure(ax.figure, out / "diabetes_reliability.png")
    patient = network[-1][0]
    ax = plots.density(
        patient, value=float(y[folds[-1][1][0], 0]), ylabel="progression after a year"
    )
    ax.set_title("one patient", fontsize=10)
    evaluate.save_figure(ax.figure, out / "diabetes_region.png")
    return {"rows": len(x), "folds": len(folds), "scores": rows, "nll_difference_se": float(error)}
