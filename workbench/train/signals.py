"""Stopping politely: the first Ctrl-C or SIGTERM ends training after the update at work.

Jupyter's stop button, papermill's engine, Slurm, `docker stop` and a terminal or connection that is
closed (SIGHUP, unless `nohup` ignores it) all arrive here. A second signal acts at once, as if
nobody listened.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger("workbench")

SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP"))


def comes_twice(processes: int) -> bool:
    """Whether one signal may reach this process a second time.

    `torchrun` passes on what its processes have got already, and so does papermill's engine to the
    Jupyter kernel where Slurm signals everything that belongs to a job.
    """
    return processes > 1 or "WORKBENCH_BATCH" in os.environ


class StopSignals:
    """While entered, remembers the first signal instead of dying of it.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Args:
        echo_s: seconds during which a second signal is taken for an echo of the first: `torchrun`
            and Slurm pass on to each process what a terminal or a node has sent it already.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.caught: str | None = None
        self._echo_s, self._since = echo_s, 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    @property
    def number(self) -> int:
        """The number of the signal that was caught; 0 while there is none."""
        return int(signal.Signals[self.caught]) if self.caught else 0

    def install(self) -> None:
        """Take the signals over; again after someone else (a Jupyter kernel does) took them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            current = signal.getsignal(number)
            if number.name == "SIGHUP" and current == signal.SIG_IGN:
                continue
            # None: a handler that is not Python's, which could not be put back
            if current is not None and current != self._handle:
                self._previous[number] = current
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Put back what was there, unless someone else has taken the signal since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.caught and time.monotonic() - self._since < self._echo_s:
            return
        if self.caught:
            self.restore()
            signal.raise_signal(number)
            return
        self.caught, self._since = name, time.monotonic()
        log.warning("%s: stopping after this update; once more stops at once", name)
