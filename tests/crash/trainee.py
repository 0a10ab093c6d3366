"""Training in processes that are killed: run as a program, told an order per line, in JSON.

It imports once and forks for each process, since an import takes longer than the training. That is
sound because this process has one thread, never trains itself unless told to, and opens no run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

# loaded at the first update otherwise, in every process anew
import torch._dynamo

from crash.blows import Blow, Disk
from workbench import kernels
from workbench.train.start import start


def train(recipe: str, out: str) -> None:
    """Begin or continue, to the end."""
    for _ in start(Path(recipe), out=out):
        pass


def threads() -> int:
    """Of this process, also those that Python does not know."""
    listed = Path("/proc/self/task")
    return len(list(listed.iterdir())) if listed.is_dir() else 1


def forked(recipe: str, out: str, blow: list[Any] | None, after_s: float | None) -> dict[str, Any]:
    """Train in a process that kills itself at a change to the disk, or is killed after a while."""
    assert threads() == 1, "a fork would copy one thread of several"
    reader, writer = os.pipe()
    begin = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(recipe, out, Blow(*blow) if blow else Blow(0), writer)
    os.close(writer)
    if after_s is not None:
        _kill_after(pid, after_s)
    with os.fdopen(reader) as told:
        words = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    writing = any(Path(out, "checkpoints").glob(".partial-*"))
    seconds = time.monotonic() - begin
    return {"status": status, "told": words, "writing": writing, "seconds": seconds}


def _kill_after(pid: int, after_s: float) -> None:
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return
        time.sleep(min(0.002, after_s))
    os.kill(pid, signal.SIGKILL)


def _child(recipe: str, out: str, blow: Blow, writer: int) -> None:
    """Never returns. Tells how it died, or how many changes it made to the disk."""
    status, tell = 1, os.write
    disk = Disk(Path(out), blow, lambda what: _said(tell(writer, what.encode())))
    try:
        disk.watch()
        train(recipe, out)
        tell(writer, str(disk.calls).encode())
        status = 0
    except BaseException as error:
        tell(writer, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def _said(_: int) -> None:
    """Told; how many bytes it took does not matter."""


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("workbench").setLevel(logging.ERROR)
    kernels.prepare()
    for line in sys.stdin:
        order = json.loads(line)
        if order.pop("here"):
            train(**order)
            result: dict[str, Any] = {"status": 0}
        else:
            result = forked(**order)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
