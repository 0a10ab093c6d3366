"""Runs of demo size for the notebooks to open."""

from __future__ import annotations

import shutil
from pathlib import Path

from workbench import start

NAMES = ("span-python-tiny", "delta-python-tiny")
# enough records for curves, and two checkpoints; seconds on two cores
FEW = {
    "train.steps": 24,
    "train.schedule.warmup_steps": 8,
    "train.log_every": 2,
    "train.eval_every": 12,
    "train.eval_tokens": 4_000,
    "train.checkpoint_every": 12,
}


def train(folder: Path) -> None:
    """Train each model for a few updates, into `folder/<name>`."""
    for name in NAMES:
        for _ in start(name, FEW, out=folder / name):
            pass


def take(demo: Path, folder: Path) -> None:
    """Copy what `make demo` trained.

    Raises:
        AssertionError: it is not there.
    """
    for name in NAMES:
        there = (demo / name / "recipe.yaml").is_file()
        assert there, f"--demo: {demo} has no run {name}; run `make demo`"
        shutil.copytree(demo / name, folder / name)
