"""What a worker is asked to do: jobs as plain data, results as plain data.

A job is `{"do": name, ...arguments}`; `perform` runs it, in a worker or in the process itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data import symbols
from workbench.data.pieces import raw_blocks, readable
from workbench.data.symbols import Part, Symbols, piece_of
from workbench.data.vocabulary import Level, Vocabulary, restore


def perform(job: dict[str, Any]) -> Any:
    """Run one job.

    Raises:
        DataError: the text cannot be used.
        OSError: the disk is full, a file is gone.
    """
    return _WORK[job["do"]](**{name: value for name, value in job.items() if name != "do"})


def _count(how: list[Any], pieces: list[Any], stem: str) -> list[Part]:
    """Count the symbols of a chunk."""
    return symbols.count(Symbols(*how), list(map(piece_of, pieces)), stem)


def _encode(level: Level, vocabulary: str, pieces: list[Any], stem: str) -> list[Part]:
    """Spool the ids that a saved vocabulary gives to a chunk."""
    return [symbols.encode(_vocabulary(level, vocabulary), list(map(piece_of, pieces)), stem)]


def _place(dtype: str, how: list[Any] | None, part: Any, target: str, offset: int) -> None:
    """Write the final ids of a part to their place, `offset` tokens into the target."""
    kind, part = np.dtype(dtype), Part.of(part)
    if how is not None:
        ids = symbols.final(Symbols(*how), part)
    elif part.pieces:
        ids = (np.frombuffer(block, kind) for _, _, block in raw_blocks(part.pieces))
    else:
        ids = symbols.spooled(part.stem, kind)
    with Path(target).open("r+b") as file:
        file.seek(offset * kind.itemsize)
        for block in ids:
            file.write(block.data)
    for suffix in (".ids", ".txt", ".npy", ".edges.npy", ".final.npy"):
        Path(part.stem + suffix).unlink(missing_ok=True)


def _hash(paths: list[str]) -> list[str]:
    """sha256 of whole files."""
    result = []
    for path in paths:
        with readable(Path(path)), Path(path).open("rb") as file:
            result.append(hashlib.file_digest(file, "sha256").hexdigest())
    return result


@lru_cache(maxsize=1)
def _vocabulary(level: Level, path: str) -> Vocabulary:
    return restore(level, Path(path))


_WORK: dict[str, Callable[..., Any]] = {
    "count": _count,
    "encode": _encode,
    "place": _place,
    "hash": _hash,
}
