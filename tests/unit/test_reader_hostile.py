"""Hostile checkpoints: each is refused in words that name the fault, and nothing of it happens.

What a file would do if it were obeyed: write a file, which is then looked for.
"""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted import (
    BUILD,
    EMPTY,
    FOUR,
    HEAD,
    MAGIC,
    NEWOBJ,
    PROTOCOL,
    REDUCE,
    STOP,
    archive,
    call,
    name,
    number,
    old,
    program,
    storage,
    tensor,
    text,
    these,
    zipped,
)

from workbench.errors import CheckpointError, HostileFile
from workbench.originals.reader import read

SENTINEL = "was-run"
COMMAND = text(f"touch {SENTINEL}")
LINEAR = name("torch.nn.modules.linear.Linear")
SHELL = LINEAR + EMPTY + NEWOBJ
WRITE = text(f"open('{SENTINEL}', 'w')")

# what the program does: (its bytes, what the refusal must name)
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "os.system": (call("os.system", COMMAND), "os.system"),
    "posix.system": (call("posix.system", COMMAND), "posix.system"),
    "nt.system": (call("nt.system", COMMAND), "nt.system"),
    "subprocess": (call("subprocess.check_output", COMMAND), "subprocess.check_output"),
    "eval": (call("builtins.eval", WRITE), "builtins.eval"),
    "eval of Python 2": (call("__builtin__.eval", WRITE), "builtins.eval"),
    "exec": (call("builtins.exec", WRITE), "builtins.exec"),
    "open": (call("builtins.open", text(SENTINEL), text("w")), "builtins.open"),
    "import": (call("builtins.__import__", text("os")), "builtins.__import__"),
    "runpy": (call("runpy.run_path", text("x.py")), "runpy.run_path"),
    "webbrowser": (call("webbrowser.open", text("file:///")), "webbrowser.open"),
    "pickle in pickle": (call("pickle.loads", b"C\x01."), "pickle.loads"),
    "getattr of a module": (call("builtins.getattr", name("os.path"), text("x")), "os.path"),
    "getattr of a class": (call("builtins.getattr", LINEAR, text("__init__")), "__init__"),
    "getattr of a shell": (call("builtins.getattr", SHELL, text("__class__")), "__class__"),
    "getattr chain": (
        call("builtins.getattr", call("builtins.getattr", SHELL, text("__reduce__")), text("f")),
        "__reduce__",
    ),
    "getattr of a value": (call("builtins.getattr", text("a"), text("format")), "format"),
    "stack global": (text("os") + text("system") + b"\x93" + these(COMMAND) + REDUCE, "os.system"),
    "stack global of lists": (b"]]\x93", "no text"),
    "dotted name": (call("builtins.dict.fromkeys", b"]"), "builtins.dict.fromkeys"),
    "dotted shell": (name("model_main.Layer.forward"), "model_main.Layer.forward"),
    "function beside shells": (name("utils.model_utils.run"), "utils.model_utils.run"),
    "INST": (b"(" + COMMAND + b"ios\nsystem\n", "INST"),
    "OBJ": (b"(" + LINEAR + b"o", "OBJ"),
    "NEWOBJ of a function": (name("os.system") + these(COMMAND) + NEWOBJ, "os.system"),
    "NEWOBJ with arguments": (LINEAR + these(COMMAND) + NEWOBJ, "arguments"),
    "NEWOBJ of a storage": (name("torch.FloatStorage") + EMPTY + NEWOBJ, "torch.FloatStorage"),
    "NEWOBJ_EX": (LINEAR + EMPTY + b"}" + b"\x92", "NEWOBJ_EX"),
    "call of a class": (LINEAR + EMPTY + REDUCE, "torch.nn.modules.linear.Linear"),
    "call of text": (text("os.system") + these(COMMAND) + REDUCE, "str"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "EXT4": (b"\x84\x01\0\0\0", "EXT4"),
    "out-of-band buffer": (b"\x97", "NEXT_BUFFER"),
    "BUILD of a list": (b"]}" + BUILD, "state of a list"),
    "BUILD of a tensor": (tensor((2,), (1,)) + b"}" + BUILD, "state of a Tensor"),
    "BUILD with slots": (SHELL + these(b"}", b"}") + BUILD, "from a tuple"),
    "BUILD of a name": (LINEAR + b"}" + BUILD, "state of a Named"),
    "torch.hub": (call("torch.hub.load", text("a/b"), text("c")), "torch.hub.load"),
    "torch.load": (call("torch.load", text("x")), "torch.load"),
    "torch ops": (call("torch.ops.load_library", text("x.so")), "torch.ops.load_library"),
    "another rebuilder": (call("torch._utils._rebuild_sparse_tensor"), "_rebuild_sparse_tensor"),
    "storage from bytes": (call("torch.storage._load_from_bytes", b"C\x01."), "_load_from_bytes"),
    "module function": (name("torch.nn.init.normal_"), "torch.nn.init.normal_"),
    "module's import": (name("torch.nn.modules.module.warnings"), "modules.module.warnings"),
    "numpy": (call("numpy.core.multiarray._reconstruct"), "numpy.core.multiarray"),
    "joblib": (name("joblib.numpy_pickle.NumpyArrayWrapper"), "joblib.numpy_pickle"),
    "hooks": (
        call("torch._utils._rebuild_parameter", tensor((2,), (1,)), b"\x88", b"](K\x01e"),
        "hooks",
    ),
    "defaultdict of a call": (call("collections.defaultdict", SHELL), "defaultdict"),
    "persistent text": (b"Pstorage\n", "PERSID"),
    "persistent number": (b"K\x01Q", "persistent id"),
    "persistent code": (these(text("module"), name("torch.Size"), b"N", b"N") + b"Q", "persistent"),
    "persistent function": (these(text("module"), name("os.system"), b"N", b"N"), "os.system"),
    "missing storage": (storage("../../etc/passwd"), "missing"),
    "huge storage": (storage(numel=2**40), "claims"),
    "negative storage": (storage(numel=-1), "-1"),
    "storage of another type": (storage() + storage(kind="torch.IntStorage"), "two types"),
    "huge tensor": (tensor((2**30, 2**30), (0, 0)), "numbers"),
    "repeated numbers": (tensor((5,), (0,)), "5 numbers"),
    "beyond the end": (tensor((2, 2), (3, 1)), "place 4"),
    "offset beyond the end": (tensor((1,), (1,), 4), "place 4"),
    "negative offset": (tensor((1,), (1,), -1), "-1"),
    "negative size": (tensor((-1,), (1,)), "-1"),
    "negative stride": (tensor((2,), (-1,), 3), "-1"),
    "sizes without strides": (tensor((2, 2), (1,)), "2 sizes"),
    "tensor of a text": (
        call("torch._utils._rebuild_tensor", text("x"), number(0), these(), these()),
        "no storage",
    ),
    "overflowing dimensions": (tensor((2**47, 2**47, 0), (1, 1, 1)), "torn"),
    "key of a list": (b"}]K\x01s", "as a key"),
    "colliding keys": (b"}" + number(2**61 - 1) + b"K\x01s", "as a key"),
    "long number": (b"\x8b" + struct.pack("<i", 1000) + b"\x7f" * 1000, "7999 bits"),
    "nested tuples": (b")" + b"\x85" * 100_000, "deep"),
    "nested lists by memo": (b"]q\0" + b"]h\0aq\0" * 20_000, "deep"),
    "stack": (b"N" * 200_000, "stacks"),
    "operations": (b"N0" * 600_000, "steps"),
    "sets of one list": (
        b"](" + b"K\x01" * 9000 + b"e" + b"q\0" + b"c__builtin__\nset\nq\1" + b"h\1h\0\x85R" * 200,
        "steps",
    ),
    "states of one dict": (
        b"}(" + b"".join(number(i) + b"N" for i in range(5000)) + b"uq\0" + SHELL + b"h\0b" * 300,
        "steps",
    ),
    "no result": (b"", "result"),
    "nothing to call": (b"R", "torn"),
    "no such memo": (b"h\x09", "torn"),
    "no mark": (b"t", "torn"),
    "append to a tuple": (b")K\x01a", "tuple"),
    "items of a list": (b"]K\x01K\x02s", "items of a list"),
}


# whole files: (their bytes, what the refusal must name)
OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "torn"),
    "text": (b"This is no checkpoint.\n" * 10, "torn"),
    "bare program": (program(call("os.system", COMMAND)), "os.system"),
    "bare value": (program(b"N"), "no file of torch.save"),
    "another mark": (MAGIC.replace(b"\x50\x19", b"\x51\x19") + PROTOCOL, "torch.save"),
    "old: code in the head": (MAGIC + program(call("os.system", COMMAND)), "os.system"),
    "old: storage in the head": (MAGIC + program(storage()), "storage"),
    "old: code": (old(call("os.system", COMMAND)), "os.system"),
    "old: more than the file holds": (old(storage(numel=2**40)), "claims"),
    "old: many keys": (old(tensor((2,), (1,)), keys=text("0") * 5000), "storages"),
    "old: another key": (old(tensor((2,), (1,)), keys=text("1")), "storages"),
    "old: another size": (old(tensor((2,), (1,)), numbers=struct.pack("<q", 5) + FOUR), "size"),
    "old: numbers cut off": (old(tensor((2,), (1,)))[:-1], "ends inside"),
    "old: part beyond its storage": (
        old(
            these(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4))[
                :-1
            ]
            + these(text("v"), number(3), number(2))
            + b"tQ"
        ),
        "takes numbers",
    ),
}


def archives(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Zip archives, most made from an honest one: (their bytes, what the refusal must name)."""
    inside = program(b"N")
    entry = {"archive/data.pkl": inside}
    repeated, linked = BytesIO(), BytesIO()
    with zipfile.ZipFile(repeated, "w") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("archive/data.pkl", inside)
        out.writestr("archive/data.pkl", program(call("os.system", COMMAND)))
    with zipfile.ZipFile(linked, "w") as out:
        out.writestr("archive/data.pkl", inside)
        link = zipfile.ZipInfo("archive/data/0")
        link.external_attr = 0o120777 << 16
        out.writestr(link, "/etc/passwd")
    bomb = archive({"archive/data.pkl": b"\0" * 30_000_000}, zipfile.ZIP_DEFLATED)
    table = good.index(b"PK\1\2")
    return {
        "zip: out of the folder": (archive({**entry, "archive/../../x": b""}), "leads out"),
        "zip: absolute": (archive({"/archive/data.pkl": inside}), "leads out"),
        "zip: drive": (archive({**entry, "C:/x": b""}), "leads out"),
        "zip: backslash": (good.replace(b"data/0", b"..\\..\\"), "leads out"),
        "zip: two folders": (archive({**entry, "other/data.pkl": inside}), "folders"),
        "zip: link": (linked.getvalue(), "link"),
        "zip: two of one name": (repeated.getvalue(), "two entries"),
        "zip: bomb": (bomb, "packed"),
        "zip: script": (archive({**entry, "archive/run.sh": COMMAND}), "run.sh"),
        "zip: scripted module": (archive({**entry, "archive/code/a.py": b""}), "code/a.py"),
        "zip: no program": (archive({"archive/version": b"3"}), "no data.pkl"),
        "zip: arrays": (arrays(), "folders"),
        "zip: changed numbers": (good.replace(FOUR, FOUR[::-1]), "checksum"),
        "zip: storage of another size": (zipped(tensor((2,), (1,)), {"0": FOUR * 2}), "claims"),
        "zip: other byte order": (
            archive({**entry, "archive/byteorder": b"big"}),
            "big-endian",
        ),
        "zip: overlapping": (overlapping(good, table), "overlaps"),
        "zip: renamed inside": (good.replace(b"data/0", b"data/1", 1), "another name"),
        "zip: table too long": (good[:-10] + struct.pack("<I", 2**31) + good[-6:], "claims"),
        "zip: no end": (good[:-22], "end is missing"),
        "zip: something behind": (good + b"\0" * 10, "follows"),
    }


def arrays() -> bytes:
    file = BytesIO()
    np.savez(file, a=np.ones(3), b=np.ones(3))
    return file.getvalue()


def overlapping(good: bytes, table: int) -> bytes:
    """The first entry is said to reach into the second."""
    data = bytearray(good)
    for field in (20, 24):
        size = struct.unpack_from("<I", data, table + field)[0]
        struct.pack_into("<I", data, table + field, size + 20)
    return bytes(data)


GOOD = zipped(tensor((2,), (1,)))
CASES = {
    **{key: (zipped(body), words) for key, (body, words) in PROGRAMS.items()},
    **{
        f"old container: {key}": (old(body), words)
        for key, (body, words) in PROGRAMS.items()
        if words != "steps"  # the same, and slow
    },
    **OTHER_FILES,
    **archives(GOOD),
}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Reads a file that must be refused, quickly, in little memory, and without any effect."""

    def nothing(*arguments: object, **_: object) -> None:
        raise AssertionError(f"something was run: {arguments}")

    def check(path: Path) -> str:
        for module, attribute in ((os, "system"), (os, "popen"), (subprocess, "Popen")):
            monkeypatch.setattr(module, attribute, nothing)
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.iterdir())
        peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert time.perf_counter() - start < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # kB
        assert set(tmp_path.iterdir()) == before
        assert not (tmp_path / SENTINEL).exists()
        return str(caught.value)

    return check


@pytest.mark.parametrize("case", CASES)
def test_hostile_file(case: str, tmp_path: Path, refused: Callable[[Path], str]) -> None:
    data, words = CASES[case]
    path = tmp_path / "hostile.pt"
    path.write_bytes(data)
    message = refused(path)
    assert message.startswith("hostile.pt: ")
    # a storage that is not in the archive is not in the old file's list either
    assert words in message or (case == "old container: missing storage" and "storages" in message)


def test_the_honest_file_beside_them_is_read(tmp_path: Path) -> None:
    for data in (GOOD, old(tensor((2,), (1,)))):
        path = tmp_path / "good.pt"
        path.write_bytes(data)
        assert torch.equal(read(path), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("whole", [GOOD, old(tensor((2,), (1,)))], ids=["zip", "old"])
def test_cut_off_anywhere(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "torn.pt"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read(path)


def test_what_is_no_file(tmp_path: Path, refused: Callable[[Path], str]) -> None:
    assert "not a file" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / "absent.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a file" in refused(tmp_path / "pipe.pt")


def test_code_of_a_file_is_told_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(program(name("os.system")))
    with pytest.raises(HostileFile, match=r"file\.pt: the file names 'os\.system'"):
        read(path)
    path.write_bytes(HEAD + b"(" + STOP)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert type(caught.value) is CheckpointError
