"""Adaptive-span's code (arXiv:1905.07799, 1907.01470): its parameters as a model config.

Token arrays are [batch, time]. A cache starts as zeros, which are attended; no token sees itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.golden import Comparison, Golden, NotBuilt, Unknown
from parity.links import Link, norm, one
from parity.phases import Subject, compare_gradients, evaluate, optimise, subject, train
from workbench.carry import Carry
from workbench.config import load
from workbench.models.language_model import LanguageModel
from workbench.train.config import TrainConfig

GROUPS = {"adapt_io_params", "adapt_span_params", "model_params", "pers_mem_params", "vocab_size"}
MODEL = {"attn_span", "hidden_size", "inner_hidden_size", "nb_heads", "nb_layers", "vocab_size"}
DROPOUT = {"dropout", "emb_dropout"}


def check_constructor(golden: Golden) -> None:
    """Understand every argument, or refuse (`Unknown`, `NotBuilt`)."""
    ctor = golden.ctor
    if set(ctor) != GROUPS:
        raise Unknown(f"{golden.name}: argument groups {sorted(set(ctor) ^ GROUPS)}")
    if set(ctor["model_params"]) != MODEL | DROPOUT:
        raise Unknown(f"{golden.name}: {sorted(set(ctor['model_params']) ^ (MODEL | DROPOUT))}")
    if any(ctor["model_params"][name] for name in DROPOUT):
        raise Unknown(f"{golden.name}: dropout in a dropout-free file")
    if ctor["adapt_io_params"]["adapt_io_enabled"]:
        raise NotBuilt("adaptive embedding and softmax (adapt_io)")


def model_config(golden: Golden) -> dict[str, Any]:
    """Their four groups of arguments as our slots."""
    sizes, span = golden.ctor["model_params"], golden.ctor["adapt_span_params"]
    n_persistent = golden.ctor["pers_mem_params"]["pers_mem_size"]
    limit = sizes["attn_span"]
    mixer: dict[str, Any] = {
        "kind": "attention",
        "n_heads": sizes["nb_heads"],
        "d_head": sizes["hidden_size"] // sizes["nb_heads"],
        "memory_len": limit,
        "memory_start": "zeros",
        "attend_self": False,
        "positions": {"kind": "relative_learned", "max_distance": limit},
        "persistent": {"n_vectors": n_persistent} if n_persistent else None,
    }
    if span["adapt_span_enabled"]:
        mixer["span"] = {
            "limit": limit,
            "ramp": span["adapt_span_ramp"],
            "penalty": span["adapt_span_loss"],
            "initial": span["adapt_span_init"],
            "trim_memory": span["adapt_span_cache"],
        }
    channel = {"kind": "feed_forward", "d_ffn": sizes["inner_hidden_size"]}
    # persistent vectors replace the feed-forward sub-layer
    block = {"mixer": mixer, "channel": {"kind": "none"} if n_persistent else channel}
    return {
        "d_model": sizes["hidden_size"],
        "stack": [{"block": block, "repeat": sizes["nb_layers"]}],
        "vocabulary": {"kind": "plain", "tie_weights": False, "scale_embedding": False},
    }


def layer_links(layer: int, golden: Golden) -> list[Link]:
    theirs, ours = f"layers.{layer}", f"blocks.{layer}"
    attention, mixer = f"{theirs}.attn", f"{ours}.mixer"
    links = [
        one(f"{attention}.proj_query.weight", f"{mixer}.query.weight"),
        one(f"{attention}.proj_key.weight", f"{mixer}.key.weight"),
        one(f"{attention}.proj_val.weight", f"{mixer}.value.weight"),
        one(f"{attention}.proj_out.weight", f"{mixer}.out.weight"),
        *norm(f"{theirs}.norm1", f"{ours}.mixer_norm"),
    ]
    if golden.ctor["adapt_span_params"]["adapt_span_enabled"]:
        share = f"{attention}.attn.adaptive_span._mask.current_val"
        links.append(one(share, f"{mixer}.span.share_H", Tensor.flatten))
    if golden.ctor["pers_mem_params"]["pers_mem_size"]:
        persistent = f"{attention}.attn.persistent_memory"
        links.append(one(f"{persistent}.key", f"{mixer}.persistent_key_HKN"))
        links.append(one(f"{persistent}.val", f"{mixer}.persistent_value_HNK"))
    else:
        links += norm(f"{theirs}.ff.fc1", f"{ours}.channel.expand")
        links += norm(f"{theirs}.ff.fc2", f"{ours}.channel.contract")
        links += norm(f"{theirs}.norm2", f"{ours}.channel_norm")
    return links


def all_links(golden: Golden) -> list[Link]:
    links = [
        one("in_emb.weight", "vocabulary.embedding.weight"),
        *norm("out_emb", "vocabulary.output"),
        # one table for all layers; ours is named after the first
        one("key_pe", "blocks.0.mixer.positions.key_KL", lambda key: key.squeeze(0)),
    ]
    for layer in range(golden.ctor["model_params"]["nb_layers"]):
        links += layer_links(layer, golden)
    return links


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
    check_constructor(golden)
    vocab_size = golden.ctor["vocab_size"]
    it = subject(golden, model_config(golden), vocab_size, all_links(golden), dtype)
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
    it.model.eval()
    stream_BN, block = it.golden.tensor("input/stream"), it.golden.meta["block_size"]
    carry = it.start(len(stream_BN))
    means = []
    for at in range(0, stream_BN.shape[1] - block, block):
        piece = stream_BN[:, at : at + block + 1]
        with torch.no_grad():
            nll_BT, carry = it.model.nll(piece[:, :-1], piece[:, 1:], carry)
        means.append(nll_BT.mean())
    it.compare.out("out/full_eval_loss", torch.stack(means).mean())


def run_steps(it: Subject) -> None:
    """Their training loop: Adagrad that clips each tensor, or SGD with global clipping."""
    train_meta = it.golden.meta["train"]
    optimizers: dict[str, dict[str, Any]] = {
        "adagrad": {"kind": "adagrad", "clip": "per_tensor"},
        "sgd": {"kind": "sgd", "momentum": train_meta["momentum"]},
    }
    if train_meta["optim"] not in optimizers:
        raise Unknown(f"{it.golden.name}: training with {train_meta}")
    plan = {
        "steps": 100,
        "optimizer": {**optimizers[train_meta["optim"]], "lr": train_meta["lr"]},
        "schedule": {"kind": "constant", "warmup_steps": train_meta["lr_warmup"]},
        "clip_norm": train_meta["grad_clip"],
    }

    def compare_spans(step: int) -> None:
        for layer, block in enumerate(it.model.layers):
            key = f"out/step{step}/current_val/{layer}"
            if key in it.golden:
                it.compare.out(key, block.mixer.get_parameter("span.share_H").view(-1, 1, 1))

    optimise(it, load(TrainConfig, plan, "train"), compare_spans)
