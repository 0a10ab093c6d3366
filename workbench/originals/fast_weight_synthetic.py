"""The fast-weight paper's code for synthetic retrieval (arXiv:2102.11174 section 6.1).

Its models own parameters that never enter their output: a projection of values, one more that has
no name in the paper, rows of the key embedding that belong to values, and write strengths under
the sum rule. They are linked with nothing: `unused` lists them. Its value embedding is a frozen
identity, which ours does not store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import UnknownOriginal
from workbench.originals.links import Link, norm, one

Ctor = Mapping[str, Any]

RULES = {"sum": "sum", "ours": "delta", "fwm": "fwm"}
OPTIONS = {
    "attention_type",
    "update_rule",
    "arg",
    "n_keys",
    "n_values",
    "hidden_size",
    "embedding_size",
}


def check(ctor: Ctor) -> None:
    """Understand every constructor argument, or refuse with `UnknownOriginal`."""
    if odd := sorted(OPTIONS ^ set(ctor)):
        raise UnknownOriginal(f"retrieval model: constructor arguments {odd} too many or missing")
    if ctor["n_keys"] != ctor["n_values"]:
        raise UnknownOriginal(
            f"retrieval model: {ctor['n_keys']} keys and {ctor['n_values']} values; its code takes "
            "one number for the other, so that they must be equal"
        )
    if ctor["attention_type"] not in feature_maps(ctor) or ctor["update_rule"] not in RULES:
        raise UnknownOriginal(
            f"retrieval model: attention_type {ctor['attention_type']!r} with update_rule "
            f"{ctor['update_rule']!r}"
        )


def feature_maps(ctor: Ctor) -> dict[str, dict[str, Any] | None]:
    """Its attention types as our feature maps."""
    return {
        "softmax": None,
        "linear": {"kind": "elu"},
        "tanh": {"kind": "tanh"},
        "dpfp": {"kind": "dpfp", "nu": ctor["arg"]},
        "favor": {
            "kind": "favor",
            "n_projections": ctor["arg"],
            "redraw": "each_pass",
            "orthogonal": "columns",
            "epsilon": 0.0,
        },
    }


def model_config(ctor: Ctor) -> dict[str, Any]:
    """Its constructor's arguments as our retrieval model's."""
    check(ctor)
    return {
        "d_key": ctor["hidden_size"],
        "d_embed": ctor["embedding_size"],
        "rule": _rule(ctor),
        "feature_map": feature_maps(ctor)[ctor["attention_type"]],
    }


def _rule(ctor: Ctor) -> str:
    # attention is a model of its own there, which has no rule
    return "softmax" if ctor["attention_type"] == "softmax" else RULES[ctor["update_rule"]]


def links(ctor: Ctor) -> list[Link]:
    """Which of its parameters is which of ours."""
    n_keys = ctor["n_keys"]
    result = [one("embeddingK.weight", "embedding.weight", lambda rows: rows[:n_keys])]
    result += [*norm("W_k", "key"), *norm("W_q", "query")]
    return result + (norm("W_b", "strength") if _rule(ctor) in ("delta", "fwm") else [])


def unused(ctor: Ctor) -> set[str]:
    """Its parameters that its output does not depend on."""
    rule = _rule(ctor)
    layers = ["W_v"] + ["W_f"] * (rule != "softmax") + ["W_b"] * (rule == "sum")
    return {"embeddingV.weight", *(f"{x}.{part}" for x in layers for part in ("weight", "bias"))}
