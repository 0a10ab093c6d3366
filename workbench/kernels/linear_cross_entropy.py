"""A linear map and the cross-entropy of its softmax, without the logits of all classes at once.

Paper: arXiv:2411.09009 section 3 (logits in blocks, computed again in the backward pass).
Shapes: N tokens, C classes, D width of what the softmax reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative, transformed

BLOCK = 1 << 22
"""Logits of a block. They stay in the cache for all that is done to them; where there are no more,
PyTorch's own functions take them at once."""
KEPT = 1 << 24
"""Logits that a forward pass keeps for its backward pass, 64 MiB; more are computed again. Kept in
blocks, they save an eighth of the time (1,400 tokens, 10,000 classes)."""


def wide(x: Tensor) -> Tensor:
    """Logits in float32 or better: sums over many classes need it."""
    return x if x.dtype == torch.float64 else x.float()


def reference(
    hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor
) -> Tensor:
    """`logsumexp_c(h w_c + b_c) - (h w_t + b_t)`: nats of each target, unreduced.

    Args:
        hidden_ND: what the softmax reads.
        weight_CD, bias_C: of the same type.
        targets_N: ids, each 0 to C - 1.

    Returns:
        (N,) in float32, or in float64 where the arguments are.
    """
    logits_NC = wide(F.linear(hidden_ND, weight_CD, bias_C))
    # no id is ignored: -100 is as wrong as -1
    return F.cross_entropy(logits_NC, targets_N, reduction="none", ignore_index=-(2**62))


LIBRARY.define(
    "linear_cross_entropy_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets,"
    " bool keep) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "linear_cross_entropy_backward(Tensor gnll, Tensor lse, Tensor kept, Tensor hidden,"
    " Tensor weight, Tensor? bias, Tensor targets) -> (Tensor, Tensor, Tensor)"
)


class Blocks:
    """The logits of some classes after the others.

    Args:
        hidden_ND, weight_CD, bias_C, targets_N: as of `reference`.
        kept: memory for all logits, block after block, or for none.
        known: whether it holds them already.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        targets_N: Tensor,
        kept: Tensor,
        known: bool = False,
    ):
        self.hidden_ND, self.weight_CD, self.bias_C = hidden_ND, weight_CD, bias_C
        self.targets_N, self.kept, self.known = targets_N, kept, known
        N, C = len(hidden_ND), len(weight_CD)
        # narrow products are slow, however many the tokens are
        self.width = min(C, max(BLOCK // max(N, 1), 512))
        buffer = hidden_ND.new_empty(N * self.width)
        self.buffer = wide(buffer) if len(kept) else buffer

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Classes; their logits; memory of that size to write to, the logits' own where they are
        not kept; which targets are among them, and where."""
        N, C = len(self.hidden_ND), len(self.weight_CD)
        for low in range(0, C, self.width):
            classes = slice(low, min(C, low + self.width))
            n = classes.stop - low
            free_Nc = logits_Nc = self.buffer[: N * n].view(N, n)
            if len(self.kept):
                logits_Nc = self.kept[N * low : N * classes.stop].view(N, n)
            weight_Dc = self.weight_CD[classes].T
            if not self.known:
                torch.mm(self.hidden_ND, weight_Dc, out=logits_Nc)
                if self.bias_C is not None:
                    # while they are in the cache: faster on a CPU than addmm, which begins with it
                    logits_Nc += self.bias_C[classes]
            column_N = self.targets_N - low
            inside_N = (column_N >= 0) & (column_N < n)
            column_N1 = column_N.clamp(0, n - 1)[:, None]
            wide_Nc = wide(logits_Nc)
            yield classes, wide_Nc, free_Nc if len(self.kept) else wide_Nc, inside_N, column_N1


@torch.library.impl("workbench::linear_cross_entropy_forward", "CompositeExplicitAutograd")
def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= len(weight):
            raise IndexError(f"got targets {low} to {high}, expected 0 to {len(weight) - 1}")
    kept = hidden.new_empty(len(hidden) * len(weight) if keep else 0)
    top = wide(hidden.new_full((len(hidden),), float("-inf")))
    total, at_target = torch.zeros_like(top), torch.zeros_like(top)
    for _, logits, free, inside, column in Blocks(hidden, weight, bias, targets, kept):
        at_target = torch.where(inside, logits.gather(1, column)[:, 0], at_target)
        # a running maximum, and the sum of exponentials below it
        before, top = top, top.maximum(logits.amax(1))
        below = torch.sub(logits, top[:, None], out=free).exp_()
        total = total * (before - top).exp() + below.sum(1)
    lse = top + total.log()
    return lse - at_target, lse, kept


@torch.library.impl("workbench::linear_cross_entropy_backward", "CompositeExplicitAutograd")
def _backward(
    gnll: Tensor,
    lse: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    dbias = wide(weight.new_empty(len(weight) if bias is not None else 0))
    dhidden = wide(torch.zeros_like(hidden, memory_format=torch.contiguous_format))
    blocks = Blocks(hidden, weight, bias, targets, kept, known=len(kept) > 0)
    for classes, logits, free, inside, column in blocks:
        # (softmax - one) times what comes back
        slope = torch.sub(logits, lse[:, None], out=free).exp_().mul_(gnll[:, None])
        slope.scatter_add_(1, column, torch.where(inside, -gnll, 0.0)[:, None])
        if bias is not None:
            torch.sum(slope, 0, out=dbias[classes])
        narrow = slope.to(weight.dtype)
        # every class has its whole gradient here: nothing as large as the table is added up
        torch.mm(narrow.T, hidden, out=dweight[classes])
        if dhidden.dtype == weight.dtype:
            dhidden.addmm_(narrow, weight[classes])
        else:
            dhidden += narrow @ weight[classes]
    return dhidden.to(hidden.dtype), dweight, dbias.to(weight.dtype)


@torch.library.register_fake("workbench::linear_cross_entropy_forward")
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    nll, lse = (wide(hidden.new_empty(hidden.shape[0])) for _ in range(2))
    return nll, lse, hidden.new_empty(hidden.shape[0] * weight.shape[0] if keep else 0)


@torch.library.register_fake("workbench::linear_cross_entropy_backward")
def _(
    gnll: Tensor,
    lse: Tensor,
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(weight.shape[0] if bias is not None else 0)
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), dbias


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], *inputs[:-1])
    ctx.mark_non_differentiable(*output[1:])
    # no zeros for those
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gnll: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gnll is None:
        return (None,) * 5
    lse, kept, hidden, weight, bias, targets = ctx.saved_tensors
    dhidden, dweight, dbias = torch.ops.workbench.linear_cross_entropy_backward(
        gnll, lse, kept, hidden, weight, bias, targets
    )
    return dhidden, dweight, None if bias is None else dbias, None, None


torch.library.register_autograd(
    "workbench::linear_cross_entropy_forward", _differentiate, setup_context=_remember
)
refuse_second_derivative("linear_cross_entropy")


def in_blocks(
    hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor
) -> Tensor:
    """As `reference`, with never more than a block of logits in memory, or than `KEPT`."""
    few = len(hidden_ND) * len(weight_CD) <= KEPT
    trained = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_CD.requires_grad)
    nll_N, _, _ = torch.ops.workbench.linear_cross_entropy_forward(
        hidden_ND, weight_CD, bias_C, targets_N, few and trained
    )
    return nll_N


def _chunked(
    hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor
) -> Tensor:
    if len(hidden_ND) * len(weight_CD) <= BLOCK:
        return reference(hidden_ND, weight_CD, bias_C, targets_N)
    return in_blocks(hidden_ND, weight_CD, bias_C, targets_N)


def _check(hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor) -> None:
    if hidden_ND.dim() != 2 or weight_CD.dim() != 2:
        raise ValueError(
            f"linear_cross_entropy: got {tuple(hidden_ND.shape)} to read and a weight of shape "
            f"{tuple(weight_CD.shape)}, expected matrices: (tokens, width) and (classes, width)"
        )
    if targets_N.dtype != torch.int64:
        raise ValueError(
            f"linear_cross_entropy: got targets of type {targets_N.dtype}, expected ids in int64"
        )
    N, D = hidden_ND.shape
    for name, x, shape in (
        ("weight", weight_CD, (weight_CD.shape[0], D)),
        ("bias", bias_C, (weight_CD.shape[0],)),
        ("targets", targets_N, (N,)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(
                f"linear_cross_entropy: got {name} of shape {tuple(x.shape)}, expected {shape} "
                f"beside what the softmax reads of shape {(N, D)}"
            )


class LinearOp(Op):
    """Where PyTorch's autocast is on, a linear map takes its type; the sums are in float32."""

    def _without_autocast(self, args: tuple[Any, ...]) -> list[Any]:
        kind = torch.get_autocast_dtype(args[0].device.type)
        return [x.to(kind) if x is not None and x.dtype == torch.float32 else x for x in args]


linear_cross_entropy = LinearOp(
    "linear_cross_entropy", reference, [Backend("chunked", _chunked, transformed)], check=_check
)
