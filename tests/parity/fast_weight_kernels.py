"""The fast-weight papers' kernels, each on its own: outputs, last states, and all gradients.

Arrays are [N, H, L, E]: rows, heads, time, width; write strengths [N, H, L, 1]; vectors of a state
[N, H, 1, E]. Ours keep time before heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parity.golden import Comparison, Golden, Unknown
from workbench import kernels
from workbench.models.mixers.delta_recurrent import (
    DeltaLSTMConfig,
    DeltaRecurrent,
    DeltaRecurrentState,
    DeltaRNNConfig,
)
from workbench.models.mixers.recurrent_delta import RecurrentDeltaState, recur

Arrays = dict[str, Tensor]

RULES = {"fast_weight_sum": kernels.sum_rule, "fast_weight_delta": kernels.delta_rule}
SIZES = {"n_heads": 1, "d_head": 1}
DELTA_RECURRENT = {
    "fast_rnn": DeltaRNNConfig(**SIZES, softmax="output"),
    "fast_rnn_v2": DeltaRNNConfig(**SIZES),
    "fast_lstm": DeltaLSTMConfig(**SIZES, softmax="output", update="sigmoid"),
    "fast_lstm_v2": DeltaLSTMConfig(**SIZES, update="sigmoid"),
    "fast_lstm_v3": DeltaLSTMConfig(**SIZES, update="sigmoid", skip=True),
    "fast_lstm_v4": DeltaLSTMConfig(**SIZES),
}
STATES = "extra/autograd_of_state"


def run_kernel(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run the op or recurrence that the file names on its inputs, and compare everything."""
    name = golden.meta["model"]
    compare = Comparison(golden, str(dtype).removeprefix("torch."))
    inputs = [key.removeprefix("input/") for key in golden.keys("input/")]
    leaves = {n: golden.tensor(f"input/{n}", dtype).requires_grad_() for n in inputs}
    grad_out = leaves.pop("grad_out")
    if name in RULES:
        results = run_rule(name, leaves)
    elif name in DELTA_RECURRENT:
        results = run_delta_recurrent(name, leaves)
    elif name == "rec_update_fwm_tanh":
        results = run_recurrent_delta(leaves)
    else:
        raise Unknown(f"{golden.name}: kernel '{name}'")
    for key, value in results.items():
        if f"out/{key}" in golden:
            compare.out(f"out/{key}", value)
    (results["out"] * grad_out).sum().backward()
    for leaf_name, leaf in leaves.items():
        # what they know no gradient of, the initial state, stands apart; ours has it
        group = "grad" if f"grad/{leaf_name}" in golden else STATES
        assert leaf.grad is not None, f"no gradient of {leaf_name}"
        if group == "grad" or f"{STATES}/{leaf_name}" in golden:
            compare.grad(group, leaf_name, leaf.grad)
    if "extra/grad_q_of_cuda_kernel" in golden:
        why = "their backward forgets the initial memory; grad/q is the true gradient"
        compare.leave_out("extra/grad_q_of_cuda_kernel", why)
    return compare


def turn(x: Tensor) -> Tensor:
    """[N, H, L, E] <-> (B, T, H, E)."""
    return x.transpose(1, 2)


def run_rule(name: str, leaves: Arrays) -> Arrays:
    inputs = [turn(leaves[n]) for n in ("q", "k", "v")]
    if "beta" in leaves:
        inputs.append(turn(leaves["beta"]).squeeze(-1))
    y_BTHV, W_BHFV = RULES[name](*inputs, leaves.get("W0"))
    return {"out": turn(y_BTHV), "W_final": W_BHFV}


def run_delta_recurrent(name: str, leaves: Arrays) -> Arrays:
    config = DELTA_RECURRENT[name]
    mixer = config.build(1)
    assert isinstance(mixer, DeltaRecurrent)
    gates, beta = (("i", "u", "o"), "b") if config.n_gates == 3 else (("",), "beta")

    def stacked(part: str) -> Tensor:
        return torch.stack([turn(leaves[part + gate]) for gate in gates], dim=2)

    h_BHV = leaves["h0"].squeeze(2)
    state = DeltaRecurrentState(
        W_BGHFV=h_BHV,  # neither is used by the recurrence
        z_BHF=h_BHV,
        R_BGHKV=torch.stack([leaves[f"W0{gate}"] for gate in gates], dim=1),
        h_BHV=h_BHV,
        c_BHV=leaves["c0"].squeeze(2) if "c0" in leaves else torch.zeros_like(h_BHV),
    )
    vectors = [stacked(part) for part in ("z", "k", "v")]
    # token by token, as the file holds the cell after each
    outputs, cells = [], []
    for z, k, v, b in zip(
        *(x.split(1, dim=1) for x in vectors),
        stacked(beta).squeeze(-1).split(1, dim=1),
        strict=True,
    ):
        y_BTHV, c_BHV, R_BGHKV = mixer.recur(z, k, v, b, state)
        state = state._replace(R_BGHKV=R_BGHKV, h_BHV=y_BTHV[:, -1], c_BHV=c_BHV)
        outputs.append(y_BTHV)
        cells.append(c_BHV)
    results = {
        "out": turn(torch.cat(outputs, dim=1)),
        "cell": torch.stack(cells, dim=2),
        "final_h0": state.h_BHV[:, :, None],
        "final_c0": state.c_BHV[:, :, None],
    }
    for gate, R_BHKV in zip(gates, state.R_BGHKV.unbind(1), strict=True):
        results[f"final_W0{gate}"] = R_BHKV
    return results


def run_recurrent_delta(leaves: Arrays) -> Arrays:
    mixed_BTHX = turn(torch.cat([leaves[n] for n in ("qx", "kx", "vx", "bx")], dim=-1))
    maps = [leaves["R_q"], leaves["R_k"], leaves["R_v"], leaves["r_b"].mT]
    state = RecurrentDeltaState(leaves["W0"], leaves["h0"].squeeze(2))
    y_BTHV, last = recur(mixed_BTHX, torch.cat(maps, dim=-1)[0], state)
    return {
        "out": turn(y_BTHV),
        "final_W0": last.W_BHKV,
        "final_h0": last.y_BHV[:, :, None],
    }
