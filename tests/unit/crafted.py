"""Checkpoint files put together byte by byte, as no honest program would write them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO

HEAD, STOP = b"\x80\x02", b"."
REDUCE, NEWOBJ, BUILD, EMPTY = b"R", b"\x81", b"b", b")"
MAGIC = HEAD + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19" + STOP
PROTOCOL = HEAD + b"M\xe9\x03" + STOP


def name(path: str) -> bytes:
    """GLOBAL."""
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def these(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(path: str, *arguments: bytes) -> bytes:
    return name(path) + these(*arguments) + REDUCE


def storage(key: str = "0", kind: str = "torch.FloatStorage", numel: int = 4) -> bytes:
    return these(text("storage"), name(kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A view of a storage of four numbers."""
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(),
        number(offset),
        these(*map(number, size)),
        these(*map(number, stride)),
        b"\x89",
        call("collections.OrderedDict"),
    )


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def program(body: bytes) -> bytes:
    return HEAD + body + STOP


def zipped(body: bytes, storages: Mapping[str, bytes] = {"0": FOUR}) -> bytes:
    """In the container of PyTorch 1.6 and later."""
    files = {"data.pkl": program(body), "version": b"3\n"}
    files |= {f"data/{key}": data for key, data in storages.items()}
    return archive({f"archive/{n}": data for n, data in files.items()})


def archive(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for entry, data in files.items():
            out.writestr(zipfile.ZipInfo(entry), data, method)
    return file.getvalue()


def old(body: bytes, keys: bytes = b"", numbers: bytes | None = None) -> bytes:
    """In the container before PyTorch 1.6, by default with the one storage of `tensor`."""
    system = program(b"}" + text("little_endian") + b"\x88s")
    listed = program(b"](" + (keys or text("0")) + b"e")
    if numbers is None:
        numbers = struct.pack("<q", 4) + FOUR
    return MAGIC + PROTOCOL + system + program(body) + listed + numbers
