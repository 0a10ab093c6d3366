"""A run in several processes, started from one that trains nothing itself, such as a notebook's.

`torchrun` runs `python -m workbench.train` as often as wanted, and the run folder tells how it
goes: whoever iterates over a `LaunchedRun` gets the records that process 0 appends there. Nothing
is forked, so a GPU that the notebook has used is no hindrance, and what ends the processes (too
little memory, say) leaves the notebook alive.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from workbench.config import Config
from workbench.data.corpus import Corpus
from workbench.errors import ConfigError, ProcessesFailed
from workbench.models.base import Model
from workbench.recipe import AnyRecipe, of_text
from workbench.train import checkpoint
from workbench.train.environment import choose_device
from workbench.train.folder import LOG, RECORDS, RunFolder
from workbench.train.follow import Follower
from workbench.train.lock import hold, release
from workbench.train.records import CheckpointRecord, DoneRecord, Record
from workbench.train.run import ECHO_S
from workbench.train.signals import StopSignals
from workbench.train.tasks import Task, TextTask
from workbench.train.torchrun import Torchrun
from workbench.train.trackers import Tracking

log = logging.getLogger("workbench")

RESTARTS = 3
POLL_S = 0.1
"""seconds between two looks at the run folder"""


class LaunchedRun:
    """A run in several processes. Iterate over it to train, as over a `Run`.

    The processes start with the iteration and end with it. `break`, an interrupt and SIGTERM make
    them write a checkpoint and leave; iterating again starts them again, and they continue. If one
    dies, all are started again from the last checkpoint, up to `restarts` times in a row without a
    new one. What would only fail again is not tried again: a fault whose message says how to mend
    it, and an error before the first record.

    Attributes:
        recipe: what was asked for.
        task: what it trains on.
        folder: what is on disk.
        processes: how many share each batch.
        restarts: see above.
        leads: that the folder is written on this run's behalf; as in a `Run`.
        step: updates done, as far as the records tell.
    """

    leads = True

    def __init__(
        self,
        recipe: AnyRecipe,
        task: Task,
        folder: RunFolder,
        processes: int,
        model: Model,
        *,
        step: int | None = None,
        track: Sequence[str] = (),
        tracking: Tracking | None = None,
    ) -> None:
        """
        Args:
            recipe, task, folder, processes: see above; all of them checked.
            model: as it is before training; dropped when there is a checkpoint.
            step: of the checkpoint to continue from; None where there is none.
            track: names of trackers for process 0.
            tracking: trackers to be fed by this process.
        """
        self.recipe, self.task, self.processes = recipe, task, processes
        self.folder = RunFolder(folder.path.resolve())
        self.restarts = RESTARTS
        self.step = step or 0
        self._model: tuple[Path | None, Model] = (None, model.eval())
        self._track, self._tracking = track, tracking or Tracking()
        self._imports = modules_of(recipe)
        self._cwd = Path.cwd()
        self._child: Torchrun | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._pending: deque[Record] = deque()
        self._last: Record | None = None
        self._crashes = 0
        self._turn: object = None
        hold(self.folder.path, self)
        self.folder.rewind(-1 if step is None else step)
        self._follower = Follower(self.folder.path / RECORDS)
        self._follower.skip()
        done = self.folder.records("done")
        self._finished = bool(done) and done[-1]["reason"] == "steps"
        # process 0 is to have it; that nobody else does was the question
        release(self.folder.path)

    @property
    def model(self) -> Model:
        """The model of the last checkpoint, in evaluation mode; before the first as it begins.

        While the processes run it is on the CPU, else on the device of `train.device`.
        """
        found = checkpoint.newest(self.folder.checkpoints)
        path = found.path if found else None
        if path != self._model[0]:
            self._model = (path, self.folder.load_model())
        if path is not None and self._child is None:
            self._model[1].to(choose_device(self.recipe.train.device))
        return self._model[1]

    @property
    def corpus(self) -> Corpus:
        """The text, with its vocabulary.

        Raises:
            ConfigError: the run trains on no text.
        """
        of_text(self.recipe)
        assert isinstance(self.task, TextTask)
        return self.task.corpus

    def save(self) -> None:
        """Nothing: the processes write a checkpoint whenever the loop is left."""

    def __iter__(self) -> Iterator[Record]:
        # of several iterators the newest has the processes
        turn = self._turn = object()
        with StopSignals(ECHO_S) as signals:
            try:
                going = not self._finished
                while going or self._pending:
                    while self._pending:
                        yield self._pending.popleft()
                        signals.install()
                    going = going and self._advance(signals)
            except KeyboardInterrupt:
                # the second one
                if self._child is not None:
                    self._child.kill()
                raise
            finally:
                if self._turn is turn:
                    self._leave()

    def _advance(self, signals: StopSignals) -> bool:
        """Wait until there are records; False when there will be no more.

        Raises:
            ProcessesFailed: the processes failed, and more often than is tried again.
        """
        child = self._child = self._child or self._start()
        while True:
            # asked before reading: nothing is appended after the end
            status = child.ended()
            if self._take():
                return True
            if status is not None:
                return self._settle(child, status)
            if signals.number:
                child.stop()
            time.sleep(POLL_S)

    def _start(self) -> Torchrun:
        self._last = None
        self._scratch = tempfile.TemporaryDirectory(prefix="workbench-")
        asked = Path(self._scratch.name) / f"{self.recipe.name}.yaml"
        asked.write_text(self.recipe.to_yaml(), encoding="utf-8")
        words = ["workbench.train", str(asked), "--out", str(self.folder.path)]
        words += [word for name in self._track for word in ("--track", name)]
        words += [word for name in self._imports for word in ("--import", name)]
        self.folder.path.mkdir(parents=True, exist_ok=True)
        return Torchrun(words, self.processes, self.folder.path / LOG, self._cwd, self._settings())

    def _settings(self) -> dict[str, str]:
        # together as many threads as one process would have
        threads = max(1, torch.get_num_threads() // self.processes)
        settings = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        # DDP remarks at every run that it found no unused parameters
        settings["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")
        home = Path(__file__).resolve().parents[2]
        if not home.name.endswith("-packages"):
            # a checkout that this process may have found in a way of its own
            paths = [str(home), os.environ.get("PYTHONPATH", "")]
            settings["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return settings

    def _take(self) -> bool:
        """Read what the run has told since; whether it has."""
        records = self._follower.read()
        for record in records:
            self.step, self._last = record.step, record
            self._tracking.log(record)
            if isinstance(record, CheckpointRecord):
                self._crashes = 0
        self._pending.extend(records)
        return bool(records)

    def _settle(self, child: Torchrun, status: int) -> bool:
        """After the end of the processes: whether they were started again."""
        done = self._last if isinstance(self._last, DoneRecord) else None
        if child.was_told or done or status == 0:
            # nothing told and no failure: there was nothing left to do
            self._finished = not child.was_told if done is None else not _interrupted(done)
            self._end()
            self._say_stopped()
            return False
        failure = child.failure()
        hopeless = failure.mendable or (self._last is None and not failure.killed)
        if not hopeless and self._crashes < self.restarts:
            self._crashes += 1
            log.warning(
                "%s after step %d; starting all %d again from the last checkpoint (%d of %d "
                "restarts). What they said: %s",
                failure.how, self.step, self.processes, self._crashes, self.restarts,
                self.folder.path / LOG,
            )  # fmt: skip
            self._end()
            self._child = self._start()
            return True
        self._end()
        self._say("failed", f"{failure.how}. {failure.story}".strip())
        raise ProcessesFailed(
            f"the {self.processes} processes that trained in {self.folder.path} ended after step "
            f"{self.step}: {failure.how}.\n  "
            + (failure.story.replace("\n", "\n  ") or "It left no message.")
            + f"\nAll that they said is in {self.folder.path / LOG}. The last checkpoint is "
            "untouched; start again with the same recipe and folder to continue from it"
        )

    def _end(self) -> None:
        """The processes are gone."""
        self._child = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
        self._tracking.close()

    def _leave(self) -> None:
        """Have the processes write a checkpoint and end; a second signal ends them at once."""
        if (child := self._child) is None:
            return
        try:
            while child.ended() is None:
                child.stop()
                if sys.is_finalizing():
                    # they get SIGTERM with the end of this process
                    return
                time.sleep(POLL_S)
        finally:
            if not sys.is_finalizing():
                child.kill()
        self._take()
        if self._pending and _interrupted(self._pending[-1]):
            # that was us: whoever iterates again has not been interrupted
            self._pending.pop()
        self._end()
        self._say_stopped()

    def _say_stopped(self) -> None:
        """If the processes had no time to say so themselves."""
        if self.folder.status().get("state") in ("running", "paused"):
            self._say("stopped", f"killed after step {self.step}; iterate again to continue")

    def _say(self, state: str, message: str) -> None:
        # a status would make a folder in which nothing was begun look like someone else's
        if self.folder.exists():
            self.folder.last_word(state, self.step, self.recipe.train.steps, message)


def _interrupted(record: Record) -> bool:
    return isinstance(record, DoneRecord) and record.reason == "interrupted"


def modules_of(config: Config) -> list[str]:
    """The modules beyond this package that define what a recipe names.

    Raises:
        ConfigError: something is defined in a notebook's cell, where other processes cannot get it.
    """
    found, todo = set(), [config]
    while todo:
        here = todo.pop()
        if (module := type(here).__module__) == "__main__":
            raise ConfigError(
                f"{type(here).__name__} is defined in this notebook or program, where other "
                "processes cannot find it, and they are to train. Put it into a file beside it and "
                "import it from there"
            )
        if module.split(".")[0] != "workbench":
            found.add(module)
        for name in type(here).model_fields:
            value = getattr(here, name)
            inside = value if isinstance(value, tuple) else (value,)
            todo += [each for each in inside if isinstance(each, Config)]
    return sorted(found)
