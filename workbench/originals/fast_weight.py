"""The fast-weight papers' code (arXiv:2102.11174, 2106.06295), a fork of Transformer-XL's.

One number, `attn_type`, stands for rule, feature map and normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.errors import UnknownOriginal, Unsupported
from workbench.originals import ends
from workbench.originals import transformer_xl as xl
from workbench.originals.links import Link, one

Ctor = Mapping[str, Any]

OPTIONS = {"attn_type", "pre_lnorm", "no_pos", "skip_attn_normalization", "n_roll", "proj_dim"}
OTHERS = {
    "d_res",
    "fast_net_depth",
    "remove_ff",
    "remove_lnorm",
    "remove_res",
    "use_slow_base_weights",
}
NOT_BUILT = {
    54: "Delta MLP",
    64: "Delta Delta net",
    80: "RNN layers",
    90: "LSTM layers",
    124: "Delta RNN",
    134: "Delta RNN",
    224: "Delta LSTM",
    234: "Delta LSTM",
    244: "Delta LSTM",
    254: "Delta LSTM",
    324: "fast weights driven by an LSTM",
    934: "Recurrent Delta net",
}


class Kind(NamedTuple):
    """What an `attn_type` says."""

    rule: str
    feature_map: str
    form: str
    """quadratic: their PyTorch layers. output, memory: kernels, by what they normalise"""


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
}


def kind_of(ctor: Ctor) -> Kind:
    number = ctor["attn_type"]
    if number in NOT_BUILT:
        raise Unsupported(NOT_BUILT[number])
    if number not in KINDS:
        raise UnknownOriginal(f"attention type {number}")
    if KINDS[number].form == "quadratic" and ctor.get("pre_lnorm"):
        raise Unsupported("queries from un-normalised inputs (quadratic layers with pre_lnorm)")
    return KINDS[number]


def is_attention(ctor: Ctor) -> bool:
    """Whether these are Transformer-XL's own layers, which the fork kept."""
    return ctor["attn_type"] in (0, 1, 2, 3)


def check(ctor: Ctor) -> None:
    """Understand every constructor argument, or refuse (`UnknownOriginal`, `Unsupported`)."""
    if ctor["attn_type"] in NOT_BUILT:
        raise Unsupported(NOT_BUILT[ctor["attn_type"]])
    xl.check(ctor, OPTIONS | OTHERS)
    if OTHERS & set(ctor):
        raise Unsupported(f"constructor arguments {sorted(OTHERS & set(ctor))}")


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Its constructor's arguments as our slots."""
    if is_attention(ctor):
        return xl.model_config(ctor)
    kind = kind_of(ctor)
    feature_maps: dict[str, dict[str, Any]] = {
        "elu": {"kind": "elu"},
        "dpfp": {"kind": "dpfp", "nu": ctor.get("n_roll")},
        "favor": {"kind": "favor", "n_projections": ctor.get("proj_dim"), "redraw": "each_step"},
    }
    normalised = "output" if kind.form == "quadratic" else kind.form
    mixer = {
        "kind": "fast_weight",
        "n_heads": ctor["n_head"],
        "d_head": ctor["d_head"],
        "rule": kind.rule,
        "feature_map": feature_maps[kind.feature_map],
        "key_norm": "sum" if kind.rule == "delta" else "none",
        "read_norm": "none" if ctor.get("skip_attn_normalization") else normalised,
        "scale": "scores" if kind.form == "quadratic" else "output",
    }
    # the codes count backwards from the end of the segment
    sinusoid = {"kind": "sinusoid", "order": "descending"}
    return xl.around(
        ctor,
        mixer,
        residual="pre_norm_normalised" if ctor.get("pre_lnorm") else "post_norm",
        positions={"kind": "none"} if ctor.get("no_pos") else sinusoid,
    )


def mixer_links(layer: int, ctor: Ctor) -> list[Link]:
    """Their kernels' layers group rows by head as ours do; the quadratic ones by role."""
    H, K = ctor["n_head"], ctor["d_head"]
    theirs, ours = f"layers.{layer}.dec_attn", f"blocks.{layer}.mixer.project.weight"
    kind = kind_of(ctor)

    def by_head(q: Tensor, kv: Tensor) -> Tensor:
        roles = torch.cat([q.view(1, H, K, -1), kv.view(2, H, K, -1)])
        return roles.transpose(0, 1).reshape(3 * H * K, -1)

    if kind.form == "quadratic":
        return [Link((f"{theirs}.q_net.weight", f"{theirs}.kv_net.weight"), (ours,), by_head)]
    name = "qkvb_net" if kind.rule == "delta" else "qkv_net"
    return [one(f"{theirs}.{name}.weight", ours)]


def links(ctor: Ctor) -> list[Link]:
    """Which of its parameters is which of ours."""
    if is_attention(ctor):
        return xl.links(ctor)
    result = ends.transformer_xl_links(ctor)
    for layer in range(ctor["n_layer"]):
        result += xl.block_links(layer) + mixer_links(layer, ctor)
    return result
