"""The fast-weight papers' code (arXiv:2102.11174, 2106.06295), a fork of Transformer-XL's.

One number, `attn_type`, stands for rule, feature map and normalisation. Token arrays are [time,
batch]; phases whose name ends in `_carry` hand the fast weights from segment to segment.
"""

from __future__ import annotations

import torch

from parity import transformer_xl as xl
from parity.golden import Comparison, Golden, NotBuilt, Unknown
from parity.phases import Subject, compare_gradients, evaluate, streams, subject, train
from workbench import kernels
from workbench.carry import Carry
from workbench.config import load
from workbench.metrics import perplexity
from workbench.models.feature_maps import Favor
from workbench.models.language_model import LanguageModel
from workbench.originals import fast_weight
from workbench.train.config import EvalConfig
from workbench.train.evaluate import evaluate as measure

OTHER_KERNELS = ("fast_lstm", "fast_rnn", "rec_update_fwm_tanh")


def fast_weight_subject(golden: Golden, dtype: torch.dtype) -> Subject:
    ctor = golden.ctor
    config, links = fast_weight.model_config(ctor), fast_weight.links(ctor)
    it = subject(golden, config, ctor["n_token"], links, dtype)
    it.states = compare_fast_weights
    it.before_segment = lambda model, tag, segment: set_projections(golden, model, tag, segment)
    return it


def compare_fast_weights(compare: Comparison, at: str, carry: Carry) -> None:
    """`mems/l/0` is the matrix, `mems/l/1` the sum of keys where something is normalised by it."""
    for layer, state in enumerate(carry):
        if f"{at}/mems/{layer}/0" in compare.golden:
            compare.out(f"{at}/mems/{layer}/0", state.W_BHFV)
        if f"{at}/mems/{layer}/1" in compare.golden:
            compare.out(f"{at}/mems/{layer}/1", state.z_BHF[:, :, None])


def set_projections(golden: Golden, model: LanguageModel, tag: str, segment: int) -> None:
    """FAVOR+: the random matrices that the original drew, one a layer (and training segment)."""
    for layer, block in enumerate(model.layers):
        for favor in (m for m in block.mixer.modules() if isinstance(m, Favor)):
            training = tag.startswith("train")
            at = f"extra/{tag}/seg{segment}" if training else "extra/eval"
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
    it = (xl.attention_subject if attention else fast_weight_subject)(golden, dtype)
    if kind == "(model_main.MemTransformerLM)":
        run_phases(it, carried=attention)
    elif kind == "(eval_sliding_window.py)":
        run_sliding(it)
    elif kind == "(eval.py)":
        carried = attention or golden.meta.get("carry_over_fast_weight", False)
        carry = "keep" if carried else "reset"
        streams(it, golden.ctor["tgt_len"], golden.meta["batch"], carry=carry)
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
    compare_gradients(it, train(it, "train", "main", carried=carried), "grad")
    if golden.keys("out/eval_carry/"):
        evaluate(it, "eval_carry", "main", carried=True)
    if not golden.keys("out/train_carry/"):
        return
    grads = train(it, "train_carry", "main", carried=True)
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
    result = measure(
        it.model.eval(), golden.tensor("input/stream"), load(EvalConfig, config, "eval")
    )
    it.compare.out("out/nll", result.nll_nats)
    it.compare.out("out/mean_nll", result.mean_nats)
    it.compare.out("out/ppl", perplexity(result.mean_nats))


def run_kernel(golden: Golden, dtype: torch.dtype) -> Comparison:
    """One op on its own: outputs, final memory, and all gradients, that of the memory too."""
    if golden.meta["model"].startswith(OTHER_KERNELS):
        raise NotBuilt(f"kernel {golden.meta['model']}")
    ops = {"fast_weight_sum": kernels.sum_rule, "fast_weight_delta": kernels.delta_rule}
    if golden.meta["model"] not in ops:
        raise Unknown(f"{golden.name}: kernel '{golden.meta['model']}'")
    compare = Comparison(golden, str(dtype).removeprefix("torch."))
    names = [n for n in ("q", "k", "v", "beta", "W0") if f"input/{n}" in golden]
    leaves = {n: golden.tensor(f"input/{n}", dtype).requires_grad_() for n in names}
    # theirs is [N, H, L, E], with beta [N, H, L, 1]; ours keeps time before heads
    inputs = [leaves[n].transpose(1, 2) for n in names if n != "W0"]
    if "beta" in names:
        inputs[names.index("beta")] = inputs[names.index("beta")].squeeze(-1)
    memory = leaves.get("W0", torch.zeros(*(golden.ctor[s] for s in "NHEM"), dtype=dtype))
    y_BTHV, state_BHFV = ops[golden.meta["model"]](*inputs, memory)
    out = y_BTHV.transpose(1, 2)
    (out * golden.tensor("input/grad_out", dtype)).sum().backward()
    compare.out("out/out", out)
    compare.out("out/W_final", state_BHFV)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"no gradient of {name}"
        compare.grad("grad", name, leaf.grad)
    if "extra/grad_q_of_cuda_kernel" in golden:
        why = "their backward forgets the initial memory; grad/q is the true gradient"
        compare.leave_out("extra/grad_q_of_cuda_kernel", why)
    return compare
