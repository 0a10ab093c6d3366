"""The fast-weight papers' code (arXiv:2102.11174, 2106.06295), a fork of Transformer-XL's.

One number, `attn_type`, stands for rule, feature map, normalisation and recurrence. Token arrays
are [time, batch]; phases whose name ends in `_carry` hand the fast weights from segment to segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity import transformer_xl as xl
from parity.fast_weight_kernels import run_kernel
from parity.golden import Comparison, Golden, Unknown
from parity.phases import Subject, compare_gradients, evaluate, streams, subject, train
from workbench.carry import Carry, State
from workbench.config import load
from workbench.metrics import perplexity
from workbench.models.feature_maps import Favor
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.deep_delta import DeltaMLPState
from workbench.models.mixers.delta_recurrent import DeltaRecurrentState
from workbench.models.mixers.fast_weight import DrivenFastWeights, FastWeights
from workbench.models.mixers.recurrent import HiddenState, LSTMState
from workbench.models.mixers.recurrent_delta import RecurrentDeltaState
from workbench.originals import fast_weight, transformer_xl
from workbench.train.config import EvalConfig
from workbench.train.evaluate import evaluate as measure

COMPLETE = "extra/grad_complete/"


def fast_weight_subject(golden: Golden, dtype: torch.dtype, **changes: Any) -> Subject:
    """A model of fast weights; `changes` replace arguments of its constructor."""
    ctor = {**golden.ctor, **changes}
    config, links = fast_weight.model_config(ctor), fast_weight.links(ctor)
    if golden.keys(COMPLETE):
        # the file also holds what the original never computes: gradients of its base weights
        config["stack"][0]["block"]["mixer"]["base_weights"] = "trained"
    it = subject(golden, config, ctor["n_token"], links, dtype)
    it.states = compare_states
    it.before_segment = lambda model, tag, segment: set_projections(golden, model, tag, segment)
    it.before_segment(it.model, "eval", 0)
    return it


def compare_states(compare: Comparison, at: str, carry: Carry) -> None:
    """`mems/l/j`, or `mems/l` where a layer has one array; what they have not, they leave out."""
    if not compare.golden.keys(f"{at}/mems/"):
        return
    for layer, state in enumerate(carry):
        if isinstance(state, DeltaMLPState):
            why = "their Delta MLP returns a tuple that it never reads, and starts afresh"
            compare.leave_out(f"{at}/mems/{layer}/*", why)
            continue
        for j, value in enumerate(in_their_order(state)):
            for key in (f"{at}/mems/{layer}/{j}", f"{at}/mems/{layer}"):
                if key in compare.golden:
                    compare.out(key, value)


def in_their_order(state: State) -> list[Tensor]:
    """Our state as the arrays of their tuple: [N, H, ...], vectors [N, H, 1, ...], and layers of
    PyTorch [1, N, ...]."""
    if isinstance(state, LSTMState | HiddenState):
        return [leaf[None] for leaf in state]
    if isinstance(state, FastWeights):
        return [state.W_BHFV, state.z_BHF[:, :, None]]
    if isinstance(state, DrivenFastWeights):
        return [state.W_BHFV, state.z_BHF[:, :, None], state.h_BU[None], state.c_BU[None]]
    if isinstance(state, RecurrentDeltaState):
        no_sums = torch.empty(0)  # of keys; there are none without normalisation
        return [state.W_BHKV, no_sums, state.y_BHV[:, :, None]]
    assert isinstance(state, DeltaRecurrentState), type(state)
    matrices = [*state.W_BGHFV.unbind(1), *state.R_BGHKV.unbind(1)]
    return [*matrices, state.h_BHV[:, :, None], state.c_BHV[:, :, None]]


def set_projections(golden: Golden, model: LanguageModel, tag: str, segment: int) -> None:
    """FAVOR+: the random matrices that the original drew, one a layer (and training segment)."""
    training = tag.startswith("train")
    at = f"extra/{tag}/seg{segment}" if training else "extra/eval"
    for layer, block in enumerate(model.layers):
        for favor in (m for m in block.mixer.modules() if isinstance(m, Favor)):
            matrix = golden.tensor(f"{at}/proj_matrix/{layer}")
            # training draws a new one at each forward pass, evaluation uses what it finds
            favor.draw = lambda matrix=matrix: matrix
            if not training:
                favor.get_buffer("projection_KM").copy_(matrix)


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it (`NotBuilt`, `Unknown`)."""
    kind = golden.meta["codebase"].removeprefix("lmtool-fwms/src").strip()
    if kind == "(kernel level)":
        return run_kernel(golden, dtype)
    fast_weight.check(golden.ctor)
    attention = fast_weight.is_attention(golden.ctor)
    build = xl.attention_subject if attention else fast_weight_subject
    # their evaluations change a clamp only to a positive one; every kind has codes to clamp
    clamp_len = transformer_xl.clamp(golden.meta) or transformer_xl.clamp(golden.ctor)
    it = build(golden, dtype, clamp_len=clamp_len)
    if kind == "(model_main.MemTransformerLM)":
        run_phases(it, carried=attention)
    elif kind == "(eval_sliding_window.py)":
        run_sliding(it)
    elif kind == "(eval.py)" and attention:
        xl.run_streams(it)
    elif kind == "(eval.py)":
        carry = "keep" if golden.meta.get("carry_over_fast_weight") else "reset"
        segment_len = golden.meta.get("eval_lengths", golden.ctor)["tgt_len"]
        streams(it, segment_len, golden.meta["batch"], carry=carry)
    else:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    return it.compare


def run_phases(it: Subject, carried: bool) -> None:
    """Evaluation and training, with fresh fast weights in each segment and with carried ones.

    Args:
        it: the model and its file.
        carried: hand the state on also in the plain phases, as the attention models do.
    """
    golden = it.golden
    evaluate(it, "eval", "main", carried=carried)
    grads = train(it, "train", "main", carried=carried)
    if golden.keys(COMPLETE):
        compare_gradients(it, grads, COMPLETE.rstrip("/"))
    never = golden.meta.get("grad_is_none", [])
    compare_gradients(it, {k: v for k, v in grads.items() if k not in never}, "grad")
    # their Delta MLP returns a carry and never reads one
    hands_on = golden.ctor["attn_type"] != 54
    if golden.keys("out/eval_carry/"):
        evaluate(it, "eval_carry", "main", carried=hands_on)
    if not golden.keys("out/train_carry/"):
        return
    grads = train(it, "train_carry", "main", carried=hands_on)
    complete = "extra/grad_carry_complete"
    if golden.keys(complete):
        # their sum-rule kernel's backward forgets carried weights in the gradient of the queries;
        # the file also holds the gradient of what the forward pass computes: ours
        it.compare.leave_out("grad_carry/*", "the original's backward drops the carried weights")
        compare_gradients(it, grads, complete, "grad_carry")
    else:
        compare_gradients(it, grads, "grad_carry", "grad_carry")


def run_sliding(it: Subject) -> None:
    """Windows moved by one token: our `evaluate` with the method that repeats their protocol."""
    golden = it.golden
    config = {"method": "windows", "context_len": golden.meta["window"], "batch_size": 16}
    config["n_streams"] = golden.meta["batch"]
    config["skip_first"] = golden.meta.get("skip_first", False)
    result = measure(
        it.model.eval(), golden.tensor("input/stream"), load(EvalConfig, config, "eval")
    )
    it.compare.out("out/nll", result.nll_nats)
    it.compare.out("out/mean_nll", result.mean_nats)
    it.compare.out("out/ppl", perplexity(result.mean_nats))
