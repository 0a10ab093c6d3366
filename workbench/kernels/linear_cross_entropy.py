"""A linear map and the cross-entropy of its softmax, without the logits of all classes at once.

Paper: arXiv:2411.09009 section 3 (logits in blocks, computed again in the backward pass).
Shapes: N tokens, C classes, D width of what the softmax reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.kernels.dispatch import (
    HALF,
    LIBRARY,
    Backend,
    Op,
    refuse_second_derivative,
    transformed,
)

BLOCK = 1 << 22
"""Logits of a block. They stay in the cache for all that is done to them; where there are no more,
PyTorch's own functions take them at once."""
KEPT = 1 << 25
"""Logits that a forward pass keeps for its backward pass, 128 MiB; more are computed again. That
costs a product more: a sixth of the time of 1,024 tokens among 267,735 classes in clusters."""


def few(n_logits: int) -> bool:
    """Whether so many are kept."""
    return n_logits <= KEPT


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
        hidden_ND, targets_N: as of `reference`.
        weights, biases: those of `reference`, in parts that follow each other; no biases or one
            for each part.
        kept: memory for all logits, block after block, or for none.
        known: whether a forward pass has written it.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        targets_N: Tensor,
        kept: Tensor,
        known: bool = False,
    ):
        self.hidden_ND, self.weights, self.biases = hidden_ND, weights, biases
        self.targets_N, self.kept, self.known = targets_N, kept, known
        N, self.n_classes = len(hidden_ND), sum(len(x) for x in weights)
        # narrow products are slow, however many the tokens are
        self.width = min(self.n_classes, max(BLOCK // max(N, 1), 512))
        one = len(kept) > 0 and self.width == self.n_classes
        self.is_slope = one and hidden_ND.dtype not in HALF
        """whether what is kept is `softmax - one`, with which the backward pass begins"""
        buffer = hidden_ND.new_empty(0 if self.is_slope and known else N * self.width)
        self.buffer = wide(buffer) if len(kept) else buffer

    def parts(self, classes: slice) -> Iterator[tuple[slice, int, slice]]:
        """Columns of a block, the part of the weight that they belong to, and its rows."""
        begin = 0
        for i, weight in enumerate(self.weights):
            low, high = max(classes.start, begin), min(classes.stop, begin + len(weight))
            if low < high:
                columns = slice(low - classes.start, high - classes.start)
                yield columns, i, slice(low - begin, high - begin)
            begin += len(weight)

    def multiply(self, classes: slice, logits_Nc: Tensor) -> None:
        """Write the logits of a block."""
        for columns, i, rows in self.parts(classes):
            torch.mm(self.hidden_ND, self.weights[i][rows].T, out=logits_Nc[:, columns])
            if self.biases:
                # while they are in the cache: faster on a CPU than addmm, which begins with it
                logits_Nc[:, columns] += self.biases[i][rows]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Classes; their logits; memory of that size to write to, the logits' own where they are
        not kept; which targets are among them, and where."""
        N, C = len(self.hidden_ND), self.n_classes
        for low in range(0, C, self.width):
            classes = slice(low, min(C, low + self.width))
            n = classes.stop - low
            memory = self.kept if self.is_slope and self.known else self.buffer
            free_Nc = logits_Nc = memory[: N * n].view(N, n)
            if len(self.kept):
                logits_Nc = self.kept[N * low : N * classes.stop].view(N, n)
            if not self.known:
                self.multiply(classes, free_Nc if self.is_slope else logits_Nc)
            column_N = self.targets_N - low
            inside_N = (column_N >= 0) & (column_N < n)
            column_N1 = column_N.clamp(0, n - 1)[:, None]
            wide_Nc = wide(logits_Nc)
            yield classes, wide_Nc, free_Nc if len(self.kept) else wide_Nc, inside_N, column_N1


def losses(
    hidden: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    targets: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """The `reference` of a weight in parts, and the logarithms of the sums of exponentials that
    `gradients` takes; logits are written to `kept` where it has room."""
    blocks = Blocks(hidden, weights, biases, targets, kept)
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(x) for x in targets.aminmax())
        if low < 0 or high >= blocks.n_classes:
            raise IndexError(f"got targets {low} to {high}, expected 0 to {blocks.n_classes - 1}")
    top = wide(hidden.new_full((len(hidden),), float("-inf")))
    total, at_target = torch.zeros_like(top), torch.zeros_like(top)
    for _, logits, free, inside, column in blocks:
        if blocks.is_slope:
            top = free.amax(1, keepdim=True)
            at_target = free.gather(1, column)
            torch.ops.aten._softmax.out(free, 1, False, out=logits)
            # the likeliest class has a probability that is well above zero
            lse = top - logits.amax(1, keepdim=True).log()
            logits.scatter_add_(1, column, torch.full_like(lse, -1.0))
            return (lse - at_target)[:, 0], lse[:, 0]
        at_target = torch.where(inside, logits.gather(1, column)[:, 0], at_target)
        # a running maximum, and the sum of exponentials below it
        before, top = top, top.maximum(logits.amax(1))
        below = torch.sub(logits, top[:, None], out=free).exp_()
        total = total * (before - top).exp() + below.sum(1)
    lse = top + total.log()
    return lse - at_target, lse


def gradients(
    gnll: Tensor,
    lse: Tensor,
    blocks: Blocks,
    dhidden: Tensor,
    dweights: Sequence[Tensor],
    dbiases: Sequence[Tensor],
) -> None:
    """Write the gradients of the parts of the weight and the bias, and add those of what was read.

    Args:
        gnll: of each loss.
        lse: of `losses`.
        dhidden, dbiases: in float32 or better.
    """
    hidden = blocks.hidden_ND
    # what comes back multiplies the narrow factor of a product, which half precision types would
    # round once more, and not all logits
    apart = hidden.dtype not in HALF
    read, one = (hidden * gnll[:, None], torch.ones_like(gnll)) if apart else (hidden, gnll)
    for classes, logits, free, inside, column in blocks:
        # (softmax - one) times what comes back
        if blocks.is_slope:
            slope = logits
        else:
            slope = torch.sub(logits, lse[:, None], out=free).exp_()
            if not apart:
                slope.mul_(gnll[:, None])
            slope.scatter_add_(1, column, torch.where(inside, -one, 0.0)[:, None])
        narrow = slope.to(hidden.dtype)
        for columns, i, rows in blocks.parts(classes):
            if dbiases and apart:
                torch.mv(slope[:, columns].T, gnll, out=dbiases[i][rows])
            elif dbiases:
                torch.sum(slope[:, columns], 0, out=dbiases[i][rows])
            # every class has its whole gradient here: nothing as large as the table is added up
            torch.mm(narrow[:, columns].T, read, out=dweights[i][rows])
            if apart:
                dhidden.addmm_(narrow[:, columns], blocks.weights[i][rows])
            else:
                dhidden += narrow[:, columns] @ blocks.weights[i][rows]
    if apart:
        dhidden *= gnll[:, None]


@torch.library.impl("workbench::linear_cross_entropy_forward", "CompositeExplicitAutograd")
def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kept = hidden.new_empty(len(hidden) * len(weight) if keep else 0)
    return *losses(hidden, [weight], [] if bias is None else [bias], targets, kept), kept


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
    biases = [] if bias is None else [bias]
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    dbias = wide(weight.new_empty(len(weight) * len(biases)))
    dhidden = wide(torch.zeros_like(hidden, memory_format=torch.contiguous_format))
    blocks = Blocks(hidden, [weight], biases, targets, kept, known=len(kept) > 0)
    gradients(gnll, lse, blocks, dhidden, [dweight], [dbias] if biases else [])
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
    keep = few(len(hidden_ND) * len(weight_CD))
    trained = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_CD.requires_grad)
    nll_N, _, _ = torch.ops.workbench.linear_cross_entropy_forward(
        hidden_ND, weight_CD, bias_C, targets_N, keep and trained
    )
    return nll_N


def _chunked(
    hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor
) -> Tensor:
    if len(hidden_ND) * len(weight_CD) <= BLOCK:
        return reference(hidden_ND, weight_CD, bias_C, targets_N)
    return in_blocks(hidden_ND, weight_CD, bias_C, targets_N)


def check(hidden_ND: Tensor, weight_CD: Tensor, bias_C: Tensor | None, targets_N: Tensor) -> None:
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
        return [
            x.to(kind) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args
        ]


linear_cross_entropy = LinearOp(
    "linear_cross_entropy", reference, [Backend("chunked", _chunked, transformed)], check=check
)
