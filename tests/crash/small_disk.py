"""A run on a small disk of its own, which fills up and turns read-only; run as a program.

`unshare --map-root-user --mount python -m crash.small_disk RECIPE FOLDER KEEP` mounts the disk at
FOLDER, where nobody else sees it, and copies the run to KEEP. Prints what happened, as JSON; exits
with 77 where nothing may be mounted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from workbench import kernels
from workbench.errors import CannotWrite
from workbench.train.folder import RunFolder
from workbench.train.lock import release
from workbench.train.start import start


def mount(folder: str, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def filled(disk: Path, free_bytes: int) -> Iterator[None]:
    """Inside, so little is free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    # a disk is given in pages
    os.truncate(filler, filler.stat().st_size - free_bytes // 4096 * 4096)
    try:
        yield
    finally:
        filler.unlink()


def train(recipe: Path, out: Path, until: int | None = None) -> str:
    """Train until a checkpoint of that step, or the end; the error that ended it."""
    try:
        for record in start(recipe, out=out):
            if record.kind == "checkpoint" and record.step == until:
                return ""
    except CannotWrite as error:
        return str(error)
    return ""


def state_of(folder: RunFolder) -> dict[str, Any]:
    torn = not (folder.path / "records.jsonl").read_bytes().endswith(b"\n")
    return {
        "state": folder.status()["state"],
        "checkpoints": sorted(p.name for p in folder.checkpoints.iterdir()),
        "torn": torn,
        "left": [p.name for p in folder.path.glob(".*.partial")],
    }


def main(recipe: Path, disk: Path, keep: Path) -> int:
    torch.set_num_threads(1)
    kernels.prepare()
    if not mount(str(disk), "size=1m"):
        return 77
    out, told = disk / "run", {}
    folder = RunFolder(out)
    train(recipe, out, until=6)
    with filled(disk, 20_000):
        told["looked"] = [train(recipe, out), state_of(folder)]
    with filled(disk, 20_000):
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage(path)._replace(free=10**9)  # type: ignore[assignment]
        told["within"] = [train(recipe, out), state_of(folder)]
        shutil.disk_usage = usage  # type: ignore[assignment]
    with filled(disk, 0):
        told["nothing free"] = [train(recipe, out), state_of(folder)]
    train(recipe, out, until=12)
    # an open file, which the lock is, keeps a disk from turning read-only
    release(out)
    if not mount(str(disk), "remount,ro"):
        return 77
    told["read-only"] = [train(recipe, out), state_of(folder)]
    told["new"] = [train(recipe, disk / "deep" / "new"), (disk / "deep").exists()]
    mount(str(disk), "remount,rw")
    told["end"] = [train(recipe, out), state_of(folder)]
    shutil.copytree(out, keep)
    sys.stdout.write(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
