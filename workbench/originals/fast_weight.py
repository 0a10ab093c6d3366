"""The fast-weight papers' code (arXiv:2102.11174, 2106.06295), a fork of Transformer-XL's.

One number, `attn_type`, stands for rule, feature map, normalisation and recurrence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import UnknownOriginal, Unsupported
from workbench.originals import ends
from workbench.originals import transformer_xl as xl
from workbench.originals.links import Link, norm, one

Ctor = Mapping[str, Any]

OPTIONS = {"attn_type", "pre_lnorm", "no_pos", "skip_attn_normalization", "n_roll", "proj_dim"}
OTHERS = {"d_res", "fast_net_depth", "use_slow_base_weights"}
REMOVALS = {"remove_ff", "remove_lnorm", "remove_res", "remove_out_proj"}


class Kind(NamedTuple):
    """What an `attn_type` of the non-recurrent memories says."""

    rule: str
    feature_map: str
    form: str
    """quadratic: their PyTorch layers. output, memory: kernels, by what they normalise"""
    slow_net: str = "linear"


KINDS = {
    4: Kind("sum", "elu", "quadratic"),
    5: Kind("sum", "favor", "quadratic"),
    6: Kind("sum", "dpfp", "quadratic"),
    24: Kind("delta", "elu", "output"),
    25: Kind("delta", "favor", "output"),
    26: Kind("delta", "dpfp", "output"),
    34: Kind("sum", "elu", "output"),
    35: Kind("sum", "favor", "output"),
    44: Kind("delta", "elu", "memory"),
    45: Kind("delta", "favor", "memory"),
    46: Kind("delta", "dpfp", "memory"),
    324: Kind("delta", "elu", "output", "lstm"),
}
FIRST: dict[str, Any] = {"softmax": "output", "scale": False}
SIGMOID = {"kind": "delta_lstm", "update": "sigmoid"}
SOFTMAX: dict[str, Any] = {"feature_map": {"kind": "softmax"}, "key_norm": "none"}
RECURRENT: dict[int, dict[str, Any]] = {
    54: {"kind": "delta_mlp", "unused_rows": True},
    64: {"kind": "delta_delta"},
    80: {"kind": "rnn"},
    90: {"kind": "lstm"},
    124: {"kind": "delta_rnn", **FIRST, **SOFTMAX},
    134: {"kind": "delta_rnn"},
    224: {**SIGMOID, **FIRST},
    234: SIGMOID,
    244: {**SIGMOID, "skip": True},
    254: {"kind": "delta_lstm", "update": "linear"},
    934: {"kind": "recurrent_delta"},
}
PLAIN = (80, 90)
# layers with a width of their own, and with parts that can be taken out
BARE = (*PLAIN, 124, 224)
# other layers have a feed-forward network whatever the flag says
MAY_LACK_FF = (*PLAIN, 24, 34, 44, 124, 134, 224, 234, 244, 254, 324, 934)


def is_attention(ctor: Ctor) -> bool:
    """Whether these are Transformer-XL's own layers, which the fork kept."""
    return ctor["attn_type"] in (0, 1, 2)


def is_quadratic(ctor: Ctor) -> bool:
    return ctor["attn_type"] in (4, 5, 6)


def check(ctor: Ctor) -> None:
    """Understand every constructor argument, or refuse (`UnknownOriginal`, `Unsupported`)."""
    xl.check(as_xl(ctor), xl.OPTIONS | OPTIONS)
    if not is_attention(ctor):
        check_combination(ctor)


def check_combination(ctor: Ctor) -> None:
    """Refuse options that do not go together.

    Raises:
        UnknownOriginal: the original does not have such a layer.
        Unsupported: it has one and we have not.
    """
    number = ctor["attn_type"]
    if number not in KINDS and number not in RECURRENT:
        raise UnknownOriginal(f"attention type {number}")
    normalised = not ctor.get("skip_attn_normalization")
    if (number == 5 and not normalised) or (normalised and number in (224, 234, 244, 254)):
        raise UnknownOriginal(f"skip_attn_normalization {not normalised} with type {number}")
    if number == 934 and normalised:
        raise Unsupported("a Recurrent Delta net divided by sums of keys before their softmax")
    if ctor.get("mem_len"):
        raise Unsupported(f"a memory of past inputs beside fast weights (attention type {number})")
    if is_quadratic(ctor) and ctor.get("same_length"):
        raise Unsupported("same_length without memory, which hides every key")
    odd = [name for name in REMOVALS - {"remove_ff"} if ctor.get(name)]
    if number not in BARE and (odd or d_res(ctor) != ctor["d_model"]):
        raise UnknownOriginal(f"{odd or 'd_res'} with attention type {number}")
    if has_ff(ctor) and d_res(ctor) != ctor["d_model"]:
        raise UnknownOriginal("d_res other than d_model with feed-forward layers")


def d_res(ctor: Ctor) -> int:
    """Width of the residual stream: our d_model."""
    return int(ctor.get("d_res") or ctor["d_model"])


def has_ff(ctor: Ctor) -> bool:
    return not (ctor.get("remove_ff") and ctor["attn_type"] in MAY_LACK_FF)


def as_xl(ctor: Ctor) -> dict[str, Any]:
    """What Transformer-XL's constructor would be given for the parts around the mixers."""
    own = {name: value for name, value in ctor.items() if name not in OTHERS | REMOVALS}
    return own | {"d_model": d_res(ctor), "d_embed": ctor.get("d_embed") or ctor["d_model"]}


def mixer_config(ctor: Ctor) -> dict[str, Any]:
    number, read = ctor["attn_type"], not ctor.get("skip_attn_normalization")
    if number in KINDS:
        return memory_config(ctor, KINDS[number])
    config = dict(RECURRENT[number])
    if number in PLAIN:
        config |= {"d_hidden": ctor["d_model"], "p_hidden": ctor.get("dropout", 0.0)}
    else:
        config |= {"n_heads": ctor["n_head"], "d_head": ctor["d_head"]}
    if number in BARE:
        config["project_out"] = not ctor.get("remove_out_proj")
    if config["kind"] == "delta_rnn":
        config["read_norm"] = "output" if read else "none"
    if number == 54:
        config["d_fast"] = 4 * ctor["d_model"] // ctor["n_head"]
        config["depth"] = ctor.get("fast_net_depth") or 1
    if number == 64 and ctor.get("use_slow_base_weights"):
        config["base_weights"] = "frozen"
    return config


def memory_config(ctor: Ctor, kind: Kind) -> dict[str, Any]:
    feature_maps: dict[str, dict[str, Any]] = {
        "elu": {"kind": "elu"},
        "dpfp": {"kind": "dpfp", "nu": ctor.get("n_roll")},
        "favor": {"kind": "favor", "n_projections": ctor.get("proj_dim"), "redraw": "each_step"},
    }
    quadratic = kind.form == "quadratic"
    normalised = "output" if quadratic else kind.form
    return {
        "kind": "fast_weight",
        "n_heads": ctor["n_head"],
        "d_head": ctor["d_head"],
        "rule": kind.rule,
        "feature_map": feature_maps[kind.feature_map],
        "key_norm": "sum" if kind.rule == "delta" else "none",
        "read_norm": "none" if ctor.get("skip_attn_normalization") else normalised,
        "scale": "scores" if quadratic else "output",
        "slow_net": kind.slow_net,
        "p_attention": ctor.get("dropatt", 0.0) if quadratic else 0.0,
        # as in their other PyTorch layers, under pre_lnorm keys and values alone are normalised
        "normed_queries": not quadratic,
    }


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Its constructor's arguments as our slots."""
    none = {"kind": "none"}
    if is_attention(ctor):
        config = xl.model_config(as_xl(ctor))
        return config | {"positions": none} if ctor.get("no_pos") else config
    check_combination(ctor)
    # layers of kernels and of PyTorch's networks normalise what they add their output to
    own = "pre_norm" if is_quadratic(ctor) else "pre_norm_normalised"
    config = xl.around(
        as_xl(ctor),
        mixer_config(ctor),
        residual=own if ctor.get("pre_lnorm") else "post_norm",
        positions=none if ctor.get("no_pos") else xl.sinusoid(ctor),
    )
    block = config["stack"][0]["block"]
    block["mixer_norm"] = not ctor.get("remove_lnorm")
    block["mixer_residual"] = not ctor.get("remove_res")
    if not has_ff(ctor):
        block["channel"] = {"kind": "none"}
    return config


def torch_layer(theirs: str, ours: str) -> list[Link]:
    """The parameters of one of PyTorch's recurrent layers."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [one(f"{theirs}.{name}_l0", f"{ours}.{name}") for name in names]


def quadratic_links(theirs: str, ours: str, ctor: Ctor) -> list[Link]:
    """Their PyTorch layers group rows by role, ours by head."""
    H, K = ctor["n_head"], ctor["d_head"]

    def by_head(q: Tensor, kv: Tensor) -> Tensor:
        roles = torch.cat([q.view(1, H, K, -1), kv.view(2, H, K, -1)])
        return roles.transpose(0, 1).reshape(3 * H * K, -1)

    pair = (f"{theirs}.q_net.weight", f"{theirs}.kv_net.weight")
    return [Link(pair, (f"{ours}.project.weight",), by_head)]


def delta_mlp_links(theirs: str, ours: str, ctor: Ctor) -> list[Link]:
    """All queries; per head keys, then values, of which the second halves are unused; strengths."""
    H, K, N = ctor["n_head"], ctor["d_head"], ctor.get("fast_net_depth") or 1
    used = N * (K + 4 * ctor["d_model"] // H)

    def by_head(rows: Tensor) -> Tensor:
        q, kv, strengths = (
            x.unflatten(0, (H, -1)) for x in rows.split([H * K, H * 4 * used, H * 2 * N])
        )
        k, v = kv.chunk(2, dim=1)
        parts = [q, k[:, :used], v[:, :used], strengths, k[:, used:], v[:, used:]]
        return torch.cat(parts, dim=1).flatten(0, 1)

    result = [one(f"{theirs}.qkv_net.weight", f"{ours}.project.weight", by_head)]
    for n in range(N):
        result += norm(f"{theirs}.fast_net_layer_norms.{n}", f"{ours}.norms.{n}")
    return result


def recurrent_delta_links(theirs: str, ours: str) -> list[Link]:
    """Four recurrent maps, from the last read to query, key, value and strength: one of ours."""

    def beside(q: Tensor, k: Tensor, v: Tensor, strength: Tensor) -> Tensor:
        return torch.cat([q, k, v, strength.mT], dim=-1)[0]

    parts = tuple(f"{theirs}.{name}" for name in ("R_q", "R_k", "R_v", "r_b"))
    slow = one(f"{theirs}.slow_net.weight", f"{ours}.project.weight")
    return [slow, Link(parts, (f"{ours}.recurrent_HKX",), beside)]


def mixer_links(layer: int, ctor: Ctor) -> list[Link]:
    """Where their kernels' layers group rows by head, so do ours."""
    theirs, ours = f"layers.{layer}.dec_attn", f"blocks.{layer}.mixer"
    number = ctor["attn_type"]
    if number in PLAIN:
        return torch_layer(f"{theirs}.{'rnn' if number == 80 else 'lstm'}_func", ours)
    if number == 324:
        return torch_layer(f"{theirs}.slow_net", f"{ours}.project")
    if number == 54:
        return delta_mlp_links(theirs, ours, ctor)
    if number == 934:
        return recurrent_delta_links(theirs, ours)
    if number == 64:
        result = [one(f"{theirs}.slow_net.weight", f"{ours}.project.weight")]
        if ctor.get("use_slow_base_weights"):
            result.append(one(f"{theirs}.fast_net_slow_weights", f"{ours}.base_HKX"))
        return result
    if is_quadratic(ctor):
        return quadratic_links(theirs, ours, ctor)
    name = "qkv_net" if number in (34, 35, 224, 234, 244, 254) else "qkvb_net"
    return [one(f"{theirs}.{name}.weight", f"{ours}.project.weight")]


def links(ctor: Ctor) -> list[Link]:
    """Which of its parameters is which of ours."""
    if is_attention(ctor):
        return xl.links(as_xl(ctor))
    result = ends.transformer_xl_links(as_xl(ctor))
    for layer in range(ctor["n_layer"]):
        theirs = f"layers.{layer}"
        absent = [] if has_ff(ctor) else [f"{theirs}.pos_ff"]
        if ctor.get("remove_lnorm"):
            absent.append(f"{theirs}.dec_attn.layer_norm")
        if ctor["attn_type"] in BARE:
            absent.append(f"{theirs}.dec_attn.o_net")
            if not ctor.get("remove_out_proj"):
                out = f"{theirs}.dec_attn.out_proj.weight"
                result.append(one(out, f"blocks.{layer}.mixer.out.weight"))
        around = xl.block_links(layer)
        result += [link for link in around if not link.theirs[0].startswith(tuple(absent))]
        result += mixer_links(layer, ctor)
    return result
