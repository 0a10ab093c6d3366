"""One process with a batch of B rows learns what N with B / N rows each, or N pieces of it, do.

In float64: what differs then is no rounding that Adam or a clamp could have made large.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from law_cases import cases, mixers, parts
from torch import Tensor

from workbench.data.batches import Reader
from workbench.train import checkpoint
from workbench.train.folder import RunFolder
from workbench.train.tasks import open_task

HERE = Path(__file__).parent
TOLERANCE = 1e-9
WAYS = {
    "2 processes": (2, ()),
    "4 processes": (4, ()),
    "2 pieces": (1, ("train.micro_batches=2",)),
    "8 pieces": (1, ("train.micro_batches=8",)),
    "2 processes, 2 pieces": (2, ("train.micro_batches=2",)),
}
"""processes, and what is changed in the recipe"""
SHORT = (
    "spans and clamps", "dynamic spans", "dropped weights", "dropped distances", "adaptive softmax",
    "sentences", "averaged weights", "retrieval, redrawn",
)  # fmt: skip


def train(names: list[str], out: Path, processes: int = 1, changes: tuple[str, ...] = ()) -> None:
    """Train cases in a world of so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else [])]
    command = [*start, str(HERE / "law_worker.py"), str(out), *changes, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]


def ended(folder: Path) -> dict[str, Any]:
    """All numbers that a run ended with, by name."""
    run = RunFolder(folder)
    found = checkpoint.newest(run.checkpoints)
    assert found is not None
    weights = safetensors.torch.load_file(found.path / checkpoint.WEIGHTS)
    state = checkpoint.load_state(found)
    told = [(row["loss_nats"], row.get("grad_norm", 0.0), *row.get("penalties", {}).values())
            for row in run.records() if row["kind"] in ("train", "eval")]  # fmt: skip
    return {"weights": weights, "carry": state["carry"], "optimizer": state["optimizer"],
            "records": torch.tensor([x for row in told for x in row])}  # fmt: skip


def difference(a: Any, b: Any) -> float:
    """The largest between two trees of tensors and numbers; infinite where they are unlike."""
    if isinstance(a, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        same = a.keys() == b.keys()
        return max((difference(a[k], b[k]) for k in a), default=0.0) if same else float("inf")
    if isinstance(a, list | tuple):
        pairs = zip(a, b, strict=True)
        return max((difference(x, y) for x, y in pairs), default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


def compare(names: list[str], folder: Path, ways: list[str]) -> dict[str, dict[str, float]]:
    """The largest difference of each case and way from one process that reads batches whole."""
    train(names, folder / "whole")
    whole = {name: ended(folder / "whole" / name) for name in names}
    table: dict[str, dict[str, float]] = {name: {} for name in names}
    for way in ways:
        processes, changes = WAYS[way]
        train(names, folder / way, processes, changes)
        for name in names:
            table[name][way] = difference(whole[name], ended(folder / way / name))
    return table


def show(table: dict[str, dict[str, float]]) -> str:
    """The table in Markdown."""
    ways = list(next(iter(table.values())))
    head = [f"| case | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    return "\n".join(head + [
        f"| {name} | " + " | ".join(f"{row[way]:.1e}" for way in ways) + " |"
        for name, row in table.items()
    ])  # fmt: skip


def check(names: list[str], folder: Path, ways: list[str]) -> None:
    table = compare(names, folder, ways)
    sys.stdout.write(f"\nLargest difference after 20 updates, float64:\n\n{show(table)}\n")
    assert not {k: row for k, row in table.items() if max(row.values()) > TOLERANCE}


@pytest.mark.distributed
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    check(list(SHORT), tmp_path, ["2 processes"])
    # what is compared is not nothing
    train(["averaged weights"], tmp_path / "seed", changes=("train.seed=2",))
    one, other = tmp_path / "whole" / "averaged weights", tmp_path / "seed" / "averaged weights"
    assert difference(ended(one), ended(other)) > 1e-3
    averaged = [row["averaged_from"] for row in RunFolder(one).records("eval")]
    assert averaged[0] is None and averaged[-1] is not None, "validation begins the averaging"
    clamped = RunFolder(tmp_path / "whole" / "spans and clamps").records("train")
    spans = [span for layer in clamped[-1]["readings"]["span"] for span in layer]
    assert min(spans) == 0.0, "a clamp was at work"
    assert clamped[0]["grad_norm"] > 0.5, "the gradient was clipped"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("of", [mixers, parts], ids=["mixers", "parts"])
def test_any_number_of_processes_learns_what_one_does(of: Any, tmp_path: Path) -> None:
    check(list(of()), tmp_path, list(WAYS))


def test_the_cases_are_what_they_are_named_after() -> None:
    """Else the law would hold of nothing."""
    adaptive = cases()["adaptive softmax"]
    readers = [open_task(adaptive).batches(Reader("cpu", rank, 4)) for rank in range(4)]
    steps = [[reader.next() for reader in readers] for _ in range(adaptive.train.steps)]
    tails = [[bool((b.targets_BT >= 38).any()) for b in batches] for batches in steps]
    assert any(any(x) and not all(x) for x in tails) and any(not any(x) for x in tails)
    assert sum(batches[0].fresh for batches in steps) == 2
    random = open_task(cases()["random lengths"]).batches(Reader())
    assert len({random.next().tokens_BT.shape[1] for _ in range(9)}) > 3
