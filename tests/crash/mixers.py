"""Small recipes, one for each kind of state that a checkpoint must hold; a second of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "p_attention": 0.1}
SPAN = {
    "kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "attend_self": False,
    "memory_start": "zeros", "positions": {"kind": "relative_learned", "max_distance": 6},
    "span": {"limit": 6, "ramp": 3, "initial": 0.3, "penalty": 0.01},
}  # fmt: skip
QRNN = {"kind": "qrnn", "d_hidden": 12, "window": 2, "p_weight": 0.1}
LSTM = {"kind": "lstm", "d_hidden": 12, "p_weight": 0.1}
DELTA = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "feature_map": {"kind": "dpfp", "nu": 1}}
FAVOR = {
    "kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "sum", "key_norm": "none",
    "read_norm": "output", "p_attention": 0.1,
    "feature_map": {"kind": "favor", "n_projections": 3, "redraw": "each_step"},
}  # fmt: skip
DELTA_LSTM = {"kind": "delta_lstm", "n_heads": 2, "d_head": 4}
AVERAGED = {"kind": "asgd", "lr": 4.0, "nonmono": 1, "weight_decay": 1e-3}
STEPS = 24


def _stack(*mixers: dict[str, Any], **block: Any) -> dict[str, Any]:
    stack = [{"block": {"mixer": mixer, "p_drop": 0.1, **block}} for mixer in mixers]
    return {"d_model": 8, "stack": stack}


def _recurrent(*mixers: dict[str, Any]) -> dict[str, Any]:
    penalties = {"activation": 0.1, "temporal": 0.1}
    return {
        **_stack(*mixers, residual="none"),
        "dropout": "locked", "p_embedding": 0.1, "p_output": 0.1, "output_penalties": penalties,
        "vocabulary": {"kind": "plain", "tie_weights": False},
    }  # fmt: skip


# what of the recipe is not as in `_text`
MIXERS: dict[str, dict[str, Any]] = {
    "transformer-xl": {"model": _stack(XL, XL), "train": {"keep_every": 6}},
    "adaptive-span": {
        "model": _stack(SPAN, SPAN),
        "train": {"optimizer": {"kind": "adagrad", "lr": 0.05}, "keep_checkpoints": 1},
    },
    "qrnn, nt-asgd": {
        "model": _recurrent(QRNN, {**QRNN, "d_hidden": 8}),
        "data": {"random_lengths": {"std": 2.0, "min_len": 3}},
        "train": {"optimizer": AVERAGED, "schedule": {"kind": "constant"}, "eval_every": 2},
    },
    "lstm": {
        "model": _recurrent(LSTM, {**LSTM, "d_hidden": 8}),
        "data": {"random_lengths": {"std": 2.0, "min_len": 3}},
        "train": {"schedule": {"kind": "plateau", "factor": 0.5, "patience": 1}},
    },
    "delta rule": {"model": _stack(DELTA, DELTA)},
    "favor, redrawn": {"model": _stack(FAVOR, FAVOR), "train": {"carry": "reset"}},
    "delta lstm": {"model": _stack(DELTA_LSTM), "train": {"keep_checkpoints": 1}},
    "micro-batches": {"model": _stack(XL, DELTA, SPAN), "train": {"micro_batches": 3}},
    "fp16, recomputed": {
        "model": _stack(XL, DELTA),
        # a rate high enough for overflows: updates are left out, the scale falls on the way
        "train": {
            "precision": "fp16",
            "recompute": True,
            "on_nonfinite": "back_off",
            "optimizer": {"kind": "adam", "lr": 3e-2},
        },
    },
    "retrieval": {},
}


def write_text(path: Path) -> Path:
    """2500 characters, the same each time."""
    draw = random.Random(4)
    path.write_text("".join(draw.choice("abcde ") for _ in range(2500)), encoding="ascii")
    return path


def write_recipe(name: str, folder: Path, **train: Any) -> Path:
    """The recipe of a name in `MIXERS`, with its text, in a folder; fields of `train` replaced."""
    text = write_text(folder / "text.txt")
    data = _retrieval() if name == "retrieval" else _text(text, MIXERS[name])
    data["train"] |= train
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def _text(text: Path, change: dict[str, Any]) -> dict[str, Any]:
    train = {
        "steps": STEPS,
        "optimizer": {"kind": "adam", "lr": 3e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 4},
        "clip_norm": 0.5,
        "log_every": 5,
        "eval_every": 8,
        "eval_tokens": 60,
        "checkpoint_every": 3,
        "device": "cpu",
    }
    corpus = {"kind": "text", "path": str(text)}
    return {
        "name": "tiny",
        "data": {"corpus": corpus, "segment_len": 7, "batch_size": 3, **change.get("data", {})},
        "model": change["model"],
        "train": {**train, **change.get("train", {})},
        "eval": {"segment_len": 32, "batch_size": 2},
    }


def _retrieval() -> dict[str, Any]:
    return {
        "name": "tiny-retrieval",
        "data": {"kind": "retrieval", "n_pairs": 4, "replace": True, "batch_size": 4},
        "model": {"d_key": 8, "rule": "delta", "feature_map": {"kind": "dpfp", "nu": 1}},
        "train": {
            "steps": STEPS,
            "optimizer": {"kind": "adam", "lr": 1e-2},
            "log_every": 5,
            "eval_every": 8,
            "checkpoint_every": 3,
            "keep_checkpoints": 1,
            "device": "cpu",
        },
        "eval": {"n_sequences": 4, "max_queries": 8},
    }
