"""What the law of several processes is tried on: every mixer, and every part that a batch meets.

Everything that is drawn here belongs to weights: what is dropped from rows differs by process.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import torch

from workbench.config import dump, load
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.vocabulary import PreparedVocabulary
from workbench.models.mixers.base import MixerConfig
from workbench.recipe import AnyRecipe, Recipe, RetrievalRecipe

STEPS, BATCH, SYMBOLS, MARK = 20, 8, 40, 0
OF_ROWS = ("p_attention", "p_hidden", "p_zoneout")
"""what mixers drop from rows"""


class MadeConfig(CorpusConfig):
    """Made-up sentences of symbols whose frequencies fall as those of words do."""

    kind: Literal["made"] = "made"

    def open(self) -> Corpus:
        draw = random.Random(3)
        weights = [1 / rank for rank in range(1, SYMBOLS)]
        ids = draw.choices(range(1, SYMBOLS), weights, k=841)
        ids[::7] = [MARK] * len(ids[::7])
        edges = [0, 420, 840]
        info = {
            "name": "made", "level": "word", "unit": "word", "vocabulary_size": SYMBOLS,
            "sha256": "", "sentences": {"symbol": "<S>", "id": MARK, "shards": {"train": edges}},
        }  # fmt: skip
        text = torch.tensor(ids)
        splits = {"train": text, "valid": text[:121].flip(0), "test": text[:0]}
        symbols = [f"s{i}" for i in range(SYMBOLS)]
        return Corpus(Path(), info, lambda: PreparedVocabulary("word", symbols), splits)


def merged(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted paths."""
    copy = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for path, value in changes.items():
        section, name = path.split(".")
        copy[section][name] = value
    return copy


def of_text(name: str, stack: list[dict[str, Any]], **changes: Any) -> Recipe:
    """A recipe of 20 updates; segments begin anew after the 18th, where nothing else is said."""
    blocks = [{"block": block if "mixer" in block else {"mixer": block}} for block in stack]
    data = {
        "name": name,
        "data": {"corpus": {"kind": "made"}, "segment_len": 6, "batch_size": BATCH},
        "model": {"d_model": 16, "stack": blocks},
        "train": {
            "steps": STEPS, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
            "clip_norm": 0.5, "log_every": 5, "eval_every": 10, "eval_tokens": 60,
            "checkpoint_every": STEPS, "device": "cpu",
        },
        "eval": {"segment_len": 32, "batch_size": 2},
    }  # fmt: skip
    return load(Recipe, merged(data, {k.replace("__", "."): v for k, v in changes.items()}))


XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 9}
FAST = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"}
LSTM = {"kind": "lstm", "d_hidden": 16, "p_weight": 0.3}
QRNN = {"kind": "qrnn", "d_hidden": 16, "p_weight": 0.3}
FAVOR = {"kind": "favor", "n_projections": 3, "redraw": "each_step"}
SPANS = {
    **XL, "attend_self": False, "memory_start": "zeros",
    "positions": {"kind": "relative_learned", "max_distance": 9},
    "span": {"limit": 9, "ramp": 3, "initial": 0.05, "penalty": 0.05},
}  # fmt: skip
DYNAMIC = {**SPANS, "span": {**SPANS["span"], "initial": 0.3, "dynamic": True}}
TRIMMED = {
    **SPANS, "memory_len": 90, "positions": {"kind": "relative_learned", "max_distance": 90},
    "span": {**SPANS["span"], "limit": 90, "penalty": 0.005, "trim_memory": True},
}  # fmt: skip
ADAPTIVE = {"kind": "adaptive", "cutoffs": [10, 20, 38], "div_val": 2}
SPLIT = {"kind": "split", "splits": [10, 38]}


def mixers() -> dict[str, AnyRecipe]:
    """Two layers of every registered mixer, in each of its tiny configs."""
    found: dict[str, AnyRecipe] = {}
    for kind, family in MixerConfig.registry.items():
        for i, config in enumerate(family.tiny()):
            plain = {k: 0.0 if k in OF_ROWS else v for k, v in dump(config).items()}
            found[f"{kind}-{i}"] = of_text(f"{kind}-{i}", [plain, plain])
    return found


def parts() -> dict[str, AnyRecipe]:
    """Recipes named after what they try beside the mixers."""
    asgd = {"kind": "asgd", "lr": 3.0, "nonmono": 2}
    clipped = {"kind": "adagrad", "lr": 0.05, "clip": "per_tensor"}
    sums = {**FAST, "rule": "sum", "read_norm": "output", "feature_map": FAVOR}
    sinusoid = {"kind": "relative_sinusoid", "p_drop": 0.3}
    of = {
        "spans and clamps": ([SPANS, SPANS], {}),
        "dynamic spans": ([DYNAMIC, DYNAMIC], {}),
        "trimmed memory": (
            [TRIMMED, SPANS], {}),
        "dropped distances": ([{**XL, "positions": sinusoid}] * 2, {}),
        "output penalties": (
            [LSTM, LSTM], {"model__output_penalties": {"activation": 2.0, "temporal": 1.0}}),
        "dropped weights": ([LSTM, QRNN, LSTM], {}),
        "dropped symbols": ([XL, FAST], {"model__p_symbol": 0.3}),
        "random lengths": (
            [XL, LSTM], {"data__random_lengths": {"std": 2.0, "min_len": 2, "p_half": 0.3}}),
        "ext_len": ([XL, XL], {"data__ext_len": 4}),
        "random offsets": (
            [XL, FAST], {"data__order": {"kind": "contiguous", "restart": "random_offset"}}),
        "sentences": ([XL, FAST], {"data__order": {"kind": "sentences"}}),
        "carry reset": ([FAST, LSTM], {"train__carry": "reset"}),
        "redrawn features": ([sums, sums], {"train__carry": "reset"}),
        "adaptive softmax": ([XL, FAST], {"model__vocabulary": ADAPTIVE}),
        "split softmax": ([XL, FAST], {"model__vocabulary": SPLIT}),
        "sampled softmax": (
            [XL, FAST], {"model__vocabulary": {"kind": "plain", "sampled": {"n_samples": 6}}}),
        "averaged weights": (
            [LSTM, LSTM], {"train__optimizer": asgd, "train__eval_every": 2}),
        "averaged, as AWD": (
            [LSTM, LSTM], {
                "train__optimizer": {**asgd, "convention": "awd", "weight_decay": 1e-3},
                "train__eval_every": 2, "model__vocabulary": SPLIT,
            }),
        "clipped by tensor": ([SPANS, XL], {"train__optimizer": clipped, "train__clip_norm": 0.03}),
        "adam": ([XL, FAST], {"train__optimizer": {"kind": "adam", "lr": 3e-3}}),
        "warm-up": ([XL], {"train__schedule": {"kind": "cosine", "warmup_steps": 4}}),
    }  # fmt: skip
    found: dict[str, AnyRecipe] = {k: of_text("part", *v[:1], **v[1]) for k, v in of.items()}
    return found | retrieval()


def retrieval() -> dict[str, AnyRecipe]:
    """Associative retrieval, by two memories."""
    train = {
        "steps": STEPS, "optimizer": {"kind": "sgd", "lr": 0.1}, "eval_every": 10, "log_every": 5,
        "checkpoint_every": STEPS, "device": "cpu",
    }  # fmt: skip
    return {
        f"retrieval, {name}": load(RetrievalRecipe, {
            "name": "retrieval",
            "data": {"n_pairs": 5, "replace": True, "batch_size": BATCH},
            "model": {"d_key": 6, "rule": rule, "feature_map": phi},
            "train": train,
            "eval": {"n_sequences": 2},
        })
        for name, rule, phi in (
            ("delta", "delta", {"kind": "elu"}), ("redrawn", "sum", FAVOR),
        )
    }  # fmt: skip


def cases() -> dict[str, AnyRecipe]:
    """All of them, by name."""
    return mixers() | parts()
