"""Adaptive-span's code (arXiv:1905.07799, 1907.01470): what its files record.

Token arrays are [batch, time].
"""

from __future__ import annotations

from typing import Any

import torch

from parity.golden import Comparison, Golden, Unknown
from parity.phases import Subject, compare_gradients, evaluate, optimise, streams, subject, train
from workbench.carry import Carry
from workbench.config import load
from workbench.models.language_model import LanguageModel
from workbench.originals import adaptive_span
from workbench.train.config import TrainConfig


def compare_caches(compare: Comparison, at: str, carry: Carry) -> None:
    """`h_cache/l`: the newest inputs of layer l, and how many of them are kept."""
    for layer, state in enumerate(carry):
        if f"{at}/h_cache/{layer}" in compare.golden:
            compare.out(f"{at}/h_cache/{layer}", state.hidden_BMD)


def change_spans(golden: Golden, model: LanguageModel, segment: int) -> None:
    """In one file the spans grow in the middle of the text."""
    change = golden.meta.get("span_change")
    if change and segment == change["before_segment"]:
        for block, spans in zip(model.layers, change["spans"], strict=True):
            share_H = block.mixer.get_parameter("span.share_H")
            share_H.data.copy_(torch.tensor(spans))


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it (`NotBuilt`, `Unknown`)."""
    adaptive_span.check(golden.ctor)
    vocab_size = golden.ctor["vocab_size"]
    it = subject(
        golden,
        adaptive_span.model_config(golden.ctor),
        vocab_size,
        adaptive_span.links(golden.ctor),
        dtype,
    )
    it.time_first, it.mean_key, it.states = False, "mean_nll", compare_caches
    it.before_segment = lambda model, _, segment: change_spans(golden, model, segment)
    kind = golden.meta["codebase"].removeprefix("adaptive-span").strip()
    if kind == "(models.TransformerSeq)":
        evaluate(it, "eval", "main", carried=True)
        compare_gradients(it, train(it, "train", "main", carried=True), "grad")
    elif kind == "(trainer.full_eval)":
        run_full_eval(it)
    elif kind == "(trainer._train_batch)":
        run_steps(it)
    else:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    return it.compare


def run_full_eval(it: Subject) -> None:
    """Whole blocks only: their loop drops what is left of the stream after the last one."""
    meta = it.golden.meta
    result = streams(it, meta["block_size"], meta["batch"], average="of_blocks")
    it.compare.out("out/full_eval_loss", result.mean_nats)


def run_steps(it: Subject) -> None:
    """Their training loop: Adagrad that clips each tensor, others with global clipping."""
    meta = it.golden.meta["train"]
    clips = meta["grad_clip"] > 0
    optimizers: dict[str, dict[str, Any]] = {
        "adagrad": {"kind": "adagrad", "clip": "per_tensor" if clips else "global"},
        "sgd": {"kind": "sgd", "momentum": meta["momentum"]},
        "adam": {"kind": "adam"},
    }
    odd = set(meta) - {"grad_clip", "lr", "lr_warmup", "momentum", "optim"}
    if odd or meta["optim"] not in optimizers:
        raise Unknown(f"{it.golden.name}: training with {meta}")
    plan = {
        "steps": max(1, meta["lr_warmup"]),
        "optimizer": {**optimizers[meta["optim"]], "lr": meta["lr"]},
        "schedule": {"kind": "constant", "warmup_steps": meta["lr_warmup"]},
        "clip_norm": meta["grad_clip"] if clips else None,
    }

    def compare_spans(step: int) -> None:
        for layer, block in enumerate(it.model.layers):
            key = f"out/step{step}/current_val/{layer}"
            if key in it.golden:
                it.compare.out(key, block.mixer.get_parameter("span.share_H").view(-1, 1, 1))

    optimise(it, load(TrainConfig, plan, "train"), compare_spans)
