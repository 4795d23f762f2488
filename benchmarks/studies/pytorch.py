"""``python -m benchmarks.studies.pytorch --data DIR``: an ensemble's training beside PyTorch's.

The networks of ``fit_ensemble`` on the first split of concrete, and one network of the same shape,
written and trained as its users write it: the same embedding, trunk, Student-t mixture, batch and
optimizer. What is counted is steps of one network a second; PyTorch would train the networks one
after another. Both take turns; medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import environment
from benchmarks.studies import cells
from benchmarks.uci import splits
from jaxmdn import train
from jaxmdn.train.data import Rows
from jaxmdn.train.run import Run
from jaxmdn.train.standardize import Standardizer

ROUNDS = 5


def ours(x: np.ndarray, y: np.ndarray, recipe: train.Recipe) -> Callable[[], int]:
    """A function that trains every network for an epoch and returns how many steps that were."""
    rows = Rows(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(x)))
    folds = train.assign_folds(len(x), recipe.num_folds(len(x)), seed=0)
    run = Run(recipe, recipe.head(1), rows, folds, jnp.full(1, recipe.min_scale), 0)
    networks, used = run.index.shape

    def epoch() -> int:
        jax.block_until_ready(run.epoch(1, 10))
        return networks * (used // run.plan.batch_size)

    return epoch


def theirs(x: np.ndarray, y: np.ndarray, recipe: train.Recipe, *, compiled: bool) -> Any:
    """The same for one network in PyTorch."""
    import torch

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self, features: int) -> None:
            super().__init__()
            self.frequency = torch.nn.Parameter(
                recipe.frequency_scales[0] * torch.randn(features, 16)
            )
            self.phase = torch.nn.Parameter(math.pi * (2 * torch.rand(features, 16) - 1))
            self.matrix = torch.nn.Parameter(torch.randn(features, 16, 3) / 4)
            self.bias = torch.nn.Parameter(torch.zeros(features, 3))
            widths = (4 * features, *recipe.hidden_features)
            layers: list[Any] = []
            for one, two in itertools.pairwise(widths):
                layers += [torch.nn.Linear(one, two), torch.nn.SiLU()]
            self.trunk = torch.nn.Sequential(
                *layers, torch.nn.Linear(widths[-1], 3 * recipe.num_components)
            )

        def forward(self, x: Any) -> Any:
            wave = torch.cos(2 * math.pi * x[..., None] * self.frequency + self.phase)
            wave = torch.einsum("nfk,fkj->nfj", wave, self.matrix) + self.bias
            return self.trunk(torch.cat([x[..., None], wave], -1).flatten(1)).chunk(3, -1)

    def nll(network: Any, x: Any, y: Any) -> Any:
        logits, loc, raw = network(x)
        scale = torch.nn.functional.softplus(raw) + recipe.min_scale
        each = torch.distributions.StudentT(recipe.df, loc, scale, validate_args=False)
        mixed = torch.log_softmax(logits, -1) + each.log_prob(y)
        return -torch.logsumexp(mixed, -1).mean()

    torch.manual_seed(0)
    network = Network(x.shape[1])
    loss = torch.compile(nll) if compiled else nll
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.peak_rate, weight_decay=recipe.weight_decay
    )
    x_rows, y_rows = torch.tensor(x), torch.tensor(y)
    size = recipe.rows_a_step(len(x))
    steps = len(x) * 9 // 10 // size  # a fold's share

    def epoch() -> int:
        order = torch.randperm(len(x_rows))
        for step in range(steps):
            index = order[step * size : (step + 1) * size]
            optimizer.zero_grad()
            loss(network, x_rows[index], y_rows[index]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            optimizer.step()
        return steps

    return epoch


def main(argv: list[str] | None = None) -> None:
    """Time both and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.pytorch")
    parser.add_argument("--data", type=Path, required=True, help="folder with uci/")
    parser.add_argument("--out", type=Path, default=cells.RESULTS)
    given = parser.parse_args(argv)
    own = splits.split(*splits.read(given.data / "uci" / "concrete"), 0)
    x, y = (np.asarray(Standardizer.fit(part)(part), np.float32) for part in (own.x, own.y))
    recipe = train.Recipe()
    epochs = {
        "fit_ensemble": ours(x, y, recipe),
        "PyTorch": theirs(x, y, recipe, compiled=False),
        "PyTorch, compiled": theirs(x, y, recipe, compiled=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(ROUNDS + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            steps = sum(epoch() for _ in range(1 if name == "fit_ensemble" else 5))
            if number:  # the first compiles
                rates[name].append(steps / (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    record = {**environment.describe(("torch",)), "steps_a_second": rates, "medians": medians}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "pytorch.json").write_text(json.dumps(record, indent=1))
    for name, value in medians.items():
        ratio = medians["fit_ensemble"] / value
        print(
            f"{name}: {value:,.0f} network steps a second, fit_ensemble {ratio:.1f} times as many"
        )


if __name__ == "__main__":
    main()
