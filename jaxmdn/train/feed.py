"""Batches of a stream on their way to the device: cut, checked, some ahead, at a known place."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmdn.train.data import Rows, as_arrays

CHUNK_BYTES = 2**25  # of the batches that go to the device together
MOST_BATCHES = 64
AHEAD = 2  # chunks that are ready before they are asked for
END = object()


class Source:
    """The batches one after another, pass after pass, and the place among them.

    An iterable is gone through again when it ends, an iterator (such as a generator) once. One with
    ``get_state`` and ``set_state``, as those of Grain, is put at its place; of any other the
    batches that are done are drawn again and dropped.
    """

    def __init__(self, batches: Iterable[Any], state: Any = None) -> None:
        self.batches, self.passes, self.count = batches, 0, 0
        self.iterator: Iterator[Any] = iter(batches)
        if state is None:
            return
        if "inner" in state:
            self.iterator.set_state(state["inner"])  # type: ignore[attr-defined]
            self.passes, self.count = state["passes"], state["count"]
            return
        while (self.passes, self.count) != (state["passes"], state["count"]):
            if self.next() is END:
                raise ValueError("fit_stream: the batches end before the place of the checkpoint.")

    @property
    def state(self) -> dict[str, Any]:
        """The place after the last batch; JSON."""
        state = {"passes": self.passes, "count": self.count}
        if hasattr(self.iterator, "get_state"):
            state["inner"] = self.iterator.get_state()
        return state

    def next(self) -> Any:
        """The next batch, or :data:`END`."""
        found = next(self.iterator, END)
        if found is END and self.count and self.iterator is not self.batches:
            self.passes, self.count = self.passes + 1, 0
            self.iterator = iter(self.batches)
            found = next(self.iterator, END)
        self.count += found is not END
        return found


class Chunk(NamedTuple):
    """Batches that go to the device together.

    Attributes:
      rows: of all of them, one after another, filled up with rows of weight zero.
      steps: how many batches.
      num_rows: rows that are no filling.
      state: of the source after them.
    """

    rows: Rows
    steps: int
    num_rows: int
    state: Any


class Cutter:
    """Brings batches to one size and stacks them, in NumPy."""

    def __init__(self, first: Rows) -> None:
        self.none = jax.tree.map(lambda leaf: np.asarray(leaf)[:0], first)
        self.batch_size = first.size
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(first))
        self.most = int(np.clip(CHUNK_BYTES // max(size, 1), 1, MOST_BATCHES))

    def stack(self, batches: list[Rows], number: int) -> Rows:
        """Batches ``number``, ``number + 1``, ... as one table of ``most`` batches."""
        size = self.batch_size

        def join(path: Any, none: np.ndarray, *leaves: Any) -> np.ndarray:
            name = ("x", "y", "weights")[path[0].idx] if hasattr(path[0], "idx") else path[0].name
            label = name + jax.tree_util.keystr(path[1:])
            shape = none.shape[1:]
            whole = np.zeros((self.most * size, *shape), np.result_type(none, *leaves))
            for i, leaf in enumerate(leaves):
                if leaf.shape[1:] != shape or not 0 < len(leaf) <= size:
                    raise ValueError(
                        f"fit_stream: {label} of batch {number + i} has shape {list(leaf.shape)}; "
                        f"the first batch has {size} rows of shape {list(shape)}: later ones may "
                        f"have fewer rows, none may have more or another shape."
                    )
                whole[i * size : i * size + len(leaf)] = leaf
                if len(leaf) < size:  # with its own rows, which batch norms see
                    rest = whole[i * size + len(leaf) : (i + 1) * size]
                    rest[:] = 0 if name == "weights" else np.resize(leaf, rest.shape)
            if np.issubdtype(whole.dtype, np.inexact) and not np.isfinite(whole).all():
                bad = int(np.argwhere(~np.isfinite(whole))[0, 0])
                raise ValueError(
                    f"fit_stream: {label} must be finite, but row {bad % size} of batch "
                    f"{number + bad // size} is not; drop or impute such rows first."
                )
            return whole

        try:
            return jax.tree_util.tree_map_with_path(join, self.none, *batches)
        except ValueError as error:
            if "fit_stream" in str(error):
                raise
            raise ValueError(
                f"fit_stream: a batch from number {number} on has another structure than the first."
            ) from error


def as_rows(batch: Any) -> Rows:
    """A batch ``(x, y)`` or ``(x, y, weights)`` as NumPy arrays; what is in it is not checked."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            f"fit_stream: every batch must be a tuple (x, y) or (x, y, weights), got "
            f"{type(batch).__name__}."
        )
    x, y = as_arrays("fit_stream", batch[0], "x"), as_arrays("fit_stream", batch[1], "y")
    lead = jax.tree.leaves(y)[-1].shape
    weights = np.ones(lead[:-1] or lead, np.float32)
    if len(batch) == 3:
        given = np.asarray(batch[2], np.float32)
        weights = given.reshape(given.shape + (1,) * (weights.ndim - given.ndim)) * weights
    return Rows(x, y, weights)


class Feed:
    """Chunks made ready, in NumPy, by a thread while the device computes.

    JAX's settings are those of a thread: arrays go to the device in the caller's.
    """

    def __init__(
        self, source: Source, cutter: Cutter, lengths: Iterable[int], ready: Callable[[Rows], Rows]
    ) -> None:
        self.queue: queue.Queue[Any] = queue.Queue(AHEAD)
        self.stopped = threading.Event()
        self.waiting: list[Any] = []
        arguments = (source, cutter, lengths, ready)
        self.thread = threading.Thread(target=self._fill, args=arguments, daemon=True)
        self.thread.start()

    def _fill(
        self, source: Source, cutter: Cutter, lengths: Iterable[int], ready: Callable[[Rows], Rows]
    ) -> None:
        try:
            for length in lengths:
                number = source.count
                found = itertools.takewhile(
                    lambda batch: batch is not END, (source.next() for _ in range(length))
                )
                batches = [as_rows(batch) for batch in found]
                if not batches:
                    break
                rows = ready(cutter.stack(batches, number))
                count = sum(batch.size for batch in batches)
                self._offer(Chunk(rows, len(batches), count, source.state))
                if len(batches) < length or self.stopped.is_set():
                    break
            self._offer(END)
        except BaseException as error:
            self._offer(error)

    def _offer(self, item: Any) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self.queue.put(item, timeout=0.1)

    def peek(self) -> Any:
        """The next chunk, or :data:`END`; an error of the thread is raised."""
        if not self.waiting:
            self.waiting.append(self.queue.get())
        if isinstance(self.waiting[0], BaseException):
            raise self.waiting[0]
        return self.waiting[0]

    def next(self) -> Any:
        """The next chunk, taken away."""
        chunk = self.peek()
        if chunk is not END:
            self.waiting.clear()
        return chunk

    def stop(self) -> None:
        """End the thread."""
        self.stopped.set()
        self.thread.join()
