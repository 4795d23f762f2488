"""``fit_stream``: training on more rows than there is memory for.

Batches go to the device a few dozen at a time, made ready by a thread while the device computes;
one compiled loop takes their steps. The host's side is that of ``fit``.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmdn import checks
from jaxmdn.train.data import Rows, make_rows
from jaxmdn.train.feed import END, Cutter, Feed, Source, as_rows
from jaxmdn.train.fit import DEFAULT_OPTIMIZER, FitResult, check_model
from jaxmdn.train.loop import Loop, Progress, Unit
from jaxmdn.train.optimizers import shared
from jaxmdn.train.prepare import (
    Map,
    input_map,
    mean_log_det,
    on_host,
    standardized,
    start_from,
    target_map,
)
from jaxmdn.train.program import (
    Carry,
    EpochResult,
    Program,
    Trained,
    judge,
    negative_log_likelihood,
    stepper,
)
from jaxmdn.train.resume import Keeper, Store, fingerprint
from jaxmdn.train.room import make_room
from jaxmdn.train.spread import Layout
from jaxmdn.train.standardize import Standardizer
from jaxmdn.train.state import Optimizer, copied
from jaxmdn.train.targets import check_targets
from jaxmdn.train.watch import Callback, check_callbacks
from jaxmdn.typing import Array

HEAD_ROWS = 8192  # of the first batches: for maps, the start, and the use of the components


class Sums(NamedTuple):
    """Of the steps so far: loss times weight, weight, gradient norm, number."""

    loss: Array
    mass: Array
    grad_norm: Array
    steps: Array


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk(
    program: Program, trained: Trained, sums: Sums, rows: Rows, steps: Any, step_size: Any
) -> tuple[Trained, Sums]:
    """Take the first ``steps`` batches of ``rows``."""
    one, size = stepper(program, step_size), program.batch_size
    batches = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)

    def step(i: Array, carry: tuple[Trained, Sums]) -> tuple[Trained, Sums]:
        trained, sums = carry
        index, counts = program.cuts(jnp.arange(size), size)
        batch = program.cut(jax.tree.map(lambda leaf: leaf[i], batches), (index[0], counts[0]))
        trained, (metrics, mass) = one(trained, batch)
        loss, mass = metrics.loss.astype(jnp.float32), mass.astype(jnp.float32)
        new = Sums(loss * mass, mass, metrics.grad_norm.astype(jnp.float32), jnp.float32(1))
        return trained, Sums(*(a + b for a, b in zip(sums, new, strict=True)))

    return jax.lax.fori_loop(0, steps, step, (trained, sums))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _judge(
    program: Program,
    carry: Carry,
    trained: Trained,
    sums: Sums,
    rows: Rows,
    held_out: Rows | None,
    epoch: Any,
    step_size: Any,
) -> tuple[Carry, EpochResult]:
    # Of no weight at all the loss is zero, as elsewhere.
    train = sums.loss / jnp.where(sums.mass == 0, 1, sums.mass)
    norm = sums.grad_norm / sums.steps
    return judge(program, carry, trained, train, norm, rows, held_out, epoch, step_size)


@jax.jit
def _begin(carry: Carry) -> tuple[Trained, Sums]:
    """Copies, since the steps take their buffers and an epoch may be taken back."""
    zero = jnp.zeros((), jnp.float32)
    copies = copied((carry.state, carry.average))
    return Trained(*copies), Sums(zero, zero, zero, zero)


def fit_stream(
    model: Any,
    batches: Iterable[Any],
    *,
    steps: int,
    every: int = 1000,
    validation: tuple[Any, ...] | None = None,
    standardizer: tuple[Map | None, Standardizer | None] | None = None,
    optimizer: Optimizer | None = None,
    patience: int | None = None,
    initialize: bool = True,
    loss: Callable[..., Any] = negative_log_likelihood,
    ema: float = 0.99,
    calibrate: bool = True,
    callbacks: Callback | Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = False,
    mesh: Any = None,
    sharding: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Train a density network on a stream of batches; memory does not grow with the rows.

    Args:
      model: as in :func:`jaxmdn.train.fit`.
      batches: ``(x, y)`` or ``(x, y, weights)``, each as in ``fit``: any iterable, a Grain data
        set, :class:`ShuffledBatches` of a memory map. What can be iterated again is, until
        ``steps`` are done; a generator is gone through once. Whoever makes them shuffles the rows.
        A batch may have fewer rows than the first, not more.
      steps: how many batches to train on.
      every: steps between validations. What is said of epochs, in ``history``, ``patience``,
        ``callbacks``, ``save_every`` and ``best_epoch``, holds for so many steps.
      validation: ``(x, y)`` or ``(x, y, weights)``, held in memory; None: keep the last parameters.
      standardizer: maps of inputs and targets, either of them None for none, such as
        ``Standardizer.from_batches(...)`` in a pass of its own; None: from the first 8,192 rows.
      optimizer, patience, loss, ema, calibrate, callbacks, checkpoint, save_every, progress: as in
        ``fit``.
      initialize: start from the marginal density of the targets in the first 8,192 rows.
      resume: as in ``fit``, for a stream that gives the same batches again: an iterator with
        ``get_state`` and ``set_state`` (Grain's) is put at its place, of others the batches that
        are done are drawn again and dropped.
      mesh, sharding: as in ``fit``; every process is given the whole batches.
      seed: seeds the start, dropout and a loss of your own.

    Returns:
      A :class:`FitResult`; its report is of the first 8,192 rows.

    Raises:
      TypeError, ValueError: as ``fit``, and for batches of another shape than the first or with
        numbers that are not finite (naming the batch).
      NonFiniteLossError: as ``fit``.

    >>> import numpy as np, jaxmdn
    >>> from flax import nnx
    >>> rng = np.random.default_rng(0)
    >>> x = (rng.normal(size=(32, 1)) for _ in range(20))
    >>> model = jaxmdn.nn.MDN(1, jaxmdn.NormalHead(1, 1), hidden_features=(8,), rngs=nnx.Rngs(0))
    >>> result = jaxmdn.train.fit_stream(
    ...     model, ((part, 3.0 * part) for part in x), steps=20, every=10, progress=False)
    >>> jaxmdn.mean(result.predict(np.zeros((5, 1)))).shape
    (5, 1)
    """
    name = "fit_stream"
    check_model(name, model, optimizer)
    checks.require_count(name, "steps", steps)
    checks.require_count(name, "every", every)
    checks.require_number(name, "ema", ema, lower=0.0, upper=1.0)
    callbacks = check_callbacks(name, callbacks)
    layout = Layout.create(name, mesh, sharding)
    make_room()
    key_bias, key_train = jax.random.split(jax.random.key(seed))
    batches, first = _first(batches)
    cutter = Cutter(first[0])
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *first)
    head = make_rows(name, *joined)
    check_targets(model.head, head.y, name)
    if standardizer is None:
        standardizer = input_map(name, head), target_map(name, model.head, head)
    x_map, y_map = standardizer
    put = partial(standardized, x_map=x_map, y_map=y_map)
    ready = partial(on_host, x_map=x_map, y_map=y_map, dtype=jnp.result_type(float))
    held_out = None
    if validation is not None:
        held_out = make_rows(f"{name}(validation)", *validation, *(None,) * (3 - len(validation)))
        check_targets(model.head, held_out.y, name)
    store = None
    if checkpoint is not None:
        settings = {
            "seed": seed, "every": every, "ema": ema, "initialize": initialize,
            "first_rows": fingerprint(head), "validation": fingerprint(held_out),
            "calibrate": calibrate or None,
        }  # fmt: skip
        store = Store.open(layout, checkpoint, save_every, resume, settings)
    sample = put(head)
    held_out = None if held_out is None else put(held_out)
    if initialize:
        start_from(sample, model, key_bias)
    optimizer = DEFAULT_OPTIMIZER if optimizer is None else shared(optimizer)
    program, params, model_state = Program.create(
        model, optimizer, loss, cutter.batch_size, float(ema), layout, calibrate
    )
    sample, held_out, model_state, key_train = layout.place(
        (sample, held_out, model_state, key_train)
    )
    params = layout.place_by_rule(params)
    state = Progress()
    feeds: list[Feed] = []

    def feed() -> Feed:
        if not feeds:  # once it is known where to go on
            place = Source(batches, state.data)
            lengths = _lengths(state.epoch - 1, steps, every, cutter.most)
            feeds.append(Feed(place, cutter, lengths, ready))
        return feeds[0]

    def advance(carry: Carry, epoch: int, step_size: float) -> tuple[Carry, EpochResult, int]:
        (trained, sums), done, count = _begin(carry), 0, 0
        wanted = min(every, steps - (epoch - 1) * every)
        while done < wanted and (chunk := feed().next()) is not END:
            rows = layout.place(chunk.rows) if layout.mesh else chunk.rows.on_device()
            trained, sums = _chunk(program, trained, sums, rows, chunk.steps, step_size)
            done, count, state.data = done + chunk.steps, count + chunk.num_rows, chunk.state
        carry, numbers = _judge(program, carry, trained, sums, sample, held_out, epoch, step_size)
        jax.block_until_ready(carry)
        return carry, numbers, count

    def finish(carry: Carry) -> FitResult:
        nnx.update(model, *layout.gather((carry.best_params, carry.best_model_state)))
        model.eval()
        return FitResult(
            model=model,
            x_standardizer=x_map,
            y_standardizer=y_map,
            history={name: np.asarray(values) for name, values in state.history.items()},
            best_epoch=int(carry.best_epoch),
            report=program.report(carry, sample),
            temperature=state.temperature(int(carry.best_epoch)),
        )

    loop = Loop(
        function=name,
        advance=advance,
        finish=finish,
        unit=Unit(
            log_det=mean_log_det(y_map, model.head, sample),
            valid_log_det=mean_log_det(y_map, model.head, held_out),
            own_loss=loss is not negative_log_likelihood,
            validated=held_out is not None,
        ),
        layout=layout,
        num_epochs=-(-steps // every),
        patience=patience,
        callbacks=callbacks,
        ended=lambda: feed().peek() is END,
        progress=progress,
        initial=lambda carry: program.initial(carry, sample, held_out),
        keeper=None if store is None else Keeper(store, "search"),
    )
    try:
        with layout.set():
            carry = program.start(program.state(params, model_state, key_train), held_out)
            result = finish(loop.run(carry, state))
    finally:
        for own in feeds:
            own.stop()
    if result.report is not None:
        result.report.warn(model.head)
    return result


def _first(batches: Iterable[Any]) -> tuple[Iterable[Any], list[Rows]]:
    """The batches, none taken away, and the first few of them."""
    iterator = iter(batches)
    place = iterator.get_state() if hasattr(iterator, "get_state") else None
    drawn: list[Any] = []
    first: list[Rows] = []
    for batch in iterator:
        drawn.append(batch)
        first.append(as_rows(batch))
        if sum(rows.size for rows in first) >= HEAD_ROWS:
            break
    if not first:
        raise ValueError("fit_stream: batches is empty; pass at least one batch.")
    if iterator is batches:
        if place is None:
            return itertools.chain(drawn, iterator), first
        iterator.set_state(place)  # type: ignore[attr-defined]
    return batches, first


def _lengths(done: int, steps: int, every: int, most: int) -> Iterator[int]:
    """How many batches to take at a time after ``done`` validations; none goes across one."""
    for start in range(done * every, steps, every):
        rest = min(every, steps - start)
        while rest:
            yield min(most, rest)
            rest -= min(most, rest)


class ShuffledBatches:
    """Batches of a table that may be larger than memory, such as ``numpy.memmap``, in random order.

    Every pass shuffles stretches of ``batch_size`` neighbouring rows, and the rows of 64 of them
    among each other: what is read from disk is contiguous. Its iterators have ``get_state`` and
    ``set_state``.

    Args:
      x: an array or a pytree of arrays ``[N, ...]``.
      y: targets ``[N, D]``, as in :func:`jaxmdn.train.fit`.
      weights: ``[N]``, or None.
      batch_size: rows of a batch; the last of a pass may be smaller.
      seed: of the order.

    >>> import numpy as np
    >>> batches = ShuffledBatches(np.arange(10.0)[:, None], np.zeros((10, 1)), batch_size=4)
    >>> [len(x) for x, y in batches]
    [4, 4, 2]
    """

    TOGETHER = 64

    def __init__(
        self, x: Any, y: Any, *, weights: Any = None, batch_size: int = 1024, seed: int = 0
    ) -> None:
        checks.require_count("ShuffledBatches", "batch_size", batch_size)
        self.parts = (x, y) if weights is None else (x, y, weights)
        counts = {leaf.shape[0] for leaf in jax.tree.leaves(self.parts)}
        if len(counts) != 1:
            raise ValueError(
                f"ShuffledBatches: x, y and weights must have as many rows, got {sorted(counts)}."
            )
        self.batch_size, self.seed, self.num_rows = batch_size, seed, counts.pop()
        self.passes = 0

    def __iter__(self) -> _ShuffledIterator:
        self.passes += 1
        return _ShuffledIterator(self, self.passes - 1)

    def group(self, number: int, turn: int) -> Any:
        """The rows of 64 stretches, shuffled; None past the last."""
        size = self.batch_size
        rng = np.random.default_rng((self.seed, turn))
        order = rng.permutation(-(-self.num_rows // size))
        chosen = order[number * self.TOGETHER : (number + 1) * self.TOGETHER]
        if not len(chosen):
            return None
        index = (chosen[:, None] * size + np.arange(size)).reshape(-1)
        index = index[index < self.num_rows]
        within = np.random.default_rng((self.seed, turn, number)).permutation(len(index))

        def read(leaf: Any) -> np.ndarray:
            stretches = [leaf[start * size : (start + 1) * size] for start in chosen]
            return np.concatenate(stretches)[within]

        return jax.tree.map(read, self.parts)


class _ShuffledIterator:
    """The batches of one pass of :class:`ShuffledBatches`."""

    def __init__(self, table: ShuffledBatches, turn: int) -> None:
        self.table, self.turn, self.done = table, turn, 0
        self.loaded: tuple[int, Any] = (-1, None)

    def __iter__(self) -> _ShuffledIterator:
        return self

    def __next__(self) -> Any:
        number, place = divmod(self.done, self.table.TOGETHER)
        if self.loaded[0] != number:
            self.loaded = (number, self.table.group(number, self.turn))
        rows, size = self.loaded[1], self.table.batch_size
        if rows is None or place * size >= len(jax.tree.leaves(rows)[0]):
            raise StopIteration
        self.done += 1
        return jax.tree.map(lambda leaf: leaf[place * size : (place + 1) * size], rows)

    def get_state(self) -> dict[str, int]:
        return {"turn": self.turn, "done": self.done}

    def set_state(self, state: dict[str, int]) -> None:
        self.turn, self.done, self.loaded = state["turn"], state["done"], (-1, None)
        self.table.passes = self.turn + 1
