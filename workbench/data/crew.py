"""Who does the jobs of a preparation: worker processes, or the process itself for a small text.

Workers are started as programs (`workbench.data.worker`) that speak JSON lines over pipes. Neither
`fork` nor `multiprocessing` would do: a user's script has no main guard, and a notebook's kernel
has threads. They end with the preparation, with an error of any one, and with their parent.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from workbench.data import jobs, pieces
from workbench.data.worker import FEWER
from workbench.errors import DataError

SMALL_BYTES = 32 << 20
"""up to here the process does it itself: the start of workers would take longer"""


class Crew:
    """The process itself."""

    def map(self, asked: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """The results of jobs, in their order.

        Raises:
            DataError: the text cannot be used, or a worker ended.
            OSError: the disk is full, a file is gone.
        """
        return map(jobs.perform, asked)


class Workers(Crew):
    """So many processes; a job goes to the next one that is free.

    Args:
        n: processes.
    """

    def __init__(self, n: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._workers = [_start(self._said) for _ in range(n)]
        self._free: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        # a thread waits for each worker
        self._threads = ThreadPoolExecutor(n)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def map(self, asked: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """The results of jobs, in their order; all of them are begun at once."""
        futures = [self._threads.submit(self._ask, job) for job in asked]
        return (future.result() for future in futures)

    def _ask(self, job: dict[str, Any]) -> Any:
        worker = self._free.get()
        try:
            answer = _exchange(worker, job)
        finally:
            self._free.put(worker)
        if "data_error" in answer:
            raise DataError(answer["data_error"])
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "result" in answer:
            return answer["result"]
        raise DataError(self._ended(worker)) if not answer else AssertionError(answer["fault"])

    def _ended(self, worker: subprocess.Popen[str]) -> str:
        """Why a worker answers no more."""
        code = worker.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = ", as when the machine is out of memory" if code == -signal.SIGKILL else ""
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f" ({last[0]})" if last else ""
        return (
            f"preparation: got a worker process that ended by {how}{hint}{said}, expected it to "
            f"finish its part. {FEWER}, and run again."
        )

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            # a job that it never took may still wait in the pipe
            with suppress(BrokenPipeError), worker:
                pass
        self._said.close()


def _start(said: IO[bytes]) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # tables are sorted into buckets by `hash`, so its seed must be one for all
    env = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    # -P: no module of the working directory is taken for one of ours
    command = [sys.executable, "-P", "-m", "workbench.data.worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
    return subprocess.Popen(command, text=True, env=env, **pipes)  # type: ignore[call-overload]


def _exchange(worker: subprocess.Popen[str], job: dict[str, Any]) -> dict[str, Any]:
    """One job and its answer; empty if the worker has ended."""
    assert worker.stdin and worker.stdout
    try:
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except OSError:
        return {}
    return json.loads(line) if line.endswith("\n") else {}


def n_workers() -> int:
    """How many processes may work: $WORKBENCH_WORKERS, else the cores that this one may use.

    Raises:
        DataError: the variable is no number.
    """
    if told := os.environ.get("WORKBENCH_WORKERS"):
        if not told.isdigit():
            raise DataError(
                f"WORKBENCH_WORKERS: got '{told}', expected a number of processes (0: none but "
                "the one you started). Correct the environment variable or unset it."
            )
        return int(told)
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def hire(n_bytes: int) -> Iterator[Crew]:
    """A crew for a text of so many bytes."""
    n = min(n_workers(), -(-n_bytes // pieces.chunk_bytes(n_bytes)))
    if n_bytes <= SMALL_BYTES or n == 0:
        yield Crew()
        return
    workers = Workers(n)
    try:
        yield workers
    finally:
        workers.close()
