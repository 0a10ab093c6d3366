"""The delta rule: replace what a matrix holds under a key, read it with the query.

Paper: arXiv:2102.11174 eq. 23 to 25 (section 4.1).
Shapes: B batch, T segment, H heads, F key features, V value width.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import chunked
from workbench.kernels.checks import HALF, check_fast_weights, cpp_reasons, cuda_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative
from workbench.kernels.features import computed_type, sum_normalise, widened


def delta_step(W_BHFV: Tensor, k_BHF: Tensor, v_BHV: Tensor, beta_BH: Tensor) -> Tensor:
    """One token's correction, `W + k (beta (v - W^T k))^T`: for recurrences whose reads or writes
    depend on what was read before, so that no kernel can take a whole segment."""
    error_BHV = v_BHV - read(W_BHFV, k_BHF)
    return W_BHFV + k_BHF[..., None] * (beta_BH[..., None] * error_BHV)[..., None, :]


def read(W_BHFV: Tensor, q_BHF: Tensor) -> Tensor:
    """`W^T q`, (B, H, V)."""
    return (q_BHF[..., None, :] @ W_BHFV).squeeze(-2)


def reference(
    q_BTHF: Tensor,
    k_BTHF: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    state_BHFV: Tensor,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Correct then read, token by token: `W += k (beta (v - W^T k))^T; y = W^T q`.

    Args:
        q_BTHF: queries, already mapped; any float type, all computed with float32 at least.
        k_BTHF: keys, likewise.
        v_BTHV: values.
        beta_BTH: write strengths, 0 (keep what is there) to 1 (replace it).
        state_BHFV: W before the first token; left unchanged. Of the other tensors' type, or float32
            beside bfloat16 or float16.
        normalise: divide queries and keys by their sum over F first (section 4.2); a sum of zero
            leaves them as they are.

    Returns:
        What each token's query read, (B, T, H, V), of the values' type, and W after the last
        token, of the state's.
    """
    q, k, v, beta, W_BHFV = (widened(x) for x in (q_BTHF, k_BTHF, v_BTHV, beta_BTH, state_BHFV))
    if normalise:
        q, k = sum_normalise(q), sum_normalise(k)
    y = []
    tokens = zip(q.unbind(1), k.unbind(1), v.unbind(1), beta.unbind(1), strict=True)
    for q_BHF, k_BHF, v_BHV, beta_BH in tokens:
        W_BHFV = delta_step(W_BHFV, k_BHF, v_BHV, beta_BH)
        y.append(read(W_BHFV, q_BHF))
    return torch.stack(y, dim=1).to(v_BTHV.dtype), W_BHFV.to(state_BHFV.dtype)


LIBRARY.define(
    "delta_rule_forward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor state, bool normalise,"
    " bool keep_error) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "delta_rule_backward(Tensor gy, Tensor glast, Tensor q, Tensor k, Tensor beta, Tensor state,"
    " Tensor error, bool normalise) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("workbench::delta_rule_forward")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    state: Tensor,
    normalise: bool,
    keep_error: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # a GPU keeps the errors as it writes them, in the values' type
    dtype = computed_type(v) if v.device.type == "cpu" else v.dtype
    error = v.new_empty(v.shape if keep_error else (0,), dtype=dtype)
    return v.new_empty(v.shape), state.new_empty(state.shape), error


@torch.library.register_fake("workbench::delta_rule_backward")
def _(
    gy: Tensor,
    glast: Tensor,
    q: Tensor,
    k: Tensor,
    beta: Tensor,
    state: Tensor,
    error: Tensor,
    normalise: bool,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, gy, beta, state))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, _, beta, state, normalise, keep_error = inputs
    assert keep_error, "differentiated without the errors that the backward pass needs"
    ctx.save_for_backward(q, k, beta, state, output[2])
    ctx.normalise = normalise
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, gy: Tensor | None, glast: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, beta, state, error = ctx.saved_tensors
    gy = torch.zeros_like(error, dtype=q.dtype) if gy is None else gy
    glast = torch.zeros_like(state) if glast is None else glast
    grads = torch.ops.workbench.delta_rule_backward(
        gy, glast, q, k, beta, state, error, ctx.normalise
    )
    return *grads, None, None


torch.library.register_autograd("workbench::delta_rule_forward", _backward, setup_context=_remember)
refuse_second_derivative("delta_rule")


def _cpp(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    # the errors v - W^T k are what the backward pass would otherwise have to compute again
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, beta, state))
    y, last, _ = torch.ops.workbench.delta_rule_forward(q, k, v, beta, state, normalise, keep)
    return y, last


def _cuda(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    if normalise:
        q, k = (sum_normalise(widened(x)).to(x.dtype) for x in (q, k))
    return _cpp(q, k, v, beta, state)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    """flash-linear-attention's Triton kernel, for comparison.

    It comes after `chunked`, which refuses nothing: it runs where it is asked for by name. It may
    move before `cuda`, for the sizes where it is faster, on the day when a committed record of
    `make bench` on a GPU says so.
    """
    from fla.ops.delta_rule import chunk_delta_rule

    if normalise:
        q, k = (sum_normalise(widened(x)).to(x.dtype) for x in (q, k))
    y, last = chunk_delta_rule(
        q, k, v, beta, scale=1.0, initial_state=state.float(), output_final_state=True
    )
    return y, last.to(state.dtype)


def _flash_reasons(*arguments: Any) -> list[str]:
    if importlib.util.find_spec("fla") is None:
        return ["flash-linear-attention is not installed (pip install flash-linear-attention)"]
    if not arguments:
        return [] if torch.cuda.is_available() else ["there is no NVIDIA GPU that PyTorch can use"]
    q = arguments[0]
    reasons = []
    if q.device.type != "cuda":
        reasons.append(f"flash-linear-attention runs on a GPU, the tensors are on {q.device.type}")
    if q.dtype not in HALF:
        reasons.append(f"flash-linear-attention takes 16-bit floats, the tensors hold {q.dtype}")
    if q.shape[-1] > 256:
        reasons.append(f"flash-linear-attention takes at most 256 features, got {q.shape[-1]}")
    return reasons


def _check(
    q_BTHF: Tensor,
    k_BTHF: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    state_BHFV: Tensor,
    normalise: bool = False,
) -> None:
    check_fast_weights("delta_rule", q_BTHF, k_BTHF, v_BTHV, beta_BTH, state_BHFV)


delta_rule = Op(
    "delta_rule",
    reference,
    [
        Backend("cuda", _cuda, partial(cuda_reasons, "delta_rule"), device="cuda"),
        Backend("cpp", _cpp, partial(cpp_reasons, "delta_rule"), device="cpu"),
        Backend("chunked", chunked.delta_rule),
        Backend("flash_linear_attention", _flash, _flash_reasons, device="cuda"),
    ],
    check=_check,
    takes_half=4,
)
