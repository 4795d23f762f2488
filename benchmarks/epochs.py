"""An epoch of ``fit``, and PyTorch's training of the same network: a step, and an epoch of its own.

The same network from the same parameters, Adam, and rows shuffled anew in every epoch, on the
device from the start. Everyone's first epoch compiles; what is compared with float64 is the mean
loss of the second, which a shuffle moves a little.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import training
from benchmarks.cases import Case
from benchmarks.densities import Library
from benchmarks.problem import float64
from jaxmdn.cli.timing import Runner
from jaxmdn.train.data import Rows
from jaxmdn.train.evaluation import negative_log_likelihood
from jaxmdn.train.program import Program

BATCH = 256
EMA = 0.99  # the default of ``fit``: it validates and keeps the running average
SHUFFLE_TOLERANCE = 2e-2


def contenders(case: Case, peers: Sequence[Library]) -> list[training.Prepared]:
    """Name, kind and preparation of everyone who trains for an epoch."""
    own = ("jaxmdn", "jaxmdn", lambda: _own(case))
    return [own, *pytorch(case, peers)]


def pytorch(case: Case, peers: Sequence[Library]) -> list[training.Prepared]:
    """The same for PyTorch, as far as it is here: eager, and compiled."""
    found = []
    for peer in peers if case.peers else ():
        if peer.package == "torch":
            name = "PyTorch, compiled" if getattr(peer, "compiles", False) else "PyTorch"
            found.append((name, "peer", functools.partial(_pytorch, case, peer)))
    return found


@functools.lru_cache(maxsize=2)
def expected(case: Case) -> np.ndarray:
    """The mean loss of the second epoch in float64, by shuffles of its own."""
    rng, size = np.random.default_rng(2), min(BATCH, case.rows)
    with jax.enable_x64(True):
        batch = float64(training.make_batch(case))
        step = functools.partial(training.bare_step, training.plain_loss(case))

        def epoch(carry: Any, order: Any) -> tuple[Any, Any]:
            def one(carry: Any, index: Any) -> tuple[Any, Any]:
                return step(carry, jax.tree.map(lambda leaf: leaf[index], batch))

            carry, losses = jax.lax.scan(one, carry, order)
            return carry, jnp.mean(losses)

        epoch, carry = jax.jit(epoch), training.make_carry(float64(training.make_params(case)))
        for _ in range(2):
            order = rng.permutation(case.rows)[: case.rows // size * size]
            carry, loss = epoch(carry, jnp.asarray(order.reshape(-1, size)))
        return np.asarray(loss)


def _own(case: Case) -> Runner:
    """The compiled epoch of ``fit``, without rows held back."""
    x, y = training.make_batch(case)
    rows = Rows(x, y, jnp.ones(case.rows, jnp.float32))
    size, loss = min(BATCH, case.rows), negative_log_likelihood
    model = training.make_model(case, 0)
    program, params, rest = Program.create(model, training.ADAM, loss, size, EMA)
    held, number = [program.start(program.state(params, rest, jax.random.key(0)), None)], 1

    def launch() -> Any:
        nonlocal number
        held[0], numbers = program.epoch(held[0], rows, None, number)
        number += 1
        return numbers.train

    return training.compiling(launch, 1)


def _pytorch(case: Case, library: Any) -> Runner:
    """The loop of PyTorch's tutorials: a step of one batch, or an epoch of shuffled batches."""
    torch, where = library.torch, "cpu" if jax.default_backend() == "cpu" else "cuda"

    def tensor(array: Any, **options: Any) -> Any:
        return torch.tensor(np.asarray(array), device=where, **options)

    x, y = map(tensor, training.make_batch(case))
    layers = [
        [tensor(leaf, requires_grad=True) for leaf in pair] for pair in training.make_params(case)
    ]
    optimizer = torch.optim.Adam(itertools.chain(*layers), lr=1e-3)

    def nll(x: Any, y: Any) -> Any:
        for kernel, bias in layers[:-1]:
            x = torch.nn.functional.silu(x @ kernel + bias)
        kernel, bias = layers[-1]
        return -library.log_prob(case, x @ kernel + bias, y).mean()

    loss = library.compiled(nll)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        return value.detach()

    def epoch() -> Any:
        parts = torch.randperm(case.rows, device=where).split(min(BATCH, case.rows))
        return torch.stack([step(x[index], y[index]) for index in parts]).mean()

    def wait(result: Any) -> Any:
        if where == "cuda":
            torch.cuda.synchronize()
        return result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the compiler's caches
        if case.operation == "fit_epoch":
            return training.compiling(epoch, 1, wait)
        return training.compiling(lambda: step(x, y), training.STEPS - 1, wait)
