"""AWD-LSTM's code (arXiv:1708.02182, 1803.08240): its `RNNModel` and criterion in our terms.

`ctor` holds the arguments of `RNNModel` and the criterion's `splits`, as given or as it keeps them
(from 0 to a bound beyond every id). Names: `model/` and `criterion/` in front of the state dicts'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import UnknownOriginal
from workbench.originals.links import Link, one

Ctor = Mapping[str, Any]

SIZES = {"rnn_type", "ntoken", "ninp", "nhid", "nlayers"}
DROPOUT = {"dropout", "dropouth", "dropouti", "dropoute", "wdrop"}
OPTIONS = {"tie_weights", "splits"}
CELLS = ("LSTM", "GRU", "QRNN")


def check(ctor: Ctor) -> None:
    """Understand every argument, or refuse (`UnknownOriginal`)."""
    if unknown := sorted((set(ctor) ^ SIZES) - DROPOUT - OPTIONS):
        raise UnknownOriginal(f"constructor arguments {unknown} of RNNModel")
    if ctor["rnn_type"] not in CELLS:
        raise UnknownOriginal(f"rnn_type {ctor['rnn_type']!r}; known: {', '.join(CELLS)}")


def is_tied(ctor: Ctor) -> bool:
    return bool(ctor.get("tie_weights", False))


def splits_of(ctor: Ctor) -> tuple[int, ...]:
    """Where the vocabulary is cut, inside it."""
    return tuple(s for s in ctor.get("splits") or () if 0 < s < ctor["ntoken"])


def widths(ctor: Ctor) -> list[int]:
    """Units of each layer: the last one is as wide as a tied embedding."""
    last = ctor["ninp"] if is_tied(ctor) else ctor["nhid"]
    return [ctor["nhid"]] * (ctor["nlayers"] - 1) + [last]


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Its constructor's arguments as our slots."""
    check(ctor)
    stack = []
    for layer, width in enumerate(widths(ctor)):
        mixer: dict[str, Any] = {"kind": ctor["rnn_type"].lower(), "d_hidden": width}
        mixer["p_weight"] = ctor.get("wdrop", 0.0)
        if mixer["kind"] == "qrnn":
            mixer["window"] = 1 if layer else 2
        # what follows the last layer has a rate of its own
        p_drop = ctor.get("dropouth", 0.0) if layer < ctor["nlayers"] - 1 else 0.0
        stack.append({"block": {"mixer": mixer, "residual": "none", "p_drop": p_drop}})
    return {
        "d_model": ctor["ninp"],
        "stack": stack,
        "vocabulary": vocabulary(ctor),
        "dropout": "locked",
        "p_symbol": ctor.get("dropoute", 0.0),
        "p_embedding": ctor.get("dropouti", 0.0),
        "p_output": ctor.get("dropout", 0.0),
        "init_range": 0.1,
    }


def vocabulary(ctor: Ctor) -> dict[str, Any]:
    """One softmax, or one of a head and tails where the vocabulary is cut."""
    common: dict[str, Any] = {"tie_weights": is_tied(ctor), "scale_embedding": False}
    if not is_tied(ctor):
        common["d_hidden"] = ctor["nhid"]
    if splits := splits_of(ctor):
        return {"kind": "split", "splits": splits, "cluster_order": "reversed", **common}
    return {"kind": "plain", **common}


def layer_links(layer: int, ctor: Ctor) -> list[Link]:
    """Weight drop wraps a layer (`module`) and renames the matrix that it drops (`_raw`)."""
    theirs, ours = f"model/rnns.{layer}", f"blocks.{layer}.mixer"
    if ctor["rnn_type"] == "QRNN":
        inside = f"{theirs}.linear.module"
        return [
            one(f"{inside}.weight_raw", f"{ours}.gates.weight"),
            one(f"{inside}.bias", f"{ours}.gates.bias"),
        ]
    inside, raw = (f"{theirs}.module", "_raw") if ctor.get("wdrop", 0.0) else (theirs, "")
    return [
        one(f"{inside}.weight_ih_l0", f"{ours}.weight_ih"),
        one(f"{inside}.weight_hh_l0{raw}", f"{ours}.weight_hh"),
        one(f"{inside}.bias_ih_l0", f"{ours}.bias_ih"),
        one(f"{inside}.bias_hh_l0", f"{ours}.bias_hh"),
    ]


def links(ctor: Ctor) -> list[Link]:
    """Which of its parameters is which of ours."""
    check(ctor)
    cut = bool(splits_of(ctor))
    embedding, output = ("embeddings.0", "outputs.0") if cut else ("embedding", "output")
    result = [
        one("model/encoder.weight", f"vocabulary.{embedding}.weight"),
        one("model/decoder.bias", f"vocabulary.{output}.bias"),
    ]
    if not is_tied(ctor):
        result.append(one("model/decoder.weight", f"vocabulary.{output}.weight"))
    for layer in range(ctor["nlayers"]):
        result += layer_links(layer, ctor)
    if cut:
        result.append(one("criterion/tail_vectors", "vocabulary.clusters.weight"))
        result.append(one("criterion/tail_bias", "vocabulary.clusters.bias"))
    return result
