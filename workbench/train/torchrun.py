"""`torchrun` as a child process: started, told to stop, and asked why it failed.

It dies with the process that started it, and takes the training processes with it: they get SIGTERM
and write their checkpoint. On Linux this holds even if that process is killed.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

GRACE_S = 40.0
"""seconds to write a checkpoint after an interrupt; `torchrun` itself kills after 30"""
PR_SET_PDEATHSIG = 1
STORY_LINES = 12

# what the child runs before it becomes torchrun: nothing of ours may happen between a fork and the
# next program, since a Jupyter kernel has threads
ADOPT = f"""
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent() -> None:
    """Have Linux send this process SIGTERM when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Failure(NamedTuple):
    """Why `torchrun` ended with another status than 0."""

    how: str
    """such as `process 1 was killed by SIGKILL`"""
    killed: bool
    """somebody else ended it: the same program may fare better another time"""
    mendable: bool
    """the user was told what to mend: doing it again would fail again"""
    story: str
    """the message, or the last lines of the first traceback; empty where there is none"""


class Torchrun:
    """Processes that run a module together on this machine.

    Args:
        words: the module and its arguments.
        processes: how many.
        log: what they write to their standard output and error is appended here.
        cwd: where they run.
        settings: environment variables.
    """

    def __init__(
        self,
        words: Sequence[str],
        processes: int,
        log: Path,
        cwd: Path,
        settings: Mapping[str, str],
    ) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc-per-node={processes}", "-m", *words]
        self._log, self._told_s = log, 0.0
        with log.open("ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            self._begin = file.tell()
            self._child = subprocess.Popen(
                [sys.executable, "-S", "-c", ADOPT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **settings},
                # Ctrl-C in a terminal reaches who started this, who passes it on
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """The exit status; None while it runs."""
        return self._child.poll()

    @property
    def was_told(self) -> bool:
        """Whether it was told to stop."""
        return self._told_s > 0

    def stop(self) -> None:
        """Interrupt all processes once, so that they write a checkpoint; called again after
        `GRACE_S`, kill them."""
        if not self._told_s:
            self._told_s = time.monotonic()
            self._child.send_signal(signal.SIGINT)
        elif time.monotonic() - self._told_s > GRACE_S:
            self.kill()

    def kill(self) -> None:
        """End all processes that are left, at once."""
        if self._child.poll() is not None:
            return
        # torchrun gives each process a session of its own: its group is not theirs
        family = [self._child.pid, *_children(self._child.pid)]
        for pid in family:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._child.wait()

    def failure(self) -> Failure:
        """Why it ended, from its status and its log."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            text = file.read().decode("utf-8", "replace")
        if (status := self._child.returncode) < 0:
            return Failure(f"torchrun was killed by {_signal(status)}", True, False, "")
        lines = text.splitlines()
        told = [i for i, line in enumerate(lines) if line.startswith("workbench: ")]
        story = _message(lines[told[0] :]) if told else _traceback(lines)
        how = _how(text) or f"torchrun ended with status {status}"
        return Failure(how, "was killed by" in how, bool(told), story)


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if path.is_file():
        return [int(word) for word in path.read_text().split()]
    try:
        done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [int(word) for word in done.stdout.split()]


def _signal(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _how(text: str) -> str:
    """Which process failed first and how, from the table with which `torchrun` ends."""
    table = text[text.rfind("FAILED\n") :] if "FAILED\n" in text else ""
    rows = re.findall(r"rank +: (\d+) .*\n +exitcode +: (-?\d+)", table)
    if not rows:
        return ""
    # one that was killed is the cause, even if another noticed its absence before torchrun did
    killed = [row for row in rows if int(row[1]) < 0 and int(row[1]) != -signal.SIGTERM]
    rank, status = killed[0] if killed else rows[-1]
    ended = f"was killed by {_signal(int(status))}" if int(status) < 0 else ""
    return f"process {rank} {ended or f'ended with status {status}'}"


def _message(lines: Sequence[str]) -> str:
    """What a process told the user; other programs' lines end it."""
    found = [lines[0].removeprefix("workbench: ")]
    for line in lines[1:STORY_LINES]:
        if re.match(r"workbench: |Traceback |\[rank|[IWE]\d{4} |[A-Z]+: |=====|/", line):
            break
        found.append(line)
    return "\n".join(found)


def _traceback(lines: Sequence[str]) -> str:
    """The last lines of the first traceback; those of one process begin alike."""
    mark = "Traceback (most recent call last):"
    for i, line in enumerate(lines):
        if not line.endswith(mark):
            continue
        prefix, found = line.removesuffix(mark), []
        for following in lines[i + 1 :]:
            if not following.startswith(prefix):
                continue
            found.append(following.removeprefix(prefix))
            if not found[-1].startswith(" "):
                break
        return "\n".join(found[-STORY_LINES:])
    return ""
