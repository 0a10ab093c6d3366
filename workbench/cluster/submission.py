"""Jobs handed over to a machine or to Slurm, by submitit (`pip install 'workbench[cluster]'`).

What becomes of a run is in its folder; what is asked of an executor is only whether a job has
ended, and where its log is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from workbench.cluster.job import DONE, STOPPED, Job
from workbench.errors import ConfigError

FOREVER_MIN = 60 * 24 * 365
DEFAULT_TIME = "1-00:00:00"
RESTARTS = 1000
"""how often a job that reached its time limit is queued again"""
NUMBERS = ("gpus_per_node", "cpus_per_task", "cpus_per_gpu", "ntasks_per_node", "signal_delay_s")


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over."""

    id: str
    log: Path


class Executor(Protocol):
    """Who runs jobs."""

    queues: bool
    """it keeps jobs until there is room, and runs them without us"""

    def submit(self, jobs: Sequence[Job]) -> list[Submitted]:
        """Hand jobs over."""

    def active(self, jobs: Sequence[Submitted]) -> set[str]:
        """The ids of those that have not ended."""

    def stop(self, jobs: Sequence[Submitted]) -> None:
        """Have them write a checkpoint and end."""


class Training:
    """What submitit calls where the job runs: a process of its own, and signals passed on to it.

    Slurm sends SIGUSR2 to everything of the job before its time is up, and submitit queues the job
    again then; the process, deaf to it, is told by SIGUSR1 to write its checkpoint first.
    """

    def __init__(self, words: Sequence[str], settings: Mapping[str, str]) -> None:
        self.words, self.settings = list(words), dict(settings)
        self.pid = 0

    def __call__(self) -> int:
        """Train; returns the exit status.

        Raises:
            RuntimeError: the training failed; its words are in the log.
        """
        with subprocess.Popen(
            [sys.executable, "-m", "workbench.cluster.job", *self.words],
            env={**self.settings, **os.environ},
            preexec_fn=_deaf,
        ) as process:
            self.pid = process.pid
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._pass_on)
            self._wait()
            self.pid = 0
            status = process.wait()
        if status not in (DONE, STOPPED):
            raise RuntimeError(f"the training ended with status {status}")
        return status

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by submitit when the time is nearly up: what to queue again, None for nothing."""
        from submitit.helpers import DelayedSubmission

        if not self.pid:
            return None
        os.kill(self.pid, signal.SIGUSR1)
        status = self._wait()
        return DelayedSubmission(Training(self.words, self.settings)) if status == STOPPED else None

    def _wait(self) -> int:
        # not by the process's own method, whose lock the interrupted code may hold; it stays to be
        # waited for
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return ended.si_status if ended is not None else 0

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)


def _deaf() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "sweeps hand their runs over by submitit, which is not installed; give the command: "
            "pip install 'workbench[cluster]'"
        ) from None
    return submitit


class Local:
    """Processes on this machine; each run gets the GPU that is used least, if there are any.

    Args:
        logs: folder for what jobs write.
        at_once: how many jobs there will be at once; they share the cores.
    """

    queues = False

    def __init__(self, logs: Path, at_once: int) -> None:
        self._make = _submitit().LocalExecutor
        self._logs, self._gpus = logs, visible_gpus()
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        # alone, a run has what PyTorch takes by itself
        self._settings = {"OMP_NUM_THREADS": str(max(1, cores // at_once))} if at_once > 1 else {}
        self._jobs: dict[str, tuple[Any, list[int]]] = {}

    def submit(self, jobs: Sequence[Job]) -> list[Submitted]:
        return [self._submit(job) for job in jobs]

    def _submit(self, job: Job) -> Submitted:
        running = [gpus for handle, gpus in self._jobs.values() if not handle.done()]
        gpus = least_used(self._gpus, running, job.processes)
        executor = self._make(self._logs)
        executor.update_parameters(
            timeout_min=FOREVER_MIN,
            stderr_to_stdout=True,
            gpus_per_node=len(gpus),
            visible_gpus=tuple(gpus),
        )
        with _deaf_to_the_terminal():
            handle = executor.submit(Training(job.words(), self._settings))
        self._jobs[handle.job_id] = handle, gpus
        return Submitted(handle.job_id, handle.paths.stdout)

    def active(self, jobs: Sequence[Submitted]) -> set[str]:
        known = {job.id: self._jobs.get(job.id) for job in jobs}
        return {name for name, own in known.items() if own is not None and not own[0].done()}

    def stop(self, jobs: Sequence[Submitted]) -> None:
        for name in self.active(jobs):
            os.kill(int(name), signal.SIGTERM)


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """Ctrl-C in a terminal, or its end, reaches all that was started there; it is for us to pass it
    on."""
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def least_used(gpus: Sequence[int], running: Sequence[Sequence[int]], count: int) -> list[int]:
    """So many GPUs as one more job gets.

    Args:
        gpus: all of them.
        running: those of each job at work.
        count: how many; fewer where there are fewer.
    """
    used = Counter(gpu for own in running for gpu in own)
    return sorted(gpus, key=used.__getitem__)[:count]


def visible_gpus() -> list[int]:
    """The numbers of the GPUs that this process may use."""
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return list(range(torch.cuda.device_count()))
    words = [word.strip() for word in told.split(",") if word.strip()]
    if odd := [word for word in words if not word.isdigit()]:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES: got '{odd[0]}', expected numbers, to share the GPUs out to runs"
        )
    return [int(word) for word in words]


class Slurm:
    """Jobs of a Slurm cluster, one array of them.

    Args:
        logs: folder for what jobs write; all nodes must see it.
        options: of sbatch: `partition`, `time`, `gpus_per_node`, `account` and any other.
        at_once: how many run at once; None leaves it to the cluster.
        name: of the jobs.

    Raises:
        ConfigError: an option is wrong, or there is no Slurm here.
    """

    queues = True

    def __init__(
        self, logs: Path, options: Mapping[str, str], at_once: int | None = None, name: str = ""
    ) -> None:
        submitit = _submitit()
        if submitit.SlurmExecutor.affinity() < 0:
            raise ConfigError("there is no Slurm here: no program `srun`. Use --executor local")
        self._executor = submitit.SlurmExecutor(logs, max_num_timeout=RESTARTS)
        known = self._executor._valid_parameters()
        given, further = settings(options, known)
        if at_once is not None:
            given["array_parallelism"] = at_once
        self._executor.update_parameters(
            job_name=name or "workbench",
            stderr_to_stdout=True,
            additional_parameters={"requeue": True, **further},
            **given,
        )
        self._failed = submitit.core.utils.FailedJobError

    def submit(self, jobs: Sequence[Job]) -> list[Submitted]:
        try:
            with self._executor.batch():
                handles = [self._executor.submit(Training(job.words(), {})) for job in jobs]
        except self._failed as error:
            raise ConfigError(f"--slurm: sbatch refused the jobs: {error}") from None
        return [Submitted(handle.job_id, handle.paths.stdout) for handle in handles]

    def active(self, jobs: Sequence[Submitted]) -> set[str]:
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            # the controller does not answer for a moment: nothing is known to have ended
            return {job.id for job in jobs}
        return {job.id for job in jobs} & set(told.stdout.split())

    def stop(self, jobs: Sequence[Submitted]) -> None:
        if names := [job.id for job in jobs]:
            subprocess.run(["scancel", *names], check=False, capture_output=True)


def settings(
    options: Mapping[str, str], known: set[str]
) -> tuple[dict[str, Any], dict[str, str | bool]]:
    """Options of sbatch as submitit takes them: those that it knows, and the others.

    Raises:
        ConfigError: a number or a time is none, or several nodes are asked for.
    """
    if options.get("nodes", "1") != "1":
        raise ConfigError(
            f"--slurm nodes: got {options['nodes']}, but each run of a sweep trains on one node; "
            "for several give its recipe to the script of `workbench slurm-script`"
        )
    given: dict[str, Any] = {
        "time": minutes(options.get("time", DEFAULT_TIME)),
        "signal_delay_s": 60,
    }
    further: dict[str, str | bool] = {}
    for option, text in options.items():
        name = option.replace("-", "_")
        if name == "time":
            continue
        if name in NUMBERS and not text.isdigit():
            raise ConfigError(f"--slurm {option}: got '{text}', expected a whole number")
        if name in known:
            given[name] = int(text) if name in NUMBERS else text or True
        else:
            further[option] = text or True
    return given, further


def minutes(text: str) -> int:
    """A time as Slurm writes it: 90, 30:00, 12:00:00, 2-12, 2-12:30 or 2-12:30:00.

    Raises:
        ConfigError: it is none, or less than a minute.
    """
    days, dash, rest = text.partition("-") if "-" in text else ("0", "", text)
    parts = rest.split(":")
    try:
        numbers = [int(part) for part in parts]
        in_all = int(days) * 24 * 60
    except ValueError:
        numbers, in_all = [], 0
    hours_first = bool(dash) or len(numbers) == 3
    if 0 < len(numbers) <= 3:
        hours, mins = (numbers[0], [*numbers, 0][1]) if hours_first else (0, numbers[0])
        in_all += hours * 60 + mins
    if in_all < 1:
        raise ConfigError(
            f"--slurm time: got '{text}', expected minutes (90), hours (12:00:00) or days (2-12:00)"
        )
    return in_all
