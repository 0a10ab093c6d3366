"""One process trains in a run folder at a time. The system lets go when that process ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from workbench.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: dict[Path, IO[str]] = {}


def hold(folder: Path) -> None:
    """Claim a run folder for this process, for as long as it lives.

    Raises:
        ConfigError: another process on this machine is training in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK).resolve()
    if fcntl is None or (path in _held and _still_there(path)):
        return
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ConfigError(
            f"out: process {owner or 'unknown'} is training in {folder}; wait for it, stop it, or "
            "give another folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    _held[path] = file


def _still_there(path: Path) -> bool:
    """False when the folder was deleted and made again since."""
    return path.exists() and os.fstat(_held[path].fileno()).st_ino == path.stat().st_ino
