"""What a checkpoint of the papers' code holds: which program wrote it, and its model.

Told by contents alone: classes, names and shapes. What a program does not write into its file is
asked for; `ASKED` has the programs' own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.errors import CheckpointError, ConfigError, UnknownOriginal
from workbench.originals import adaptive_span, awd_lstm, fast_weight, transformer_xl
from workbench.originals.links import Link
from workbench.originals.names import Shell
from workbench.originals.optimizer import find_optimizer
from workbench.originals.shells import attribute, below, same_tensor, state_dict, tensor_named

ADAPTIVE_SPAN, AWD_LSTM = "adaptive-span", "awd-lstm"
TRANSFORMER_XL, FAST_WEIGHT = "transformer-xl", "fast-weight"
MODULES: dict[str, Any] = {
    ADAPTIVE_SPAN: adaptive_span,
    AWD_LSTM: awd_lstm,
    TRANSFORMER_XL: transformer_xl,
    FAST_WEIGHT: fast_weight,
}
ASKED: dict[str, dict[str, Any]] = {
    ADAPTIVE_SPAN: {
        "block_size": 64,
        "ramp": 32,
        "span_loss": 0.0,
        "span_init": 0.0,
        "span_cache": True,
        "dropout": 0.0,
        "emb_dropout": 0.0,
        "div_val": 4,
    },
    AWD_LSTM: {"segment_len": 70},
    TRANSFORMER_XL: {},
    FAST_WEIGHT: {"carry": "reset"},
}
"""options of an import, by code base, with the value of one that is not given"""
WRAPPER = "module."
"""what PyTorch's DataParallel puts in front of every name"""


@dataclass(frozen=True)
class Original:
    """A model as its authors' program wrote it.

    Attributes:
        codebase: a key of `MODULES`.
        ctor: its constructor's arguments, as `MODULES[codebase].model_config` takes them.
        tensors: its state dict, without a wrapper's prefix, in the file's order; where a criterion
            has one too, `model/` and `criterion/` stand in front.
        buffers: those of `tensors` that are no parameters.
        prefix: of every name in the file.
        segment_len: tokens of one segment of its training.
        asked: what the file does not say, and what was taken for it.
        projections: the random matrices of FAVOR+ [K, M], by layer.
    """

    codebase: str
    ctor: dict[str, Any]
    tensors: dict[str, Tensor]
    buffers: frozenset[str]
    segment_len: int
    prefix: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    projections: dict[int, Tensor] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        names = ("vocab_size", "ntoken", "n_token")
        return next(self.ctor[name] for name in names if name in self.ctor)

    @property
    def remembers(self) -> bool:
        """Whether the model hands anything from segment to segment, as it was trained."""
        return self.codebase in (ADAPTIVE_SPAN, AWD_LSTM) or self.ctor["mem_len"] > 0

    def model_config(self) -> dict[str, Any]:
        """Our model config, for `load(ModelConfig, ...)`."""
        config: dict[str, Any] = MODULES[self.codebase].model_config(self.ctor)
        return config

    def links(self) -> list[Link]:
        """Which of its parameters is which of ours."""
        links: list[Link] = MODULES[self.codebase].links(self.ctor)
        return links

    def aliases(self) -> dict[str, str]:
        """Further names of a tensor -> the name that is linked.

        Raises:
            UnknownOriginal: a parameter is missing, or one is neither linked nor a copy of one that
                is: the model is not what its arguments say.
        """
        linked = [name for link in self.links() for name in link.theirs]
        if missing := sorted(set(linked) - set(self.tensors)):
            raise UnknownOriginal(f"the checkpoint lacks the parameters {missing[:4]}")
        aliases = {}
        for name in self.tensors.keys() - self.buffers - set(linked):
            owner = next((x for x in linked if self._equal(name, x)), None)
            if owner is None:
                raise UnknownOriginal(
                    f"the checkpoint's '{name}' is neither a known parameter nor, as a tied one "
                    "would be, equal to a known one"
                )
            aliases[name] = owner
        return aliases

    def _equal(self, one: str, other: str) -> bool:
        x, y = self.tensors[one], self.tensors[other]
        return x.shape == y.shape and (same_tensor(x, y) or torch.equal(x, y))


def find(value: Any, asked: Mapping[str, Any] | None = None) -> Original:
    """The model in what `reader.read` returned.

    Args:
        value: a whole module, a list that begins with one, a dict with a state dict, a state dict.
        asked: what the file may not say; see `ASKED`.

    Raises:
        UnknownOriginal: it holds no model of the four code bases.
        ConfigError: `asked` has an option that this code base does not need.
    """
    given = dict(asked or {})
    parts = list(value) if type(value) in (list, tuple) else [value]
    if parts and isinstance(parts[0], Shell):
        model = below(parts[0], "module") if parts[0].path.endswith("DataParallel") else parts[0]
        prefix = "" if model is parts[0] else WRAPPER
        for path, read in READERS.items():
            if model.path == path:
                return read(model, parts[1:], prefix, given)
        raise UnknownOriginal(f"the checkpoint holds a '{model.path}'; known: {', '.join(READERS)}")
    states = value.get("model", value) if isinstance(value, dict) else None
    if isinstance(states, dict) and states and all(isinstance(x, Tensor) for x in states.values()):
        return _adaptive_span(states, given)
    what = "an optimizer's state" if find_optimizer(value) else f"a {type(value).__name__}"
    raise UnknownOriginal(
        f"the checkpoint holds {what}, and no model of {', '.join(MODULES)}; give the file with "
        "the model (Transformer-XL: model.pt, lmtool: best_model.pt)"
    )


def _options(codebase: str, given: dict[str, Any]) -> dict[str, Any]:
    known = ASKED[codebase]
    if odd := sorted(set(given) - set(known)):
        names = ", ".join(known) or "none: the file says everything"
        raise ConfigError(f"{codebase} checkpoints do not ask for {odd}; they ask for {names}")
    for name, value in given.items():
        kind = type(known[name])
        right = type(value) is kind or (kind is float and type(value) is int)
        if not right or (kind is int and value < 1):
            raise ConfigError(f"{name}: got {value!r}, expected something like {known[name]!r}")
    return known | given


def _transformer(codebase: str, model: Shell, prefix: str, given: dict[str, Any]) -> Original:
    """Transformer-XL's model, or its fork's."""
    asked = _options(codebase, given)
    tensors, buffers = state_dict(model)
    layers = below(model, "layers").state["_modules"]
    layer, embedding = below(model, "layers.0"), below(model, "word_emb")
    attention = below(layer, "dec_attn")
    sizes = ("n_token", "n_head", "d_model", "d_head", "d_embed", "tgt_len", "mem_len", "ext_len")
    ctor: dict[str, Any] = {name: attribute(model, name, int) for name in sizes}
    ctor |= {name: attribute(model, name, int) for name in ("attn_type", "clamp_len")}
    ctor["n_layer"] = len(layers)
    if ctor["d_embed"] == ctor["d_model"]:
        # as the original's default: not another width
        del ctor["d_embed"]
    ctor["dropout"] = attribute(below(model, "drop"), "p", float)
    if "dropatt" in attention.state.get("_modules", {}):
        ctor["dropatt"] = attribute(below(attention, "dropatt"), "p", float)
    ctor["same_length"] = attribute(model, "same_length", bool)
    if "pre_lnorm" in attention.state:
        ctor["pre_lnorm"] = attribute(attention, "pre_lnorm", bool)
    if "sample_softmax" in model.state:
        ctor["sample_softmax"] = attribute(model, "sample_softmax", int)
    ctor["d_inner"] = _rows(tensors, "layers.0.pos_ff.CoreNet.0.weight", 1)
    ctor["div_val"] = attribute(embedding, "div_val", int)
    ctor["cutoffs"] = _cutoffs(embedding)
    ctor |= _ties(tensors, len(ctor["cutoffs"]) + 1)
    if codebase == FAST_WEIGHT:
        ctor |= _fast_weight(model, layer, tensors)
    found = {
        i: tensor_named(below(model, f"layers.{i}.dec_attn"), "proj_matrix")
        for i in range(len(layers))
    }
    projections = {i: x for i, x in found.items() if x is not None}
    length = ctor["tgt_len"]
    return Original(codebase, ctor, tensors, buffers, length, prefix, asked, projections)


def _rows(tensors: Mapping[str, Tensor], name: str, default: int) -> int:
    return len(tensors[name]) if name in tensors else default


def _cutoffs(embedding: Shell) -> list[int]:
    cutoffs = attribute(embedding, "cutoffs", list)
    if not all(type(c) is int for c in cutoffs):
        raise CheckpointError("the checkpoint's cutoffs are no whole numbers")
    # theirs end with the vocabulary's size
    return list(cutoffs[:-1])


def _ties(tensors: Mapping[str, Tensor], n_bins: int) -> dict[str, Any]:
    """Which of the softmax's tensors are the embedding's."""

    def tied(ours: str, theirs: str) -> bool:
        return ours in tensors and theirs in tensors and same_tensor(tensors[ours], tensors[theirs])

    first = "word_emb.emb_layers.0.weight"
    several = "word_emb.emb_layers.1.weight" in tensors
    projections = [
        tied(f"crit.out_projs.{i}", f"word_emb.emb_projs.{i if several else 0}")
        for i in range(n_bins)
    ]
    return {"tie_weight": tied("crit.out_layers.0.weight", first), "tie_projs": projections}


def _fast_weight(model: Shell, layer: Shell, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the fork's constructor takes beside Transformer-XL's arguments."""
    attention = below(layer, "dec_attn")
    ctor: dict[str, Any] = {"no_pos": attribute(model, "no_pos", bool)}
    state = attention.state
    if "normalize_attn_scores" in state:
        ctor["skip_attn_normalization"] = not attribute(attention, "normalize_attn_scores", bool)
    for name in ("n_roll", "proj_dim"):
        if state.get(name) is not None:
            ctor[name] = attribute(attention, name, int)
    matrix = tensor_named(attention, "proj_matrix")
    if matrix is not None and "proj_dim" not in ctor:
        ctor["proj_dim"] = matrix.shape[-1]
    if model.state.get("d_res", ctor_width := model.state["d_model"]) != ctor_width:
        ctor["d_res"] = attribute(model, "d_res", int)
    at = "layers.0.dec_attn"
    depth = sum(name.startswith(f"{at}.fast_net_layer_norms.") for name in tensors) // 2
    if depth:
        ctor["fast_net_depth"] = depth
    if f"{at}.fast_net_slow_weights" in tensors:
        ctor["use_slow_base_weights"] = True
    for option, owner, name in (
        ("remove_ff", layer, "use_ff"),
        ("remove_lnorm", attention, "use_lnorm"),
        ("remove_res", attention, "use_res"),
        ("remove_out_proj", attention, "use_out_proj"),
    ):
        if owner.state.get(name, True) is False:
            ctor[option] = True
    return ctor


def _transformer_xl(model: Shell, _: list[Any], prefix: str, given: dict[str, Any]) -> Original:
    return _transformer(TRANSFORMER_XL, model, prefix, given)


def _fast_weights(model: Shell, _: list[Any], prefix: str, given: dict[str, Any]) -> Original:
    return _transformer(FAST_WEIGHT, model, prefix, given)


def _awd(model: Shell, rest: list[Any], prefix: str, given: dict[str, Any]) -> Original:
    asked = _options(AWD_LSTM, given)
    tensors, buffers = state_dict(model, "model/")
    ctor: dict[str, Any] = {"rnn_type": attribute(model, "rnn_type", str)}
    ctor |= {name: attribute(model, name, int) for name in ("ninp", "nhid", "nlayers")}
    rates = ("dropout", "dropouti", "dropouth", "dropoute")
    ctor |= {name: attribute(model, name, float) for name in rates}
    ctor["ntoken"] = _rows(tensors, "model/encoder.weight", 0)
    ctor["tie_weights"] = "model/decoder.weight" in tensors and same_tensor(
        tensors["model/decoder.weight"], tensors["model/encoder.weight"]
    )
    if len(below(model, "rnns").state["_modules"]) != ctor["nlayers"]:
        raise CheckpointError("the checkpoint has another number of layers than its nlayers")
    # a QRNN's weight drop sits around its matrix, the others' around the layer
    layer = below(model, "rnns.0")
    dropped = below(layer, "linear") if ctor["rnn_type"] == "QRNN" else layer
    wrapped = dropped.path == "weight_drop.WeightDrop"
    ctor["wdrop"] = attribute(dropped, "dropout", float) if wrapped else 0.0
    if rest and isinstance(rest[0], Shell) and "splits" in rest[0].state:
        tails, more = state_dict(rest[0], "criterion/")
        tensors, buffers = {**tensors, **tails}, buffers | more
        ctor["splits"] = list(attribute(rest[0], "splits", list))
    return Original(AWD_LSTM, ctor, tensors, buffers, asked["segment_len"], prefix, asked)


def _adaptive_span(states: Mapping[str, Tensor], given: dict[str, Any]) -> Original:
    """From names and shapes alone."""
    prefix = WRAPPER if all(name.startswith(WRAPPER) for name in states) else ""
    tensors = {name.removeprefix(prefix): value for name, value in states.items()}
    if "key_pe" not in tensors or tensors["key_pe"].dim() != 3:
        raise UnknownOriginal(
            "the checkpoint is a state dict of another program than adaptive-span (no 'key_pe'); "
            "from state dicts alone only adaptive-span's models can be told"
        )
    asked = _options(ADAPTIVE_SPAN, given)
    _, d_head, span = tensors["key_pe"].shape
    width = _rows(tensors, "layers.0.attn.proj_query.weight", 0)
    attention = "layers.0.attn.attn"
    persistent = tensors.get(f"{attention}.persistent_memory.key")
    adaptive = {
        "adapt_span_enabled": f"{attention}.adaptive_span._mask.current_val" in tensors,
        "adapt_span_ramp": asked["ramp"],
        "adapt_span_loss": asked["span_loss"],
        "adapt_span_init": asked["span_init"],
        "adapt_span_cache": asked["span_cache"],
    }
    ends, vocab_size = _adaptive_ends(tensors, width, asked["div_val"])
    sizes = {
        "attn_span": span,
        "hidden_size": width,
        # a size that is not used where persistent vectors replace the layer
        "inner_hidden_size": _rows(tensors, "layers.0.ff.fc1.weight", 1),
        "nb_heads": width // max(1, d_head),
        "nb_layers": sum(name.endswith(".attn.proj_query.weight") for name in tensors),
        "vocab_size": vocab_size,
        "dropout": asked["dropout"],
        "emb_dropout": asked["emb_dropout"],
    }
    ctor = {
        "model_params": sizes,
        "adapt_span_params": adaptive,
        "adapt_io_params": ends,
        "pers_mem_params": {"pers_mem_size": 0 if persistent is None else persistent.shape[-1]},
        "vocab_size": vocab_size,
    }
    buffers = frozenset(name for name in tensors if name.endswith(".mask_template"))
    return Original(ADAPTIVE_SPAN, ctor, tensors, buffers, asked["block_size"], prefix, asked)


def _adaptive_ends(
    tensors: Mapping[str, Tensor], width: int, div_val: int
) -> tuple[dict[str, Any], int]:
    """Adaptive input and output: their arguments, and the vocabulary's size."""
    tables: list[Tensor] = []
    while (name := f"in_emb.emb_layers.{len(tables)}.weight") in tensors:
        tables.append(tensors[name])
    if not tables:
        off = {"enabled": False, "tied": False, "divval": div_val, "cutoffs": []}
        return {f"adapt_io_{k}": v for k, v in off.items()}, _rows(tensors, "in_emb.weight", 0)
    widths = [table.shape[-1] for table in tables]
    divisors = [
        d
        for d in (div_val, *range(1, width + 1))
        if widths == [width // d**i for i in range(len(widths))]
    ]
    if not divisors:
        raise CheckpointError(f"the checkpoint's embeddings of widths {widths} follow no div_val")
    ends = torch.tensor([len(table) for table in tables]).cumsum(0).tolist()
    tied = "out_emb.out_layers.0.weight" in tensors and torch.equal(
        tensors["out_emb.out_layers.0.weight"], tables[0]
    )
    return {
        "adapt_io_enabled": True,
        "adapt_io_tied": tied,
        "adapt_io_divval": divisors[0],
        "adapt_io_cutoffs": ends[:-1],
    }, ends[-1]


READERS = {
    "mem_transformer.MemTransformerLM": _transformer_xl,
    "model_main.MemTransformerLM": _fast_weights,
    "model.RNNModel": _awd,
}
