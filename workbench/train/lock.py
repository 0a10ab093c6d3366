"""One process trains in a run folder at a time, and in it one run, the one opened last.

The system lets go of a folder when its process ends.
"""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import ConfigError
from workbench.train.storage import writing

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: dict[Path, int] = {}  # open files; the lock lasts as long as they are open
_owners: dict[Path, int] = {}


def hold(folder: Path, owner: object) -> None:
    """Claim a run folder for this process, until `release` or its end.

    Args:
        folder: the run folder; made if it is not there.
        owner: who trains in it from now on; an earlier owner in this process loses it.

    Raises:
        ConfigError: another process on this machine is training in it.
        CannotWrite: the disk is full or read-only.
    """
    path = (folder / LOCK).resolve()
    with writing("the lock", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is not None and not (path in _held and _still_there(path)):
            _lock(path, folder)
    _owners[path] = id(owner)


def check_free(folder: Path) -> None:
    """Refuse a folder that another process trains in, before its checkpoints are read: that one may
    be deleting them.

    Raises:
        ConfigError: another process on this machine is training in it.
    """
    if (folder / LOCK).resolve() not in _held and (owner := holder(folder)) is not None:
        raise _busy(owner, folder)


def holder(folder: Path) -> str | None:
    """Which process of this machine trains in a folder, this one included, as it wrote it there;
    None where none does, and where the system has no locks."""
    path = (folder / LOCK).resolve()
    if path in _owners:
        return str(os.getpid())
    if fcntl is None or path in _held or not path.is_file():
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(handle)
    finally:
        os.close(handle)
    return None


def check_owner(folder: Path, owner: object) -> None:
    """Refuse to train in a folder that was opened again since.

    Raises:
        ConfigError: a later `hold` of this process has taken it over.
    """
    if _owners.get((folder / LOCK).resolve()) != id(owner):
        raise ConfigError(
            f"the run in {folder} was opened again since; iterate over what the last "
            "workbench.start returned"
        )


def _lock(path: Path, folder: Path) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        error = _busy(_written(handle), folder)
        os.close(handle)
        raise error from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    _held[path] = handle


def _written(handle: int) -> str:
    return os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"


def _busy(owner: str, folder: Path) -> ConfigError:
    return ConfigError(
        f"out: process {owner} is training in {folder}; wait for it, stop it, or "
        "give another folder"
    )


def release(folder: Path) -> None:
    """Let other processes have a run folder."""
    path = (folder / LOCK).resolve()
    _owners.pop(path, None)
    handle = _held.pop(path, None)
    if handle is not None:
        os.close(handle)


def _still_there(path: Path) -> bool:
    """False when the folder was deleted and made again since."""
    return path.exists() and os.fstat(_held[path]).st_ino == path.stat().st_ino
