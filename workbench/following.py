"""A run as its folder tells it, for whoever looks: from any process, at any time.

The folder may be anybody's: what is no record, no status and no sample is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from workbench import background, limits, samples
from workbench.kept import is_record
from workbench.models.mixers.attention import AttentionConfig
from workbench.recipe import Recipe
from workbench.train.folder import RECORDS, RunFolder
from workbench.train.lock import holder

State = Literal["new", "starting", "running", "paused", "stopped", "done", "failed", "lost"]
GOING: tuple[State, ...] = ("running", "paused")
TOLD: tuple[State, ...] = (*GOING, "stopped", "done", "failed")
"""what `status.json` may say"""
PACE_RECORDS = 20
"""training records that the remaining time is guessed from"""


class RunWatch:
    """Looks at a run folder again and again, reading only what is new.

    Args:
        path: of the folder; it may come later.
        child: the process that was started to train there, where this process has started it.

    Attributes:
        records: rows of `records.jsonl`, oldest first.
        samples: rows of `samples.jsonl`, oldest first.
        limit: the machine's, or None.
        status: of the run; {} before it began.
        state: see `poll`.
    """

    def __init__(self, path: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        self.folder, self.child = RunFolder(path, writes=False), child
        self.records: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.limit: limits.SpeedLimit | None = None
        self.status: dict[str, Any] = {}
        self.state: State = "new"
        self._file: tuple[int, int] | None = None
        self._at = 0
        self._sampled: tuple[int, int] | None = None

    def poll(self) -> bool:
        """Look once.

        `state` is then `new` (no run here yet), `starting` (a process was started and has not begun
        to train), what `status.json` says, or `lost`: it says `running` or `paused`, but no process
        of this machine trains there. Such a run goes on from its last checkpoint.

        Returns:
            whether anything is otherwise than before.
        """
        before = (self.state, self.status, len(self.records), len(self.samples), self._file)
        self.status = self.folder.status()
        self._read_records()
        if self._changed():
            self.samples = samples.read(self.folder.path)
        self.limit = self.limit or limits.read(self.folder.path)
        self.state = self._state()
        after = (self.state, self.status, len(self.records), len(self.samples), self._file)
        return before != after

    @property
    def step(self) -> int:
        """Updates done, as far as the folder tells."""
        told = [self.status.get("step"), self.records[-1]["step"] if self.records else 0]
        return max(x for x in told if isinstance(x, int)) if told else 0

    @property
    def steps(self) -> int:
        """Updates in all; 0 where nothing tells."""
        steps = self.status.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def message(self) -> str:
        """Why the run stands as it does, where that is not plain."""
        if self.state == "failed" and (words := background.last_words(self.folder.path)):
            return words
        if self.state == "lost":
            return (
                "its process is gone without a word, or is on another machine; it goes on from its "
                "last checkpoint"
            )
        return str(self.status.get("message", "")) if self.state != "new" else ""

    def _state(self) -> State:
        told = self.status.get("state")
        alive = self.child is not None and self.child.poll() is None
        if alive and holder(self.folder.path) is None:
            return "starting"
        if self.child is not None and self.child.poll() not in (None, 0):
            return "failed"
        if told in GOING and holder(self.folder.path) is None:
            # asked again: it may have ended between the two looks
            self.status = self.folder.status()
            told = self.status.get("state")
            return "lost" if told in GOING else self._named(told)
        return self._named(told)

    def _named(self, told: object) -> State:
        for state in TOLD:
            if told == state:
                return state
        if not self.folder.exists() and background.last_words(self.folder.path):
            return "failed"
        return "new"

    def _changed(self) -> bool:
        """Whether the samples' file is another than at the last look."""
        now = _stamp(self.folder.path / samples.SAMPLES)
        changed, self._sampled = now != self._sampled, now
        return changed

    def _read_records(self) -> None:
        path = self.folder.path / RECORDS
        now = _stamp(path)
        if now is None or now == self._file:
            if now is None:
                self.records, self._at = [], 0
            self._file = now
            return
        if self._file is None or now[0] != self._file[0] or now[1] < self._at:
            # another file has taken its place: a run that went on from a checkpoint
            self.records, self._at = [], 0
        with path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        self._file = now
        self.records.extend(row for line in whole.splitlines() if (row := _record(line)))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Which file this is, and how long; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size


def _record(line: bytes) -> dict[str, Any] | None:
    """A row with numbers where numbers belong; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if is_record(row) else None


def span_layers(recipe: object) -> int:
    """How many layers of a recipe learn spans."""
    if not isinstance(recipe, Recipe):
        return 0
    mixers = [block.mixer for block in recipe.model.block_configs()]
    return sum(isinstance(m, AttentionConfig) and m.span is not None for m in mixers)


def remaining_s(
    records: Sequence[dict[str, Any]], steps: int, max_seconds: float | None = None
) -> float | None:
    """Seconds until a run is done, by the pace of its newest records, validations and checkpoints
    included; None where they do not tell.

    Args:
        records: rows of `records.jsonl`.
        steps: updates in all.
        max_seconds: the run's own limit on the clock.
    """
    rows = [
        r
        for r in records[-8 * PACE_RECORDS :]
        if r["kind"] == "train" and isinstance(r.get("elapsed_s"), int | float)
    ][-PACE_RECORDS:]
    if not rows or not steps:
        return None
    last, first = rows[-1], rows[0]
    if last["step"] <= first["step"]:
        return None
    pace = (last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"])
    left = max(0.0, pace * (steps - last["step"]))
    return left if max_seconds is None else min(left, max(0.0, max_seconds - last["elapsed_s"]))


def duration(seconds: float) -> str:
    """A time in words, such as `2 h 05 min`, `3 min 20 s`, `7 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def runs_near(path: Path) -> list[Path]:
    """Run folders beside a path, itself included: those in training first, then the newest."""
    found = [p.parent for p in path.parent.glob("*/recipe.yaml")]
    return sorted(found, key=lambda p: (holder(p) is None, -_touched(p)))


def _touched(path: Path) -> float:
    times = [os.stat(p).st_mtime for p in (path / RECORDS, path / "recipe.yaml") if p.is_file()]
    return max(times, default=0.0)
