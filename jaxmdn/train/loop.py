"""The host's side of training: epoch after epoch, what is recorded, when to stop.

It is the same whether rows lie on the device or come in a stream. What runs on the device stands
in ``program``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmdn.train.program import Carry, EpochResult, rewound
from jaxmdn.train.spread import Layout
from jaxmdn.train.watch import Callback, Interrupts

MAX_HALVINGS = 3  # of the step, after a loss that is not finite
CALM = 10  # epochs without one, after which half a step is a whole one again
# Once patience has run out, steps of a quarter, a sixteenth and a sixty-fourth from the best
# parameters on, each as long as something is gained within half of the patience.
FINER, FINEST, HASTE = 0.25, 0.25**3, 2


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite. ``result`` holds the last good parameters."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What the host knows of a run: with the carry of the device, all it takes to go on.

    Attributes:
      epoch: how many are done.
      step_size: share of each step that is taken.
      calm: epochs since the loss was last not finite.
      finer: share of each step that is taken to refine the best parameters; 1 before.
      since: the epoch when that began.
      path: ``finer`` of each of the epochs that led to the present parameters.
      best: how many of them led to the best.
      history: a list per number, an entry per epoch.
      interrupted: whether Ctrl-C ended the run.
      data: the place in a stream of batches; JSON.
    """

    epoch: int = 0
    step_size: float = 1.0
    calm: int = 0
    finer: float = 1.0
    since: int = 0
    path: list[float] = dataclasses.field(default_factory=list)
    best: int = 0
    history: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    interrupted: bool = False
    data: Any = None

    @property
    def seconds(self) -> float:
        """Since the start, of all processes together."""
        return self.history["seconds"][-1] if self.history else 0.0

    def temperature(self, epoch: int) -> float:
        """The factor of all scales after an epoch; one where none is fitted."""
        found = self.history.get("temperature")
        return float(found[epoch]) if found else 1.0

    def append(self, record: dict[str, Any]) -> None:
        """Add an epoch's record to the history."""
        for name, value in record.items():
            self.history.setdefault(name, []).append(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """How losses are told: a log-determinant brings an NLL back to the target's unit.

    Attributes:
      log_det, valid_log_det: added to the NLL of the rows that are trained on and held out.
      own_loss: whether another loss is trained; it is shown as it is.
      validated: whether there are rows held out.
    """

    log_det: float
    valid_log_det: float
    own_loss: bool
    validated: bool

    @property
    def shift(self) -> float:
        """What is added to the loss that is trained."""
        return 0.0 if self.own_loss else self.log_det

    def record(self, numbers: EpochResult, seconds: float, rows_per_second: float) -> dict:
        """An epoch's numbers as callbacks and the history see them."""
        valid = float(numbers.valid) + self.valid_log_det if self.validated else math.nan
        record: dict[str, Any] = {}
        if self.own_loss:
            record["train_loss"] = float(numbers.train)
            record["valid_loss"] = float(numbers.score) if self.validated else math.nan
        else:
            record["train_nll"] = float(numbers.train) + self.log_det
        record |= {
            "valid_nll": valid,
            "grad_norm": float(numbers.grad_norm),
            "learning_rate": float(numbers.learning_rate),
            "seconds": seconds,
            "rows_per_second": rows_per_second,
        }
        if numbers.temperature is not None:
            record["temperature"] = float(numbers.temperature)
        if numbers.usage is not None:
            record["mean_weight"] = np.asarray(numbers.usage, np.float64)
        return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A training run.

    Attributes:
      function: the caller's name, for messages.
      advance: ``(carry, epoch, step_size) -> (carry, numbers, rows)``; how many rows it took.
      finish: the result with the best parameters of a carry.
      unit: of the losses.
      layout: of the devices; their processes stop together.
      num_epochs, patience: when to stop.
      callbacks: told of every epoch.
      progress: whether to show a bar.
      initial: the numbers of epoch 0, for the history; None: they are not asked for.
      keeper: saves every few epochs, and the last; None: nothing is saved.
      ended: whether there is nothing left to train on.
    """

    function: str
    advance: Callable[[Carry, int, float], tuple[Carry, EpochResult, int]]
    finish: Callable[[Carry], Any]
    unit: Unit
    layout: Layout
    num_epochs: int
    patience: int | None
    callbacks: Sequence[Callback]
    progress: bool
    initial: Callable[[Carry], EpochResult] | None = None
    keeper: Any = None
    ended: Callable[[], bool] = lambda: False

    def run(self, carry: Carry, state: Progress) -> Carry:
        """Train, from the last epoch that was saved if there is one.

        Args:
          carry: of epoch 0; donated.
          state: the host's part, updated in place.
        """
        keeping = contextlib.nullcontext() if self.keeper is None else self.keeper
        hidden = not self.progress or jax.process_index() > 0
        bar = tqdm(total=self.num_epochs, unit="epoch", disable=hidden)
        with bar, keeping, Interrupts() as interrupts:
            if self.keeper is not None:
                carry = self.keeper.restore(carry, state)
            start = time.perf_counter() - state.seconds
            if not state.history and self.initial is not None:
                numbers = self.initial(carry)
                if self.unit.validated and not np.isfinite(numbers.score):
                    raise ValueError(
                        f"{self.function}(validation): the loss of the validation rows is "
                        f"{float(numbers.score)} before training; look for extreme values among "
                        f"them."
                    )
                state.append(self.unit.record(numbers, time.perf_counter() - start, math.nan))
            bar.update(state.epoch)
            while not self._is_over(carry, state):
                if self._is_stalled(carry, state):
                    carry = rewound(carry)
                    state.finer, state.since = FINER * state.finer, state.epoch
                    del state.path[state.best :]
                state.epoch += 1
                before = time.perf_counter()
                step_size = state.finer * state.step_size
                carry, numbers, rows = self.advance(carry, state.epoch, step_size)
                state.path.append(state.finer)
                numbers, best, best_epoch = jax.device_get(
                    (numbers, carry.best_score, carry.best_epoch)
                )
                if best_epoch == state.epoch:
                    state.best = len(state.path)
                now = time.perf_counter()
                record = self.unit.record(numbers, now - start, rows / (now - before))
                state.append(record)
                if not numbers.sound:
                    self._halve(carry, state, numbers)
                state.calm += 1
                if state.calm >= CALM and state.step_size < 1:
                    state.step_size, state.calm = 2 * state.step_size, 0
                bar.update()
                bar.set_postfix_str(self._shown(numbers, float(best), record), refresh=False)
                if self.keeper is not None:
                    self.keeper.save(carry, state)
                try:
                    stop = interrupts.tell(self.function, self.callbacks, state.epoch, record)
                except BaseException:  # a callback's own: the model is left with what is best
                    if self.layout.num_processes == 1:  # others would have to take part
                        self.finish(carry)
                    raise
                stop, asked = self.layout.anywhere(stop, interrupts.asked)
                if asked:
                    state.interrupted = True
                    warnings.warn(
                        f"{self.function}: interrupted after epoch {state.epoch}; the result is "
                        f"the best so far.",
                        stacklevel=3,
                    )
                if stop or asked:
                    break
            if self.keeper is not None:
                self.keeper.save(carry, state, last=True)
        return carry

    def _is_over(self, carry: Carry, state: Progress) -> bool:
        if state.epoch >= self.num_epochs or self.ended():
            return True
        return state.finer <= FINEST and self._is_stalled(carry, state)

    def _is_stalled(self, carry: Carry, state: Progress) -> bool:
        """Whether patience has run out."""
        if self.patience is None or not self.unit.validated:
            return False
        patience = self.patience if state.finer == 1 else -(-self.patience // HASTE)
        return state.epoch - max(int(carry.best_epoch), state.since) >= patience

    def _halve(self, carry: Carry, state: Progress, numbers: EpochResult) -> None:
        """Go on with half the step, or raise after so many times."""
        epoch = state.epoch
        if state.step_size < 0.5**MAX_HALVINGS * 1.5:
            raise non_finite(self.function, epoch, numbers.losses, self.finish(carry))
        state.step_size, state.calm = state.step_size / 2, 0
        warnings.warn(
            f"{self.function}: the loss became non-finite in epoch {epoch}; it goes on from the "
            f"parameters before with {state.step_size:g} of each step.",
            stacklevel=4,
        )

    def _shown(self, numbers: EpochResult, best: float, record: dict) -> str:
        shift = self.unit.shift
        shown = f"train {numbers.train + shift:.4f}"
        if self.unit.validated:
            shown += f"  valid {numbers.score + shift:.4f}  best {best + shift:.4f}"
        return f"{shown} nats  {record['rows_per_second']:,.0f} rows/s"


def non_finite(function: str, epoch: int, losses: Any, result: Any) -> NonFiniteLossError:
    """The error that says where, and what may help."""
    bad = np.flatnonzero(~np.isfinite(losses))
    place = f"step {bad[0] + 1} of {len(losses)}" if len(bad) else "the last step"
    return NonFiniteLossError(
        f"{function}: the loss became non-finite in epoch {epoch}, at {place}. The parameters of "
        f"epoch {result.best_epoch} were restored (error.result). Try a lower learning rate, a "
        f"smaller gradient clip, a larger min_scale, or look for outliers in x and y.",
        result,
    )
