"""The attention op on GPUs: the CUDA kernel, and PyTorch's own attention to compare it with.

Shapes: B batch, T segment, S memory + segment, H heads, K key width, V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.kernels import cuda
from workbench.kernels.attention import Call, Window, attention, distances, flat
from workbench.kernels.dispatch import Backend

WIDEST = {torch.float32: 128, torch.bfloat16: 256}
"""head widths that the CUDA kernel has tiles for"""


def _cuda(*arguments: Any) -> Tensor:
    y_BTHV, _ = torch.ops.workbench.attention_forward(*flat(Call(*arguments)), True)
    return y_BTHV


def _why_not_cuda(*arguments: Any) -> list[str]:
    reasons = cuda.reasons("attention", *arguments)
    if arguments:
        q, v = arguments[0], arguments[2]
        width = max(q.shape[-1], v.shape[-1])
        if q.dtype not in WIDEST:
            reasons.append(
                f"the CUDA kernel takes float32 and bfloat16, the tensors hold {q.dtype}"
            )
        elif width > WIDEST[q.dtype]:
            reasons.append(
                f"the CUDA kernel has heads of up to {WIDEST[q.dtype]} in {q.dtype}, got {width}"
            )
    return reasons


def _sdpa(q_BTHK: Tensor, k_BSHK: Tensor, v_BSHV: Tensor, window: Window, *rest: Any) -> Tensor:
    """PyTorch's scaled_dot_product_attention: content and a window, nothing else."""
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    seen_TS = None
    causal = T == S and window.nearest == 0 and window.farthest >= S - 1
    if not causal:
        distance_TS = distances(T, S, q_BTHK.device)
        seen_TS = (distance_TS >= window.nearest) & (distance_TS <= window.farthest)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSHK, v_BSHV))
    y_BHTV = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TS, is_causal=causal, scale=1.0)
    return y_BHTV.transpose(1, 2)


def _why_not_sdpa(*arguments: Any) -> list[str]:
    if not arguments:
        return []
    q, k, _, window, *rest = arguments
    names = ("scores by distance", "a span", "persistent vectors", "dropout by a seed")
    reasons = [
        f"PyTorch's scaled_dot_product_attention has no {name.removeprefix('a ')}"
        for name, x in zip(names, rest, strict=False)
        if x is not None
    ]
    if k.shape[1] - q.shape[1] < window.nearest or window.farthest < window.nearest:
        reasons.append("the first queries see nothing, for which it has no defined result")
    return reasons


attention.backends.insert(0, Backend("cuda", _cuda, _why_not_cuda, device="cuda"))
# behind the reference, which refuses nothing: it runs where it is asked for by name
attention.backends.append(Backend("sdpa", _sdpa, _why_not_sdpa))
