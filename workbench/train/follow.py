"""The records of a run that another process trains, as they are appended."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from workbench.train.records import Record, from_json

AT_ONCE = 1 << 20


class Follower:
    """Reads each record once; again those that were dropped and repeated after a crash.

    Args:
        path: the file of records; it may come later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # a plain descriptor: while it is open, no other file can have this one's number
        self._handle: int | None = None
        self._close: Callable[[], object] = int
        self._at = 0

    def skip(self) -> None:
        """Take what is there for read."""
        self._lines()

    def read(self) -> list[Record]:
        """What is new, oldest first; a line that is still being written waits.

        Raises:
            ValueError: a line is no record.
        """
        return [from_json(line.decode()) for line in self._lines()]

    def _lines(self) -> list[bytes]:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []
        if self._handle is None or not os.path.samestat(now, os.fstat(self._handle)):
            self._open()
        assert self._handle is not None
        text = _from(self._handle, self._at)
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.splitlines(keepends=True)

    def _open(self) -> None:
        """The file that has taken the place of the one before, behind the lines both share."""
        handle = os.open(self.path, os.O_RDONLY)
        if self._handle is not None:
            before, now = _from(self._handle, 0)[: self._at], _from(handle, 0)
            self._at = 0
            for ours, theirs in zip(before.splitlines(True), now.splitlines(True), strict=False):
                if ours != theirs:
                    break
                self._at += len(ours)
            self._close()
        self._handle = handle
        self._close = weakref.finalize(self, os.close, handle)


def _from(handle: int, at: int) -> bytes:
    """The rest of a file."""
    parts = []
    while part := os.pread(handle, AT_ONCE, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
