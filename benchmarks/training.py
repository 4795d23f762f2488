"""Training steps: what a step costs beyond its arithmetic, and what ten networks cost together.

All contenders take the same steps: the same parameters, the same batch, Adam. Every call ends in
the loss of the last step it took; the first one timed comes after ``STEPS`` steps, and that loss is
compared with float64's, so that a wrong update does not go unseen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxmdn
from benchmarks.cases import FEATURES, MEMBERS, Case
from benchmarks.densities import PLAIN
from benchmarks.problem import float64
from jaxmdn.cli.timing import Runner, compile_jax
from jaxmdn.nn import MDN
from jaxmdn.train import TrainState, make_train_step
from jaxmdn.train.state import train_step

STEPS = 50
ADAM = optax.adam(1e-3)
Prepared = tuple[str, str, Callable[[], Runner]]


def contenders(case: Case) -> list[Prepared]:
    """Name, kind and preparation of everyone who takes part."""
    if case.operation == "ensemble_step":
        return [
            ("jaxmdn", "jaxmdn", lambda: _together(case)),
            ("one after another", "baseline", lambda: _in_turn(case, MEMBERS)),
            ("one network", "floor", lambda: _in_turn(case, 1)),
        ]
    step, plain = _step(case), functools.partial(bare_step, plain_loss(case))
    bare = functools.partial(bare_step, _loss(case))  # no call, no key, no metrics
    return [
        ("jaxmdn", "jaxmdn", lambda: _in_turn(case, 1)),
        ("jaxmdn, in a scan", "implementation", lambda: _stateful(case, step, _state(case), STEPS)),
        ("plain JAX", "baseline", lambda: _stateful(case, plain, make_carry(make_params(case)))),
        ("flax.nnx.jit", "baseline", lambda: _nnx(case)),
        ("the arithmetic alone", "floor",
         lambda: _stateful(case, bare, make_carry(make_params(case)), STEPS)),
    ]  # fmt: skip


@functools.lru_cache(maxsize=4)
def expected(case: Case) -> np.ndarray:
    """The loss of step ``STEPS`` in float64: a scalar, or one per network."""
    members = MEMBERS if case.operation == "ensemble_step" else 1
    with jax.enable_x64(True):
        train = jax.jit(_scanned(functools.partial(bare_step, plain_loss(case))))
        batch = float64(make_batch(case))
        carries = [make_carry(float64(make_params(case, seed))) for seed in range(members)]
        return np.squeeze([np.asarray(train(carry, batch)[1]) for carry in carries])


def make_batch(case: Case) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((case.rows, FEATURES), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((case.rows, case.dim), np.float32))


def make_model(case: Case, seed: int) -> MDN:
    return MDN(
        FEATURES,
        case.head,
        hidden_features=(case.hidden,) * 2,
        embedding=None,
        rngs=nnx.Rngs(seed),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def make_params(case: Case, seed: int = 0) -> list[tuple[Any, Any]]:
    """Kernels and biases of a jaxmdn network, layer by layer."""
    model = make_model(case, seed)
    layers = [*model.trunk.layers, model.output.linear]
    return [(layer.kernel[...], layer.bias[...]) for layer in layers]


def _hidden(params: Any, x: Any) -> Any:
    for kernel, bias in params[:-1]:
        x = jax.nn.silu(x @ kernel + bias)
    return x


def _loss(case: Case) -> Callable[..., Any]:
    """jaxmdn's loss, the output layer inside, as ``fit`` takes it."""

    def loss(params: Any, batch: Any, key: Any = None) -> Any:
        return jaxmdn.linear_nll(case.head, _hidden(params, batch[0]), *params[-1], batch[1])

    return loss


def plain_loss(case: Case) -> Callable[..., Any]:
    def loss(params: Any, batch: Any) -> Any:
        kernel, bias = params[-1]
        raw = _hidden(params, batch[0]) @ kernel + bias
        return -jnp.mean(PLAIN.log_prob(case, raw, batch[1]))

    return loss


@jax.jit
def make_carry(params: Any) -> tuple[Any, Any]:
    return params, ADAM.init(params)


def bare_step(loss: Callable[..., Any], carry: Any, batch: Any) -> tuple[Any, Any]:
    """Value, gradient and update, and nothing else."""
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params, batch)
    updates, state = ADAM.update(gradient, state)
    return (optax.apply_updates(params, updates), state), value


@functools.partial(jax.jit, static_argnums=(0, 1))
def _state(case: Case, seed: int = 0) -> TrainState:
    return TrainState.create(make_params(case, seed), ADAM, jax.random.key(seed))


def _step(case: Case) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        state, metrics = train_step(_loss(case), ADAM, state, batch)
        return state, metrics.loss

    return step


def _scanned(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """``STEPS`` steps, which return the carry and the last loss."""

    def steps(carry: Any, batch: Any) -> tuple[Any, Any]:
        carry, losses = jax.lax.scan(lambda carry, _: step(carry, batch), carry, length=STEPS)
        return carry, losses[-1]

    return steps


def _stateful(case: Case, step: Callable[..., Any], carry: Any, steps: int = 1) -> Runner:
    """Compile a step, or ``STEPS`` in a scan, that donates its carry."""
    batch = make_batch(case)
    step = step if steps == 1 else _scanned(step)
    compiled, seconds, temporary = compile_jax(step, carry, batch, donate=(0,))
    held = [jax.jit(functools.partial(jax.tree.map, jnp.copy))(carry)]

    def launch() -> Any:
        held[0], loss = compiled(held[0], batch)
        return loss

    return _advanced(Runner(launch, seconds, temporary, steps), STEPS // steps - 1)


def _advanced(runner: Runner, calls: int) -> Runner:
    """Call it: almost ``STEPS`` steps have been taken when this returns."""
    for _ in range(calls):
        runner.call()
    return runner


def compiling(
    launch: Callable[[], Any], calls: int = STEPS - 1, wait: Callable[[Any], Any] | None = None
) -> Runner:
    """The same for something whose first call compiles, after so many calls in all."""
    runner = Runner(launch) if wait is None else Runner(launch, wait=wait)
    start = time.perf_counter()
    runner.call()
    seconds = time.perf_counter() - start
    return _advanced(runner, calls - 1)._replace(compile_seconds=seconds)


def _nnx(case: Case) -> Runner:
    """The loop of Flax's tutorials: a module and an optimizer through ``nnx.jit``."""
    model = make_model(case, 0)
    optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
    x, y = make_batch(case)

    @nnx.jit
    def step(model: MDN, optimizer: nnx.Optimizer) -> Any:
        loss, gradient = nnx.value_and_grad(lambda model: model.nll(x, y))(model)
        optimizer.update(model, gradient)
        return loss

    return compiling(lambda: step(model, optimizer))


def _in_turn(case: Case, members: int) -> Runner:
    """``make_train_step`` once for every network, through its own ``jax.jit``, as a user does."""
    step, batch = make_train_step(_loss(case), ADAM), make_batch(case)
    states = [_state(case, seed) for seed in range(members)]

    def launch() -> Any:
        losses = []
        for i, state in enumerate(states):
            states[i], metrics = step(state, batch)
            losses.append(metrics.loss)
        return losses if members > 1 else losses[0]

    return compiling(launch)


def _together(case: Case) -> Runner:
    """One step of all members: the states stacked, the step vectorised over them."""
    states = [_state(case, seed) for seed in range(MEMBERS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return _stateful(case, jax.vmap(_step(case), in_axes=(0, None)), stacked)
