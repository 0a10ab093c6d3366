"""Transformer-XL's code (arXiv:1901.02860): its constructor as a model config, its names as ours.

The fast-weight code is a fork of it, so embedding, softmax, feed-forward and attention links are
shared with `parity.fast_weight`. Token arrays are [time, batch].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.golden import Comparison, Golden, NotBuilt, Unknown
from parity.links import Link, norm, one
from parity.phases import Subject, compare_gradients, evaluate, optimise, streams, subject, train
from workbench.carry import Carry
from workbench.config import load
from workbench.train.config import TrainConfig

SIZES = {"n_token", "n_layer", "n_head", "d_model", "d_head", "d_inner", "tgt_len", "mem_len"}
OPTIONS = {"attn_type", "pre_lnorm", "same_length", "clamp_len", "tie_weight"}
OFF = {"dropout": 0.0, "dropatt": 0.0}
VOCABULARY = {"cutoffs", "div_val", "tie_projs", "d_embed"}
ATTENTION_TYPES = {
    1: "learned relative keys and biases per layer (attention type 1)",
    3: "learned absolute positions per layer (attention type 3)",
}


def check_constructor(golden: Golden, options: set[str]) -> None:
    """Understand every constructor argument, or refuse.

    Raises:
        Unknown: an argument that is not known here, or dropout in a dropout-free file.
        NotBuilt: a vocabulary or a context that the workbench lacks.
    """
    ctor = golden.ctor
    unknown = set(ctor) - SIZES - options - set(OFF) - VOCABULARY - {"ext_len"}
    if unknown or any(ctor[name] != value for name, value in OFF.items()):
        raise Unknown(f"{golden.name}: constructor arguments {sorted(unknown)} or dropout")
    if ctor.get("cutoffs"):
        raise NotBuilt("adaptive embedding and softmax (cutoffs)")
    if ctor.get("d_embed", ctor["d_model"]) != ctor["d_model"]:
        raise NotBuilt("embedding of another width than the model (d_embed)")
    lengths = [ctor, golden.meta.get("eval_lengths", {}), *golden.meta.get("phases", [])]
    if any(place.get("ext_len", 0) for place in lengths):
        raise NotBuilt("extended context (ext_len)")


def vocabulary_links(golden: Golden) -> list[Link]:
    links = [
        one("word_emb.emb_layers.0.weight", "vocabulary.embedding.weight"),
        one("crit.out_layers.0.bias", "vocabulary.output.bias"),
    ]
    if not golden.ctor.get("tie_weight", True):
        links.append(one("crit.out_layers.0.weight", "vocabulary.output.weight"))
    return links


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


def attention_links(golden: Golden) -> list[Link]:
    """All links of a model of attention type 0 or 2."""
    links = vocabulary_links(golden)
    relative = golden.ctor.get("attn_type", 0) == 0
    if relative:
        # one pair of biases for all layers; ours is named after the first
        links.append(one("r_w_bias", "blocks.0.mixer.positions.u_HK"))
        links.append(one("r_r_bias", "blocks.0.mixer.positions.v_HK"))
    for layer in range(golden.ctor["n_layer"]):
        links += block_links(layer)
        links += relative_links(layer) if relative else absolute_links(layer)
    return links


def attention_config(golden: Golden) -> dict[str, Any]:
    """The model config of attention type 0 or 2."""
    ctor = golden.ctor
    kind = ctor.get("attn_type", 0)
    if kind in ATTENTION_TYPES:
        raise NotBuilt(ATTENTION_TYPES[kind])
    if kind == 2 and ctor["mem_len"]:
        raise NotBuilt("absolute positions that accumulate in memory (attention type 2)")
    if kind == 2 and ctor.get("pre_lnorm"):
        raise NotBuilt("queries from un-normalised inputs (attention type 2 with pre_lnorm)")
    if kind not in (0, 2):
        raise Unknown(f"{golden.name}: attention type {kind}")
    relative = {"kind": "relative_sinusoid", "clamp_len": ctor.get("clamp_len", 0)}
    mixer = {
        "kind": "attention",
        "n_heads": ctor["n_head"],
        "d_head": ctor["d_head"],
        "memory_len": ctor["mem_len"],
        "same_length": "including_self" if ctor.get("same_length") else "off",
        "positions": relative if kind == 0 else {"kind": "none"},
    }
    return model_config(
        golden,
        mixer,
        residual="pre_norm" if ctor.get("pre_lnorm") else "post_norm",
        positions={"kind": "none"} if kind == 0 else {"kind": "sinusoid", "order": "descending"},
    )


def model_config(
    golden: Golden, mixer: dict[str, Any], residual: str, positions: dict[str, Any]
) -> dict[str, Any]:
    """What the two code bases share around their mixers."""
    ctor = golden.ctor
    block = {
        "mixer": mixer,
        "channel": {"kind": "feed_forward", "d_ffn": ctor["d_inner"]},
        "residual": residual,
    }
    return {
        "d_model": ctor["d_model"],
        "stack": [{"block": block, "repeat": ctor["n_layer"]}],
        "positions": positions,
        "vocabulary": {"kind": "plain", "tie_weights": ctor.get("tie_weight", True)},
    }


def compare_memories(compare: Comparison, at: str, carry: Carry) -> None:
    """`mems/l`: inputs of layer l. Files of models without memory have none."""
    keys = compare.golden.keys(f"{at}/mems/")
    if not keys:
        return
    # theirs has one more, the outputs of the last layer, which nobody reads: `hidden` again
    assert len(keys) == len(carry) + 1
    compare.leave_out(f"{at}/mems/{len(carry)}", "never read; the same numbers as `hidden`")
    for layer, state in enumerate(carry):
        compare.out(f"{at}/mems/{layer}", state.hidden_BMD.transpose(0, 1))


def attention_subject(golden: Golden, dtype: torch.dtype, **changes: Any) -> Subject:
    """A model of attention type 0 or 2; `changes` replace fields of its mixer."""
    config = attention_config(golden)
    config["stack"][0]["block"]["mixer"].update(changes)
    links = attention_links(golden)
    it = subject(golden, config, golden.ctor["n_token"], links, dtype)
    it.states = compare_memories
    return it


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it.

    Raises:
        NotBuilt, Unknown: see `check_constructor`.
    """
    kind = golden.meta["codebase"].removeprefix("transformer-xl/pytorch").strip()
    if kind == "(utils/log_uniform_sampler.py)":
        raise NotBuilt("sampled softmax")
    check_constructor(golden, OPTIONS)
    it = attention_subject(golden, dtype)
    if kind == "(mem_transformer.MemTransformerLM)":
        run_phases(it)
    elif kind == "(train.py / eval.py evaluate)":
        it.memory_len = golden.meta["eval_lengths"]["mem_len"]
        streams(it, golden.meta["eval_lengths"]["tgt_len"])
    elif kind == "" and "train" in golden.meta:
        run_steps(it)
    else:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    return it.compare


def run_phases(it: Subject) -> None:
    """Evaluation, evaluations with other lengths, training."""
    golden = it.golden
    evaluate(it, "eval", "main", carried=True)
    for phase in golden.meta["phases"]:
        run_other_lengths(it, phase)
    grads = train(it, "train", "main", carried=True)
    compare_gradients(it, grads, "grad")


def run_other_lengths(it: Subject, phase: dict[str, Any]) -> None:
    """The same parameters with the memory, the clamp and the window of another evaluation."""
    unknown = set(phase) - {
        "tag",
        "nseg",
        "tgt_len",
        "ext_len",
        "mem_len",
        "clamp_len",
        "same_length",
    }
    if unknown:
        raise Unknown(f"{it.golden.name}: phase options {sorted(unknown)}")
    changes: dict[str, Any] = {}
    if "clamp_len" in phase:
        changes["positions"] = {"kind": "relative_sinusoid", "clamp_len": phase["clamp_len"]}
    if phase.get("same_length"):
        changes["same_length"] = "including_self"
    other = attention_subject(it.golden, it.dtype, **changes)
    other.compare, other.memory_len = it.compare, phase["mem_len"]
    evaluate(other, phase["tag"], phase["tag"], carried=True)


def run_steps(it: Subject) -> None:
    """Their training loop: Adam, global clipping, warm-up and cosine with their off-by-one."""
    train_meta = it.golden.meta["train"]
    if (train_meta["optim"], train_meta["scheduler"]) != ("adam", "cosine"):
        raise Unknown(f"{it.golden.name}: training with {train_meta}")
    plan = {
        "steps": train_meta["max_step"],
        "optimizer": {"kind": "adam", "lr": train_meta["lr"]},
        "schedule": {
            "kind": "cosine",
            "warmup_steps": train_meta["warmup_step"],
            "convention": "txl",
        },
        "clip_norm": train_meta["clip"],
    }
    optimise(it, load(TrainConfig, plan, "train"))
