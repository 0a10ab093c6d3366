"""Bombs, lies and damage: an archive gives the right files, or none and a reason."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from packed import KINDS, PACKERS, TEXTS, WANTED, files, put, refused, tarred, zipped

from workbench.data import archives
from workbench.data.archives import extract, read, spool
from workbench.data.compressed import unpacked
from workbench.errors import DataError, DataMissing

MIB = 1 << 20
BOMB = {"set/train.txt": bytes(20 * MIB), "set/valid.txt": b"few words\n"}


def entry(
    name: bytes, data: bytes, claimed: bytes, method: int = 8, flags: int = 0, summed: bytes = b""
) -> bytes:
    """A zip of one member that claims to hold something else, with the checksum of a third."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush() if method == 8 else data
    facts = struct.pack(
        "<HHHHHIIIHH",
        *(20, flags, method, 0, 0),
        *(zlib.crc32(summed or claimed), len(packed), len(claimed), len(name), 0),
    )
    local = b"PK\3\4" + facts + name + packed
    central = (
        b"PK\1\2" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    )
    return local + central + end(1, len(central), len(local))


def end(n: int, nbytes: int, at: int) -> bytes:
    return b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, n, n, nbytes, at, 0)


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that lie in the folder aside whenever it is removed."""
    sizes: list[int] = []

    def remove(path: Path, *, ignore_errors: bool) -> None:
        sizes.append(sum(p.stat().st_size for p in path.rglob("*") if p.is_file()))
        original(path, ignore_errors=ignore_errors)

    original = shutil.rmtree
    monkeypatch.setattr(archives.shutil, "rmtree", remove)
    return sizes


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.tar.zst"])
def test_a_bomb_that_says_how_large_it_is(tmp_path: Path, kind: str, most: list[int]) -> None:
    bomb = KINDS[kind](BOMB)
    assert len(bomb) < MIB / 8
    message = refused(tmp_path, kind, bomb, limit_bytes=MIB)
    assert "'set/train.txt' unpacks to more bytes than expected (at most 1048576)" in message
    assert max(most) == 0


def test_all_members_count_together(tmp_path: Path, most: list[int]) -> None:
    many = zipped({f"a/{i}": bytes(1000) for i in range(10)})
    wanted = {f"a/{i}": str(i) for i in range(10)}
    assert "more bytes" in refused(tmp_path, "a.zip", many, wanted, limit_bytes=9999)
    assert max(most) == 9000


@pytest.mark.parametrize("claimed", [0, 1, 1000])
def test_a_zip_that_holds_more_than_it_says(tmp_path: Path, claimed: int, most: list[int]) -> None:
    data = bytes(20 * MIB)
    bomb = entry(b"x", data, data[:claimed])
    # the library takes it for whole
    with zipfile.ZipFile(io.BytesIO(bomb)) as archive:
        assert len(archive.read("x")) == claimed
    assert "Bad CRC" in refused(tmp_path, "a.zip", bomb, {"x": "x"})
    # the checksum of one byte more than it says
    bomb = entry(b"x", data, data[:claimed], summed=data[: claimed + 1])
    message = refused(tmp_path, "a.zip", bomb, {"x": "x"})
    assert f"'x' has more than the {claimed} bytes that it claims" in message
    assert max(most) <= claimed


@pytest.mark.parametrize("method", [0, 8])
def test_a_zip_that_holds_less_than_it_says(tmp_path: Path, method: int) -> None:
    message = refused(tmp_path, "a.zip", entry(b"x", b"some", b"some more", method), {"x": "x"})
    assert "claims" in message or "CRC" in message


@pytest.mark.parametrize(
    ("evil", "reason"),
    [
        (entry(b"x", b"data", b"data", flags=1), "an encrypted member 'x'"),
        (entry(b"x", b"data", b"data", flags=0x41), "an encrypted member 'x'"),
        (entry(b"x", b"data", b"data", method=12), "a member packed by method 12 'x'"),
        (entry(b"x", b"data", b"data", method=14), "a member packed by method 14 'x'"),
        (entry(b"x", b"data", b"data", method=99), "a member packed by method 99 'x'"),
        (entry(b"x", b"data", b"atad"), "CRC"),
        (zipped({"x": b"data"}).replace(b"PK\3\4", b"PK\3\5", 1), "begins with b'PK\\x03\\x05"),
        (zipped({"x": b"data"}).replace(b"x", b"y", 1), "differ"),
        (b"PK\3\4" + bytes(100), "not a zip file"),
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>log in first</html>" * 30, "begins with b'<!DOCTYPE html><"),
    ],
)
def test_zips_that_are_none(tmp_path: Path, evil: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, "a.zip", evil, {"x": "x"})


def test_overlapping_members_of_a_zip(tmp_path: Path) -> None:
    # a thousand names for the same few bytes, the kernel of the bombs without nesting
    one = entry(b"x", bytes(10_000), bytes(10_000))
    at = one.index(b"PK\1\2")
    central = one[at : one.index(b"PK\5\6")]
    table = b"".join(central[:-1] + bytes((c,)) for c in b"xyz")
    evil = one[:at] + table + end(3, len(table), at)
    assert "overlapping members" in refused(tmp_path, "a.zip", evil, {"x": "x"})
    # a member whose bytes hold another one
    outer = entry(b"a", one, one, method=0)
    at = outer.rindex(b"PK\1\2")
    inner = central[:42] + struct.pack("<I", 31) + central[46:]
    table = outer[at : outer.rindex(b"PK\5\6")] + inner
    evil = outer[:at] + table + end(2, len(table), at)
    assert "overlapping members" in refused(tmp_path, "a.zip", evil, {"a": "a"})


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_is_passed_over_is_bounded(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "RATIO", 10)
    evil = pack(tarred({"other": bytes(5 * MIB)} | TEXTS))
    assert "unpacks to more than" in refused(tmp_path, "a.tar.gz", evil)
    # also after the end
    evil = pack(tarred(TEXTS) + bytes(5 * MIB))
    assert "unpacks to more than" in refused(tmp_path, "a.tar.gz", evil)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_would_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    evil = gzip.compress(header(kind, 128 * MIB) + bytes(128 * MIB), 1)
    tracemalloc.start()
    try:
        assert "a header of 134217728 bytes" in refused(tmp_path, "a.tar.gz", evil)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_headers_upon_headers(tmp_path: Path, kind: bytes) -> None:
    body = b"11 path=x\n\n" if kind == b"x" else b"x\0"
    evil = (header(kind, len(body)) + body.ljust(512, b"\0")) * 5000
    assert "recursion" in refused(tmp_path, "a.tar", evil)


@pytest.mark.parametrize("size", [-512, -(1 << 40), 1 << 40, (1 << 62) - 1])
def test_sizes_that_cannot_be(tmp_path: Path, size: int) -> None:
    for name in ("set/train.txt", "other"):
        evil = tarred({"a": b"a"})[:1024] + header(b"0", size, name) + tarred(TEXTS)
        refused(tmp_path, "a.tar", evil)


def test_a_real_size_in_an_extended_header(tmp_path: Path) -> None:
    evil = tarred(TEXTS, pax_headers={"size": str(1 << 50)})
    refused(tmp_path, "a.tar", evil, {"set/empty.txt": "x"})


def test_more_members_than_anyone_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for kind in ("a.zip", "a.tar"):
        assert "got more than 2 members" in refused(tmp_path, kind, KINDS[kind](TEXTS))


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz"])
def test_a_tar_that_ends_between_two_members(tmp_path: Path, kind: str) -> None:
    whole = tarred(TEXTS)
    cut = whole[: whole.index(b"set/empty.txt")]
    with tarfile.open(fileobj=io.BytesIO(cut)) as archive:
        assert len(archive.getnames()) == 2
    cut = gzip.compress(cut) if kind == "a.tar.gz" else cut
    assert "the mark of its end is missing" in refused(tmp_path, kind, cut)


def outcome(folder: Path, archive: Path) -> dict[str, bytes] | None:
    """The files of an archive, or None where it is refused, which leaves nothing."""
    out = folder / "out"
    try:
        extract(archive, WANTED, out, limit_bytes=10_000)
    except DataError:
        assert files(folder) == {archive.name}
        return None
    found = {name: (out / name).read_bytes() for name in files(out)}
    shutil.rmtree(out)
    assert files(folder) == {archive.name}
    return found


RIGHT = {"train.txt": TEXTS["set/train.txt"], "sub/valid.txt": TEXTS["set/valid.txt"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive(tmp_path: Path, kind: str) -> None:
    whole = KINDS[kind](TEXTS)
    assert outcome(tmp_path, put(tmp_path, kind, whole)) == RIGHT
    lengths = {
        *range(0, len(whole), max(1, len(whole) // 100)),
        *range(len(whole) - 30, len(whole)),
    }
    for length in lengths:
        found = outcome(tmp_path, put(tmp_path, kind, whole[:length]))
        # only zeros that fill up a tar may be missing
        assert found is None or (found == RIGHT and kind.endswith(".tar")), length


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive(tmp_path: Path, kind: str, n: int) -> None:
    whole, chance = KINDS[kind](TEXTS), random.Random(f"{kind} {n}")
    refusals = 0
    for _ in range(n):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        found = outcome(tmp_path, put(tmp_path, kind, bytes(damaged)))
        refusals += found is None
        if found is not None and not kind.endswith(".tar"):
            assert found == RIGHT
        elif found is not None:
            # a tar has no checksum of what is in it
            assert {n: len(d) for n, d in found.items()} == {n: len(d) for n, d in RIGHT.items()}
    assert refusals


WORDS = TEXTS["set/train.txt"]


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_in_one_or_more_streams(tmp_path: Path, kind: str) -> None:
    pack = PACKERS[kind]
    for data in (b"", b"a", WORDS, bytes(3 * MIB)):
        assert b"".join(unpacked(put(tmp_path, "a", pack(data)))) == data
    several = pack(WORDS) + pack(b"") + pack(b"more") * 3
    assert b"".join(unpacked(put(tmp_path, "a", several))) == WORDS + b"more" * 3
    if kind != "zst":
        assert b"".join(unpacked(put(tmp_path, "a", several + bytes(700)))) == WORDS + b"more" * 3


@pytest.mark.parametrize("kind", PACKERS)
def test_damaged_compressed_files(tmp_path: Path, kind: str) -> None:
    one = PACKERS[kind](WORDS)
    two = one + one
    evil = [one + b"garbage", one[:-1], one[: len(one) // 2], two[:-1], one + bytes(3) + b"x"]
    # the second stream's mark: the libraries would take it for the end
    for at in range(len(one), len(one) + 3):
        evil.append(two[:at] + bytes((two[at] ^ 1,)) + two[at + 1 :])
    for data in evil:
        with pytest.raises(DataError, match="expected a whole gz, xz, bz2 or zst file"):
            b"".join(unpacked(put(tmp_path, "a", data)))


@pytest.mark.parametrize("data", [b"", b"x", b"plain text", b"<html>", b"\x1f", zipped({})])
def test_what_is_not_compressed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="no compressed file"):
        list(unpacked(put(tmp_path, "a.gz", data)))
    with pytest.raises(DataMissing, match="got no file"):
        list(unpacked(tmp_path / "none.gz"))
    with pytest.raises(DataMissing, match="got no file"):
        list(read(tmp_path / "none.zip", limit_bytes=0))


@pytest.mark.parametrize("kind", PACKERS)
def test_memory_is_a_few_blocks_whatever_is_packed(tmp_path: Path, kind: str) -> None:
    path = put(tmp_path, "a", PACKERS[kind](bytes(64 * MIB)))
    tracemalloc.start()
    try:
        assert sum(len(block) for block in unpacked(path)) == 64 * MIB
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()


def test_a_dictionary_that_would_fill_the_memory(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(WORDS))
    # byte 12 says how long the block's header is; its last four bytes are a checksum
    stop = 12 + 4 * (data[12] + 1) - 4
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = 39
    data[stop : stop + 4] = struct.pack("<I", zlib.crc32(data[12:stop]))
    with pytest.raises(DataError, match=r"[Mm]emory"):
        list(unpacked(put(tmp_path, "a.xz", bytes(data))))


def test_without_zstandard_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = put(tmp_path, "a.zst", PACKERS["zst"](WORDS))
    with pytest.raises(DataError, match=r"pip install 'workbench\[text\]'"):
        list(unpacked(path))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(tmp_path, "a.zip", zipped(TEXTS))
    assert "No space left on device" in message and "WORKBENCH_DATA" in message


def test_members_of_a_user_are_read_whole_or_not(tmp_path: Path) -> None:
    archive = put(tmp_path, "a.zip", entry(b"x", b"data", b"atad"))
    for member in read(archive, limit_bytes=100):
        with pytest.raises(DataError, match="CRC"):
            spool(member.blocks, tmp_path / "x", 100, "too large")
