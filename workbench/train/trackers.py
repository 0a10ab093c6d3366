"""Where a run may be followed besides its folder: TensorBoard, Weights & Biases, or one's own.

The records in the run folder remain the truth. What a tracker shows is made from them, by process 0
alone, and a tracker that fails is named in one warning and left out; training goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlparse

from workbench.config import dump, nearest
from workbench.errors import ConfigError
from workbench.recipe import AnyRecipe, load_recipe, recipe_names
from workbench.train.folder import CHANGEABLE, RunFolder
from workbench.train.records import DoneRecord, EvalRecord, Record

log = logging.getLogger("workbench")

PROJECT = "workbench"
LONGEST_NAME = 128
"""characters of a name that Weights & Biases accepts"""


@runtime_checkable
class Tracker(Protocol):
    """Shows the records of a run as they come."""

    def log(self, record: Record) -> None:
        """Take in one record, which is already in the run folder."""

    def close(self) -> None:
        """Everything is to be where it belongs now; another record may come all the same."""


class Tracking:
    """The trackers of a run, none of which can stop it.

    Args:
        trackers: name and tracker of each.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]] = ()) -> None:
        self._trackers = dict(trackers)

    def log(self, record: Record) -> None:
        """Show a record in all of them."""
        self._each(lambda tracker: tracker.log(record))

    def close(self) -> None:
        """Close all of them, until the next record."""
        self._each(lambda tracker: tracker.close())

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                # whatever went wrong in another program: days of training must not end for it
                del self._trackers[name]
                log.warning(
                    "tracker %s failed and is left out from now on; the run folder has every "
                    "record (%s: %s)", name, type(error).__name__, error,
                )  # fmt: skip


def check_trackers(trackers: Sequence[str | Tracker]) -> None:
    """Refuse trackers that cannot be had, before anything is spent.

    Raises:
        ConfigError: no such tracker, or its package is not installed.
    """
    if isinstance(trackers, str) or not isinstance(trackers, Sequence):
        raise ConfigError(f"trackers: got {trackers!r}, expected a list such as ['tensorboard']")
    for tracker in trackers:
        if not isinstance(tracker, str):
            if not isinstance(tracker, Tracker):
                raise ConfigError(
                    f"trackers: got {tracker!r}, expected a name ({', '.join(TRACKERS)}) or an "
                    "object with log(record) and close()"
                )
            continue
        if tracker not in TRACKERS:
            known = list(TRACKERS)
            raise ConfigError(f"trackers: there is no '{tracker}'. {nearest(tracker, known)}")
        kind = TRACKERS[tracker]
        if importlib.util.find_spec(kind.package) is None:
            raise ConfigError(
                f"trackers: {tracker} needs the package {kind.package}, which is not installed. "
                f"Run pip install 'workbench[{kind.extra}]', or pip install {kind.package}"
            )


def open_trackers(
    trackers: Sequence[str | Tracker], folder: RunFolder, recipe: AnyRecipe, step: int
) -> Tracking:
    """The trackers of a run; nothing is written before the first record.

    Args:
        trackers: names and objects that `check_trackers` let pass.
        folder: of the run.
        recipe: of the run.
        step: from which it begins or continues.
    """
    return Tracking(
        [
            (x, TRACKERS[x](folder, recipe, step)) if isinstance(x, str) else (repr(x), x)
            for x in trackers
        ]
    )


class TensorBoard:
    """Event files in the run folder's `tensorboard/`: `tensorboard --logdir runs` shows all runs.

    Steps that a continued run repeats take the place of those before.
    """

    package, extra = "tensorboard", "tracking"

    def __init__(self, folder: RunFolder, recipe: AnyRecipe, step: int) -> None:
        self._folder, self._recipe = folder, recipe
        self._begin: int | None = step
        self._writer: Any = None

    def log(self, record: Record) -> None:
        if self._writer is None:
            self._writer = self._open()
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record.step)

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        first, self._begin = self._begin, None
        writer = SummaryWriter(
            str(self._folder.artefact("tensorboard")),
            purge_step=None if first is None else first + 1,
            flush_secs=10,
        )
        if first == 0:
            text = "\n".join(f"    {line}" for line in self._recipe.to_yaml().splitlines())
            writer.add_text("recipe", text, 0)
        return writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WeightsAndBiases:
    """A run of Weights & Biases; its files are in the run folder's `wandb/`.

    Without an API key nothing leaves the machine: `wandb sync` sends it later. `WANDB_MODE` and the
    other variables of that program decide otherwise. A continued run has the same id; steps that it
    repeats are left as they were. What it has not written yet when the process is killed, up to
    32 KiB, is missing there.
    """

    package, extra = "wandb", "wandb"

    def __init__(self, folder: RunFolder, recipe: AnyRecipe, step: int) -> None:
        self._folder, self._recipe = folder, recipe
        self._run: Any = None

    def log(self, record: Record) -> None:
        if self._run is None:
            self._run = self._open()
        if values := numbers(record):
            self._run.log(values, step=record.step)

    def _open(self) -> Any:
        import wandb

        mode = None if "WANDB_MODE" in os.environ else "online" if _has_key() else "offline"
        try:
            return self._begin(mode)
        except wandb.errors.CommError as error:
            if mode != "online":
                raise
            log.warning("wandb cannot be reached, going on offline (%s)", error)
            return self._begin("offline")

    def _begin(self, mode: str | None) -> Any:
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", job_name(self._recipe)),
            id=self._id(),
            resume="allow",
            config=dump(self._recipe),
            dir=str(self._folder.path),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def _id(self) -> str:
        """One for as long as the run folder lasts."""
        path = self._folder.artefact("wandb/id.txt")
        if not path.is_file():
            path.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        return path.read_text("utf-8").strip()

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def _has_key() -> bool:
    """Whether someone has logged in to Weights & Biases, as that program keeps it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    given = os.environ.get("NETRC")
    for path in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError) as error:
            log.warning("wandb: %s cannot be read (%s)", path, error)
    return False


def numbers(record: Record) -> dict[str, float]:
    """What can be drawn of a record, by `train/...`, `valid/...` and `checkpoint/...`.

    What mixers report for each head is averaged by layer, from 1.
    """
    if isinstance(record, DoneRecord):
        return {}
    group = record.split if isinstance(record, EvalRecord) else record.kind
    row, found = asdict(record), {}
    for reading, layers in row.pop("readings", {}).items():
        for layer, heads in enumerate(layers, 1):
            if heads:
                found[f"{group}/{reading}/layer_{layer}"] = sum(heads) / len(heads)
    for name, value in row.items():
        if name in ("step", "context_len", "averaged_from"):
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, number in parts:
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[f"{group}/{name}/{part}".rstrip("/")] = number
    return found


def job_name(recipe: AnyRecipe) -> str:
    """The recipe's name and what it changes of the recipe that comes by that name."""
    words = [recipe.name]
    if recipe.name in recipe_names():
        base = _leaves(dump(load_recipe(recipe.name)))
        words += [
            f"{path}={value}"
            for path, value in _leaves(dump(recipe)).items()
            if path not in CHANGEABLE and base.get(path, ...) != value
        ]
    name = " ".join(words)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Plain values by dotted paths."""
    if not isinstance(value, dict | list) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inside in items:
        found |= _leaves(inside, f"{path}.{key}" if path else str(key))
    return found
