"""The compiled side of ``fit``: one epoch, evaluation, the component report.

An epoch is one ``lax.scan`` over shuffled batches, followed by the validation NLL and the choice
of the best parameters, all in one compiled function: the host sees a handful of numbers an epoch.
A :class:`Program` is hashable and compares by content, so that fitting the same architecture again
(cross-validation, ensembles) compiles nothing again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxmdn import meshes
from jaxmdn.components.declare import register
from jaxmdn.heads import Head
from jaxmdn.inference.widening import has_scales
from jaxmdn.train import evaluation
from jaxmdn.train.data import Rows, batch_indices
from jaxmdn.train.evaluation import negative_log_likelihood as negative_log_likelihood
from jaxmdn.train.report import ComponentReport, combine
from jaxmdn.train.spread import ONE_DEVICE, Layout
from jaxmdn.train.state import Optimizer, TrainState, copied, train_step
from jaxmdn.typing import Array


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Carry:
    """What one epoch hands to the next: the training state and the best parameters so far.

    ``average`` is the running average of the parameters, which is validated and kept.
    """

    state: Any
    average: Any
    best_params: Any
    best_model_state: Any
    best_score: Any
    best_epoch: Any


class Trained(NamedTuple):
    """What a step changes: the training state, and the running average of its parameters."""

    state: TrainState
    average: Any


class EpochResult(NamedTuple):
    """The numbers of one epoch that are shown and recorded.

    Attributes:
      losses: the loss of every step; empty where they are not kept.
      train: weighted mean loss over the epoch's batches, in standardised units.
      valid: validation NLL, calibrated where the run is; infinite without validation.
      score: the loss that is trained, on the validation rows: by it the best epoch is chosen.
      temperature: the factor of all scales that the validation rows like best; None where none is
        fitted.
      sound: whether everything stayed finite.
      usage: mean mixing coefficients ``[K]`` at the end; None for heads without components.
      grad_norm: mean over the steps of the gradient's global norm, before clipping.
      learning_rate: of the last step, where ``optax.inject_hyperparams`` shows it; else NaN.
    """

    losses: Any
    train: Any
    valid: Any
    score: Any
    temperature: Any
    sound: Any
    usage: Any
    grad_norm: Any
    learning_rate: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """Static description of a training run: architecture, loss, optimizer, batch size, devices.

    On a mesh every device holds all rows, and takes its part of each batch; what is computed is
    that of the whole batch.
    """

    train_graph: Any
    eval_graph: Any
    head: Head
    optimizer: Optimizer
    loss: Callable[..., Any]
    batch_size: int
    ema: float
    layout: Layout = ONE_DEVICE
    calibrate: bool = False

    @classmethod
    def create(
        cls,
        model: Any,
        optimizer: Optimizer,
        loss: Callable[..., Any],
        batch_size: int,
        ema: float = 0.0,
        layout: Layout = ONE_DEVICE,
        calibrate: bool = False,
    ) -> tuple[Program, Any, Any]:
        """Split a model into the static program, its parameters and its other state.

        There is something to ``calibrate`` where components have scales and validation is by the
        NLL.
        """
        calibrate = (
            calibrate and evaluation.judged_by_nll(loss) and has_scales(model.head.density_shape)
        )
        model.eval()
        eval_graph = nnx.graphdef(model)
        model.train()
        train_graph, params, model_state = nnx.split(model, nnx.Param, ...)
        options = (optimizer, loss, batch_size, ema, layout, calibrate)
        return cls(train_graph, eval_graph, model.head, *options), params, model_state

    def cuts(self, order: Array, batch_size: int) -> tuple[Array, Array]:
        """Batches of rows as ``batch_indices`` has them, each a multiple of the devices long."""
        index, counts = batch_indices(order, batch_size)
        missing = -batch_size % self.layout.num_devices
        pad = partial(jnp.pad, pad_width=((0, 0), (0, missing)))
        return (pad(index), pad(counts)) if missing else (index, counts)

    def cut(self, rows: Rows, cut: tuple[Array, Array]) -> Rows:
        """One batch, spread over the devices; rows that only pad it get weight zero."""
        index, counts = cut
        batch = rows.take(index)
        counts = counts.reshape(counts.shape + (1,) * (batch.weights.ndim - 1))
        batch = batch._replace(weights=batch.weights * counts.astype(batch.weights.dtype))
        return self.layout.over_rows(batch)

    def state(self, params: Any, model_state: Any, key: Array) -> TrainState:
        """The state before the first step, where the layout has it."""
        if self.layout.rule is None:
            return TrainState.create(params, self.optimizer, key, model_state=model_state)
        return _state(self, params, model_state, key)

    def start(self, state: TrainState, held_out: Rows | None) -> Carry:
        """The carry of epoch 0, whose best parameters are the initial ones."""
        initial: Any = jnp.inf
        if held_out is not None:
            initial = self.validate(state, held_out)[1]
        own = (state.params, state.params, state.model_state)
        average, best_params, best_model_state = copied(own)
        return Carry(
            state=state,
            average=average,
            best_params=best_params,
            best_model_state=best_model_state,
            best_score=jnp.asarray(initial, jnp.float32),
            best_epoch=jnp.zeros((), jnp.int32),
        )

    def initial(self, carry: Carry, rows: Rows, held_out: Rows | None) -> EpochResult:
        """The numbers of epoch 0, which trains nothing."""
        valid, score, factor = np.nan, np.nan, None
        if held_out is not None:
            valid, score, factor = jax.device_get(self.validate(carry.state, held_out))
        state = carry.state
        usage = evaluation.usage(self, state.params, state.model_state, rows)
        rate = learning_rate(state.opt_state)
        return EpochResult((), np.nan, valid, score, factor, True, usage, np.nan, rate)

    def epoch(
        self,
        carry: Carry,
        rows: Rows,
        held_out: Rows | None,
        epoch: int,
        step_size: float = 1.0,
        count: int | None = None,
    ) -> tuple[Carry, EpochResult]:
        """Return the next carry and what the epoch had to tell. Donates the carry.

        All updates are multiplied by ``step_size``. An epoch in which something is not finite
        leaves the carry as it was. Of the rows the first ``count`` are trained on; in the place of
        the others some of these come once more, drawn afresh in every epoch, so that one program
        serves any count.
        """
        count = rows.size if count is None else count
        return _epoch(self, carry, rows, held_out, epoch, step_size, count)

    def validate(self, state: TrainState, held_out: Rows) -> tuple[Array, Array, Array | None]:
        """The NLL, the loss that is trained and the temperature, over rows, in evaluation mode."""
        return evaluation.validate(self, state.params, state.model_state, state.key, held_out)

    def report(self, carry: Carry, rows: Rows) -> ComponentReport | None:
        """Component use over rows, at the best parameters."""
        statistics = evaluation.report(self, carry.best_params, carry.best_model_state, rows)
        return None if statistics is None else combine(statistics)


@partial(jax.jit, static_argnums=0)
def _state(program: Program, params: Any, model_state: Any, key: Array) -> TrainState:
    """In one program, so that no moment is ever whole on a device."""
    state = TrainState.create(params, program.optimizer, key, model_state=model_state)
    return program.layout.by_rule(state)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(
    program: Program,
    carry: Carry,
    rows: Rows,
    held_out: Rows | None,
    epoch: Any,
    step_size: Any,
    count: Any,
) -> tuple[Carry, EpochResult]:
    order_key, step_key = jax.random.split(jax.random.fold_in(carry.state.key, epoch))
    places = jnp.arange(rows.size, dtype=jnp.int32)
    again = jax.random.randint(step_key, places.shape, 0, count, dtype=jnp.int32)
    places = jnp.where(places < count, places, again)
    order = jax.random.permutation(order_key, places)

    one = stepper(program, step_size)

    def step(trained: Trained, cut: tuple[Array, Array]) -> tuple[Trained, Any]:
        return one(trained, program.cut(rows, cut))

    start = Trained(dataclasses.replace(carry.state, key=step_key), carry.average)
    cuts = program.cuts(order, program.batch_size)
    (state, average), (metrics, mass) = meshes.scan(step, start, cuts)
    trained = Trained(dataclasses.replace(state, key=carry.state.key), average)
    mass = mass.astype(metrics.loss.dtype)
    train = jnp.sum(metrics.loss * mass) / jnp.sum(mass)
    carry, numbers = judge(
        program,
        carry,
        trained,
        train,
        jnp.mean(metrics.grad_norm),
        rows.take(places[evaluation.spread_out(rows.size, evaluation.USAGE_ROWS)]),
        held_out,
        epoch,
        step_size,
    )
    return carry, numbers._replace(losses=program.layout.on_every_device(metrics.loss))


def stepper(program: Program, step_size: Any) -> Callable[[Any, Rows], tuple[Trained, Any]]:
    """A function that takes a step on a batch: ``(trained, (metrics, weight of the rows))``."""

    def objective(params: Any, model_state: Any, batch: Rows, key: Array) -> Any:
        model = nnx.merge(program.train_graph, params, model_state, copy=True)
        value = program.loss(model, *batch, key)
        return value, nnx.state(model, nnx.Not(nnx.Param))

    def step(trained: Trained, batch: Rows) -> tuple[Trained, Any]:
        state, average = trained
        state, metrics = train_step(
            objective, program.optimizer, state, batch, stateful=True, step_size=step_size
        )
        trained = Trained(state, _averaged(program.ema, state, average))
        if program.layout.rule is not None:  # else each device has all of it anyway
            trained = program.layout.by_rule(trained)
        return trained, (metrics, jnp.sum(batch.weights))

    return step


def judge(
    program: Program,
    carry: Carry,
    trained: Trained,
    train: Array,
    grad_norm: Array,
    rows: Rows,
    held_out: Rows | None,
    epoch: Any,
    step_size: Any,
) -> tuple[Carry, EpochResult]:
    """Validate what an epoch's steps led to, keep it if it is finite, and say what happened.

    Args:
      program: static.
      carry: before these steps.
      trained: after them.
      train, grad_norm: weighted mean loss and mean gradient norm over the steps.
      rows: for the use of the components.
      held_out, epoch, step_size: as in :meth:`Program.epoch`.
    """
    state, average = trained
    sound = jnp.isfinite(train) & _all_finite(state.params)
    if held_out is None:
        valid = score = jnp.full_like(train, jnp.inf)  # NaN would stop `jax_debug_nans`
        factor = None
        better = sound
    else:
        found = evaluation.validate(program, average, state.model_state, state.key, held_out)
        valid, score, factor = found
        sound &= jnp.isfinite(score)
        better = sound & ~(score >= carry.best_score)  # any finite one beats an initial NaN

    def keep(condition: Array, new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

    carry = Carry(
        state=keep(sound, state, carry.state),
        average=keep(sound, average, carry.average),
        best_params=keep(better, average, carry.best_params),
        best_model_state=keep(better, state.model_state, carry.best_model_state),
        best_score=jnp.where(better, score.astype(jnp.float32), carry.best_score),
        best_epoch=jnp.where(better, epoch, carry.best_epoch).astype(jnp.int32),
    )
    usage = evaluation.usage(program, carry.average, carry.state.model_state, rows)
    rate = step_size * learning_rate(carry.state.opt_state)
    numbers = EpochResult((), train, valid, score, factor, sound, usage, grad_norm, rate)
    return program.layout.by_rule(carry), program.layout.on_every_device(numbers)


@jax.jit
def rewound(carry: Carry) -> Carry:
    """The carry with the best parameters in the place of the present ones."""
    best, other = carry.best_params, carry.best_model_state
    state = dataclasses.replace(carry.state, params=best, model_state=other)
    return dataclasses.replace(carry, state=state, average=best)


def learning_rate(opt_state: Any) -> Array:
    """What ``optax.inject_hyperparams`` keeps in an optimizer's state; NaN if there is none."""
    found = optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")
    return jnp.asarray(found[0][1] if found else jnp.nan, jnp.float32)


def _averaged(ema: float, state: TrainState, average: Any) -> Any:
    """The running average of the parameters; over fewer steps at first, so that it forgets them."""
    if ema == 0.0:
        return state.params
    step = state.step.astype(jnp.float32)
    share = jnp.minimum(ema, step / (step + 9))
    return jax.tree.map(lambda a, p: p + share.astype(p.dtype) * (a - p), average, state.params)


def _all_finite(tree: Any) -> Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)
