"""Dropout whose mask is a function of a seed and of the place of a number, and of nothing else.

So nothing is stored for the backward pass, which drops the gradient by the same function, and
neither threads nor backends change what is dropped. PyTorch's own dropout on a CPU draws one number
after another, which takes longer than the layers around it.
Paper: arXiv:1207.0580 (dropout), with the survivors scaled instead of the weights.
Shapes: any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.kernels import build
from workbench.kernels.dispatch import LIBRARY, Backend, Op

WORD = 0xFFFFFFFF
ROW = 4096


def reference(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """`x * (1 / (1 - p))` where a number is kept, else 0.

    Number i of x, counted in the order of its axes, is in row `r = i // 4096` and column
    `c = i % 4096`; all in unsigned 32-bit numbers, it is kept where `h >= p * 2^32` with

        first, second = mix(r ^ low word of seed), mix(r + high word of seed + 0x9E3779B9)
        h = c * 0x9E3779B1 + first;  h ^= h >> 16;  h *= 0x7FEB352D;  h ^= h >> 15
        h += second;  h *= 0x846CA68B;  h ^= h >> 16

    Args:
        x: any shape.
        seed: one int64 on the device of x; a tensor, so that no device waits for the host.
        p: probability that a number is dropped, 0 <= p < 1.
    """
    seed = seed.reshape(())
    row_R = torch.arange((x.numel() + ROW - 1) // ROW, device=x.device)
    first_R1 = mix(row_R ^ (seed & WORD))[:, None]
    second_R1 = mix(row_R + (seed >> 32 & WORD) + 0x9E3779B9)[:, None]
    h = (torch.arange(ROW, device=x.device) * 0x9E3779B1 + first_R1) & WORD
    h = (h ^ h >> 16) * 0x7FEB352D & WORD
    h = h ^ h >> 15
    h = (h + second_R1 & WORD) * 0x846CA68B & WORD
    h = h ^ h >> 16
    kept = (h >= min(round(p * 2**32), WORD)).flatten()[: x.numel()].view(x.shape)
    return torch.where(kept, x * (1 / (1 - p)), torch.zeros((), dtype=x.dtype, device=x.device))


def mix(x: Tensor) -> Tensor:
    """A permutation of 32-bit numbers (held in int64) without a pattern."""
    x = x & WORD
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16


LIBRARY.define("dropout(Tensor x, Tensor seed, float p) -> Tensor")


@torch.library.register_fake("workbench::dropout")
def _(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors
    return torch.ops.workbench.dropout(gy, seed, ctx.p), None, None


torch.library.register_autograd("workbench::dropout", _backward, setup_context=_remember)


def _cpp(x: Tensor, seed: Tensor, p: float) -> Tensor:
    result: Tensor = torch.ops.workbench.dropout(x, seed, p)
    return result


def _why_not(*arguments: Any) -> list[str]:
    reasons = build.missing("dropout")
    if arguments:
        x: Tensor = arguments[0]
        if x.device.type != "cpu":
            reasons.append(f"the C++ kernels run on a CPU, the tensor is on {x.device.type}")
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            reasons.append(
                f"the C++ kernel takes float32, float64 and bfloat16, the tensor holds {x.dtype}"
            )
    return reasons


def _check(x: Tensor, seed: Tensor, p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"dropout: got a probability of {p}, expected 0 <= p < 1")
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x.device:
        raise ValueError(
            f"dropout: got a seed of {seed.numel()} {seed.dtype} on {seed.device}, expected one "
            f"torch.int64 on {x.device} like the numbers"
        )


dropout = Op("dropout", reference, [Backend("cpp", _cpp, _why_not)], check=_check)
