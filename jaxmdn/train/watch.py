"""What a caller sees of a training run, and how it is stopped: callbacks, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: ``callback(number, record)``; "stop" ends the training after this epoch (or cycle).
Callback = Callable[[int, Mapping[str, Any]], str | None]


class Interrupts:
    """Within the block, Ctrl-C is noted rather than raised; the second time it is raised.

    A step's old state is gone once it runs (its buffers are reused), so that an exception in its
    midst would leave nothing. Python tells signals to its main thread alone; elsewhere, and where
    Ctrl-C is ignored, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before not in (signal.SIG_IGN, None):
                self._before = before
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def tell(
        self, function: str, callbacks: Sequence[Callback], number: int, record: Mapping[str, Any]
    ) -> bool:
        """Call every callback; whether one of them said "stop".

        Raises:
          ValueError: for another answer than None and "stop".
        """
        answers = []
        for callback in callbacks:
            try:
                answers.append(callback(number, record))
            except KeyboardInterrupt:
                self.asked = True
        for answer in answers:
            if answer not in (None, "stop"):
                raise ValueError(
                    f'{function}: a callback must return None or "stop", got {answer!r}.'
                )
        return "stop" in answers


def check_callbacks(function: str, callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks as a tuple; a single function is taken for a sequence of one."""
    found = (callbacks,) if callable(callbacks) else tuple(callbacks)
    for callback in found:
        if not callable(callback):
            raise TypeError(
                f"{function}: callbacks must be functions of (epoch, record), got {callback!r}."
            )
    return found
