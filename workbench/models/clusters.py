"""Vocabularies of many words: a softmax over the frequent ones and the clusters of the others.

The head decides between the first `cutoffs[0]` classes and the clusters; each cluster, a *tail*,
has a softmax of its own, computed for the tokens that are in it. Ids must be numbered so that
frequent classes come first.
Paper: arXiv:1609.04309 (adaptive softmax); arXiv:1809.10853 (adaptive input, projections);
arXiv:1901.02860 section 4.1 and its code; arXiv:1708.02182's code (split softmax).
Shapes: B batch, T segment, N = B * T tokens, D model width, C classes, E width of a bin's vectors.
Bin 0 is the head's own classes, bin i >= 1 the tail behind cutoff i - 1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, TypeVar, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import kernels
from workbench.config import Positive
from workbench.errors import ConfigError
from workbench.models.vocabulary import (
    Clusters,
    NoProjection,
    Projection,
    Vocabulary,
    VocabularyConfig,
    check_hidden,
    precise,
)

Id = TypeVar("Id", int, Tensor)
ClusterOrder = Literal["natural", "reversed"]


class AdaptiveConfig(VocabularyConfig):
    """Adaptive embedding and adaptive softmax."""

    kind: Literal["adaptive"] = "adaptive"
    cutoffs: tuple[Positive, ...]
    """first id of each tail, ascending"""
    div_val: Positive = 1
    """bin i has vectors of width d_embed // div_val^i; 1: one table for all bins"""
    d_embed: Positive | None = None
    """width of bin 0; null: d_model"""
    tie_weights: bool = True
    """the output matrices are the embedding tables; biases and cluster rows stay apart"""
    tie_projections: Literal["all", "tails", "none"] | tuple[bool, ...] = "tails"
    """of which bins the projection at the output is that of the input, transposed: tails as
    Transformer-XL on WikiText-103, none as on One Billion Word, all as the adaptive-span code;
    or a claim for each bin, those left out being false"""
    project_same_width: bool = True
    """with div_val > 1: also a bin as wide as the model has projections, as in the PyTorch codes
    and not in the TensorFlow one of One Billion Word. With div_val 1 equal widths never have one"""
    cluster_order: ClusterOrder = "natural"
    """reversed: the rows of the clusters stand in the head last tail first, as in the codes of
    Transformer-XL (PyTorch), adaptive span and AWD-LSTM. The same model with other names"""
    scale_embedding: bool = True
    """multiply embeddings by sqrt(d_model), after the projection"""

    @model_validator(mode="after")
    def _bins_fit(self) -> AdaptiveConfig:
        check_ascending("cutoffs", self.cutoffs)
        ties = self.tie_projections
        if isinstance(ties, tuple) and len(ties) > len(self.cutoffs) + 1:
            raise ValueError(
                f"tie_projections has {len(ties)} entries, but {len(self.cutoffs)} cutoffs make "
                f"{len(self.cutoffs) + 1} bins; write at most so many"
            )
        return self

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        return Adaptive(self, d_model, n_classes)

    def widths(self, d_model: int) -> list[int]:
        """E of each bin.

        Raises:
            ConfigError: nothing is left for the last one.
        """
        widest = self.d_embed or d_model
        widths = [widest // self.div_val**i for i in range(len(self.cutoffs) + 1)]
        if widths[-1] == 0:
            raise ConfigError(
                f"vocabulary.div_val: got {self.div_val}, which leaves bins of the widths {widths} "
                f"from {widest}; write a smaller one, or fewer cutoffs"
            )
        return widths

    def projects(self, width: int, d_model: int) -> bool:
        """Whether a bin of this width has projections."""
        return width != d_model or (self.div_val > 1 and self.project_same_width)

    def ties_projection(self, i: int) -> bool:
        """Whether bin i reads through the projection of the input."""
        if isinstance(self.tie_projections, tuple):
            return i < len(self.tie_projections) and self.tie_projections[i]
        return self.tie_projections == "all" or (self.tie_projections == "tails" and i > 0)


def check_ascending(name: str, cutoffs: tuple[int, ...]) -> None:
    """Refuse bins without classes (ValueError)."""
    if any(high <= low for low, high in pairwise((0, *cutoffs))):
        raise ValueError(f"{name} must ascend from above 0, got {list(cutoffs)}")


class SplitConfig(VocabularyConfig):
    """AWD-LSTM's split softmax: full width everywhere, tails by nothing but their rows."""

    kind: Literal["split"] = "split"
    splits: Literal["auto"] | tuple[Positive, ...] = "auto"
    """first id of each tail, ascending; auto: by the number of classes, none up to 75,000"""
    tie_weights: bool = True
    """the output matrix is the embedding table"""
    d_hidden: Positive | None = None
    """width of the last layer where it is not d_model: AWD-LSTM without tied weights"""
    cluster_order: ClusterOrder = "natural"
    """reversed: the rows of the tails stand in the head last tail first, as in the original"""
    scale_embedding: bool = False
    """multiply embeddings by sqrt(d_model)"""

    @model_validator(mode="after")
    def _bins_fit(self) -> SplitConfig:
        check_hidden(self.d_hidden, self.tie_weights)
        check_ascending("splits", () if self.splits == "auto" else self.splits)
        return self

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        geometry = AdaptiveConfig(
            cutoffs=automatic_splits(n_classes) if self.splits == "auto" else self.splits,
            tie_weights=self.tie_weights,
            cluster_order=self.cluster_order,
            scale_embedding=self.scale_embedding,
        )
        return Adaptive(geometry, d_model, n_classes, self.d_hidden)


def automatic_splits(n_classes: int) -> tuple[int, ...]:
    """What AWD-LSTM's training script chooses."""
    if n_classes > 500_000:
        return 4_200, 35_000, 180_000
    return (2_800, 20_000, 76_000) if n_classes > 75_000 else ()


class Adaptive(Vocabulary):
    """Both ends by bins."""

    def __init__(
        self, config: AdaptiveConfig, d_model: int, n_classes: int, d_hidden: int | None = None
    ):
        super().__init__()
        self.scale = math.sqrt(d_model) if config.scale_embedding else 1.0
        self.d_hidden = d_hidden or d_model
        self.order = config.cluster_order
        self.ends = (0, *config.cutoffs, n_classes)
        if self.ends[-1] <= self.ends[-2]:
            raise ConfigError(
                f"vocabulary: the last tail begins at {self.ends[-2]}, but there are only "
                f"{n_classes} classes; leave that one out"
            )
        sizes = [high - low for low, high in pairwise(self.ends)]
        bins = list(zip(sizes, config.widths(d_model), strict=True))
        # bins of one width are one table: looked up, tied and trained as one tensor
        tables = [(n_classes, bins[0][1])] if config.div_val == 1 else bins
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in tables)
        self.project_in, self.project_out = nn.ModuleList(), nn.ModuleList()
        for _, width in tables:
            projects = config.projects(width, d_model)
            self.project_in.append(Projection(width, d_model) if projects else NoProjection())
        for i, (_, width) in enumerate(bins):
            above = self.project_in[min(i, len(tables) - 1)]
            apart = config.projects(width, d_model) and not config.ties_projection(i)
            self.project_out.append(Projection(width, self.d_hidden) if apart else above)
        read = [w if config.projects(w, d_model) else self.d_hidden for _, w in tables]
        self.outputs = nn.ModuleList(
            nn.Linear(width, size) for (size, _), width in zip(tables, read, strict=True)
        )
        if config.tie_weights:
            for output, embedding in zip(self.outputs, self.embeddings, strict=True):
                output.weight = embedding.weight
        n_tails = len(config.cutoffs)
        self.clusters = Clusters(read[0], n_tails) if n_tails else None
        self.register_buffer("cutoffs", torch.tensor(config.cutoffs, dtype=torch.long), False)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        if len(self.embeddings) == 1:
            return self.project_in[0](self.embeddings[0](tokens_BT)) * self.scale
        tokens_N = tokens_BT.flatten()
        _, rows = self._bins(tokens_N)
        parts = [
            project(embedding(tokens_N[rows_n] - low))
            for project, embedding, rows_n, low in zip(
                self.project_in, self.embeddings, rows, self.ends, strict=False
            )
        ]
        x_ND = torch.cat(parts)
        x_ND = torch.zeros_like(x_ND).index_copy(0, torch.cat(rows), x_ND)
        return x_ND.view(*tokens_BT.shape, -1) * self.scale

    def log_probs(self, hidden_BTD: Tensor) -> Tensor:
        hidden_ND = hidden_BTD.flatten(0, -2)
        outputs = self._outputs()
        head_NC = self._logits(0, outputs[0], hidden_ND).log_softmax(-1)
        parts = [head_NC[:, : self.ends[1]]]
        for i in range(1, len(self.ends) - 1):
            cluster_N1 = head_NC[:, self._column(i), None]
            parts.append(cluster_N1 + self._logits(i, outputs[i], hidden_ND).log_softmax(-1))
        return torch.cat(parts, dim=-1).view(*hidden_BTD.shape[:-1], -1)

    def nll(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_ND, targets_N = hidden_BTD.flatten(0, -2), targets_BT.flatten()
        if self.clusters is None:
            output = self._outputs()[0]
            return self._nll_of_bin(0, output, hidden_ND, targets_N).view_as(targets_BT)
        bins_N, rows = self._bins(targets_N)
        in_head_N = torch.where(bins_N > 0, self._column(bins_N), targets_N)
        # also for no rows at all: every parameter gets a gradient at every step
        rows_M, counts = torch.cat(rows[1:]), [len(rows_n) for rows_n in rows[1:]]
        in_tail_M = targets_N[rows_M] - self.get_buffer("cutoffs")[bins_N[rows_M] - 1]
        head_NE = self._read(0, hidden_ND)
        if all(x is self.project_out[0] for x in self.project_out):
            # what the head reads, the tails read too; the gradient of indexing is slow
            tails = head_NE.index_select(0, rows_M).split(counts)
        else:
            tails = hidden_ND.index_select(0, rows_M).split(counts)
            tails = tuple(self._read(i, hidden_nD) for i, hidden_nD in enumerate(tails, 1))
        outputs = cast(list[nn.Linear], list(self.outputs))
        shared = len(outputs) == 1
        nll: Tensor = kernels.clustered_cross_entropy(
            head_NE,
            torch.cat(tails) if shared else head_NE[:0],
            outputs[0].weight,
            outputs[0].bias,
            self.clusters.weight,
            self.clusters.bias,
            torch.cat([in_head_N, in_tail_M]) if shared else in_head_N,
            self.ends if shared else self.ends[:2],
            counts if shared else [],
        )
        nll_N, *nll_M = nll.split([len(targets_N), sum(counts)]) if shared else [nll]
        if not shared:
            targets = in_tail_M.split(counts)
            nll_M = [
                kernels.linear_cross_entropy(tail_nE, output.weight, output.bias, targets_n)
                for tail_nE, output, targets_n in zip(tails, outputs[1:], targets, strict=True)
            ]
        return nll_N.index_add(0, rows_M, torch.cat(nll_M)).view_as(targets_BT)

    def _column(self, i: Id) -> Id:
        """Where the head has tail i."""
        n_tails = len(self.ends) - 2
        return self.ends[1] + (n_tails - i if self.order == "reversed" else i - 1)

    def _bins(self, ids_N: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bin of each token, and for each bin the indices of its tokens, ascending."""
        # PyTorch warns of a copy where a column of a batch comes as it lies
        bins_N = torch.bucketize(ids_N.contiguous(), self.get_buffer("cutoffs"), right=True)
        counts = bins_N.bincount(minlength=len(self.ends) - 1)
        return bins_N, bins_N.argsort(stable=True).split(counts.tolist())

    def _outputs(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of each bin's softmax; in bin 0 the tails follow."""
        linear = cast(list[nn.Linear], list(self.outputs))
        outputs: list[tuple[Tensor, Tensor]] = [(x.weight, x.bias) for x in linear]
        if len(outputs) == 1:
            # split, not sliced bin by bin: the gradient of a slice is as large as the whole table
            sizes = [high - low for low, high in pairwise(self.ends)]
            outputs = list(zip(*(x.split(sizes) for x in outputs[0]), strict=True))
        if self.clusters is not None:
            weight_CD, bias_C = outputs[0]
            weight_CD = torch.cat([weight_CD, self.clusters.weight])
            outputs[0] = weight_CD, torch.cat([bias_C, self.clusters.bias])
        return outputs

    def _read(self, i: int, hidden_ND: Tensor) -> Tensor:
        """What the softmax of bin i reads, in the width of its vectors."""
        return cast(Projection, self.project_out[i]).down(hidden_ND)

    def _logits(self, i: int, output: tuple[Tensor, Tensor], hidden_ND: Tensor) -> Tensor:
        """Of the classes of bin i, in float32 or better."""
        return precise(F.linear(self._read(i, hidden_ND), *output))

    def _nll_of_bin(
        self, i: int, output: tuple[Tensor, Tensor], hidden_ND: Tensor, targets_N: Tensor
    ) -> Tensor:
        """Nats of each target among the classes of bin i."""
        nll_N: Tensor = kernels.linear_cross_entropy(self._read(i, hidden_ND), *output, targets_N)
        return nll_N
