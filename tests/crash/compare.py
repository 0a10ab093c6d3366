"""Whether two runs are the same, bit for bit, but for what a clock says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.train import checkpoint
from workbench.train.folder import RunFolder

CLOCK = ("elapsed_s", "tokens_per_s", "seconds", "peak_bytes")
BYTES = "bytes"
"""of a checkpoint: names that are one object in memory are written once, equal ones twice"""


def differences(got: RunFolder, expected: RunFolder) -> list[str]:
    """Where they differ: records, the last checkpoint and all that is in it, which are kept.

    A checkpoint more, from where the run was stopped, is no difference.
    """
    found = []
    stories = [_story(got, expected), _story(expected, expected)]
    for i, (ours, theirs) in enumerate(zip(*stories, strict=False)):
        found += _unlike(ours, theirs, f"record {i} ({theirs['kind']}, step {theirs['step']})")
    counts = [len(story) for story in stories]
    if counts[0] != counts[1]:
        found.append(f"{counts[0]} records, expected {counts[1]}")
    names = [{p.name for p in checkpoint.folders(f.checkpoints)} for f in (got, expected)]
    # one that was to be deleted may be left where the process was killed at the very end
    if names[1] - names[0]:
        found.append(f"checkpoints missing: {sorted(names[1] - names[0])}")
    ours, theirs = (_everything(folder) for folder in (got, expected))
    if got.status()["state"] != "done":
        found.append(f"status is {got.status()}")
    return found + list(_unlike(ours, theirs, "checkpoint"))


def _story(folder: RunFolder, expected: RunFolder) -> list[dict[str, Any]]:
    """The records without times, and without interruptions and their checkpoints."""
    beats = {row["step"] for row in expected.records("checkpoint")}
    return [
        {k: v for k, v in row.items() if k not in (*CLOCK, BYTES)}
        for row in folder.records()
        if row.get("reason") != "interrupted"
        and not (row["kind"] == "checkpoint" and row["step"] not in beats)
    ]


def _everything(folder: RunFolder) -> dict[str, Any]:
    found = checkpoint.newest(folder.checkpoints)
    assert found is not None
    manifest = {k: v for k, v in found.manifest.items() if k not in ("files", "sha256")}
    model = folder.load_model()
    state = checkpoint.load_state(found)
    return {"manifest": manifest, "state": state, "weights": model.state_dict()}


def _unlike(got: Any, expected: Any, path: str) -> list[str]:
    if isinstance(expected, Tensor):
        same = got.dtype == expected.dtype and torch.equal(got, expected)
        return [] if same else [f"{path}: tensors differ"]
    if isinstance(expected, dict):
        if got.keys() != expected.keys():
            return [f"{path}: {sorted(got)} != {sorted(expected)}"]
        keys = [k for k in expected if k not in CLOCK]
        return [x for k in keys for x in _unlike(got[k], expected[k], f"{path}.{k}")]
    if isinstance(expected, list | tuple):
        if len(got) != len(expected):
            return [f"{path}: {len(got)} entries, expected {len(expected)}"]
        pairs = zip(got, expected, strict=True)
        return [x for i, (a, b) in enumerate(pairs) for x in _unlike(a, b, f"{path}[{i}]")]
    return [] if got == expected else [f"{path}: {got!r} != {expected!r}"]


def run_folder(path: Path) -> RunFolder:
    """Of a path, for readers."""
    return RunFolder(path, writes=False)
