"""Archives and compressed files: the named files in their places, or none, whatever is in them."""

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

import pytest

from workbench.data.archives import extract, list_files, read

random.seed(0)
TEXTS = {
    "set/train.txt": "".join(random.choices("abc \n", k=9000)).encode(),
    "set/valid.txt": b"few words\n",
    "set/empty.txt": b"",
}
WANTED = {"set/train.txt": "train.txt", "set/valid.txt": "sub/valid.txt"}


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


KINDS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "a.tar": tarred,
    "gnu.tar": lambda files: tarred(files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda files: tarred(files, tarfile.USTAR_FORMAT),
    "a.tar.gz": lambda files: gzip.compress(tarred(files)),
    "a.tgz": lambda files: gzip.compress(tarred(files)),
    "a.tar.xz": lambda files: lzma.compress(tarred(files)),
    "a.tar.bz2": lambda files: bz2.compress(tarred(files)),
}


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def files(folder: Path) -> set[str]:
    """The files in a folder, apart from a lock."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found} - {".unpacking.lock"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_members_are_taken(tmp_path: Path, kind: str) -> None:
    archive = put(tmp_path, kind, KINDS[kind](TEXTS))
    out = tmp_path / "out"
    found = extract(archive, WANTED, out, limit_bytes=10_000)
    assert found == [out / "train.txt", out / "sub" / "valid.txt"]
    assert [path.read_bytes() for path in found] == [*TEXTS.values()][:2]
    assert files(out) == {"train.txt", "sub/valid.txt"}
    assert not (out / ".unpacking").exists()
    assert list_files(archive) == [(name, len(data)) for name, data in TEXTS.items()]
    whole = {m.name: b"".join(m.blocks) for m in read(archive, limit_bytes=10_000)}
    assert whole == TEXTS
