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
from typing import Any

import nbformat
import papermill
import yaml
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillException, PapermillExecutionError

from workbench import errors
from workbench.engine import WorkbenchEngine
from workbench.errors import ConfigError, DataMissing, WorkbenchError

BOOKS = Path(__file__).resolve().parents[2] / "notebooks"
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


def execute(book: str, executed: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook of this checkout; what it shows is in the executed copy.

    Raises:
        DataMissing: the notebooks are not beside the package.
        PapermillExecutionError: a cell failed.
    """
    path = BOOKS / f"{book}.ipynb"
    if not path.is_file():
        raise DataMissing(
            f"there is no {path}: jobs and sweeps run the notebooks of a checkout, which the "
            "installed package does not have. Clone the repository and run them there"
        )
    papermill_engines.register("workbench", WorkbenchEngine)
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        path, executed, dict(parameters), engine_name="workbench", progress_bar=False
    )


def train(job: Job) -> int:
    """Train until the run is done or a signal comes; returns the exit status."""
    try:
        execute("train", job.executed, job.parameters())
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt" and stopped_by(job.executed):
            return STOPPED
        sys.stderr.write(f"workbench: {error.ename}: {error.evalue}\nnotebook: {job.executed}\n")
        return MENDABLE if error.ename in vars(errors) else FAILED
    except (PapermillException, KeyboardInterrupt, RuntimeError) as error:
        # a signal before training began: there is nothing that could be lost
        if stopped_by(job.executed):
            return STOPPED
        sys.stderr.write(f"workbench: {type(error).__name__}: {error}\n")
        return FAILED
    return DONE if state(job.out) == "done" else STOPPED


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
