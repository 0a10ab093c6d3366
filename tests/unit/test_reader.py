"""Reading checkpoints of the papers' code: what is built is what PyTorch would build."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from crafted import BUILD, NEWOBJ, call, name, number, old, storage, tensor, text, these, zipped

from workbench.errors import CheckpointError, UnknownOriginal
from workbench.originals.checkpoint import find
from workbench.originals.names import Shell
from workbench.originals.reader import read

GIVEN = sorted((Path(__file__).parents[1] / "golden" / "checkpoints").glob("*.pt"))


def test_plain_values_and_tensors_come_back_as_torch_saved_them(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    saved = {
        "numbers": [1, -2, 3.5, None, True, (1, 2, 3)],
        "nested": OrderedDict(a={"b": "text"}),
        "view": base.t(),
        "row": base[1],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.float16),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "type": torch.float64,
    }
    for old_format in (False, True):
        path = tmp_path / "file.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=not old_format)
        got = read(path)
        assert list(got) == list(saved)
        for key, want in saved.items():
            if isinstance(want, torch.Tensor):
                assert got[key].dtype == want.dtype
                assert torch.equal(got[key], want.detach())
            else:
                assert got[key] == want
        # one storage, as before
        got["row"][0] = 100.0
        assert got["view"][0, 1] == 100.0


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_the_format(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "file.pt"
    torch.save({"x": torch.ones(3), "s": {1, 2}}, path, pickle_protocol=protocol)
    got = read(path)
    assert torch.equal(got["x"], torch.ones(3))
    assert got["s"] == {1, 2}


def test_modules_come_back_as_shells(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(torch.nn.Linear(2, 3), path)
    got = read(path)
    assert isinstance(got, Shell)
    assert got.path == "torch.nn.modules.linear.Linear"
    assert got.state["_parameters"]["weight"].shape == (3, 2)


def test_what_only_old_files_have(tmp_path: Path) -> None:
    """Source text with a class, Python 2's names and strings, storages of a GPU, parts of one."""
    source = these(text("module"), name("model.RNNModel"), text("model.py"), text("import os"))
    part = these(text("part"), number(1), number(2))
    cut = these(
        text("storage"), name("torch.cuda.FloatStorage"), text("0"), text("cuda:0"), number(4), part
    )
    view = call(
        "torch._utils._rebuild_tensor", cut + b"Q", number(0), these(number(2)), these(number(1))
    )
    backend = call("torch.nn.backends.thnn._get_thnn_function_backend")
    state = b"}(" + b"U\x01x" + view + text("_backend") + backend
    state += text("seen") + call("__builtin__.set", b"](K\x01e") + b"u"
    path = tmp_path / "file.pt"
    path.write_bytes(old(source + b"Q)" + NEWOBJ + state + BUILD))
    got = read(path)
    assert got.path == "model.RNNModel"
    assert got.state["x"].tolist() == [2.0, 3.0]
    assert got.state["seen"] == {1}


def test_ordered_dicts_of_python_2_are_lists_of_pairs(tmp_path: Path) -> None:
    pairs = b"](" + b"](" + text("a") + b"K\x01e" + b"](" + text("b") + b"K\x02e" + b"e"
    path = tmp_path / "file.pt"
    path.write_bytes(zipped(call("collections.OrderedDict", pairs)))
    assert read(path) == OrderedDict(a=1, b=2)


def test_untyped_storages_are_read_by_the_tensors_type(tmp_path: Path) -> None:
    raw = storage(kind="torch.storage.UntypedStorage", numel=16)
    rest = (number(1), these(number(2)), these(number(1)), b"\x89", call("collections.OrderedDict"))
    path = tmp_path / "file.pt"
    path.write_bytes(
        zipped(call("torch._utils._rebuild_tensor_v3", raw, *rest, name("torch.float32")))
    )
    assert read(path).tolist() == [2.0, 3.0]


def test_a_tensor_may_end_where_its_storage_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(zipped(tensor((2, 1), (2, 1), 1)))
    assert read(path).tolist() == [[2.0], [4.0]]


@pytest.mark.parametrize("path", GIVEN, ids=lambda p: p.name)
def test_damage_is_told_as_such(path: Path, tmp_path: Path) -> None:
    """Changed, lost and added bytes: the file is read, or refused in words."""
    chance, good = random.Random(path.name), path.read_bytes()
    torn = tmp_path / path.name
    refused = 0
    for _ in range(20):
        data = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        # where programs and tables are, damage says more than among the numbers
        for _ in range(chance.randint(0, 3)):
            data[chance.randrange(max(1, min(len(data), 4000)))] = chance.randrange(256)
        torn.write_bytes(data)
        try:
            value = read(torn)
        except CheckpointError as error:
            refused += 1
            assert path.name in str(error)
            continue
        try:
            find(value).aliases()
        except (CheckpointError, UnknownOriginal):
            refused += 1
    assert refused > 0
