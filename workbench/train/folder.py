"""The run folder: the truth about a run, for whoever looks, from any process, at any time.

recipe.yaml         what was asked for, resolved
environment.json    versions, device, git commit, corpus
records.jsonl       one record a line, see `records.py`
status.json         {state, step, steps, pid, updated_s, message}
checkpoints/        see `checkpoint.py`
control.json        what somebody asks of the run, see `control.py`
torchrun.log        what several processes said, where a notebook started them
training.log        what a process said that trains behind a notebook, see `workbench/background.py`
samples.jsonl       text that the model wrote while it learnt, see `workbench/samples.py`
limit.json          the speed that the machine allows at best, see `workbench/limits.py`
nonfinite/          batches whose loss or gradient was not finite, see `nonfinite.py`
figures/ ...        what notebooks add
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import yaml

from workbench import kernels
from workbench.config import differences, dump, essence
from workbench.errors import CannotWrite, CheckpointError, ConfigError
from workbench.models.base import Model
from workbench.recipe import AnyRecipe, load_recipe
from workbench.train import checkpoint, storage
from workbench.train.lock import LOCK
from workbench.train.records import Record, to_json

log = logging.getLogger("workbench")

RECIPE, RECORDS, STATUS, ENVIRONMENT = (
    "recipe.yaml",
    "records.jsonl",
    "status.json",
    "environment.json",
)
LOG = "torchrun.log"
BACKGROUND_LOG = "training.log"
CHANGEABLE = (
    "train.max_seconds",
    "train.device",
    "train.micro_batches",
    "train.recompute",
    "train.deterministic",
    "train.on_nonfinite",
    "train.loss_scale",
    "train.keep_checkpoints",
    "train.keep_every",
)
"""Fields that a continued run may change: they do not alter what is learnt, but for rounding, and
for updates that would have ended the run."""


class RunFolder:
    """A run on disk: what was asked for, what happened, and the weights.

    Args:
        path: the folder.
        writes: False in a process that trains along but leaves writing to another.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RECIPE).is_file()

    def recipe(self) -> AnyRecipe:
        """What was asked for, resolved.

        Raises:
            ConfigError: this is not a run folder.
        """
        if not self.exists():
            raise ConfigError(
                f"{self.path} is not a run folder: it has no {RECIPE}. Give the folder that "
                "workbench.start wrote"
            )
        return load_recipe(self.path / RECIPE)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened so far, oldest first.

        Args:
            kind: only those of one kind: "train", "eval", "checkpoint" or "done".
        """
        rows = [row for row, _ in self._rows()]
        return [row for row in rows if kind is None or row["kind"] == kind]

    def _rows(self) -> list[tuple[dict[str, Any], bytes]]:
        """Rows with their lines; what follows the first torn line was never committed."""
        path = self.path / RECORDS
        rows = []
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            if not line.endswith(b"\n"):
                break
            try:
                rows.append((json.loads(line), line))
            except ValueError:
                break
        return rows

    def status(self) -> dict[str, Any]:
        """The state of the run; {} before it began."""
        return self._json(STATUS)

    def environment(self) -> dict[str, Any]:
        """On what the run was begun; {} before it began."""
        return self._json(ENVIRONMENT) if self.exists() else {}

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        except ValueError:
            log.warning("%s is torn, as if it were not there: did the machine lose power?", path)
            data = {}
        return data

    def artefact(self, name: str) -> Path:
        """Where to write something of one's own, such as `figures/span.json`.

        Raises:
            ConfigError: the name leads out of the run folder.
        """
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(f"artefact '{name}' leads out of {self.path}; give a relative name")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def load_model(self, which: str = "last") -> Model:
        """The trained model on the CPU, in eval mode; kernels are built if that was not done yet.

        Args:
            which: "last", or "best" by validation loss.

        Raises:
            ConfigError: this is not a run folder.
            CheckpointError: there is no such checkpoint, or its weights do not fit the recipe.
        """
        if which not in ("last", "best"):
            raise ConfigError(f"there is no checkpoint '{which}'; choose last or best")
        recipe = self.recipe()
        found = (checkpoint.newest if which == "last" else checkpoint.best)(self.checkpoints)
        if found is None:
            raise CheckpointError(
                f"{self.path} has no {which} checkpoint yet; train at least until the first "
                f"{'validation' if which == 'best' else 'checkpoint'}"
            )
        model: Model = recipe.model.build(found.manifest["vocab_size"])
        checkpoint.load_weights(found, model)
        kernels.prepare()
        return model.eval()

    # what follows is for the run that owns the folder

    def check(self, recipe: AnyRecipe) -> None:
        """Refuse a folder that holds something else, before anything is written.

        Raises:
            ConfigError: another recipe's run (names the fields), or no run at all.
            CannotWrite: it is read-only.
        """
        if self.writes:
            storage.check_writable(self.path, LOCK, RECORDS, self.checkpoints.name)
        if not self.exists():
            if self.path.exists() and self._holds_something():
                raise ConfigError(
                    f"out: {self.path} is there, is not empty and holds no run ({RECIPE} is "
                    "missing); nothing was written. Give a new or an empty folder"
                )
            return
        lines = [
            line
            for line in differences(dump(recipe), dump(self.recipe()))
            if not line.startswith(CHANGEABLE)
        ]
        if lines:
            raise ConfigError(
                f"out: {self.path} holds the run of another recipe; nothing was written. Here is "
                "what is asked for now, there what the folder holds:\n  "
                + "\n  ".join(lines)
                + "\nGive another folder, or ask for what it holds to continue it"
            )

    def _holds_something(self) -> bool:
        # a process that was killed at its very beginning leaves these
        own = {
            LOCK,
            LOG,
            BACKGROUND_LOG,
            ENVIRONMENT,
            *(f".{name}.partial" for name in (ENVIRONMENT, RECIPE)),
        }
        return not self.path.is_dir() or any(x.name not in own for x in self.path.iterdir())

    def begin(self, recipe: AnyRecipe, environment: dict[str, Any]) -> None:
        """Write what was asked for and on what it runs."""
        if not self.writes:
            return
        with storage.writing("a new run", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # a recipe in place is what makes a folder a run folder: it comes last
        self._write(ENVIRONMENT, json.dumps(environment, indent=2, default=str) + "\n")
        self._write(RECIPE, recipe.to_yaml())

    def append(self, record: Record) -> None:
        """Add a record; when this returns it is in the file.

        Raises:
            CannotWrite: the disk is full or read-only; the file is as before.
        """
        if self.writes:
            with storage.writing(f"the {record.kind} record", self.path):
                storage.append(self.path / RECORDS, f"{to_json(record)}\n".encode())

    def rewind(self, step: int) -> None:
        """Drop records of updates that are about to be repeated, and a torn line."""
        path = self.path / RECORDS
        if path.is_file():
            kept = b"".join(line for row, line in self._rows() if row["step"] <= step)
            if kept != path.read_bytes():
                self._write(RECORDS, kept.decode())

    def set_status(self, state: str, step: int, steps: int, message: str = "") -> None:
        """Say how the run stands: running, paused, stopped, done or failed."""
        status = {
            "state": state,
            "step": step,
            "steps": steps,
            "pid": os.getpid(),
            "updated_s": time.time(),
            "message": message,
        }
        self._write(STATUS, json.dumps(status) + "\n")

    def last_word(self, state: str, step: int, steps: int, message: str) -> None:
        """The status to end with, which no error over it may hide the reason of."""
        try:
            self.set_status(state, step, steps, message)
        except CannotWrite as error:
            log.warning("the status '%s' could not be written: %s", state, error)

    def _write(self, name: str, text: str) -> None:
        """Replace a file so that readers see the old or the new one, never a part."""
        if self.writes:
            with storage.writing(name, self.path):
                storage.replace(self.path / name, text.encode(), durable=name != STATUS)


def origin_of(recipe: AnyRecipe) -> checkpoint.Checkpoint | None:
    """The checkpoint that `train.start_from` means: the best, or the newest where none was
    validated (an imported run); None where weights are drawn afresh.

    Raises:
        ConfigError: it names no run folder, one without checkpoints, or one whose optimizer
            cannot be continued.
    """
    if recipe.train.start_from is None:
        return None
    folder = RunFolder(recipe.train.start_from)
    if not folder.exists():
        raise ConfigError(
            f"train.start_from: {folder.path} is not a run folder. Train the recipe that this one "
            "continues first, or give the folder where it was trained"
        )
    ours, theirs = recipe.train.optimizer.kind, folder.recipe().train.optimizer.kind
    if recipe.train.start_optimizer == "continued" and ours != theirs:
        raise ConfigError(
            f"train.start_optimizer is continued, but {folder.path} was trained with {theirs}, and "
            f"this recipe trains with {ours}; write start_optimizer: fresh"
        )
    found = checkpoint.best(folder.checkpoints) or checkpoint.newest(folder.checkpoints)
    if found is None:
        raise ConfigError(
            f"train.start_from: {folder.path} has no checkpoint yet; train it at least until its "
            "first validation"
        )
    return found


def recipe_sha256(recipe: AnyRecipe) -> str:
    """Identifies a recipe up to the fields that a continued run may change.

    What it leaves to defaults does not count: a version with more fields continues the runs of one
    with fewer.
    """
    data = essence(recipe)
    for path in CHANGEABLE:
        section, name = path.split(".")
        data[section].pop(name, None)
    return checkpoint.digest(yaml.safe_dump(data, sort_keys=True))
