"""Writing to a disk that may be full, read-only or gone: whole or not at all, and said plainly."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.errors import CannotWrite

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""the disk, a quota, or the size that the system allows a file"""
SPARE_BYTES = 1 << 16
"""for names, headers and the manifest of a checkpoint"""
FREE_SPACE = "Free space there, or lower train.keep_checkpoints"
MOUNT = "Mend the permissions or the mount, or give another folder as out"
AGAIN = "The last checkpoint is untouched: the same command continues from it"


@contextmanager
def writing(what: str, path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Inside, a write that fails is the user's to mend.

    Args:
        what: is written, for the message.
        path: to where.
        needed_bytes: its size, where known; refused at once if less is free.

    Raises:
        CannotWrite: no space, no permission, a broken disk.
    """
    if needed_bytes is not None:
        free_bytes = _free_bytes(path)
        if free_bytes is not None and free_bytes < needed_bytes:
            raise _refusal(what, path, needed_bytes, errno.ENOSPC)
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise _refusal(what, path, needed_bytes, error.errno, error) from error
    except RuntimeError as error:
        # torch.save hides what the system said behind a complaint about positions in the file
        cause = error.__context__ or error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise _refusal(what, path, needed_bytes, cause.errno, cause) from error


def _refusal(
    what: str, path: Path, needed: int | None, number: int | None, error: OSError | None = None
) -> CannotWrite:
    said = os.strerror(number) if number else str(error)
    if error is not None and error.filename and str(error.filename) != str(path):
        said += f": {error.filename}"
    sizes = [f"needs {needed:,} bytes"] if needed is not None else []
    if number in FULL and (free := _free_bytes(path)) is not None:
        sizes.append(f"{free:,} bytes are free")
    cure = FREE_SPACE if number in FULL else MOUNT
    return CannotWrite(
        f"cannot write {what} in {path} ({'; '.join([said, *sizes])}). {cure}. {AGAIN}"
    )


def _free_bytes(path: Path) -> int | None:
    """Where a file at `path` would lie; None where the system does not say."""
    try:
        return shutil.disk_usage(existing(path)).free
    except OSError:
        return None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.exists()), path)


def check_writable(folder: Path, *names: str) -> None:
    """Refuse a folder in which a run could not write, before anything is spent.

    Args:
        folder: may be missing; then the folder is looked at in which it would be made.
        names: files and folders in it that are written to, where they exist.

    Raises:
        CannotWrite: the place is read-only, or belongs to somebody else.
    """
    for path in (existing(folder), *(folder / name for name in names)):
        needed = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
        if path.exists() and not os.access(path, needed):
            raise CannotWrite(
                f"out: got {folder}, but {path} cannot be written to (read-only, or somebody "
                f"else's); expected a folder to write a run into. Nothing was done. {MOUNT}"
            )


def append(path: Path, data: bytes) -> None:
    """Add to a file; when this returns it is on the disk, and if it fails the file is as before."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            while data:
                # a disk takes what it has room for, and complains at the next call
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def replace(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace a file so that readers see the old or the new one, never a part.

    Args:
        path: of the file.
        data: what it holds from now on.
        durable: wait until the disk has it; without, a machine that loses power may forget it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():
        # which cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(tensor_bytes(x) for x in value.values())
    return sum(tensor_bytes(x) for x in value) if isinstance(value, list | tuple) else 0
