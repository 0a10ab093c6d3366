"""The sum rule: add key times value to a matrix, read it with the query.

Paper: arXiv:2006.16236 section 3.3 (linear attention as a recurrence), arXiv:2102.11174 eq. 18.
Shapes: B batch, T segment, H heads, F key features, V value width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import chunked
from workbench.kernels.checks import check_fast_weights, cpp_reasons, cuda_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative
from workbench.kernels.features import sum_normalise, widened


def reference(
    q_BTHF: Tensor,
    k_BTHF: Tensor,
    v_BTHV: Tensor,
    state_BHFV: Tensor,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Write then read, token by token: `W += k v^T; y = W^T q`.

    Args:
        q_BTHF: queries, already mapped; any float type, all computed with float32 at least.
        k_BTHF: keys, likewise.
        v_BTHV: values.
        state_BHFV: W before the first token; left unchanged. Of the other tensors' type, or float32
            beside bfloat16 or float16.
        normalise: divide queries and keys by their sum over F first (arXiv:2102.11174 section
            4.2); a sum of zero leaves them as they are.

    Returns:
        What each token's query read, (B, T, H, V), of the values' type, and W after the last
        token, of the state's.
    """
    q, k, v, W_BHFV = (widened(x) for x in (q_BTHF, k_BTHF, v_BTHV, state_BHFV))
    if normalise:
        q, k = sum_normalise(q), sum_normalise(k)
    y = []
    for q_BHF, k_BHF, v_BHV in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        W_BHFV = W_BHFV + k_BHF[..., None] * v_BHV[..., None, :]
        y.append((q_BHF[..., None, :] @ W_BHFV).squeeze(-2))
    return torch.stack(y, dim=1).to(v_BTHV.dtype), W_BHFV.to(state_BHFV.dtype)


LIBRARY.define(
    "sum_rule_forward(Tensor q, Tensor k, Tensor v, Tensor state, bool normalise)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(
    "sum_rule_backward(Tensor gy, Tensor glast, Tensor q, Tensor k, Tensor v, Tensor state,"
    " bool normalise) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("workbench::sum_rule_forward")
def _(q: Tensor, k: Tensor, v: Tensor, state: Tensor, normalise: bool) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


@torch.library.register_fake("workbench::sum_rule_backward")
def _(
    gy: Tensor, glast: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, normalise: bool
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, state))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.normalise = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gy: Tensor | None, glast: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, state = ctx.saved_tensors
    gy = torch.zeros_like(v) if gy is None else gy
    glast = torch.zeros_like(state) if glast is None else glast
    grads = torch.ops.workbench.sum_rule_backward(gy, glast, q, k, v, state, ctx.normalise)
    return *grads, None


torch.library.register_autograd("workbench::sum_rule_forward", _backward, setup_context=_remember)
refuse_second_derivative("sum_rule")


def _cpp(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    y, last = torch.ops.workbench.sum_rule_forward(q, k, v, state, normalise)
    return y, last


def _cuda(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    if normalise:
        q, k = (sum_normalise(widened(x)).to(x.dtype) for x in (q, k))
    return _cpp(q, k, v, state)


def _check(
    q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, state_BHFV: Tensor, normalise: bool = False
) -> None:
    check_fast_weights("sum_rule", q_BTHF, k_BTHF, v_BTHV, None, state_BHFV)


sum_rule = Op(
    "sum_rule",
    reference,
    [
        Backend("cuda", _cuda, partial(cuda_reasons, "sum_rule"), device="cuda"),
        Backend("cpp", _cpp, partial(cpp_reasons, "sum_rule"), device="cpu"),
        Backend("chunked", chunked.sum_rule),
    ],
    check=_check,
    takes_half=3,
)
