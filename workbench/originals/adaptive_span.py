"""The adaptive-span code (arXiv:1905.07799, 1907.01470): its four groups of arguments, its names.

A cache starts as zeros, which are attended; no token sees itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from workbench.errors import UnknownOriginal
from workbench.originals import ends
from workbench.originals.links import Link, norm, one

Ctor = Mapping[str, Any]

GROUPS = {"adapt_io_params", "adapt_span_params", "model_params", "pers_mem_params", "vocab_size"}
MODEL = {"attn_span", "hidden_size", "inner_hidden_size", "nb_heads", "nb_layers", "vocab_size"}
DROPOUT = {"dropout", "emb_dropout"}


def check(ctor: Ctor) -> None:
    """Understand every argument, or refuse (`UnknownOriginal`)."""
    if set(ctor) != GROUPS:
        raise UnknownOriginal(f"argument groups {sorted(set(ctor) ^ GROUPS)}")
    if set(ctor["model_params"]) != MODEL | DROPOUT:
        raise UnknownOriginal(
            f"model arguments {sorted(set(ctor['model_params']) ^ (MODEL | DROPOUT))}"
        )


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Their four groups of arguments as our slots."""
    sizes, span = ctor["model_params"], ctor["adapt_span_params"]
    n_persistent = ctor["pers_mem_params"]["pers_mem_size"]
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
        "p_attention": sizes["dropout"],
    }
    if span["adapt_span_enabled"]:
        mixer["span"] = {
            "limit": limit,
            "ramp": span["adapt_span_ramp"],
            "penalty": span["adapt_span_loss"],
            "initial": span["adapt_span_init"],
            # keys beyond all spans are left out in any case
            "trim_memory" if span["adapt_span_cache"] else "trim_keys": True,
        }
    channel = {
        "kind": "feed_forward",
        "d_ffn": sizes["inner_hidden_size"],
        "p_hidden": sizes["dropout"],
    }
    # persistent vectors replace the feed-forward sub-layer
    block = {"mixer": mixer, "channel": {"kind": "none"} if n_persistent else channel}
    return {
        "d_model": sizes["hidden_size"],
        "stack": [{"block": block, "repeat": sizes["nb_layers"]}],
        "vocabulary": ends.adaptive_span(ctor),
        "p_embedding": sizes["emb_dropout"],
        "p_output": sizes["emb_dropout"],
    }


def _layer_links(layer: int, ctor: Ctor) -> list[Link]:
    theirs, ours = f"layers.{layer}", f"blocks.{layer}"
    attention, mixer = f"{theirs}.attn", f"{ours}.mixer"
    links = [
        one(f"{attention}.proj_query.weight", f"{mixer}.query.weight"),
        one(f"{attention}.proj_key.weight", f"{mixer}.key.weight"),
        one(f"{attention}.proj_val.weight", f"{mixer}.value.weight"),
        one(f"{attention}.proj_out.weight", f"{mixer}.out.weight"),
        *norm(f"{theirs}.norm1", f"{ours}.mixer_norm"),
    ]
    if ctor["adapt_span_params"]["adapt_span_enabled"]:
        share = f"{attention}.attn.adaptive_span._mask.current_val"
        links.append(one(share, f"{mixer}.span.share_H", Tensor.flatten))
    if ctor["pers_mem_params"]["pers_mem_size"]:
        persistent = f"{attention}.attn.persistent_memory"
        links.append(one(f"{persistent}.key", f"{mixer}.persistent_key_HKN"))
        links.append(one(f"{persistent}.val", f"{mixer}.persistent_value_HNK"))
    else:
        links += norm(f"{theirs}.ff.fc1", f"{ours}.channel.expand")
        links += norm(f"{theirs}.ff.fc2", f"{ours}.channel.contract")
        links += norm(f"{theirs}.norm2", f"{ours}.channel_norm")
    return links


def links(ctor: Ctor) -> list[Link]:
    result = [
        *ends.adaptive_span_links(ctor),
        # one table for all layers; ours is named after the first
        one("key_pe", "blocks.0.mixer.positions.key_KL", lambda key: key.squeeze(0)),
    ]
    for layer in range(ctor["model_params"]["nb_layers"]):
        result += _layer_links(layer, ctor)
    return result
