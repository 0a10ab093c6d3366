"""The checkpoints that the adaptive-span paper's authors published (arXiv:1905.07799), by name.

Each lies in `checkpoints/` of the data folder, fetched there or put there by hand. The checksum of
a file is written down at its first use and compared ever after.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from workbench.config import nearest
from workbench.data import store
from workbench.errors import ConfigError, DataError, DataMissing


class Published(NamedTuple):
    """One published checkpoint."""

    file: str
    """what its authors call it"""
    recipe: str
    """how it was trained, and how its figures were measured"""


HOST = "https://dl.fbaipublicfiles.com/adaptive-span/"
CHECKPOINTS = {
    "adaptive-span-enwik8": Published("enwik8.pt", "span-enwik8-base"),
    "adaptive-span-text8": Published("text8.pt", "span-text8-base"),
    "adaptive-span-enwik8-large": Published("enwik8_large.pt", "span-enwik8-large"),
    "adaptive-span-text8-large": Published("text8_large.pt", "span-text8-large"),
}


def fetch(name: str, url: str | None = None) -> Path:
    """The file of a published checkpoint, downloaded at its first use.

    Args:
        name: a key of `CHECKPOINTS`.
        url: where the file is, or the folder (ending in `/`) with all four; the authors' host
            where nothing else is given.

    Raises:
        ConfigError: there is no such checkpoint.
        DataMissing: it is not there and cannot be downloaded; says which file to put where.
        DataError: it is not the file that was first used under this name.
    """
    if name not in CHECKPOINTS:
        raise ConfigError(
            f"there is no published checkpoint '{name}'. {nearest(name, [*CHECKPOINTS])}"
        )
    file = CHECKPOINTS[name].file
    place = store.root() / "checkpoints" / "adaptive-span" / file
    if not place.is_file():
        _download(name, url, place)
    return _checked(place)


def _download(name: str, url: str | None, place: Path) -> None:
    url = HOST if url is None else url
    by_hand = f"put the authors' file {place.name} at {place}, or give another address as url"
    import pooch  # here: it is slow to import

    source = f"{url}{place.name}" if url.endswith("/") else url
    known = _record(place).read_text("ascii").strip() if _record(place).is_file() else None
    try:
        pooch.retrieve(source, known_hash=known, fname=place.name, path=place.parent)
    except (OSError, ValueError) as error:
        raise DataMissing(
            f"checkpoint {name}: got no file from {source} ({type(error).__name__}: {error}); "
            f"{by_hand}"
        ) from None


def _record(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _checked(place: Path) -> Path:
    with place.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    record = _record(place)
    if not record.is_file():
        record.write_text(f"{got}\n", "ascii")
    elif (first := record.read_text("ascii").strip()) != got:
        raise DataError(
            f"{place}: got sha256 {got}, expected {first} as at its first use. Put the file of "
            f"then back, or delete {record.name} beside it to trust this one"
        )
    return place
