"""Transformer-XL's code (arXiv:1901.02860): what its files record. Token arrays are [time, batch].

The fast-weight code is a fork of it and shares this with `parity.fast_weight`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from parity.golden import Comparison, Golden, Unknown
from parity.phases import Subject, compare_gradients, evaluate, optimise, streams, subject, train
from workbench.carry import Carry
from workbench.config import load
from workbench.models import sampled
from workbench.models.mixers.base import Limits
from workbench.originals import fast_weight, transformer_xl
from workbench.train.config import TrainConfig


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
    """A model of Transformer-XL's layers; `changes` replace arguments of its constructor."""
    fork = golden.meta["codebase"].startswith("lmtool-fwms")
    original = fast_weight if fork else transformer_xl
    config = original.model_config({**golden.ctor, **changes})
    it = subject(golden, config, golden.ctor["n_token"], original.links(golden.ctor), dtype)
    it.states = compare_memories
    it.limits = Limits(ext_len=golden.ctor.get("ext_len", 0))
    return it


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it.

    Raises:
        NotBuilt, Unknown: see `workbench.originals.transformer_xl.check`.
    """
    kind = golden.meta["codebase"].removeprefix("transformer-xl/pytorch").strip()
    if kind == "(utils/log_uniform_sampler.py)":
        return run_sampling(golden, dtype)
    transformer_xl.check(golden.ctor)
    it = attention_subject(golden, dtype)
    if kind == "(mem_transformer.MemTransformerLM)":
        run_phases(it)
    elif kind == "(train.py / eval.py evaluate)":
        run_streams(it)
    elif kind == "" and "train" in golden.meta:
        run_steps(it)
    else:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    return it.compare


def run_phases(it: Subject) -> None:
    """Evaluation, evaluations with other lengths, training."""
    golden = it.golden
    evaluate(it, "eval", "main", carried=True)
    for phase in golden.meta.get("phases", []):
        evaluate(with_lengths(it, phase), phase["tag"], phase["tag"], carried=True)
    grads = train(it, "train", "main", carried=True)
    compare_gradients(it, grads, "grad")


def run_streams(it: Subject) -> None:
    """Their evaluation loop, with the lengths that it was given, or the model's own."""
    lengths = it.golden.meta.get("eval_lengths")
    it = with_lengths(it, lengths) if lengths else it
    segment_len = (lengths or it.golden.ctor)["tgt_len"]
    fields = it.limits._asdict()
    # an evaluation says so by itself
    del fields["constant_weights"]
    streams(it, segment_len, it.golden.meta["batch"], **fields)


def with_lengths(it: Subject, lengths: dict[str, Any]) -> Subject:
    """The same parameters with the lengths of another evaluation.

    Raises:
        Unknown: it changes more than that.
    """
    known = {"tag", "nseg", "tgt_len", "ext_len", "mem_len", "clamp_len", "same_length"}
    if unknown := set(lengths) - known:
        raise Unknown(f"{it.golden.name}: evaluation options {sorted(unknown)}")
    # their evaluation changes a clamp only to a positive one, and `same_length` only to true
    clamp_len = transformer_xl.clamp(lengths) or None
    if clamp_len and it.model.config.restarting:
        # absolute codes are the model's, not the state's
        changed = attention_subject(it.golden, it.dtype, clamp_len=clamp_len)
        it, clamp_len = replace(changed, compare=it.compare), None
    limits = Limits(
        memory_len=lengths["mem_len"],
        same_length="including_self" if lengths.get("same_length") else None,
        clamp_len=clamp_len,
        ext_len=lengths["ext_len"],
    )
    return replace(it, limits=limits)


def run_sampling(golden: Golden, dtype: torch.dtype) -> Comparison:
    """The sampled softmax on its own, with the classes that the original drew."""
    compare = Comparison(golden, str(dtype).removeprefix("torch."))
    names = {"embedding.weight": "param", "bias": "param", "hidden": "input"}
    leaves = {n: golden.tensor(f"{at}/{n}", dtype).requires_grad_() for n, at in names.items()}
    weight_CE, bias_C, hidden_TBE = leaves.values()
    targets_TB, drawn_S = golden.tensor("input/labels"), golden.tensor("input/neg_samples")
    p_C = sampled.log_uniform(golden.ctor["range_max"])
    expected_C = sampled.log_expected(p_C, 2 * golden.ctor["n_sample"], sign_slip=True).to(dtype)
    logits = sampled.sampled_logits(hidden_TBE, targets_TB, weight_CE, bias_C, drawn_S, expected_C)
    loss_TB = -logits.log_softmax(-1)[..., 0]
    loss_TB.mean().backward()
    compare.out("out/dist", p_C)
    compare.out("out/log_q", expected_C)
    compare.out("out/true_log_probs", expected_C[targets_TB])
    compare.out("out/samp_log_probs", expected_C[drawn_S])
    compare.out("out/logits", logits)
    compare.out("out/loss", loss_TB)
    compare.out("out/mean_loss", loss_TB.mean())
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"no gradient of {name}"
        compare.grad("grad", name, leaf.grad)
    return compare


def run_steps(it: Subject) -> None:
    """Their training loop: any optimizer, global clipping, schedules with their off-by-one."""
    meta = it.golden.meta["train"]
    optimizers: dict[str, dict[str, Any]] = {
        "adam": {"kind": "adam"},
        "sgd": {"kind": "sgd", "momentum": meta.get("mom", 0.0)},
        "adagrad": {"kind": "adagrad"},
    }
    schedules: dict[str, dict[str, Any]] = {
        "cosine": {"kind": "cosine", "min_lr": meta.get("eta_min", 0.0)},
        "inv_sqrt": {"kind": "inverse_sqrt"},
        "constant": {"kind": "constant"},
        # lowered by validations, of which the loop has none
        "dev_perf": {"kind": "plateau"},
    }
    known = {"clip", "lr", "max_step", "optim", "scheduler", "warmup_step", "mom", "eta_min"}
    plateau = {"lr_min", "decay_rate", "patience"}
    odd = set(meta) - known - plateau
    if odd or meta["optim"] not in optimizers or meta["scheduler"] not in schedules:
        raise Unknown(f"{it.golden.name}: training with {meta}")
    warmup = {"warmup_steps": meta["warmup_step"], "convention": "txl"}
    plan = {
        "steps": max(meta["max_step"], meta["warmup_step"]),
        "optimizer": {**optimizers[meta["optim"]], "lr": meta["lr"]},
        "schedule": {**schedules[meta["scheduler"]], **warmup},
        "clip_norm": meta["clip"],
    }
    optimise(it, load(TrainConfig, plan, "train"))
