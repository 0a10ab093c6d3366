"""Places on disk: one process works on each at a time, aside until it is whole.

What goes wrong there is said in a user's words.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.errors import DataError, WorkbenchError

logger = logging.getLogger("workbench")
ASIDE = ".unfinished-"


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Keep every other process, and thread, from work on the same place meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("%s: another process is at work on it; waiting for that", place)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def to_disk(path: Path) -> None:
    """Have a file's bytes on the disk, before a name says that they are there."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say in a user's words that a disk is full or a folder read-only."""
    try:
        yield
    except WorkbenchError:
        raise
    except OSError as error:
        raise DataError(
            f"{place}: got '{error.strerror or error}', expected to write there. Make room, mend "
            "the permissions, or set the environment variable WORKBENCH_DATA to another folder"
        ) from None


@contextmanager
def aside(parent: Path) -> Iterator[Path]:
    """A folder inside `parent` for what is unfinished; it goes away whatever happens."""
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        prefix = f"{ASIDE}{socket.gethostname()}-{os.getpid()}-"
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what killed processes of this machine left behind."""
    mine = f"{ASIDE}{socket.gethostname()}-"
    for path in parent.glob(f"{mine}*"):
        pid = path.name.removeprefix(mine).split("-")[0]
        if os.name == "posix" and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
