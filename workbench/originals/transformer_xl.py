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
from workbench.originals.links import Link, Rearrange, norm, one

Ctor = Mapping[str, Any]

SIZES = {"n_token", "n_layer", "n_head", "d_model", "d_head", "d_inner"}
LENGTHS = {"tgt_len", "mem_len", "ext_len"}
OPTIONS = {"attn_type", "pre_lnorm", "same_length", "clamp_len"}
DROPOUT = {"dropout", "dropatt"}
VOCABULARY = {"cutoffs", "div_val", "tie_weight", "tie_projs", "d_embed", "sample_softmax"}
UNREAD = {"adapt_inp"}
"""arguments that change nothing"""
RELATIVE, RELATIVE_LEARNED, ABSOLUTE, ABSOLUTE_LEARNED = range(4)
"""their numbers of the kinds of attention"""


def check(ctor: Ctor, options: set[str] = OPTIONS) -> None:
    """Understand every constructor argument, or refuse.

    Raises:
        UnknownOriginal: an argument that is not known here.
        Unsupported: a model that the original can build but not run.
    """
    if unknown := set(ctor) - SIZES - LENGTHS - options - DROPOUT - VOCABULARY - UNREAD:
        raise UnknownOriginal(f"constructor arguments {sorted(unknown)}")
    if (ctor.get("sample_softmax") or 0) > 0:
        raise Unsupported("a model with sampled softmax, which the original never trained")


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


def attention_links(layer: int, kind: int) -> list[Link]:
    """The projections: relative kinds have one matrix with all queries, all keys, all values, the
    absolute ones have queries apart."""
    theirs, ours = f"layers.{layer}.dec_attn", f"blocks.{layer}.mixer"
    query, key, value = (f"{ours}.{role}.weight" for role in ("query", "key", "value"))
    if kind in (ABSOLUTE, ABSOLUTE_LEARNED):
        return [
            one(f"{theirs}.q_net.weight", query),
            Link((f"{theirs}.kv_net.weight",), (key, value), lambda kv: kv.chunk(2)),
        ]
    links = [Link((f"{theirs}.qkv_net.weight",), (query, key, value), lambda qkv: qkv.chunk(3))]
    if kind == RELATIVE:
        links.append(one(f"{theirs}.r_net.weight", f"{ours}.positions.project.weight"))
    return links


def stacked_links(ctor: Ctor, kind: int) -> list[Link]:
    """What they keep outside of the layers: shared biases, or the tables of all layers as one."""
    if kind == RELATIVE:
        # one pair of biases for all layers; ours is named after the first
        first = "blocks.0.mixer.positions"
        return [one("r_w_bias", f"{first}.u_HK"), one("r_r_bias", f"{first}.v_HK")]

    def per_layer(theirs: str, ours: str, rearrange: Rearrange) -> Link:
        names = tuple(f"blocks.{layer}.{ours}" for layer in range(ctor["n_layer"]))
        return Link((theirs,), names, rearrange)

    # their last row is the nearest, ours the first
    if kind == RELATIVE_LEARNED:
        return [
            per_layer("r_w_bias", "mixer.positions.u_HK", Tensor.unbind),
            per_layer("r_emb", "mixer.positions.key_RHK", lambda table: table.flip(1).unbind()),
            per_layer("r_bias", "mixer.positions.bias_RH", lambda table: table.flip(1).unbind()),
        ]
    if kind == ABSOLUTE_LEARNED:
        wide = per_layer("r_emb", "positions.code_RD", lambda x: x.flip(1).flatten(2).unbind())
        return [wide]
    return []


def links(ctor: Ctor) -> list[Link]:
    """All links of a model."""
    kind = ctor.get("attn_type", RELATIVE)
    result = ends.transformer_xl_links(ctor) + stacked_links(ctor, kind)
    for layer in range(ctor["n_layer"]):
        result += block_links(layer) + attention_links(layer, kind)
    return result


def clamp(ctor: Ctor) -> int:
    """Ours is 0 where theirs is -1."""
    return max(0, ctor.get("clamp_len") or 0)


def sinusoid(ctor: Ctor) -> dict[str, Any]:
    """Their absolute positions count back from the end of the segment."""
    return {"kind": "sinusoid", "order": "descending", "clamp_len": clamp(ctor)}


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Its constructor's arguments as our slots.

    Raises:
        UnknownOriginal: an `attn_type` without layers.
        Unsupported: a mask that hides everything.
    """
    kind = ctor.get("attn_type", RELATIVE)
    if kind not in range(4):
        raise UnknownOriginal(f"attention type {kind}")
    if ctor.get("same_length") and not ctor["mem_len"]:
        raise Unsupported("same_length without memory: the original hides every key and gives NaN")
    clamp_len = clamp(ctor)
    n_rows = ctor["tgt_len"] + ctor.get("ext_len", 0) + ctor["mem_len"]
    distances: dict[int, dict[str, Any]] = {
        RELATIVE: {
            "kind": "relative_sinusoid",
            "clamp_len": clamp_len,
            "p_drop": ctor.get("dropout", 0.0),
        },
        RELATIVE_LEARNED: {
            "kind": "relative_table",
            "n_distances": n_rows,
            "clamp_len": clamp_len,
        },
    }
    mixer = {
        "kind": "attention",
        "n_heads": ctor["n_head"],
        "d_head": ctor["d_head"],
        "memory_len": ctor["mem_len"],
        "same_length": "including_self" if ctor.get("same_length") else "off",
        # two arguments of their memory update are swapped; it shows where ext_len > 0
        "ext_memory": "swapped",
        "positions": distances.get(kind, {"kind": "none"}),
        # their absolute kinds normalise keys and values alone; it shows under pre_lnorm
        "normed_queries": kind in (RELATIVE, RELATIVE_LEARNED),
        "p_attention": ctor.get("dropatt", 0.0),
    }
    # `mems[i] +=`: where there is memory, codes are added to it again at every segment
    piled_up = {"memory": "accumulate"}
    config = around(
        ctor,
        mixer,
        residual="pre_norm" if ctor.get("pre_lnorm") else "post_norm",
        positions=sinusoid(ctor) | piled_up if kind == ABSOLUTE else {"kind": "none"},
    )
    if kind == ABSOLUTE_LEARNED:
        learned = {"kind": "learned", "n_positions": n_rows} | piled_up
        config["stack"][0]["block"]["positions"] = learned
    return config


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
        "p_embedding": p_drop,
        "p_output": p_drop,
        "d_model": ctor["d_model"],
        "stack": [{"block": block, "repeat": ctor["n_layer"]}],
        "positions": positions,
        "vocabulary": ends.transformer_xl(ctor),
    }
