"""The two containers of `torch.save`: a zip archive, and before PyTorch 1.6 one run of programs.

Every size is compared with the bytes that are there before anything is allocated, so a file cannot
make the reader take more memory than a few times its own size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from workbench.data.archives import leads_out
from workbench.errors import CheckpointError, HostileFile
from workbench.originals.machine import NoStorages, run

MAX_PROGRAM = 64 * 2**20
"""bytes of a file that are not numbers"""
MAX_ENTRIES = 200_000
# PyTorch's marks of its old format
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

END, END_64, LOCATOR, ENTRY, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
LINK, FULL_16, FULL_32 = 0xA000, 0xFFFF, 0xFFFFFFFF


def fill(data: Tensor, file: BinaryIO) -> int:
    """Read a storage's numbers from where the file stands.

    Returns:
        the checksum of their bytes.
    """
    if not len(data):
        return 0
    into = memoryview(data.view(torch.uint8).numpy().data)
    if file.readinto(into) != len(into):  # type: ignore[attr-defined]
        raise CheckpointError("the file is torn: it ends inside a storage")
    return zlib.crc32(into)


class Entry(NamedTuple):
    """One file of a zip archive, stored as it is."""

    name: str
    at: int
    """of its local header"""
    nbytes: int
    checksum: int


class Zip:
    """The files of a zip archive, read from its table of contents; only plain stored ones."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self.file = file
        entries = list(self._entries(*self._table(nbytes)))
        roots = {entry.name.split("/")[0] for entry in entries}
        if len(roots) != 1:
            raise HostileFile(f"the archive has {len(roots)} folders at its top, expected one")
        self.entries = {entry.name.split("/", 1)[-1]: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise HostileFile("the archive has two entries of one name")

    def _at(self, place: int, layout: str, mark: bytes = b"") -> tuple[Any, ...]:
        """A record of the archive, after its mark."""
        self.file.seek(place)
        data = self.file.read(len(mark) + struct.calcsize(layout))
        if len(data) != len(mark) + struct.calcsize(layout) or not data.startswith(mark):
            raise CheckpointError(f"the archive is torn at byte {place}")
        return struct.unpack(layout, data[len(mark) :])

    def _table(self, nbytes: int) -> tuple[int, int, int]:
        """Number of entries, size and place of the table of contents."""
        start = max(0, nbytes - FULL_16 - 22)
        self.file.seek(start)
        tail = self.file.read()
        place = tail.rfind(END)
        if place < 0:
            raise CheckpointError("the archive is torn: its end is missing")
        end = start + place
        *_, n, size, at, comment = self._at(end, "<HHHHIIH", END)
        if end + 22 + comment != nbytes:
            raise CheckpointError("the archive is torn: something follows its end")
        if tail[max(0, place - 20) :].startswith(LOCATOR):
            _, place_64, _ = self._at(end - 20, "<IQI", LOCATOR)
            *_, n, size, at = self._at(place_64, "<QHHIIQQQQ", END_64)
            end = place_64
        if n > MAX_ENTRIES or size > MAX_PROGRAM or at + size > end:
            raise HostileFile(f"the archive claims {n} entries in a table of {size} bytes")
        return n, size, at

    def _entries(self, n: int, size: int, at: int) -> Iterator[Entry]:
        place, free = at, 0
        found = []
        for _ in range(n):
            entry, place = self._entry(place)
            found.append(entry)
        if place != at + size:
            raise HostileFile("the archive's table of contents is not as long as it says")
        for entry in sorted(found, key=lambda entry: entry.at):
            start = self._data(entry)
            if entry.at < free or start + entry.nbytes > at:
                raise HostileFile(f"the archive's entry '{entry.name}' overlaps with another")
            free = start + entry.nbytes
        yield from found

    def _entry(self, place: int) -> tuple[Entry, int]:
        """The entry at a place of the table, and the place of the next."""
        fields = self._at(place, "<HHHHHHIIIHHHHHII", ENTRY)
        _, _, flags, method, _, _, checksum, packed, nbytes, *lengths, _, _, mode, at = fields
        n_name, n_extra, n_comment = lengths
        raw, extra = self.file.read(n_name), self.file.read(n_extra)
        name = raw.decode("utf-8", "replace")
        packed, nbytes, at = _wide(extra, [nbytes, packed, at])
        _refuse_odd(name, mode >> 16)
        if method or packed != nbytes or flags & 1:
            raise HostileFile(f"the archive's entry '{name}' is packed; torch stores plain ones")
        return Entry(name, at, nbytes, checksum), place + 46 + n_name + n_extra + n_comment

    def _data(self, entry: Entry) -> int:
        """Where an entry's bytes begin."""
        *_, method, _, _, _, _, _, n_name, n_extra = self._at(entry.at, "<HHHHHIIIHH", LOCAL)
        if self.file.read(n_name).decode("utf-8", "replace") != entry.name or method:
            raise HostileFile(f"the archive's entry '{entry.name}' has another name where it lies")
        return entry.at + 30 + n_name + n_extra

    def bytes(self, name: str) -> bytes:
        """A small entry's bytes."""
        entry = self.entries[name]
        if entry.nbytes > MAX_PROGRAM:
            raise HostileFile(f"the archive's '{name}' has {entry.nbytes} bytes")
        self.file.seek(self._data(entry))
        data = self.file.read(entry.nbytes)
        self._check(entry, zlib.crc32(data))
        return data

    def fill(self, name: str, data: Tensor) -> None:
        """Read an entry's bytes as numbers."""
        entry = self.entries[name]
        self.file.seek(self._data(entry))
        self._check(entry, fill(data, self.file))

    def _check(self, entry: Entry, checksum: int) -> None:
        if checksum != entry.checksum:
            raise CheckpointError(f"the archive is damaged: '{entry.name}' has another checksum")


def _wide(extra: bytes, fields: list[int]) -> tuple[int, int, int]:
    """Sizes and place of an entry; those that do not fit 32 bits stand in the extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = iter(
                struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4)
            )
            fields = [next(values, f) if f == FULL_32 else f for f in fields]
        at += 4 + length
    nbytes, packed, place = fields
    return packed, nbytes, place


def _refuse_odd(name: str, mode: int) -> None:
    """Names that lead out of a folder, and links: nothing is unpacked here, and none is needed."""
    if leads_out(name) or {"", "."} & set(name.split("/")):
        raise HostileFile(f"the archive's entry '{name}' leads out of its folder")
    if mode & 0xF000 == LINK:
        raise HostileFile(f"the archive's entry '{name}' is a link")


class ZipStorages:
    """Storages `data/<key>` of an archive, each read when it is first asked for."""

    def __init__(self, archive: Zip) -> None:
        self.archive = archive
        self.found: dict[str, Tensor] = {}

    def get(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        name = f"data/{key}"
        if name not in self.archive.entries:
            raise CheckpointError(f"storage '{key}' is missing in the archive")
        claimed, there = numel * dtype.itemsize, self.archive.entries[name].nbytes
        if claimed != there:
            raise HostileFile(f"storage '{key}' claims {claimed} bytes, the file has {there}")
        if key not in self.found:
            self.found[key] = torch.empty(numel, dtype=dtype)
            self.archive.fill(name, self.found[key])
        return _same(key, self.found[key], dtype, numel)


class OldStorages:
    """Storages of the old format: their numbers come after the program that refers to them."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes
        self.found: dict[str, Tensor] = {}

    def get(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in self.found:
            claimed = numel * dtype.itemsize
            if claimed > self.left:
                raise HostileFile(
                    f"storage '{key}' claims {claimed} bytes, the file has at most {self.left} left"
                )
            self.left -= claimed
            self.found[key] = torch.empty(numel, dtype=dtype)
        return _same(key, self.found[key], dtype, numel)


def _same(key: str, data: Tensor, dtype: torch.dtype, numel: int) -> Tensor:
    if (data.dtype, len(data)) != (dtype, numel):
        raise HostileFile(f"storage '{key}' claims two types or sizes")
    return data


def read_zip(file: BinaryIO, nbytes: int) -> Any:
    """The object of a file in the format of PyTorch 1.6 and later."""
    archive = Zip(file, nbytes)
    usual = ("data.pkl", "version", "byteorder")
    odd = [n for n in archive.entries if n not in usual and not n.startswith(("data/", "."))]
    if odd or "data.pkl" not in archive.entries:
        held = ", ".join(sorted(odd)[:3]) or "no data.pkl"
        raise HostileFile(f"the archive holds {held}: it is no file of torch.save")
    if "byteorder" in archive.entries and archive.bytes("byteorder") != b"little":
        raise CheckpointError("the file was written on a big-endian machine")
    return run(BytesIO(archive.bytes("data.pkl")), ZipStorages(archive))


def read_old(file: BinaryIO, nbytes: int) -> Any:
    """The object of a file in the format before PyTorch 1.6."""
    head = BytesIO(file.read(MAX_PROGRAM))
    plain = NoStorages()
    if run(head, plain) != MAGIC or run(head, plain) != PROTOCOL:
        raise CheckpointError("this is no file of torch.save")
    system = run(head, plain)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("the file was written on a big-endian machine, or is torn")
    storages = OldStorages(nbytes)
    result = run(head, storages)
    keys = run(head, plain)
    if (
        not isinstance(keys, list)
        or not all(isinstance(k, str) for k in keys)
        or sorted(keys) != sorted(storages.found)
    ):
        raise CheckpointError("the file is torn: its list of storages is not that of its tensors")
    file.seek(head.tell())
    for key in keys:
        data = storages.found[key]
        claimed = file.read(8)
        if len(claimed) != 8 or struct.unpack("<q", claimed) != (len(data),):
            raise CheckpointError(
                f"the file is torn: storage '{key}' has another size where it lies"
            )
        fill(data, file)
    return result
