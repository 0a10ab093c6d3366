"""The contract that all backends share, checked once before any of them is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.kernels import build, cuda
from workbench.kernels.dispatch import transformed

HALF = (torch.bfloat16, torch.float16)
"""beside these a state may be float32"""

CPP = (torch.float32, torch.float64, torch.bfloat16)


def check_fast_weights(
    op: str, q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, beta_BTH: Tensor | None, W_BHFV: Tensor
) -> None:
    """Refuse arguments whose shapes, types or devices do not fit each other.

    Raises:
        ValueError: names the argument, what was got and what the queries ask for.
    """
    if q_BTHF.dim() != 4 or v_BTHV.dim() != 4:
        raise ValueError(
            f"{op}: got queries of shape {_shape(q_BTHF)} and values of shape {_shape(v_BTHV)}, "
            "expected (batch, time, heads, width) for both"
        )
    B, T, H, F = q_BTHF.shape
    V = v_BTHV.shape[-1]
    if T == 0:
        raise ValueError(f"{op}: got a segment of no tokens, expected at least one")
    parts: list[tuple[str, Tensor, tuple[int, ...]]]
    parts = [("keys", k_BTHF, (B, T, H, F)), ("values", v_BTHV, (B, T, H, V))]
    if beta_BTH is not None:
        parts.append(("write strengths", beta_BTH, (B, T, H)))
    parts.append(("state", W_BHFV, (B, H, F, V)))
    for name, tensor, shape in parts:
        if tensor.shape != shape:
            raise ValueError(
                f"{op}: got {name} of shape {_shape(tensor)}, expected {shape} "
                f"beside queries of shape {_shape(q_BTHF)}"
            )
        wide = tensor is W_BHFV and q_BTHF.dtype in HALF and tensor.dtype == torch.float32
        if (tensor.dtype != q_BTHF.dtype and not wide) or tensor.device != q_BTHF.device:
            raise ValueError(
                f"{op}: got {name} of type {tensor.dtype} on {tensor.device}, expected "
                f"{q_BTHF.dtype} on {q_BTHF.device} like the queries. Convert before the call"
            )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def cpp_reasons(op: str, *tensors: Any) -> list[str]:
    """Why the C++ kernel of an op cannot take these tensors; empty: it can."""
    reasons = build.missing(op) + transformed()
    if tensors:
        first = tensors[0]
        if first.device.type != "cpu":
            reasons.append(f"the C++ kernels run on a CPU, the tensors are on {first.device.type}")
        if first.dtype not in CPP:
            reasons.append(
                "the C++ kernels take float32, float64 and bfloat16, "
                f"the tensors hold {first.dtype}"
            )
    return reasons


def cuda_reasons(op: str, *tensors: Any) -> list[str]:
    """Why the CUDA kernel of a rule cannot take these tensors; empty: it can."""
    reasons = cuda.reasons(op, *tensors)
    if not tensors:
        return reasons
    q, v = tensors[0], tensors[2]
    F, V = q.shape[-1], v.shape[-1]
    if q.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"the CUDA kernels take float32 and bfloat16, the tensors hold {q.dtype}")
    elif F > cuda.MOST_FEATURES:
        reasons.append(
            f"the CUDA kernels keep at most {cuda.MOST_FEATURES} features in registers, got {F}"
        )
    elif not reasons:
        needed = rule_shared_bytes(op == "delta_rule", q.element_size(), F, V)
        has = cuda.shared_bytes(q.get_device())
        if needed > has:
            reasons.append(
                f"{F} features of {q.dtype} need {needed} bytes of shared memory, a block of this "
                f"GPU has {has}"
            )
    return reasons


def rule_shared_bytes(delta: bool, size: int, F: int, V: int) -> int:
    """Bytes of shared memory that a block of the rules' CUDA kernels needs (kernels/common).

    Args:
        delta: the delta rule, not the sum rule.
        size: bytes of a number.
        F: features.
        V: width of the values.
    """
    C, wide, narrow = (64 if size == 2 else 32), -(-F // 16) * 16, 16 if V <= 16 else 32

    def tile(rows: int, columns: int) -> int:
        return rows * (columns * size + 16)

    rule = 1 + delta
    chunk = 2 * tile(C, wide)
    return max(
        chunk + 4 * (2 * C * (C + 1) + C),
        tile(wide + C * delta, narrow) + chunk + rule * (tile(C, narrow) + tile(C, C)) + 4 * C,
        3 * tile(C, 64) + 8 * C,
        tile(128 + (2 + delta) * C, 32) + 4 * C,
        2 * tile(C, 64) + rule * tile(C, C),
    )
