"""A run: training as a plain iterable of records, committed to its folder before each is given.

    run = workbench.start("a-recipe", {"train.steps": 200}, out="runs/mine")
    for record in run:
        ...

`break` is safe and iterating again continues; so is a killed process: `start` with the same recipe
and folder goes on from the newest checkpoint, bit for bit on the CPU.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

from workbench.config import dump
from workbench.data.corpus import Corpus
from workbench.errors import CannotWrite, CheckpointError, NonFiniteLoss, WorkbenchError
from workbench.models.base import Model
from workbench.recipe import AnyRecipe, of_text
from workbench.train import checkpoint, guard
from workbench.train.control import Control, stop_reason
from workbench.train.deterministic import deterministic
from workbench.train.folder import RunFolder, recipe_sha256
from workbench.train.lock import check_owner, release
from workbench.train.memory import naming, smaller_update, smaller_validation
from workbench.train.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    Record,
    from_json,
    to_json,
)
from workbench.train.signals import StopSignals, comes_twice
from workbench.train.tasks import Task, TextTask, Validation
from workbench.train.trackers import Tracking
from workbench.train.trainer import Trainer

ECHO_S = 10.0
"""seconds during which a second signal is taken for an echo of the first, where it may be one"""


class Run:
    """A training run. Iterate over it to train; what is yielded is already on disk.

    Attributes:
        recipe: what was asked for.
        task: what it trains on.
        folder: what is on disk.
        world: the processes that train together; `evaluate` takes it, to share the work.
    """

    def __init__(self, recipe: AnyRecipe, task: Task, folder: RunFolder, trainer: Trainer) -> None:
        self.recipe, self.task, self.folder = recipe, task, folder
        self._trainer, self.tracking = trainer, Tracking()
        self.world = self._world = trainer.world
        self._pending: deque[Record] = deque()
        self._best_nats: float | None = None
        self._saved_step = 0
        self._validated_step = 0
        self._elapsed_s = 0.0
        self._clock_zero = time.monotonic()
        self._finished = self._paused = False
        self._control = Control(folder.path, self._world.leads)
        self._broken = ""
        self._unwritten = ""
        self._sha256 = ""

    @property
    def model(self) -> Model:
        """The model in training, on its device: what the recipe's `model` builds."""
        return self._trainer.model

    @property
    def corpus(self) -> Corpus:
        """The text, with its vocabulary.

        Raises:
            ConfigError: the run trains on no text.
        """
        of_text(self.recipe)
        assert isinstance(self.task, TextTask)
        return self.task.corpus

    @property
    def leads(self) -> bool:
        """Whether this process, of those that train together, writes the folder."""
        return self._world.leads

    @property
    def step(self) -> int:
        """Updates done."""
        return self._trainer.step

    def __iter__(self) -> Iterator[Record]:
        self._clock_zero = time.monotonic() - self._elapsed_s
        with StopSignals(ECHO_S if comes_twice(self._world.size) else 0.0) as signals:
            try:
                while True:
                    while self._pending:
                        record = self._pending.popleft()
                        yield record
                        signals.install()
                        if isinstance(record, DoneRecord):
                            return
                    if self._finished:
                        return
                    self._pending.extend(self._advance(signals))
            finally:
                # at exit no file can be opened
                if not sys.is_finalizing():
                    self.tracking.close()
                    # left by `break` or an error in the loop's body
                    if self.folder.status().get("state") in ("running", "paused"):
                        self._last_word("stopped", f"left at step {self.step}; iterate to go on")

    def save(self) -> None:
        """Write a checkpoint now: after `break`, before the process ends."""
        if self.step > self._saved_step:
            self._check_usable()
            self._checkpoint(None)

    def until(self, step: int) -> None:
        """Train until so many updates are done, or the run ends; its records are in the folder.

        Raises:
            NonFiniteLoss, OutOfMemory: as iterating does.
        """
        self._check_usable()
        while self.step < step and not self._finished:
            self._pending.extend(self._update())

    def _check_usable(self) -> None:
        if self._broken:
            raise WorkbenchError(
                f"this run has failed ({self._broken}), in the middle of an update; what "
                f"workbench.start(..., out={str(self.folder.path)!r}) returns goes on from its "
                "last checkpoint"
            )
        if self._world.leads:
            check_owner(self.folder.path, self)

    def _advance(self, signals: StopSignals) -> list[Record]:
        """Train until something is worth telling; it is committed when this returns."""
        config = self.recipe.train
        self._check_usable()
        if self._unwritten:
            raise CannotWrite(f"{self._unwritten}. In a notebook: call workbench.start again")
        self._status("paused" if self._paused else "running")
        try:
            with self._world.listening():
                while True:
                    # all processes stop at the same update, whichever of them is told to
                    told = self._control.told(signals.number)
                    number, pause, late = self._world.highest(*told, self._late())
                    if number:
                        return self._interrupt(stop_reason(int(number)))
                    if late:
                        return self._finish("time", f"max_seconds is {config.max_seconds:g}")
                    if records := self._rest() if pause else self._update():
                        return records
        except NonFiniteLoss as error:
            self._last_word("failed", str(error))
            evidence = guard.evidence(self.folder, self._trainer.guard.found)
            raise NonFiniteLoss(f"{error}\n{evidence}") from None
        except Exception as error:
            self._last_word("failed", said := f"{type(error).__name__}: {error}")
            if isinstance(error, CannotWrite):
                # what the lost record held is gone: going on from here would not be the same run
                self._unwritten = str(error)
            else:
                self._broken = said
            raise

    def _update(self) -> list[Record]:
        """One update and the records that are due then, committed."""
        if self._paused:
            self._paused = False
            self._status("running")
        cure = partial(smaller_update, self.recipe, self._world.size)
        with self._trainer.random(), naming(cure):
            self._trainer.update()
        guard.save(self.folder, self._trainer.guard.found)
        return self._finish("steps") if self.step >= self.recipe.train.steps else self._due()

    def _rest(self) -> list[Record]:
        """Wait a moment, as somebody asked, first with a checkpoint; the run's clock does not."""
        records = []
        if not self._paused:
            records = self._checkpoint(None) if self.step > self._saved_step else []
            self._paused = True
            self._status("paused")
        self._clock_zero += self._control.wait()
        return records

    def _last_word(self, state: str, message: str) -> None:
        self.folder.last_word(state, self.step, self.recipe.train.steps, message)

    def _late(self) -> bool:
        limit = self.recipe.train.max_seconds
        return limit is not None and self._clock() >= limit

    def _due(self) -> list[Record]:
        """The records of this step, committed; none at most steps."""
        config, step = self.recipe.train, self.step
        records: list[Record] = []
        # none where all updates since the last one were left out: they have no loss
        if step % config.log_every == 0 and self._trainer.meters.updates:
            records += self._commit(self._trainer.record(self._clock()))
        valid_nats = None
        if step % config.eval_every == 0:
            records += self._commit(valid := self._validate())
            valid_nats = valid.loss_nats
        best = self._note_best(valid_nats)
        if valid_nats is not None and (reason := self._enough()):
            return records + self._finish(reason, "as train.stop says", valid_nats)
        if best or step % config.checkpoint_every == 0:
            records += self._checkpoint(valid_nats)
        return records

    def _enough(self) -> str | None:
        """Why `train.stop` ends the run here, if it does."""
        stop = self.recipe.train.stop
        return stop.reason(self._trainer.validations) if stop is not None else None

    def _finish(
        self, reason: str, message: str = "", valid_nats: float | None = None
    ) -> list[Record]:
        """The last records of a run, committed.

        Args:
            reason: why it ends here, for its done record.
            message: for its status.
            valid_nats: the validation of this step, if there was one.
        """
        records: list[Record] = []
        if self._trainer.meters.updates:
            records += self._commit(self._trainer.record(self._clock()))
        if self.step > self._validated_step:
            records += self._commit(valid := self._validate())
            valid_nats = valid.loss_nats
            self._note_best(valid_nats)
        if records or self.step > self._saved_step:
            # again if need be: the averages have been emptied, the loss is known now
            records += self._checkpoint(valid_nats)
        return records + self._end(reason, message)

    def _end(self, reason: str, message: str = "") -> list[Record]:
        done = self._commit(DoneRecord(step=self.step, reason=reason, elapsed_s=self._clock()))
        self._status("done", message)
        self._close()
        return done

    def _close(self) -> None:
        """Nothing more is trained here: the model gets its averaged weights, if there are any."""
        self._finished = True
        self._trainer.swap()
        if self._world.leads:
            release(self.folder.path)

    def _interrupt(self, reason: str) -> list[Record]:
        """Leave quickly: a checkpoint, and the half-filled averages in it."""
        records = self._checkpoint(None) if self.step > self._saved_step else []
        done = DoneRecord(step=self.step, reason="interrupted", elapsed_s=self._clock())
        records += self._commit(done)
        self._status("stopped", reason)
        self._control.clear()
        self._paused = False
        return records

    def _validate(self) -> EvalRecord:
        self._trainer.check_finite()
        averaged_from = self._trainer.averaged_from
        # a model may draw in evaluation too
        exactly = deterministic(self.recipe.train.deterministic)
        cure = partial(smaller_validation, self.recipe)
        with self._trainer.averaged(), self._trainer.random(), exactly, naming(cure):
            result = self.task.validate(self.model, self.step, self._world)
        # rounding may differ between machines; decisions may not
        result = Validation(*self._world.from_leader(list(result)))
        self._validated_step = self.step
        self._trainer.validated(result.loss_nats)
        return result.record(self.step, averaged_from, self._clock())

    def _note_best(self, valid_nats: float | None) -> bool:
        """Whether this is the best validation so far; None is no validation."""
        before = self._best_nats
        best = valid_nats is not None and (before is None or valid_nats < before)
        if best:
            self._best_nats = valid_nats
        return best

    def _checkpoint(self, valid_nats: float | None) -> list[Record]:
        """Write a checkpoint, then its record.

        Raises:
            NonFiniteLoss: the model is broken; nothing was written.
        """
        self._trainer.check_finite()
        self._elapsed_s = self._clock()
        with self._trainer.averaged():
            state = self._trainer.state()
            state["run"] = {
                "best_nats": self._best_nats,
                "validated_step": self._validated_step,
                "elapsed_s": self._elapsed_s,
            }
            written = self._write(state, valid_nats) if self._world.leads else None
        self._saved_step = self.step
        return self._commit(self._record_of(written))

    def _write(self, state: dict[str, Any], valid_nats: float | None) -> checkpoint.Checkpoint:
        folder = self.folder.checkpoints
        self._sha256 = self._sha256 or recipe_sha256(self.recipe)
        written = checkpoint.save(
            folder, self.step, self._trainer.stored or self.model, state,
            recipe_sha256=self._sha256, recipe=dump(self.recipe), valid_nats=valid_nats,
        )  # fmt: skip
        config = self.recipe.train
        checkpoint.prune(folder, config.keep_checkpoints, config.keep_every)
        return written

    def _record_of(self, written: checkpoint.Checkpoint | None) -> CheckpointRecord:
        """The record of what process 0 has written, the same in all."""
        best, clock = self._best_nats, self._elapsed_s
        record = written.record(self.folder.path, best, clock) if written else None
        said = self._world.from_leader(record and to_json(record))
        told = record or from_json(said)
        assert isinstance(told, CheckpointRecord)
        return told

    def _commit(self, record: Record) -> list[Record]:
        self._elapsed_s = self._clock()
        self.folder.append(record)
        self.tracking.log(record)
        return [record]

    def _clock(self) -> float:
        """Seconds spent on this run in all its sessions."""
        return time.monotonic() - self._clock_zero

    def _status(self, state: str, message: str = "") -> None:
        self.folder.set_status(state, self.step, self.recipe.train.steps, message)

    # continuing

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        """Take over weights and everything else of a checkpoint; nothing is written."""
        checkpoint.load_weights(found, self._trainer.storage)
        state = checkpoint.load_state(found)
        checkpoint.compare_versions(found)
        try:
            self._best_nats = state["run"]["best_nats"]
            self._validated_step = state["run"]["validated_step"]
            self._elapsed_s = state["run"]["elapsed_s"]
            self._trainer.restore(state)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{found.path}: its state does not fit this recipe and corpus ({error}). Take it "
                "out of the folder, or give another folder to begin anew"
            ) from error
        self._saved_step = self.step

    def _open(self, found: checkpoint.Checkpoint | None) -> None:
        """Bring the records in line with the checkpoint that was restored."""
        self._clock_zero = time.monotonic() - self._elapsed_s
        self._control.clear()
        self.folder.rewind(self.step if found else -1)
        if found is None:
            return
        rows = [row for row in self.folder.records() if row["step"] == self.step]
        # what process 0 sees: it has just written there
        told = [(row["kind"], row.get("reason")) for row in rows]
        told = [tuple(x) for x in self._world.from_leader(told)]
        if "checkpoint" not in {kind for kind, _ in told}:
            # stopped between the checkpoint and its record
            self._pending.extend(self._commit(self._record_of(found)))
        if self.step >= self.recipe.train.steps:
            reason: str | None = "steps"
        elif self._world.highest(self._late())[0]:
            reason = "time"
        else:
            reason = self._enough()
        if reason is None:
            return
        if ("done", reason) in told:
            if self.folder.status().get("state") != "done":
                # stopped between the last record and the status
                self._status("done")
            self._close()
        else:
            self._pending.extend(self._end(reason))
