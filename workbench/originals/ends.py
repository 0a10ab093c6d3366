"""The two ends of the originals' models: embedding and softmax, as our vocabularies.

Transformer-XL's code, its fork for fast weights, and the adaptive-span code share one construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from workbench.config import load
from workbench.errors import UnknownOriginal
from workbench.models.clusters import AdaptiveConfig
from workbench.originals.links import Link, norm, one

Ctor = Mapping[str, Any]


class Names(NamedTuple):
    """What a code base calls its parts."""

    embedding: str
    softmax: str
    cluster_weight: str
    cluster_bias: str


XL = Names("word_emb", "crit", "crit.cluster_weight", "crit.cluster_bias")
SPAN = Names("in_emb", "out_emb", "out_emb.cluster_proj.weight", "out_emb.cluster_proj.bias")


def transformer_xl(ctor: Ctor) -> dict[str, Any]:
    """The vocabulary of Transformer-XL's constructor (`cutoffs`, `div_val`, `d_embed`, ties).

    Raises:
        UnknownOriginal: more claims about tied projections than bins.
    """
    cutoffs, div_val = list(ctor.get("cutoffs") or []), ctor.get("div_val", 1)
    d_embed = ctor.get("d_embed")
    d_embed = None if d_embed == ctor["d_model"] else d_embed
    projects = div_val > 1 or d_embed is not None
    n_bins = len(cutoffs) + 1
    ties = [bool(tie) for tie in ctor.get("tie_projs") or []]
    if len(ties) > n_bins and projects:
        raise UnknownOriginal(f"tie_projs {ties} for {n_bins} bins")
    # bins that are not claimed have projections of their own
    ties = [*ties, *[False] * (n_bins - len(ties))] if projects else []
    sizes = {"d_embed": d_embed, "tie_weights": ctor.get("tie_weight", True)}
    if not cutoffs and div_val == 1:
        return {"kind": "plain", **sizes, "tie_projections": any(ties)}
    return {
        "kind": "adaptive",
        "cutoffs": cutoffs,
        "div_val": div_val,
        **sizes,
        "tie_projections": ties,
        "cluster_order": "reversed",
    }


def transformer_xl_links(ctor: Ctor) -> list[Link]:
    """Its embedding and softmax."""
    config, d_model = transformer_xl(ctor), ctor["d_model"]
    if config["kind"] == "adaptive":
        return adaptive_links(config, d_model, XL)
    links = [
        one("word_emb.emb_layers.0.weight", "vocabulary.embedding.weight"),
        one("crit.out_layers.0.bias", "vocabulary.output.bias"),
    ]
    if not config["tie_weights"]:
        links.append(one("crit.out_layers.0.weight", "vocabulary.output.weight"))
    if config["d_embed"] is not None:
        links.append(one("word_emb.emb_projs.0", "vocabulary.project_in.weight"))
        if not config["tie_projections"]:
            links.append(one("crit.out_projs.0", "vocabulary.project_out.weight"))
    return links


def adaptive_span(ctor: Ctor) -> dict[str, Any]:
    """The vocabulary of the adaptive-span code's `adapt_io_params`.

    Raises:
        UnknownOriginal: one division for all bins, which the code refuses.
    """
    options = ctor["adapt_io_params"]
    if not options["adapt_io_enabled"]:
        return {"kind": "plain", "tie_weights": False, "scale_embedding": False}
    if options["adapt_io_divval"] < 2:
        raise UnknownOriginal(f"adapt_io_divval {options['adapt_io_divval']}, expected 2 or more")
    tied = options["adapt_io_tied"]
    return {
        "kind": "adaptive",
        "cutoffs": list(options["adapt_io_cutoffs"]),
        "div_val": options["adapt_io_divval"],
        "tie_weights": tied,
        "tie_projections": "all" if tied else "none",
        "cluster_order": "reversed",
    }


def adaptive_span_links(ctor: Ctor) -> list[Link]:
    """Its `in_emb` and `out_emb`."""
    config = adaptive_span(ctor)
    if config["kind"] == "adaptive":
        return adaptive_links(config, ctor["model_params"]["hidden_size"], SPAN)
    embedding = one("in_emb.weight", "vocabulary.embedding.weight")
    return [embedding, *norm("out_emb", "vocabulary.output")]


def adaptive_links(data: Mapping[str, Any], d_model: int, names: Names) -> list[Link]:
    """The links of an adaptive vocabulary; which parameters there are, our config says."""
    config = load(AdaptiveConfig, data, "vocabulary")
    widths = config.widths(d_model)
    links = []
    for i, width in enumerate(widths):
        projects = config.projects(width, d_model)
        output, project_out = f"{names.softmax}.out_layers.{i}", f"{names.softmax}.out_projs.{i}"
        if i == 0 or config.div_val > 1:
            table = f"{names.embedding}.emb_layers.{i}.weight"
            links.append(one(table, f"vocabulary.embeddings.{i}.weight"))
            links.append(one(f"{output}.bias", f"vocabulary.outputs.{i}.bias"))
            if not config.tie_weights:
                links.append(one(f"{output}.weight", f"vocabulary.outputs.{i}.weight"))
            if projects:
                project_in = f"{names.embedding}.emb_projs.{i}"
                links.append(one(project_in, f"vocabulary.project_in.{i}.weight"))
        if projects and not config.ties_projection(i):
            links.append(one(project_out, f"vocabulary.project_out.{i}.weight"))
    if config.cutoffs:
        links.append(one(names.cluster_weight, "vocabulary.clusters.weight"))
        links.append(one(names.cluster_bias, "vocabulary.clusters.bias"))
    return links
