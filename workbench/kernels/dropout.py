"""Dropout whose mask is a function of a seed and of the place of a number, and of nothing else.

So nothing is stored for the backward pass, which drops the gradient by the same function, and
neither threads nor backends change what is dropped. PyTorch's own dropout on a CPU draws one number
after another, which takes longer than the layers around it.
Paper: arXiv:1207.0580 (dropout), with the survivors scaled instead of the weights.
Shapes: any.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.kernels.checks import cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op

ROW = 4096
WORD = 0xFFFFFFFF


class Dropout(NamedTuple):
    """What decides on each number, the same on every backend: see `kept`."""

    p_drop: float
    seed: Tensor
    """one int64 where the numbers are; a tensor, so that no device waits for the host"""


def kept(dropout: Dropout, rows_BHT: torch.Size, columns: int) -> Tensor:
    """Which numbers dropout keeps, as a function of the seed and of where they are, and no more.

    All in unsigned 32-bit numbers, with `mix` as below, of row r and column c: among the weights of
    an attention r = (b H + h) T + t, and c is the key's index j, or S + n for persistent vector n.
    A number stays where the last line is at least `threshold(p_drop)`:

        first, second = mix(r ^ low word of seed), mix(r + high word of seed + 0x9E3779B9)
        x = c * 0x9E3779B1 + first;  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15
        x += second;  x *= 0x846CA68B;  x ^= x >> 16

    Returns:
        booleans of shape (*rows_BHT, columns).
    """
    seed, device = dropout.seed.reshape(()), dropout.seed.device
    row = torch.arange(rows_BHT.numel(), device=device)
    first = mix(row ^ (seed & WORD))[:, None]
    second = mix((row + (seed >> 32 & WORD) + 0x9E3779B9) & WORD)[:, None]
    x = (torch.arange(columns, device=device) * 0x9E3779B1 + first) & WORD
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = x ^ x >> 15
    x = (x + second & WORD) * 0x846CA68B & WORD
    x = x ^ x >> 16
    return (x >= threshold(dropout.p_drop)).view(*rows_BHT, columns)


def mix(x: Tensor) -> Tensor:
    """A permutation of 32-bit numbers (held in int64) without a pattern.

    x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x *= 0x846CA68B;  x ^= x >> 16
    """
    x = x & WORD
    x = (x ^ x >> 16) * 0x7FEB352D & WORD
    x = (x ^ x >> 15) * 0x846CA68B & WORD
    return x ^ x >> 16


def threshold(p_drop: float) -> int:
    """Of 2^32 equally likely numbers, how many mean that a number is dropped."""
    return min(round(p_drop * 2**32), WORD)


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


def check_dropout(op: str, dropout: Dropout, x: Tensor) -> None:
    """Refuse a probability out of range, and a seed that is not one int64 beside the numbers."""
    p_drop, seed = dropout
    if not 0 <= p_drop < 1:
        raise ValueError(f"{op}: got p_drop {p_drop}, expected 0 <= p_drop < 1")
    fits = isinstance(seed, Tensor) and seed.dtype == torch.int64 and seed.numel() == 1
    if not fits or seed.device != x.device:
        got = f"{seed.numel()} {seed.dtype} on {seed.device}" if isinstance(seed, Tensor) else seed
        raise ValueError(
            f"{op}: got a seed of {got}, expected a tensor of one torch.int64 on {x.device} like "
            "the numbers"
        )


def _check(x: Tensor, seed: Tensor, p: float) -> None:
    check_dropout("dropout", Dropout(p, seed), x)


dropout = Op(
    "dropout",
    reference,
    [Backend("cpp", _cpp, partial(cpp_reasons, "dropout"), device="cpu")],
    check=_check,
)
