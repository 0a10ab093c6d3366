"""One training as a job: `notebooks/train.ipynb` by papermill, until it is done or told to stop.

    python -m workbench.cluster.job RECIPE --out runs/mine --set train.steps=200

SIGTERM, SIGINT and SIGUSR1 make it write a checkpoint and save the notebook. The same command
again continues the run. Exit status: 0 the run is done, 75 it was stopped and can be continued, 2 a
message says what to mend, 1 it failed otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import papermill
import yaml
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillException, PapermillExecutionError

from workbench import books, errors
from workbench.engine import WorkbenchEngine
from workbench.errors import ConfigError, WorkbenchError

DONE, FAILED, MENDABLE, STOPPED = 0, 1, 2, 75
"""exit statuses; 75 is the system's `EX_TEMPFAIL`: again later"""


@dataclass(frozen=True)
class Job:
    """A training by notebook."""

    recipe: str
    """a name, or the path of a `.yaml` file"""
    out: Path
    """the run folder"""
    executed: Path
    """where the executed notebook goes"""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1
    """that share each batch"""

    def words(self) -> list[str]:
        """The arguments of this module that mean this job."""
        places = ["--out", str(self.out), "--notebook", str(self.executed)]
        changes = ["--overrides", json.dumps(dict(self.overrides))]
        return [self.recipe, *places, "--processes", str(self.processes), *changes]

    def parameters(self) -> dict[str, Any]:
        """Of the notebook."""
        given = {"recipe": self.recipe, "overrides": dict(self.overrides), "out": str(self.out)}
        return given if self.processes == 1 else {**given, "processes": self.processes}


class Ended(NamedTuple):
    """How the run of a notebook ended."""

    status: int
    why: str = ""
    """the error, where there was one"""


def execute(
    book: str, executed: Path, parameters: Mapping[str, Any], heard: Any | None = None
) -> None:
    """Run a notebook; what it shows is in the executed copy.

    Args:
        book: its name, or the path of any `.ipynb` file.
        executed: where the copy goes.
        parameters: name -> plain value.
        heard: an open file that gets what the notebook prints, as it does.

    Raises:
        ConfigError: no such notebook, or a parameter that it does not have.
        DataMissing: the notebooks are not there.
        PapermillExecutionError: a cell failed.
    """
    path = books.find(book)
    papermill_engines.register("workbench", WorkbenchEngine)
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        path,
        executed,
        dict(parameters),
        engine_name="workbench",
        progress_bar=False,
        stdout_file=heard,
    )


def attempt(
    book: str, executed: Path, parameters: Mapping[str, Any], heard: Any | None = None
) -> Ended:
    """As `execute`, with the exit status that tells how it went.

    Raises:
        ConfigError, DataMissing: as `execute`; nothing has been run.
    """
    try:
        execute(book, executed, parameters, heard)
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt" and stopped_by(executed):
            return Ended(STOPPED)
        status = MENDABLE if error.ename in vars(errors) else FAILED
        return Ended(status, f"{error.ename}: {error.evalue}")
    except (PapermillException, KeyboardInterrupt, RuntimeError) as error:
        # a signal before training began: there is nothing that could be lost
        if stopped_by(executed):
            return Ended(STOPPED)
        return Ended(FAILED, f"{type(error).__name__}: {error}")
    return Ended(DONE)


def train(job: Job) -> int:
    """Train until the run is done or a signal comes; returns the exit status."""
    ended = attempt("train", job.executed, job.parameters())
    if ended.why:
        sys.stderr.write(f"workbench: {ended.why}\nnotebook: {job.executed}\n")
    if ended.status == DONE and state(job.out) != "done":
        return STOPPED
    return ended.status


def state(out: Path) -> str:
    """How a run stands, by its `status.json`: running, stopped, failed, done, or nothing yet."""
    file = out / "status.json"
    return str(json.loads(file.read_text("utf-8"))["state"]) if file.is_file() else ""


def stopped_by(executed: Path) -> str:
    """The signal that ended an executed notebook; empty where none did."""
    return str(read(executed).metadata.get("papermill", {}).get("stopped_by", ""))


def read(executed: Path) -> Any:
    """An executed notebook; an empty one where there is none, or it is torn: its job was killed."""
    try:
        return nbformat.read(executed, 4)
    except (OSError, ValueError):
        return nbformat.v4.new_notebook()


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    pairs = [assignment.partition("=") for assignment in assignments]
    if odd := [path for path, equals, _ in pairs if not (path and equals)]:
        raise ConfigError(f"--set: got '{odd[0]}', expected path=value, such as train.steps=200")
    try:
        return {path: yaml.safe_load(text) for path, _, text in pairs}
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: a value is not YAML ({error})") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workbench.cluster.job", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", help="a name that `workbench recipes` lists, or a file .yaml")
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--notebook", type=Path, help="the executed notebook (default: OUT.ipynb)")
    parser.add_argument("--processes", type=int, default=1, help="that share each batch")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change the recipe, such as train.steps=200; as often as wanted",
    )
    parser.add_argument("--overrides", default="{}", type=json.loads, help="the same as JSON")
    given = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    executed = given.notebook or given.out.with_name(f"{given.out.name}.ipynb")
    try:
        overrides = {**given.overrides, **_overrides(given.set)}
        return train(Job(given.recipe, given.out, executed, overrides, given.processes))
    except WorkbenchError as error:
        sys.stderr.write(f"workbench: {error}\n")
        return MENDABLE


if __name__ == "__main__":
    sys.exit(main())
