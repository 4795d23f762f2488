"""Training steps as pure functions of a small pytree.

``make_train_step`` knows nothing of mixtures or of Flax: ``loss`` is any function of a parameter
pytree. The state is donated, so a step updates it in place on the device.

    state = TrainState.create(params, optimizer, key)
    step = make_train_step(loss, optimizer)
    for batch in batches:
        state, metrics = step(state, batch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmdn.components.declare import register
from jaxmdn.typing import Array, Key

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything a training step reads and writes.

    Attributes:
      params: the pytree being trained.
      model_state: what the model carries besides (batch statistics, dropout counters); or None.
      opt_state: the Optax state.
      step: number of steps taken, a scalar.
      key: a random key; each step folds its own out of it.
    """

    params: Any
    model_state: Any
    opt_state: Any
    step: Any
    key: Any

    @classmethod
    def create(
        cls,
        params: Any,
        optimizer: Optimizer,
        key: Key[Array, ""],
        *,
        model_state: Any = None,
    ) -> TrainState:
        """Start from copies of ``params`` and ``model_state``, so that donation spares yours."""
        return _create(optimizer, params, model_state, key)


@partial(jax.jit, static_argnums=0)
def _create(optimizer: Optimizer, params: Any, model_state: Any, key: Any) -> TrainState:
    """One program: a copy and an array of zeros for each parameter would be one each."""
    params, model_state, key = copied((params, model_state, key))
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        step=step,
        key=key,
    )


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in memory of their own, so that they may be donated."""
    return jax.tree.map(jnp.copy, tree)


class StepMetrics(NamedTuple):
    """What a step reports: the loss before the update and the gradient's global norm."""

    loss: Array
    grad_norm: Array


def matrices(params: Any) -> Any:
    """Which parameters weight decay acts on: those of two or more axes, not biases and scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def train_step(
    loss: Callable[..., Any],
    optimizer: Optimizer,
    state: TrainState,
    batch: Any,
    *,
    stateful: bool = False,
    step_size: Any = None,
) -> tuple[TrainState, StepMetrics]:
    """One unjitted step; :func:`make_train_step` jits it, ``fit`` scans over it.

    Updates are multiplied by ``step_size`` if there is one.
    """
    key = jax.random.fold_in(state.key, state.step)

    def objective(params: Any) -> tuple[Array, Any]:
        if stateful:
            return loss(params, state.model_state, batch, key)
        return loss(params, batch, key), state.model_state

    (value, model_state), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if step_size is not None:
        updates = jax.tree.map(lambda u: (step_size * u).astype(u.dtype), updates)
    state = dataclasses.replace(
        state,
        params=optax.apply_updates(state.params, updates),
        model_state=model_state,
        opt_state=opt_state,
        step=state.step + 1,
    )
    return state, StepMetrics(loss=value, grad_norm=optax.tree.norm(grads))


def make_train_step(
    loss: Callable[..., Any],
    optimizer: Optimizer,
    *,
    stateful: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Return a jitted ``step(state, batch) -> (state, metrics)`` that donates its state.

    Args:
      loss: ``loss(params, batch, key) -> scalar``; with ``stateful``,
        ``loss(params, model_state, batch, key) -> (scalar, model_state)``.
      optimizer: an Optax gradient transformation.
      stateful: whether the loss also carries ``model_state``.

    After a call the state passed in is gone (its buffers were reused): use the one returned.

    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_train_step(lambda p, batch, key: jnp.mean((p - batch) ** 2), optimizer)
    >>> state = TrainState.create(jnp.float32(1.0), optimizer, jax.random.key(0))
    >>> state, metrics = step(state, jnp.zeros(4, jnp.float32))
    >>> round(float(state.params), 3), float(metrics.loss)
    (0.8, 1.0)
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        return train_step(loss, optimizer, state, batch, stateful=stateful)

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    loss: Callable[..., Any], *, stateful: bool = False
) -> Callable[[TrainState, Any], Any]:
    """Return a jitted ``evaluate(state, batch) -> loss`` that updates nothing.

    Args:
      loss, stateful: as in :func:`make_train_step`, so that one loss serves both; it may also
        return a pytree of several numbers.
    """

    @jax.jit
    def evaluate(state: TrainState, batch: Any) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        if stateful:
            return loss(state.params, state.model_state, batch, key)[0]
        return loss(state.params, batch, key)

    return evaluate
