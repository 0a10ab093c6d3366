"""The main job from one command: train, evaluate and look inside two small models.

    python -m workbench.demo [--out runs/demo] [--recipes a,b] [--seconds-per-model N]

It runs the notebooks through papermill, tells what happens while it happens, and ends with a table
and one self-contained page, `report.html`. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillException, PapermillExecutionError

from workbench import report
from workbench.engine import WorkbenchEngine
from workbench.errors import ConfigError, DataMissing, WorkbenchError
from workbench.metrics import bits_per_token
from workbench.models.mixers.attention import AttentionConfig
from workbench.probe import FAST_WEIGHTS
from workbench.recipe import Recipe, load_recipe, of_text
from workbench.train.folder import RunFolder

RECIPES = "span-python-tiny,delta-python-tiny"
SECONDS_PER_MODEL = 90.0
"""longest training, so that the whole stays under five minutes on two cores"""
MEASURE = {"max_tokens": 200_000, "context_sample": 240}
"""what fits into the demo's time; `evaluate.ipynb` by hand scores all of both splits"""
BOOKS = Path(__file__).resolve().parent.parent / "notebooks"
EXECUTED = "notebooks"
"""folder inside the demo's output for executed notebooks"""


class Console:
    """Lines on a terminal, the last of which may be rewritten; plain lines elsewhere."""

    def __init__(self, stream: Any = None, every_s: float = 15.0) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.redraws = bool(self.stream.isatty())
        self.every_s = every_s
        self._open = False
        self._told = float("-inf")

    def say(self, text: str = "") -> None:
        """A line that stays."""
        self._write(("\r\x1b[K" if self._open else "") + text + "\n")
        self._open = False
        self._told = time.monotonic()

    def hint(self, text: str) -> None:
        """A line that the next one replaces; where that cannot be, one now and then."""
        if self.redraws:
            self._write("\r\x1b[K" + text[: os.get_terminal_size().columns - 1])
            self._open = True
        elif time.monotonic() - self._told >= self.every_s:
            self.say(text)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


@dataclass(frozen=True)
class Job:
    """One notebook to run."""

    book: str
    run: Path
    parameters: Mapping[str, Any]
    executed: Path


class Follower(threading.Thread):
    """Tells how a job goes on, from what it leaves in the run folder."""

    def __init__(self, console: Console, job: Job, title: str) -> None:
        super().__init__(daemon=True)
        self.console, self.job, self.title = console, job, title
        self.begin = time.monotonic()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.console.hint(f"{self.title}  {time.monotonic() - self.begin:4.0f} s{self._news()}")

    def _news(self) -> str:
        if self.job.book != "train":
            return ""
        return training_news(RunFolder(self.job.run))

    def end(self) -> float:
        """Stop, and say how many seconds it took."""
        self._ended.set()
        self.join()
        return time.monotonic() - self.begin


def training_news(folder: RunFolder) -> str:
    """Step, loss and remaining time of a run in training; empty before its first record."""
    rows, steps = folder.records("train"), folder.status().get("steps", 0)
    if not rows or not steps:
        return ""
    last, first = rows[-1], rows[0]
    text = f"  step {last['step']:,} of {steps:,}"
    if last["loss_nats"] is not None:
        text += f"  {bits_per_token(last['loss_nats']):.3f} bits"
    if last["step"] > first["step"]:
        pace = (last["elapsed_s"] - first["elapsed_s"]) / (last["step"] - first["step"])
        text += f"  about {pace * (steps - last['step']):.0f} s left"
    return text


def plan(name: str, out: Path, seconds: float) -> list[Job]:
    """The notebooks of one recipe, in order.

    Args:
        name: of the recipe.
        out: the demo's folder.
        seconds: longest time to train.

    Raises:
        ConfigError: no such recipe.
    """
    recipe = of_text(load_recipe(name))
    run = out / recipe.name
    view = {"run": str(run)}
    parameters: dict[str, dict[str, Any]] = {
        "train": {"recipe": name, "out": str(run), "max_seconds": seconds},
        "evaluate": view | MEASURE,
    }
    parameters |= dict.fromkeys(inside(recipe), view)
    folder = out / EXECUTED
    return [
        Job(book, run, values, folder / f"{recipe.name}-{book}.ipynb")
        for book, values in parameters.items()
    ]


def inside(recipe: Recipe) -> list[str]:
    """Which notebooks look inside a model of this recipe."""
    mixers = [block.mixer for block in recipe.model.block_configs()]
    kinds = (("attention_span", AttentionConfig), ("fast_weights", FAST_WEIGHTS))
    return [book for book, kind in kinds if any(isinstance(m, kind) for m in mixers)]


def is_done(job: Job) -> bool:
    """Whether this notebook has already run to its end, for the run as it is now."""
    folder = RunFolder(job.run)
    if not job.executed.is_file() or folder.status().get("state") != "done":
        return False
    nb = nbformat.read(job.executed, 4)
    told = nb.metadata.get("papermill", {})
    cells = [c.metadata.get("papermill", {}) for c in nb.cells]
    ended = told.get("end_time") and not any(
        c.get("exception") or c.get("status") != "completed" for c in cells
    )
    same = told.get("parameters") == dict(job.parameters)
    newest = max((p.stat().st_mtime for p in folder.checkpoints.glob("*/manifest.json")), default=0)
    fresh = job.book == "train" or job.executed.stat().st_mtime >= newest
    return bool(ended and same and fresh and "stopped_by" not in told)


def execute(job: Job, console: Console, title: str) -> None:
    """Run one notebook; what it draws is in the executed copy.

    Raises:
        PapermillExecutionError: a cell failed.
    """
    job.executed.parent.mkdir(parents=True, exist_ok=True)
    follower = Follower(console, job, title)
    follower.start()
    try:
        papermill.execute_notebook(
            BOOKS / f"{job.book}.ipynb",
            job.executed,
            parameters=dict(job.parameters),
            engine_name="workbench",
            progress_bar=False,
        )
    finally:
        seconds = follower.end()
    console.say(f"{title}  {seconds:.0f} s")


def check(out: Path) -> None:
    """Refuse before anything is run.

    Raises:
        DataMissing: the notebooks are not beside the package.
        ConfigError: `out` is a file.
    """
    if not (BOOKS / "train.ipynb").is_file():
        raise DataMissing(
            f"the notebooks are not in {BOOKS}: the demo needs a checkout of the repository, not "
            "only the installed package. Clone it and run `make demo` there."
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, expected a folder or a new name")


def run(out: Path, recipes: Sequence[str], seconds: float, console: Console) -> int:
    """The whole job.

    Returns:
        the exit status: 0, or 1 if a notebook failed or was stopped.
    """
    check(out)
    papermill_engines.register("workbench", WorkbenchEngine)
    begin = time.monotonic()
    jobs = [job for name in recipes for job in plan(name, out, seconds)]
    console.say(f"{len(jobs)} notebooks for {' and '.join(recipes)}; all goes into {out}")
    for i, job in enumerate(jobs, 1):
        title = f"[{i}/{len(jobs)}] {job.run.name}: {job.book}.ipynb"
        if is_done(job):
            console.say(f"{title}  done before")
            continue
        try:
            execute(job, console, title)
        except PapermillExecutionError as error:
            console.say(f"{title} failed: {error.ename}: {error.evalue}")
            console.say(f"The notebook with the error: {job.executed}")
            return 1
        state = RunFolder(job.run).status()
        if state.get("state") != "done":
            console.say(f"{title} stopped at step {state.get('step')}; run the demo again to go on")
            return 1
    finish(out, jobs, console)
    console.say(f"{time.monotonic() - begin:.0f} s in all")
    return 0


def finish(out: Path, jobs: Sequence[Job], console: Console) -> None:
    """The table, the page, and where things are."""
    folders = [RunFolder(path) for path in dict.fromkeys(job.run for job in jobs)]
    page = report.build(out / "report.html", folders)
    console.say()
    console.say(report.table([report.summary(folder) for folder in folders]))
    console.say()
    for folder in folders:
        console.say(f"against the same test text: {report.against_baselines(folder)}")
    console.say()
    for job in jobs:
        console.say(f"notebook  {job.executed}")
    console.say(f"report    {page}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workbench.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all of it")
    parser.add_argument("--recipes", default=RECIPES, help="names, parted by commas")
    parser.add_argument(
        "--seconds-per-model",
        type=float,
        default=SECONDS_PER_MODEL,
        help="longest time to train each model (default: %(default)g)",
    )
    given = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    console = Console()
    try:
        names = [name.strip() for name in given.recipes.split(",") if name.strip()]
        return run(given.out.resolve(), names, given.seconds_per_model, console)
    except (WorkbenchError, PapermillException) as error:
        console.say(f"{type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        console.say("stopped; run the demo again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
