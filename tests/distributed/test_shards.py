"""Weights spread over processes learn what whole ones do, take their share of memory, and leave the
same checkpoints."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from shard_worker import CASES, recipe

from workbench.config import dump as plain
from workbench.config import load, override
from workbench.errors import ConfigError
from workbench.recipe import Recipe
from workbench.train import checkpoint
from workbench.train.folder import RunFolder

TEXT = "so many words, and so few of them new. "
END = 20


def train(folder: Path, processes: int, names: list[str], until: int = END) -> None:
    """Train cases, or go on with them."""
    folder.mkdir(exist_ok=True)
    (text := folder.parent / "text.txt").write_text(TEXT * 60)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else [])]
    worker = Path(__file__).with_name("shard_worker.py")
    command = [*start, str(worker), str(folder), str(text), str(until), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]


def written(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, by its place, and of its optimizer."""
    found = checkpoint.newest(RunFolder(folder).checkpoints)
    assert found is not None and found.step == END
    weights = safetensors.torch.load_file(found.path / checkpoint.WEIGHTS)
    state = checkpoint.load_state(found)["optimizer"]["state"]
    sums = {f"{i} {key}": x for i, entry in state.items() for key, x in entry.items()}
    aliases = {f"{a} is {b}": torch.ones(1) for a, b in found.manifest["aliases"].items()}
    return {**weights, **sums, **aliases}


def same(got: Path, expected: Path, names: list[str]) -> None:
    for name in names:
        ours, theirs = written(got / name), written(expected / name)
        assert ours.keys() == theirs.keys() and len(ours) > 10, name
        worst = {k: float((ours[k] - theirs[k]).abs().max()) for k in ours if ours[k].numel()}
        assert max(worst.values()) < 1e-9, (name, max(worst, key=lambda k: worst[k]))


def held(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name} {rank}.json").read_text())
    return found


@pytest.mark.distributed
def test_two_processes_with_half_the_weights_learn_what_one_does(tmp_path: Path) -> None:
    one, two, names = tmp_path / "one", tmp_path / "two", list(CASES)
    train(one, 1, names)
    train(two, 2, names)
    same(two, one, names)
    for name in names:
        whole, halves = held(one, name, 0), [held(two, name, rank) for rank in (0, 1)]
        for half in halves:
            assert half["weights"] < 0.52 * whole["weights"], name
            assert half["sums"] < 0.52 * whole["sums"], name
        assert sum(half["weights"] for half in halves) >= whole["weights"]
        # all together measure the whole model, when it is trained
        measured = [float((folder / f"{name}.txt").read_text()) for folder in (one, two)]
        assert measured[1] == pytest.approx(measured[0], rel=1e-9)


@pytest.mark.distributed
def test_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    names = ["transformer-xl", "delta", "averaged"]
    train(tmp_path / "whole", 1, names)
    for first, second in ((2, 1), (1, 3)):
        train(folder := tmp_path / f"{first} and {second}", first, names, until=10)
        train(folder, second, names)
        same(folder, tmp_path / "whole", names)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.precision": "fp16"}, "precision is fp16"),
        ({"train.compile": True}, "compile is true"),
        ({"train.optimizer": {"kind": "adagrad", "lr": 1.0, "clip": "per_tensor"}}, "per_tensor"),
    ],
)
def test_what_cannot_be_spread_is_refused(changes: dict[str, Any], reason: str) -> None:
    data = plain(recipe("transformer-xl", "text.txt"))
    with pytest.raises(ConfigError, match=f"shard is true, but .*{re.escape(reason)}"):
        load(Recipe, override(data, changes))
