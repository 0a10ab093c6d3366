"""What the tests of archives share: the same files packed in every way, and what a refusal is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from workbench.data.archives import extract
from workbench.errors import DataError

TEXTS = {
    "set/train.txt": "".join(random.Random(0).choices("abc \n", k=9000)).encode(),
    "set/valid.txt": b"few words\n",
    "set/empty.txt": b"",
}
WANTED = {"set/train.txt": "train.txt", "set/valid.txt": "sub/valid.txt"}


Files = Mapping[str, bytes] | list[tuple[str, bytes]]


def pairs(files: Files) -> list[tuple[str, bytes]]:
    return [*files.items()] if isinstance(files, Mapping) else files


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in pairs(files):
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: Files, format: int = tarfile.PAX_FORMAT, **facts: Any) -> bytes:
    """A tar; `facts` are those of its last member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in pairs(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == pairs(files)[-1][0]:
                for key, value in facts.items():
                    setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
KINDS: dict[str, Callable[[Files], bytes]] = {
    "a.zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "a.tar": tarred,
    "gnu.tar": lambda files: tarred(files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda files: tarred(files, tarfile.USTAR_FORMAT),
    "a.tgz": lambda files: PACKERS["gz"](tarred(files)),
    **{f"a.tar.{e}": lambda files, pack=pack: pack(tarred(files)) for e, pack in PACKERS.items()},
}


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def files(folder: Path) -> set[str]:
    """What is in a folder, apart from folders and a lock."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found if path.suffix != ".lock"}


def refused(
    folder: Path,
    name: str,
    data: bytes,
    wanted: Mapping[str, str] = WANTED,
    limit_bytes: int = 20_000,
) -> str:
    """The message of an archive that is refused, which leaves nothing behind."""
    archive = put(folder, name, data)
    before = files(folder)
    with pytest.raises(DataError) as caught:
        extract(archive, wanted, folder / "out" / "in", limit_bytes=limit_bytes)
    assert files(folder) == before
    assert not (folder / "out" / "in" / ".unpacking").exists()
    return str(caught.value)
