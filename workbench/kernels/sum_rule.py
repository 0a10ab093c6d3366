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
from workbench.kernels.checks import check_fast_weights, cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op


def reference(
    q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, state_BHFV: Tensor
) -> tuple[Tensor, Tensor]:
    """Write then read, token by token: `W += k v^T; y = W^T q`.

    Args:
        q_BTHF: queries, already mapped and normalised; nothing is scaled here.
        k_BTHF: keys, likewise.
        v_BTHV: values.
        state_BHFV: W before the first token; left unchanged.

    Returns:
        What each token's query read, (B, T, H, V), and W after the last token.
    """
    W_BHFV, y = state_BHFV, []
    for q_BHF, k_BHF, v_BHV in zip(
        q_BTHF.unbind(1), k_BTHF.unbind(1), v_BTHV.unbind(1), strict=True
    ):
        W_BHFV = W_BHFV + k_BHF[..., None] * v_BHV[..., None, :]
        y.append((q_BHF[..., None, :] @ W_BHFV).squeeze(-2))
    return torch.stack(y, dim=1), W_BHFV


LIBRARY.define("sum_rule_forward(Tensor q, Tensor k, Tensor v, Tensor state) -> (Tensor, Tensor)")
LIBRARY.define(
    "sum_rule_backward(Tensor gy, Tensor glast, Tensor q, Tensor k, Tensor v, Tensor state)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("workbench::sum_rule_forward")
def _(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


@torch.library.register_fake("workbench::sum_rule_backward")
def _(
    gy: Tensor, glast: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, state))


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gy: Tensor | None, glast: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v, state = ctx.saved_tensors
    gy = torch.zeros_like(v) if gy is None else gy
    glast = torch.zeros_like(state) if glast is None else glast
    return torch.ops.workbench.sum_rule_backward(gy, glast, q, k, v, state)


torch.library.register_autograd("workbench::sum_rule_forward", _backward, setup_context=_remember)


def _cpp(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.workbench.sum_rule_forward(q, k, v, state)


def _check(q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, state_BHFV: Tensor) -> None:
    check_fast_weights("sum_rule", q_BTHF, k_BTHF, v_BTHV, None, state_BHFV)


sum_rule = Op(
    "sum_rule",
    reference,
    [
        Backend("cpp", _cpp, partial(cpp_reasons, "sum_rule")),
        Backend("chunked", chunked.sum_rule, chunked.why_not),
    ],
    check=_check,
)
