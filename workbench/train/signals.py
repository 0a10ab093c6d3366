"""Stopping politely: the first Ctrl-C or SIGTERM ends training after the update at work.

Jupyter's stop button, papermill's engine, Slurm and `docker stop` all arrive here. A second signal
acts at once, as if nobody listened.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger("workbench")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, remembers the first signal instead of dying of it.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.caught: str | None = None
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

    def install(self) -> None:
        """Take the signals over; again after someone else (a Jupyter kernel does) took them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            current = signal.getsignal(number)
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
        if self.caught:
            self.restore()
            signal.raise_signal(number)
            return
        self.caught = name
        log.warning("%s: stopping after this update; once more stops at once", name)
