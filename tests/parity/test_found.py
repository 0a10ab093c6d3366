"""From a model alone to its arguments: every golden file's model, as its program would save it.

The recorded parameters and arguments are put together as the modules that the originals pickle;
what is then found must build the same model of ours as the recorded arguments do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity.golden import Golden, NotBuilt
from parity.registry import files
from workbench.config import differences, dump, load
from workbench.models.language_model import ModelConfig
from workbench.originals import checkpoint
from workbench.originals.checkpoint import Original, find
from workbench.originals.names import Shell
from workbench.originals.rebuild import rebuild

CONTAINER = "torch.nn.modules.container.Sequential"
MODELS = {
    "transformer-xl/pytorch": checkpoint.TRANSFORMER_XL,
    "lmtool-fwms/src": checkpoint.FAST_WEIGHT,
    "awd-lstm-lm": checkpoint.AWD_LSTM,
    "adaptive-span": checkpoint.ADAPTIVE_SPAN,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        found = files(Path(metafunc.config.getoption("--golden")))
        found = [p for p in found if p.suffix == ".npz" and codebase_of(p)]
        metafunc.parametrize("golden_file", found, ids=[p.stem for p in found])


def codebase_of(path: Path) -> str | None:
    """None: no model that a training script would save, but an op, a sampler, a retrieval task."""
    with np.load(path, allow_pickle=False) as arrays:
        names, said = set(arrays.files), str(arrays["meta"]) if "meta" in arrays.files else "{}"
    whole = {"param/word_emb.emb_layers.0.weight", "param/key_pe", "param/model/encoder.weight"}
    codebase = json.loads(said).get("codebase", "") if whole & names else ""
    return next((c for start, c in MODELS.items() if codebase.startswith(start)), None)


def grow(root: Shell, golden: Golden, prefix: str = "param/") -> Shell:
    """Hang every recorded tensor where its name says, tied ones as one."""
    tied, buffers = golden.meta.get("tied", {}), golden.meta.get("buffers", [])
    for key in golden.keys(prefix):
        name = key.removeprefix(prefix)
        *path, last = name.split(".")
        kind = "_buffers" if name in buffers else "_parameters"
        value = golden.tensor(f"{prefix}{name}")
        part(root, path).state.setdefault(kind, {})[last] = value
    for name, first in tied.items():
        *path, last = name.split(".")
        *first_path, first_last = first.split(".")
        shared = part(root, first_path).state["_parameters"][first_last]
        part(root, path).state["_parameters"][last] = shared
    return root


def part(root: Shell, path: list[str]) -> Shell:
    for name in path:
        modules = root.state.setdefault("_modules", {})
        root = modules.setdefault(name, Shell(CONTAINER))
    return root


def transformer(golden: Golden, path: str) -> Shell:
    ctor = golden.ctor
    model = grow(Shell(path), golden)
    defaults: dict[str, Any] = {"attn_type": 0, "clamp_len": -1, "same_length": False}
    defaults |= {"sample_softmax": -1, "d_embed": ctor["d_model"], "no_pos": False, "ext_len": 0}
    names = ("n_token", "n_head", "d_model", "d_head", "tgt_len", "mem_len", "d_res", *defaults)
    model.state |= {n: ctor.get(n) or defaults.get(n, ctor["d_model"]) for n in names}
    model.state["mem_len"] = ctor["mem_len"]
    part(model, ["drop"]).state["p"] = ctor.get("dropout", 0.0)
    cutoffs = [*(ctor.get("cutoffs") or []), ctor["n_token"]]
    part(model, ["word_emb"]).state |= {"div_val": ctor.get("div_val", 1), "cutoffs": cutoffs}
    for i in range(ctor["n_layer"]):
        layer = part(model, ["layers", str(i)])
        layer.state["use_ff"] = "pos_ff" in layer.state["_modules"]
        attention = part(layer, ["dec_attn"])
        attention.state["pre_lnorm"] = ctor.get("pre_lnorm", False)
        attention.state["normalize_attn_scores"] = not ctor.get("skip_attn_normalization", False)
        attention.state |= {n: ctor[n] for n in ("n_roll", "proj_dim") if n in ctor}
        removed = {"lnorm", "res", "out_proj"}
        attention.state |= {f"use_{n}": not ctor.get(f"remove_{n}", False) for n in removed}
        part(attention, ["dropatt"]).state["p"] = ctor.get("dropatt", 0.0)
        if f"extra/eval/proj_matrix/{i}" in golden:
            attention.state["proj_matrix"] = golden.tensor(f"extra/eval/proj_matrix/{i}")
    return model


def awd(golden: Golden) -> list[Shell]:
    ctor = golden.ctor
    model = grow(Shell("model.RNNModel"), golden, "param/model/")
    model.state |= dict.fromkeys(("dropout", "dropouti", "dropouth", "dropoute"), 0.0)
    model.state |= {n: v for n, v in ctor.items() if n not in ("ntoken", "wdrop")}
    for i in range(ctor["nlayers"]):
        layer = part(model, ["rnns", str(i)])
        dropped = part(layer, ["linear"]) if ctor["rnn_type"] == "QRNN" else layer
        if "module" in dropped.state["_modules" if "_modules" in dropped.state else "_parameters"]:
            dropped.path, dropped.state["dropout"] = "weight_drop.WeightDrop", ctor["wdrop"]
    criterion = Shell("splitcross.SplitCrossEntropyLoss")
    splits = golden.meta.get("criterion", {}).get("splits", [])
    criterion.state["splits"] = [0, *splits, 100_000_000]
    for key in golden.keys("param/criterion/"):
        name = key.removeprefix("param/criterion/")
        criterion.state.setdefault("_parameters", {})[name] = golden.tensor(key)
    return [model, criterion]


def adaptive_span(golden: Golden) -> Original:
    span, sizes = golden.ctor["adapt_span_params"], golden.ctor["model_params"]
    asked = {n: span[f"adapt_span_{n.removeprefix('span_')}"] for n in ("ramp", "span_loss")}
    asked |= {"span_init": span["adapt_span_init"], "span_cache": span["adapt_span_cache"]}
    asked |= {n: sizes[n] for n in ("dropout", "emb_dropout")}
    states = {k.removeprefix("param/"): golden.tensor(k) for k in golden.keys("param/")}
    return find(states, asked)


def test_found_as_recorded(golden_file: Path) -> None:
    golden = Golden(golden_file)
    codebase = codebase_of(golden_file)
    assert codebase is not None
    module, ctor = checkpoint.MODULES[codebase], golden.ctor
    if codebase == checkpoint.AWD_LSTM:
        found = find(awd(golden))
        ctor = ctor | {"splits": golden.meta.get("criterion", {}).get("splits", [])}
    elif codebase == checkpoint.ADAPTIVE_SPAN:
        found = adaptive_span(golden)
    else:
        home = {checkpoint.FAST_WEIGHT: "model_main", checkpoint.TRANSFORMER_XL: "mem_transformer"}
        found = find(transformer(golden, f"{home[codebase]}.MemTransformerLM"))
    try:
        wanted = load(ModelConfig, module.model_config(ctor), "model")
    except NotBuilt as missing:
        pytest.skip(f"not built: {missing}")
    config = load(ModelConfig, found.model_config(), "model")
    different = differences(dump(config), dump(wanted))
    assert different == []
    tied = set(golden.meta.get("tied", {}))
    prefix = "model/" if codebase == checkpoint.AWD_LSTM else ""
    assert found.aliases().keys() | found.buffers >= {f"{prefix}{name}" for name in tied}
    model = rebuild(found, config, golden.name)
    matrices = [b for n, b in model.named_buffers() if n.endswith("projection_KM")]
    recorded = sorted(golden.keys("extra/eval/proj_matrix/"))
    assert len(matrices) == len(recorded)
    assert all(torch.equal(m, golden.tensor(k)) for m, k in zip(matrices, recorded, strict=True))
