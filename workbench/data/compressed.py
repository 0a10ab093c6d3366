"""Compressed files from anywhere (gz, xz, bz2, zst), block by block in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from workbench.errors import DataError, DataMissing, WorkbenchError

ENDINGS = (".gz", ".xz", ".bz2", ".zst")
BLOCK_BYTES = 1 << 20
XZ_MEMORY = 1 << 29
Blocks = Generator[bytes, None, None]

# what the libraries raise on a bad file
FAULTS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    MemoryError,
    OverflowError,
    LookupError,
    struct.error,
)


def unpacked(path: Path) -> Blocks:
    """The contents of a compressed file (gz, xz, bz2, zst), block by block.

    Raises:
        DataError: it is another kind of file or damaged, perhaps only after its last block; or
            zst, and the package zstandard is not there.
    """
    with reading(path, "a whole gz, xz, bz2 or zst file"), path.open("rb") as file:
        blocks = decompressed(file)
        if blocks is None:
            raise ValueError("no compressed file")
        yield from blocks


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Say in a user's words what the libraries find wrong with a file."""
    try:
        yield
    except WorkbenchError:
        raise
    except FileNotFoundError:
        raise DataMissing(f"{path}: got no file, expected {expected}. Put it there") from None
    except FAULTS as error:
        with path.open("rb") as file:
            head = file.read(16)
        raise DataError(
            f"{path}: got '{error or type(error).__name__}' in a file that begins with {head!r}, "
            f"expected {expected}. Put that there; what was downloaded can be deleted, and fetched "
            "again"
        ) from None


def decompressed(file: IO[bytes]) -> Iterator[bytes] | None:
    """What a compressed file holds, by its first bytes; None where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        plain = gzip.GzipFile(fileobj=file)
        return iter(lambda: plain.read(BLOCK_BYTES), b"")
    if head.startswith(b"BZh"):
        return _streams(file, bz2.BZ2Decompressor)
    if head == b"\xfd7zXZ\0":
        return _streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        # 512 bytes unpack to 16 MiB at most, and that library has no other bound
        return _streams(file, _zst(), step=512)
    return None


def _streams(file: IO[bytes], new: Callable[[], Any], step: int = 1 << 16) -> Iterator[bytes]:
    """One stream after another; the library would take a damaged second one for the end."""
    data = file.read(step)
    while data:
        one = new()
        while not one.eof:
            if one.needs_input and not data and not (data := file.read(step)):
                raise EOFError("it ends too early")
            if block := one.decompress(data, BLOCK_BYTES):
                yield block
            data = b""
        # zeros may fill up a block
        data = one.unused_data.lstrip(b"\0")
        while not data and (more := file.read(step)):
            data = more.lstrip(b"\0")


def _zst() -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            "got a zst file, and the package that reads it is not installed. Run "
            "pip install 'workbench[text]', or unpack the file by hand"
        ) from None
    decompressor = zstandard.ZstdDecompressor()

    class Zst:
        """With the manners of the standard library."""

        needs_input = True

        def __init__(self) -> None:
            self.inner = decompressor.decompressobj()

        def decompress(self, data: bytes, _: int) -> bytes:
            try:
                return self.inner.decompress(data)
            except zstandard.ZstdError as error:
                raise ValueError(str(error)) from None

        @property
        def eof(self) -> bool:
            return bool(self.inner.eof)

        @property
        def unused_data(self) -> bytes:
            return self.inner.unused_data

    return Zst
