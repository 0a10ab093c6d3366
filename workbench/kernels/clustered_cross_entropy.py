"""The cross-entropies of a softmax in clusters, whose classes are rows of one table.

As `linear_cross_entropy` for the head and every tail, without a copy of the head's rows, and with
one gradient of the table, to which each of them writes its part.
Shapes: N tokens, M of them in tails, C classes, K tails, D width of what the softmaxes read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from workbench.kernels.dispatch import LIBRARY, Backend, refuse_second_derivative, transformed
from workbench.kernels.linear_cross_entropy import (
    Blocks,
    LinearOp,
    check,
    few,
    gradients,
    losses,
    wide,
)
from workbench.kernels.linear_cross_entropy import reference as cross_entropy


def reference(
    hidden_ND: Tensor,
    tails_MD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    clusters_KD: Tensor,
    cluster_bias_K: Tensor,
    targets: Tensor,
    ends: Sequence[int],
    counts: Sequence[int],
) -> Tensor:
    """`linear_cross_entropy` of the head for all tokens, then of each tail for its own.

    Args:
        hidden_ND: what the head reads.
        tails_MD: what the tails read, tail after tail.
        weight_CD, bias_C: the head's classes, then those of each tail.
        clusters_KD, cluster_bias_K: the further classes of the head, behind its own.
        targets: (N + M,) ids, of each softmax from 0.
        ends: where the classes of the head and of each tail begin, and C.
        counts: how many tokens each tail has.

    Returns:
        (N + M,) in float32, or in float64 where the arguments are.
    """
    sizes = [high - low for low, high in pairwise(ends)]
    # split, not sliced: the gradient of a slice is as large as the whole table
    weights, biases = list(weight_CD.split(sizes)), list(bias_C.split(sizes))
    weights[0] = torch.cat([weights[0], clusters_KD])
    biases[0] = torch.cat([biases[0], cluster_bias_K])
    n_tokens = [len(hidden_ND), *counts]
    reads = [hidden_ND, *tails_MD.split(n_tokens[1:])]
    rows = zip(reads, weights, biases, targets.split(n_tokens), strict=True)
    return torch.cat([cross_entropy(*x) for x in rows])


LIBRARY.define(
    "clustered_cross_entropy_forward(Tensor hidden, Tensor tails, Tensor weight, Tensor bias,"
    " Tensor clusters, Tensor cluster_bias, Tensor targets, SymInt[] ends, SymInt[] counts,"
    " bool keep) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "clustered_cross_entropy_backward(Tensor gnll, Tensor lse, Tensor kept, Tensor hidden,"
    " Tensor tails, Tensor weight, Tensor bias, Tensor clusters, Tensor cluster_bias,"
    " Tensor targets, SymInt[] ends, SymInt[] counts)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def room(n_tokens: int, n_clusters: int, ends: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Logits of each softmax that are kept: all or none."""
    sizes = [high - low for low, high in pairwise(ends)]
    sizes[0] += n_clusters
    numbers = (n * size for n, size in zip([n_tokens, *counts], sizes, strict=True))
    return [n if few(n) else 0 for n in numbers]


def softmaxes(
    hidden: Tensor,
    tails: Tensor,
    targets: Tensor,
    kept: Tensor,
    ends: Sequence[int],
    counts: Sequence[int],
    n_clusters: int,
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Of the head and each tail: its places among losses, its rows of the table, what it reads, its
    targets, its part of `kept`."""
    n_tokens = [len(hidden), *counts]
    rooms = room(len(hidden), n_clusters, ends, counts) if len(kept) else [0] * len(n_tokens)
    reads = [hidden, *tails.split(n_tokens[1:])]
    parts = zip(n_tokens, pairwise(ends), reads, kept.split(rooms), strict=True)
    begin = 0
    for n, (low, high), read, logits in parts:
        places = slice(begin, begin + n)
        yield places, slice(low, high), read, targets[places], logits
        begin += n


@torch.library.impl("workbench::clustered_cross_entropy_forward", "CompositeExplicitAutograd")
def _forward(
    hidden: Tensor,
    tails: Tensor,
    weight: Tensor,
    bias: Tensor,
    clusters: Tensor,
    cluster_bias: Tensor,
    targets: Tensor,
    ends: list[int],
    counts: list[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    K = len(clusters)
    kept = hidden.new_empty(sum(room(len(hidden), K, ends, counts)) if keep else 0)
    outcomes: list[tuple[Tensor, Tensor]] = []
    for _, rows, read, ids, logits in softmaxes(hidden, tails, targets, kept, ends, counts, K):
        weights, biases = [weight[rows]], [bias[rows]]
        if not outcomes:
            weights, biases = [*weights, clusters], [*biases, cluster_bias]
        outcomes.append(losses(read, weights, biases, ids, logits))
    nll, lse = (torch.cat(x) for x in zip(*outcomes, strict=True))
    return nll, lse, kept


@torch.library.impl("workbench::clustered_cross_entropy_backward", "CompositeExplicitAutograd")
def _backward(
    gnll: Tensor,
    lse: Tensor,
    kept: Tensor,
    hidden: Tensor,
    tails: Tensor,
    weight: Tensor,
    bias: Tensor,
    clusters: Tensor,
    cluster_bias: Tensor,
    targets: Tensor,
    ends: list[int],
    counts: list[int],
) -> tuple[Tensor, ...]:
    whole = torch.contiguous_format
    dweight, dclusters = (torch.empty_like(x, memory_format=whole) for x in (weight, clusters))
    dbias, dcluster_bias = (wide(x.new_empty(len(x))) for x in (bias, cluster_bias))
    dhidden, dtails = (wide(torch.zeros_like(x, memory_format=whole)) for x in (hidden, tails))
    dreads = [dhidden, *dtails.split(counts)]
    K = len(clusters)
    parts = softmaxes(hidden, tails, targets, kept, ends, counts, K)
    for i, (places, rows, read, ids, logits) in enumerate(parts):
        weights, biases, dweights, dbiases = (
            [weight[rows]],
            [bias[rows]],
            [dweight[rows]],
            [dbias[rows]],
        )
        if i == 0:
            weights, biases = [*weights, clusters], [*biases, cluster_bias]
            dweights, dbiases = [*dweights, dclusters], [*dbiases, dcluster_bias]
        blocks = Blocks(read, weights, biases, ids, logits, known=len(logits) > 0)
        gradients(gnll[places], lse[places], blocks, dreads[i], dweights, dbiases)
    return (
        dhidden.to(hidden.dtype),
        dtails.to(tails.dtype),
        dweight,
        dbias.to(bias.dtype),
        dclusters,
        dcluster_bias.to(bias.dtype),
    )


@torch.library.register_fake("workbench::clustered_cross_entropy_forward")
def _(
    hidden: Tensor,
    tails: Tensor,
    weight: Tensor,
    bias: Tensor,
    clusters: Tensor,
    cluster_bias: Tensor,
    targets: Tensor,
    ends: list[int],
    counts: list[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nll, lse = (wide(hidden.new_empty(targets.shape)) for _ in range(2))
    kept = sum(room(hidden.shape[0], clusters.shape[0], ends, counts)) if keep else 0
    return nll, lse, hidden.new_empty(kept)


@torch.library.register_fake("workbench::clustered_cross_entropy_backward")
def _(gnll: Tensor, lse: Tensor, kept: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:6])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.ends, ctx.counts, _ = inputs
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.mark_non_differentiable(*output[1:])
    # no zeros for those
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gnll: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gnll is None:
        return (None,) * 10
    grads = torch.ops.workbench.clustered_cross_entropy_backward(
        gnll, *ctx.saved_tensors, ctx.ends, ctx.counts
    )
    return *grads, None, None, None, None


torch.library.register_autograd(
    "workbench::clustered_cross_entropy_forward", _differentiate, setup_context=_remember
)
refuse_second_derivative("clustered_cross_entropy")


def in_blocks(hidden_ND: Tensor, tails_MD: Tensor, weight_CD: Tensor, *rest: Any) -> Tensor:
    """As `reference`, with never more than a block of logits in memory, or than is kept of each
    softmax for the backward pass."""
    leaves = (hidden_ND, tails_MD, weight_CD, rest[1])
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    nll, _, _ = torch.ops.workbench.clustered_cross_entropy_forward(
        hidden_ND, tails_MD, weight_CD, *rest, trained
    )
    return nll


def _check(
    hidden_ND: Tensor,
    tails_MD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    clusters_KD: Tensor,
    cluster_bias_K: Tensor,
    targets: Tensor,
    ends: Sequence[int],
    counts: Sequence[int],
) -> None:
    N = len(hidden_ND)
    check(hidden_ND, weight_CD, bias_C, targets[:N])
    check(tails_MD, weight_CD, bias_C, targets[N:])
    check(hidden_ND, clusters_KD, cluster_bias_K, targets[:N])
    if ends[-1] != len(weight_CD) or len(ends) != len(counts) + 2 or sum(counts) != len(tails_MD):
        raise ValueError(
            f"clustered_cross_entropy: got softmaxes that end at {list(ends[1:])} and tails of "
            f"{list(counts)} tokens, expected an end for the head and one for each tail, the last "
            f"{len(weight_CD)}, and {len(tails_MD)} tokens in all"
        )


clustered_cross_entropy = LinearOp(
    "clustered_cross_entropy", reference, [Backend("chunked", in_blocks, transformed)], check=_check
)
