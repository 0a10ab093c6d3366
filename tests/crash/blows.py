"""Blows: a process that kills itself at the n-th thing it does to the disk, before, in or after it.

The package knows nothing of this: the functions of the standard library and of PyTorch by which it
writes are replaced, in the process that is to die.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

FUNCTIONS = ("replace", "fsync", "write", "mkdir", "unlink", "rmdir", "ftruncate")


class Blow(NamedTuple):
    """When a process kills itself."""

    call: int
    """at which change to the disk; 0: never"""
    share: float = 0.5
    """of the bytes that are written before it dies"""
    when: str = "before"
    """`before` it, `within` (where bytes are written), or `after`"""


class Disk:
    """Counts what is done to a folder, and strikes.

    Args:
        folder: what is done elsewhere does not count.
        blow: when to strike.
        tell: is given the path at which it strikes, just before.
    """

    def __init__(self, folder: Path, blow: Blow, tell: Callable[[str], None]) -> None:
        self.folder, self.blow, self.tell, self.calls = str(folder), blow, tell, 0
        self._busy = False

    def watch(self) -> None:
        """Stand between the program and its disk, until the process ends."""
        for name in FUNCTIONS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        patched: Any = Path
        patched.write_bytes = self._counted("write_bytes", Path.write_bytes)
        patched.write_text = self._counted("write_text", Path.write_text)
        patched = torch
        patched.save = self._counted("save", torch.save)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            where = _path(name, args, kwargs.get("dir_fd"))
            if self._busy or not where.startswith(self.folder):
                return function(*args, **kwargs)
            self.calls += 1
            # Path.mkdir calls os.mkdir: one change, not two
            self._busy = True
            try:
                if self.calls != self.blow.call:
                    return function(*args, **kwargs)
                if self.blow.when == "within":
                    _in_part(name, args, self.blow.share)
                elif self.blow.when == "after":
                    function(*args, **kwargs)
                self.tell(f"{name} {where}")
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                self._busy = False

        return call


def _path(name: str, args: tuple[Any, ...], dir_fd: int | None = None) -> str:
    target = args[1] if name in ("replace", "save") else args[0]
    if isinstance(target, int):
        return _opened(target)
    if not isinstance(target, str | os.PathLike):
        target = target.name
    # shutil.rmtree names what it deletes relative to an open folder
    within = _opened(dir_fd) if dir_fd is not None else os.getcwd()
    return os.path.join(within, os.fspath(target))


def _opened(handle: int) -> str:
    """The path of an open file, where the system tells it."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


def _in_part(name: str, args: tuple[Any, ...], share: float) -> None:
    """Write a part of what is to be written, as a process does that dies meanwhile."""
    if name == "write":
        data = args[1]
        _write(args[0], data[: int(len(data) * share)])
    elif name in ("write_bytes", "write_text", "save"):
        if name == "save":
            buffer = io.BytesIO()
            _save(args[0], buffer)
            data, path = buffer.getvalue(), Path(_path(name, args))
        else:
            data = args[1].encode() if name == "write_text" else args[1]
            path = args[0]
        with path.open("wb") as file:
            file.write(data[: int(len(data) * share)])


_write, _save = os.write, torch.save
