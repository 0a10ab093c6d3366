"""A sweep from its first job to its comparison: hand over, wait, tell, compare.

The same sweep again continues what was stopped or failed and leaves what is done. Jobs that a
cluster still has from before are waited for, not handed over twice.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from papermill.exceptions import PapermillExecutionError

from workbench.cluster.job import execute, read, stopped_by
from workbench.cluster.submission import Executor, Submitted
from workbench.config import dump
from workbench.errors import ConfigError
from workbench.metrics import bits_per_token
from workbench.sweep import LOGS, Planned, Sweep
from workbench.train.signals import StopSignals
from workbench.train.storage import replace

TABLE, JOBS, COMPARISON, LOCK = "sweep.yaml", "jobs.json", "compare.ipynb", ".sweep.lock"
POLL_S = 1.0
DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130

Say = Callable[[str], None]


def conduct(
    table: Sweep, runs: Sequence[Planned], folder: Path, executor: Executor, at_once: int, say: Say
) -> int:
    """Run what is not done, and compare all.

    Args:
        table: what was asked for; kept in the folder.
        runs: its runs.
        folder: of the sweep.
        executor: who runs the jobs.
        at_once: how many at a time, where the executor has no queue of its own.
        say: takes each line for the user.

    Returns:
        the exit status: 0, 1 where a run failed, 130 where the user stopped it.

    Raises:
        ConfigError: another process is at work on this sweep.
    """
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            text = yaml.safe_dump(dump(table), sort_keys=False, allow_unicode=True)
            replace(folder / TABLE, text.encode(), durable=False)
            return _conduct(runs, folder, executor, at_once, say)
    except Timeout:
        raise ConfigError(
            f"another process is at work on the sweep in {folder}; wait for it, stop it, or give "
            "another folder: --out"
        ) from None


def _conduct(
    runs: Sequence[Planned], folder: Path, executor: Executor, at_once: int, say: Say
) -> int:
    book = _Book(folder, executor)
    here = [run for run in runs if run.is_done]
    active = {run.name: run for run in runs if run not in here and book.is_active(run.name)}
    waiting = deque(run for run in runs if run not in here and run.name not in active)
    say(
        f"{len(runs)} runs in {folder}: {len(here)} done before, {len(active)} at work, "
        f"{len(waiting)} to start"
    )
    if interrupted := _wait(waiting, active, book, at_once, say):
        say(
            "the jobs go on; the same command waits for them again"
            if executor.queues and active
            else "stopped; the same command continues"
        )
    elif any(run.folder.records() for run in runs):
        compare(folder, [run.name for run in runs], say)
    say(outcomes(runs, book.logs()))
    if interrupted:
        return INTERRUPTED
    return DONE if all(run.is_done for run in runs) else SOME_FAILED


class _Book:
    """Which jobs were handed over for which runs, also by earlier commands."""

    def __init__(self, folder: Path, executor: Executor) -> None:
        self._file, self.executor = folder / JOBS, executor
        rows = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        self.jobs = {name: Submitted(row["id"], Path(row["log"])) for name, row in rows.items()}
        self._active = executor.active(list(self.jobs.values())) if executor.queues else set()

    def is_active(self, name: str) -> bool:
        """Whether a run's last job has not ended, as far as was known at `look`."""
        return name in self.jobs and self.jobs[name].id in self._active

    def look(self, names: Iterable[str]) -> None:
        """Ask the executor which of these have not ended."""
        self._active = self.executor.active([self.jobs[name] for name in names])

    def submit(self, runs: Sequence[Planned]) -> None:
        """Hand runs over, and note it."""
        made = self.executor.submit([run.job for run in runs])
        self.jobs |= {run.name: job for run, job in zip(runs, made, strict=True)}
        rows = {name: {"id": job.id, "log": str(job.log)} for name, job in self.jobs.items()}
        replace(self._file, (json.dumps(rows, indent=1) + "\n").encode(), durable=False)

    def logs(self) -> dict[str, Path]:
        return {name: job.log for name, job in self.jobs.items()}


def _wait(
    waiting: deque[Planned], active: dict[str, Planned], book: _Book, at_once: int, say: Say
) -> bool:
    """Until nothing waits and nothing is at work; whether a signal came first."""
    stopping = False
    with StopSignals() as signals:
        while waiting or active:
            if signals.caught and not stopping:
                stopping = True
                waiting.clear()
                if book.executor.queues:
                    return True
                say(f"{signals.caught}: {len(active)} runs write their checkpoints")
                book.executor.stop([book.jobs[name] for name in active])
            room = len(waiting) if book.executor.queues else at_once - len(active)
            if batch := [waiting.popleft() for _ in range(min(room, len(waiting)))]:
                book.submit(batch)
                active |= {run.name: run for run in batch}
                say(f"started: {', '.join(run.name for run in batch)}")
            time.sleep(POLL_S)
            book.look(active)
            for name in [name for name in active if not book.is_active(name)]:
                say(f"{name}: {outcome(active.pop(name))}")
    return stopping


def outcome(run: Planned) -> str:
    """What became of a run, in words."""
    status = run.folder.status()
    steps = f"step {status.get('step', 0):,} of {status.get('steps', 0):,}"
    if run.is_done:
        return f"done at {steps}{_best(run)}"
    if status.get("state") == "stopped":
        return f"stopped at {steps}"
    if not status and stopped_by(run.job.executed):
        return "stopped before it began"
    why = failure(run) or "its job ended without a word"
    return f"failed at {steps}: {why}" if status else f"failed before it began: {why}"


def _best(run: Planned) -> str:
    losses = [row["loss_nats"] for row in run.folder.records("eval")]
    found = [bits_per_token(loss) for loss in losses if loss is not None]
    return f", {min(found):.3f} bits at best" if found else ""


def failure(run: Planned) -> str:
    """The first line of the error in a run's executed notebook, or of its status."""
    for output in (o for cell in read(run.job.executed).cells for o in cell.get("outputs", [])):
        if output.output_type == "error":
            return f"{output.ename}: {output.evalue}".splitlines()[0]
    return str(run.folder.status().get("message", "")).partition("\n")[0]


def outcomes(runs: Sequence[Planned], logs: Mapping[str, Path]) -> str:
    """A line for each run; below those that failed, where their log and notebook are."""
    width = max(len(run.name) for run in runs)
    lines = []
    for run in runs:
        said = outcome(run)
        lines.append(f"{run.name:<{width}}  {said}")
        if said.startswith("failed"):
            places = [logs.get(run.name), run.job.executed]
            lines += [f"{'':<{width}}  see {x}" for x in places if x is not None and x.is_file()]
    return "\n".join(lines)


def compare(folder: Path, names: Sequence[str], say: Say) -> None:
    """Run `notebooks/compare.ipynb` over the runs of a sweep."""
    executed = folder / COMPARISON
    runs = [str(folder / name) for name in names]
    try:
        execute("compare", executed, {"sweep": str(folder), "runs": runs})
    except PapermillExecutionError as error:
        say(f"comparison failed: {error.ename}: {error.evalue}; see {executed}")
    else:
        say(f"comparison: {executed}")
