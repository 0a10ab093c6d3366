"""Archives and compressed files from anywhere: hostile until they have been read to their end.

Nothing is unpacked under a name that an archive chooses: what was asked for is streamed, member
by member, to a place that the caller names. Sizes are counted as bytes come out, never taken from
a header, and memory stays at a few blocks whatever is claimed. What was not asked for is passed
over, unless its name leads out of the folder.

| | read | refused |
|---|---|---|
| zip | stored and deflated members | encrypted or overlapping ones, other methods |
| tar, plain or compressed | regular files | links, devices, sparse files, no mark at the end |
| `<name>.gz xz bz2 zst` | `<name>` | what is not compressed so |
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from copy import copy
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from workbench.config import nearest
from workbench.data.compressed import (
    BLOCK_BYTES,
    ENDINGS,
    Blocks,
    decompressed,
    reading,
    unpacked,
)
from workbench.data.places import alone, to_disk, writing
from workbench.errors import DataError

HEADER_BYTES = 1 << 15
"""of one header of a tar; a long name needs a few thousand"""
MAX_MEMBERS = 100_000
RATIO = 1000
"""bytes of a tar that may pass for each packed one, beside those that may be written"""
ASIDE = ".unpacking"
EXPECTED = "a whole zip, tar or compressed file"


class Member(NamedTuple):
    """A regular file of an archive. Its blocks can be read until the next member is asked for."""

    name: str
    blocks: Blocks
    bytes: int | None
    """as the archive says, where it does; not another number comes out of `blocks`"""


def extract(
    archive: Path, members: Mapping[str, str], folder: Path, *, limit_bytes: int
) -> list[Path]:
    """Take members of an archive, all of them or none.

    Args:
        archive: the file.
        members: names in the archive, each with the path below `folder` where it is to be.
        folder: where to; files that are there are replaced.
        limit_bytes: of all members together, unpacked.

    Returns:
        the files, in the order of `members`.

    Raises:
        DataError: a member is missing, the archive is damaged or hostile, or nothing can be
            written there.
    """
    asked = {str(PurePosixPath(name)): place for name, place in members.items()}
    assert not any(map(leads_out, members.values())), "a place must lie in the folder"
    with writing(folder), alone(folder / ASIDE):
        aside = folder / ASIDE
        # left by a process that was killed
        shutil.rmtree(aside, ignore_errors=True)
        try:
            _unpack(archive, asked, aside, limit_bytes)
            for place in asked.values():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside / place, folder / place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return [folder / place for place in asked.values()]


def _unpack(archive: Path, asked: Mapping[str, str], aside: Path, limit_bytes: int) -> None:
    """Write what was asked for to its places in a folder aside."""
    names: dict[str, None] = {}
    left = limit_bytes

    def is_asked(name: str) -> bool:
        names[name] = None
        return name in asked

    with closing(read(archive, is_asked, limit_bytes=limit_bytes)) as members:
        for member in members:
            too_large = (
                f"{member.name!r} unpacks to more bytes than expected (at most {left}). If the "
                "file can be trusted, unpack it by hand"
            )
            if (member.bytes or 0) > left:
                raise DataError(too_large)
            place = aside / asked[member.name]
            place.parent.mkdir(parents=True, exist_ok=True)
            left -= spool(member.blocks, place, left, too_large)
            to_disk(place)
    for name in asked:
        if name not in names:
            near = nearest(name, [*names][:1000]) if names else ""
            raise DataError(
                f"{archive}: got no member {name!r} among {len(names)} files, expected it as in "
                f"the published archive. {near:.500}"
            )


def spool(blocks: Iterator[bytes], place: Path, limit_bytes: int, too_large: str) -> int:
    """Write blocks to a file; returns how many bytes these were.

    Raises:
        DataError: these are more than the limit: `too_large`.
    """
    n_bytes = 0
    with place.open("wb") as file:
        for block in blocks:
            n_bytes += len(block)
            if n_bytes > limit_bytes:
                raise DataError(too_large)
            file.write(block)
    return n_bytes


def read(
    archive: Path, asked: Callable[[str], bool] = bool, *, limit_bytes: int
) -> Generator[Member, None, None]:
    """The regular files of a zip or tar, or the one that a compressed file holds.

    Args:
        archive: the file.
        asked: whether a name is wanted; the others are passed over.
        limit_bytes: how much of a compressed tar may be unpacked, beside 1000 times its size.

    Raises:
        DataError: the archive is damaged or hostile; perhaps only after its last member, so
            nothing counts until that was reached.
    """
    names: set[str] = set()
    with reading(archive, EXPECTED):
        for passed, (member, fault) in enumerate(_members(archive, limit_bytes)):
            if passed >= MAX_MEMBERS:
                raise DataError(f"{archive}: got more than {MAX_MEMBERS} members, expected fewer")
            if leads_out(member.name):
                raise DataError(
                    f"{archive}: got a member {member.name!r}, which leads out of its folder, "
                    "expected an archive without such. Do not unpack this one"
                )
            name = str(PurePosixPath(member.name))
            if not asked(name):
                continue
            if fault:
                raise DataError(f"{archive}: got {fault} {name!r}, expected a plain file")
            if name in names:
                raise DataError(f"{archive}: got two members {name!r}, expected one")
            names.add(name)
            with closing(_exactly(archive, name, member)) as blocks:
                yield Member(name, blocks, member.bytes)


def _members(archive: Path, limit_bytes: int) -> Iterator[tuple[Member, str]]:
    """The members of any archive, and what is wrong with each."""
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
    if is_zip:
        return _zip(archive)
    if archive.suffix in ENDINGS and not archive.stem.endswith(".tar"):
        return iter([(Member(archive.stem, unpacked(archive), None), "")])
    return _tar(archive, limit_bytes)


def _exactly(archive: Path, name: str, member: Member) -> Blocks:
    """A member's blocks, which must be as long together as the archive says."""
    came = 0
    with reading(archive, EXPECTED), closing(member.blocks) as blocks:
        for block in blocks:
            came += len(block)
            if member.bytes is not None and came > member.bytes:
                break
            yield block
    if member.bytes is not None and came != member.bytes:
        more = "more than " if came > member.bytes else f"{came} of "
        raise DataError(f"{archive}: {name!r} has {more}the {member.bytes} bytes that it claims")


def leads_out(name: str) -> bool:
    """Whether a name may stand for something outside the folder, on any system."""
    odd = "\\" in name or "\0" in name or name.startswith("/")
    return odd or any(part == ".." or part[1:2] == ":" for part in name.split("/"))


def _zip(path: Path) -> Iterator[tuple[Member, str]]:
    """The members of a zip, and what is wrong with each."""
    with zipfile.ZipFile(path) as archive:
        end = 0
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            # a local header has 30 bytes and the name
            if info.header_offset < end:
                raise zipfile.BadZipFile(f"overlapping members, {info.filename!r} among them")
            end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            fault = "a link or device" if kind not in (0, stat.S_IFREG) else ""
            if info.flag_bits & 0x41:
                fault = "an encrypted member"
            # the others may unpack a few bytes to gigabytes at once
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = f"a member packed by method {info.compress_type}"
            if not info.is_dir() or leads_out(info.orig_filename):
                blocks = _zip_blocks(archive, info)
                yield Member(info.orig_filename, blocks, info.file_size), fault


def _zip_blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Blocks:
    # the library stops at the size that is claimed: one byte further shows whether there is more
    further = copy(info)
    further.file_size += 1
    with archive.open(further) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _tar(path: Path, limit_bytes: int) -> Iterator[tuple[Member, str]]:
    """The members of a tar, and what is wrong with each."""
    with path.open("rb") as file:
        blocks = decompressed(file) or iter(lambda: file.read(BLOCK_BYTES), b"")
        stream = _Stream(blocks, limit_bytes + RATIO * path.stat().st_size)
        tar = tarfile.TarFile(fileobj=cast(IO[bytes], stream))
        while info := tar.next():
            if info.size < 0:
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            fault = "" if info.isreg() and not info.issparse() else "a link, device or sparse file"
            if not info.isdir() or leads_out(info.name):
                yield Member(info.name, _tar_blocks(stream, info), info.size), fault
        # the library takes the end of the file, and nonsense, for the end of the archive
        if len(stream.header) != tarfile.BLOCKSIZE or any(stream.header):
            raise EOFError("the mark of its end is missing")
        # the checksum of what was compressed comes last
        while stream.take(BLOCK_BYTES):
            pass


def _tar_blocks(stream: _Stream, info: tarfile.TarInfo) -> Blocks:
    stream.seek(info.offset_data)
    left = info.size
    while left and (block := stream.take(min(BLOCK_BYTES, left))):
        left -= len(block)
        yield block


class _Stream:
    """What `tarfile` reads headers from: forwards only, and not more than a header at once."""

    def __init__(self, blocks: Iterator[bytes], room: int) -> None:
        self.blocks, self.room = blocks, room
        self.position = self.at = 0
        self.held = self.header = b""

    def take(self, n_bytes: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts = []
        while n_bytes > 0:
            if self.at == len(self.held):
                self.held, self.at = next(self.blocks, b""), 0
                if not self.held:
                    break
            part = self.held[self.at : self.at + n_bytes]
            self.at += len(part)
            self.position += len(part)
            n_bytes -= len(part)
            parts.append(part)
        if self.position > self.room:
            raise tarfile.ReadError(f"it unpacks to more than {self.room} bytes")
        return b"".join(parts)

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {n_bytes} bytes")
        self.header = self.take(n_bytes)
        return self.header

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a member that lies before its header")
        while self.position < position and self.take(min(BLOCK_BYTES, position - self.position)):
            pass
