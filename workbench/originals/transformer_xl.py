"""Transformer-XL's code (arXiv:1901.02860): its constructor as a model config, its names as ours.

The fast-weight code is a fork of it, so embedding, softmax, feed-forward and attention links are
shared with `workbench.originals.fast_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from workbench.errors import UnknownOriginal, Unsupported
from workbench.originals import ends
from workbench.originals.links import Link, norm, one

Ctor = Mapping[str, Any]

SIZES = {"n_token", "n_layer", "n_head", "d_model", "d_head", "d_inner"}
LENGTHS = {"tgt_len", "mem_len", "ext_len"}
OPTIONS = {"attn_type", "pre_lnorm", "same_length", "clamp_len"}
DROPOUT = {"dropout", "dropatt"}
VOCABULARY = {"cutoffs", "div_val", "tie_weight", "tie_projs", "d_embed", "sample_softmax"}
ATTENTION_TYPES = {
    1: "learned relative keys and biases per layer (attention type 1)",
    3: "learned absolute positions per layer (attention type 3)",
}


def check(ctor: Ctor, options: set[str] = OPTIONS) -> None:
    """Understand every constructor argument, or refuse.

    Raises:
        UnknownOriginal: an argument that is not known here.
        Unsupported: a model or a context that the workbench lacks.
    """
    unknown = set(ctor) - SIZES - LENGTHS - options - DROPOUT - VOCABULARY
    if unknown:
        raise UnknownOriginal(f"constructor arguments {sorted(unknown)}")
    if (ctor.get("sample_softmax") or 0) > 0:
        raise Unsupported("a model with sampled softmax, which the original can build but not run")


def block_links(layer: int) -> list[Link]:
    """What all layers of both code bases have: output projection, feed-forward, norms."""
    theirs, ours = f"layers.{layer}", f"blocks.{layer}"
    return [
        one(f"{theirs}.dec_attn.o_net.weight", f"{ours}.mixer.out.weight"),
        *norm(f"{theirs}.dec_attn.layer_norm", f"{ours}.mixer_norm"),
        *norm(f"{theirs}.pos_ff.CoreNet.0", f"{ours}.channel.expand"),
        *norm(f"{theirs}.pos_ff.CoreNet.3", f"{ours}.channel.contract"),
        *norm(f"{theirs}.pos_ff.layer_norm", f"{ours}.channel_norm"),
    ]


def relative_links(layer: int) -> list[Link]:
    """Attention type 0: one matrix with all queries, all keys, all values."""
    theirs, ours = f"layers.{layer}.dec_attn", f"blocks.{layer}.mixer"
    roles = tuple(f"{ours}.{role}.weight" for role in ("query", "key", "value"))
    return [
        Link((f"{theirs}.qkv_net.weight",), roles, lambda qkv: qkv.chunk(3)),
        one(f"{theirs}.r_net.weight", f"{ours}.positions.project.weight"),
    ]


def halves(kv: Tensor) -> tuple[Tensor, ...]:
    return kv.chunk(2)


def absolute_links(layer: int) -> list[Link]:
    """Attention type 2: queries apart from keys and values."""
    theirs, ours = f"layers.{layer}.dec_attn", f"blocks.{layer}.mixer"
    return [
        one(f"{theirs}.q_net.weight", f"{ours}.query.weight"),
        Link((f"{theirs}.kv_net.weight",), (f"{ours}.key.weight", f"{ours}.value.weight"), halves),
    ]


def links(ctor: Ctor) -> list[Link]:
    """All links of a model of attention type 0 or 2."""
    result = ends.transformer_xl_links(ctor)
    relative = ctor.get("attn_type", 0) == 0
    if relative:
        # one pair of biases for all layers; ours is named after the first
        result.append(one("r_w_bias", "blocks.0.mixer.positions.u_HK"))
        result.append(one("r_r_bias", "blocks.0.mixer.positions.v_HK"))
    for layer in range(ctor["n_layer"]):
        result += block_links(layer)
        result += relative_links(layer) if relative else absolute_links(layer)
    return result


def model_config(ctor: Ctor) -> dict[str, Any]:
    """The model config of attention type 0 or 2."""
    kind = ctor.get("attn_type", 0)
    if kind in ATTENTION_TYPES:
        raise Unsupported(ATTENTION_TYPES[kind])
    if kind == 2 and ctor["mem_len"]:
        raise Unsupported("absolute positions that accumulate in memory (attention type 2)")
    if kind == 2 and ctor.get("pre_lnorm"):
        raise Unsupported("queries from un-normalised inputs (attention type 2 with pre_lnorm)")
    if kind not in (0, 2):
        raise UnknownOriginal(f"attention type {kind}")
    relative = {
        "kind": "relative_sinusoid",
        "clamp_len": max(0, ctor.get("clamp_len", 0)),
        "p_drop": ctor.get("dropout", 0.0),
    }
    mixer = {
        "kind": "attention",
        "n_heads": ctor["n_head"],
        "d_head": ctor["d_head"],
        "memory_len": ctor["mem_len"],
        "same_length": "including_self" if ctor.get("same_length") else "off",
        # two arguments of their memory update are swapped; it shows where ext_len > 0
        "ext_memory": "swapped",
        "positions": relative if kind == 0 else {"kind": "none"},
        "p_attention": ctor.get("dropatt", 0.0),
    }
    return around(
        ctor,
        mixer,
        residual="pre_norm" if ctor.get("pre_lnorm") else "post_norm",
        positions={"kind": "none"} if kind == 0 else {"kind": "sinusoid", "order": "descending"},
    )


def around(
    ctor: Ctor, mixer: dict[str, Any], residual: str, positions: dict[str, Any]
) -> dict[str, Any]:
    """What the two code bases share around their mixers: one rate of dropout everywhere."""
    p_drop = ctor.get("dropout", 0.0)
    block = {
        "mixer": mixer,
        "channel": {"kind": "feed_forward", "d_ffn": ctor["d_inner"], "p_hidden": p_drop},
        "residual": residual,
        "p_drop": p_drop,
    }
    return {
        "d_model": ctor["d_model"],
        "stack": [{"block": block, "repeat": ctor["n_layer"]}],
        "positions": positions,
        "vocabulary": ends.transformer_xl(ctor),
        "p_embedding": p_drop,
        "p_output": p_drop,
    }
