"""What others ask of whoever trains in a run folder: to pause, to go on, to stop.

A word in a file and not a signal, so that it reaches a run of any number of processes, on any
machine that shares the disk, and so that nobody has to trust a process number that a folder tells.
The run looks between two updates, and all of its processes act at the same one. What was asked
before a run was opened is void: a folder that came from elsewhere stops nobody.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Literal

from workbench.train import storage

CONTROL = "control.json"
Word = Literal["pause", "continue", "stop"]
LOOK_S = 0.2
"""seconds between two looks at the file; also how long a paused run sleeps before it looks again"""
ASKED = 1000
"""stands where signals have their number; higher than theirs"""


def ask(folder: Path, word: Word) -> None:
    """Ask the run that trains in a folder for something; it answers in `status.json`.

    Args:
        folder: of a run.
        word: `pause`: write a checkpoint after the update at work, and wait with everything in
            memory. `continue`: go on after a pause. `stop`: write a checkpoint and end.

    Raises:
        CannotWrite: the disk is full or read-only.
    """
    with storage.writing(CONTROL, folder):
        text = json.dumps({"asked": word, "at_s": time.time()}) + "\n"
        storage.replace(folder / CONTROL, text.encode(), durable=False)


def stop_reason(number: int) -> str:
    """Why a run stops, in a word.

    Args:
        number: of a signal, or `ASKED`.
    """
    return "asked to stop" if number == ASKED else signal.Signals(number).name


class Control:
    """What is asked of a run, as the process that leads it reads it.

    Args:
        folder: of the run.
        reads: False in processes that are told by the one that leads.
    """

    def __init__(self, folder: Path, reads: bool) -> None:
        self._path, self._reads = folder / CONTROL, reads
        self._word, self._looked_s = "", float("-inf")

    def clear(self) -> None:
        """Nothing is asked any more."""
        self._word = ""
        if self._reads:
            self._path.unlink(missing_ok=True)

    def told(self, signal_number: int) -> tuple[int, bool]:
        """Which signal stops the run, or `ASKED`, 0 for none; and whether to wait."""
        word = self._asked()
        return ASKED if word == "stop" else signal_number, word == "pause"

    def wait(self) -> float:
        """Wait a moment; gives how many seconds that was."""
        begin = time.monotonic()
        time.sleep(LOOK_S)
        return time.monotonic() - begin

    def _asked(self) -> str:
        now = time.monotonic()
        if self._reads and now - self._looked_s >= LOOK_S:
            self._looked_s, self._word = now, _word(self._path)
        return self._word


def _word(path: Path) -> str:
    """What a file asks; "" where there is none, or one that says nothing known."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(data.get("asked", "")) if isinstance(data, dict) else ""
