"""Two recipes that train in a second, on a text of some kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SPAN = {
    "kind": "attention",
    "n_heads": 2,
    "d_head": 8,
    "memory_len": 32,
    "memory_start": "zeros",
    "attend_self": False,
    "positions": {"kind": "relative_learned", "max_distance": 32},
    "span": {"limit": 32, "ramp": 4, "initial": 0.3},
}
DELTA = {"kind": "fast_weight", "n_heads": 2, "d_head": 8}


def write_text(path: Path) -> Path:
    lines = (
        f"def name_{i % 97}(x):\n    return x + {i * i % 1013}  # <b>{i}</b>\n" for i in range(500)
    )
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_recipe(path: Path, text: Path, mixer: dict[str, Any], **train: Any) -> Path:
    recipe = {
        "name": path.stem,
        "data": {
            "corpus": {"kind": "text", "path": str(text), "split": [0.5, 0.25, 0.25]},
            "segment_len": 16,
            "batch_size": 4,
        },
        "model": {
            "d_model": 16,
            "stack": [
                {
                    "repeat": 2,
                    "block": {
                        "residual": "post_norm",
                        "mixer": mixer,
                        "channel": {"kind": "feed_forward", "d_ffn": 32},
                    },
                }
            ],
        },
        "train": {
            "steps": 20,
            "optimizer": {"kind": "adam", "lr": 2.0e-3},
            "log_every": 2,
            "eval_every": 10,
            "eval_tokens": 200,
            "checkpoint_every": 10,
            **train,
        },
        "eval": {
            "method": "carried",
            "context_len": 32 if mixer["kind"] == "attention" else None,
            "segment_len": 128,
            "batch_size": 2,
        },
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
