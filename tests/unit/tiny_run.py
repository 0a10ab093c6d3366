"""A training run of a second, for the tests of training: every kind of state, dropout, ties.

Run as a script it trains in a process of its own: `tiny_run.py TEXT OUT [KILL_AT [SIGNAL]]`.
"""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import workbench
from workbench.config import load
from workbench.recipe import Recipe

XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "p_attention": 0.1}
SPAN = {
    "kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "attend_self": False,
    "memory_start": "zeros", "positions": {"kind": "relative_learned", "max_distance": 6},
    "span": {"limit": 6, "ramp": 3, "initial": 0.3, "penalty": 0.01},
}  # fmt: skip
FAST = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"}


def write_text(path: Path) -> Path:
    draw = random.Random(4)
    path.write_text("".join(draw.choice("abcde ") for _ in range(2500)), encoding="ascii")
    return path


def recipe(text: Path, model: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """Three layers that carry memory, spans and fast weights; fields of `train` can be replaced."""
    stack = [{"block": {"mixer": mixer, "p_drop": 0.1}} for mixer in (XL, SPAN, FAST, XL)]
    settings = {
        "steps": 24,
        "optimizer": {"kind": "adam", "lr": 3e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 4},
        "clip_norm": 0.5,
        "log_every": 5,
        "eval_every": 8,
        "eval_tokens": 60,
        "checkpoint_every": 6,
        "device": "cpu",
    }
    data = {
        "name": "tiny",
        "data": {
            "corpus": {"kind": "text", "path": str(text)},
            "segment_len": 7,
            "batch_size": 3,
        },
        "model": model or {"d_model": 8, "stack": stack},
        "train": {**settings, **train},
        "eval": {"segment_len": 32, "batch_size": 2},
    }
    return load(Recipe, data)


def main(text: str, out: str, kill_at: str = "0", signal_name: str = "SIGKILL") -> None:
    """Train; send oneself a signal when the checkpoint record of step `kill_at` arrives."""
    torch.set_num_threads(1)
    for record in workbench.start(recipe(Path(text)), out=out):
        if record.kind == "checkpoint" and record.step == int(kill_at):
            os.kill(os.getpid(), signal.Signals[signal_name])


if __name__ == "__main__":
    main(*sys.argv[1:])
