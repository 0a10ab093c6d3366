"""A place on disk that one process works on at a time, and errors of disks in a user's words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.errors import DataError, WorkbenchError

logger = logging.getLogger("workbench")


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
