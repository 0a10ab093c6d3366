"""Dropout whose mask is a function of a seed and of the place of a number, and of nothing else.

So nothing is stored for the backward pass, which drops the gradient by the same function, and
neither threads nor backends change what is dropped. PyTorch's own dropout on a CPU draws one number
after another, which takes longer than the layers around it.
Paper: arXiv:1207.0580 (dropout), with the survivors scaled instead of the weights.
Shapes: any.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.kernels.attention import Dropout, check_dropout, kept
from workbench.kernels.checks import cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op

ROW = 4096


def reference(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """`x * (1 / (1 - p))` where a number is kept, else 0.

    Number i of x, counted in the order of its axes, is `kept` or not as the weight in row
    `i // 4096` and column `i % 4096` of an attention.

    Args:
        x: any shape.
        seed: one int64 on the device of x; a tensor, so that no device waits for the host.
        p: probability that a number is dropped, 0 <= p < 1.
    """
    rows = torch.Size([(x.numel() + ROW - 1) // ROW])
    stays = kept(Dropout(p, seed), rows, ROW).flatten()[: x.numel()].view(x.shape)
    return torch.where(stays, x * (1 / (1 - p)), torch.zeros((), dtype=x.dtype, device=x.device))


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


def _check(x: Tensor, seed: Tensor, p: float) -> None:
    check_dropout("dropout", Dropout(p, seed), x)


dropout = Op(
    "dropout",
    reference,
    [Backend("cpp", _cpp, partial(cpp_reasons, "dropout"), device="cpu")],
    check=_check,
)
