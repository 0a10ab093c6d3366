"""The two ends of the model, built together: token ids in, nats per token out.

Here are the interface and the full softmax; `clusters.py` has the vocabularies for many words.
Paper: arXiv:1901.02860 section 4 and its code (embeddings scaled by sqrt(d_model), tied weights).
Shapes: B batch, T segment, D model width, E embedding width, C classes (the vocabulary size).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from workbench import kernels
from workbench.config import Choice, Positive
from workbench.models.sampled import LogUniform, SampledConfig


class Vocabulary(nn.Module, ABC):
    """Embedding and output distribution over one set of classes."""

    d_hidden: int
    """width of the hidden state that the output reads; d_model unless the config says otherwise"""

    @abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D)."""

    @abstractmethod
    def log_probs(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C) natural logarithms, in float32 or better."""

    @abstractmethod
    def nll(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """(B, T) nats per token in the order of the tokens, unreduced, in float32 or better."""


class VocabularyConfig(Choice):
    """The model's slot `vocabulary`."""

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        raise TypeError(f"{type(self).__name__} does not define build(d_model, n_classes)")


class Projection(nn.Linear):
    """The matrix between the widths of embedding and model, used in both directions."""

    def __init__(self, d_embed: int, d_model: int):
        super().__init__(d_embed, d_model, bias=False)

    def down(self, x_D: Tensor) -> Tensor:
        """From the model's width to the embedding's; `forward` goes the other way."""
        return x_D @ self.weight


class NoProjection(nn.Identity):
    """Between equal widths."""

    def down(self, x_D: Tensor) -> Tensor:
        return x_D


def precise(logits: Tensor) -> Tensor:
    """Logits in float32 or better: sums over many classes need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


class Clusters(nn.Linear):
    """The rows of a head that stand for its tails."""


class PlainConfig(VocabularyConfig):
    """One embedding table and one softmax over all classes."""

    kind: Literal["plain"] = "plain"
    tie_weights: bool = True
    """the output matrix is the embedding table"""
    scale_embedding: bool = True
    """multiply embeddings by sqrt(d_model), after the projection"""
    bias: bool = True
    """a bias per class in the softmax"""
    d_embed: Positive | None = None
    """width of embeddings; another one than d_model has a projection at both ends"""
    tie_projections: bool = False
    """the projection at the output is that of the input, transposed"""
    d_hidden: Positive | None = None
    """width of the last layer where it is not d_model: AWD-LSTM without tied weights"""
    sampled: SampledConfig | None = None
    """train with a sampled softmax; evaluation always sums over all classes"""

    @model_validator(mode="after")
    def _widths_fit(self) -> PlainConfig:
        check_hidden(self.d_hidden, self.tie_weights)
        return self

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        return Plain(self, d_model, n_classes)


def check_hidden(d_hidden: int | None, tie_weights: bool) -> None:
    """Refuse an output matrix of another width that is to be the embedding table (ValueError)."""
    if d_hidden is not None and tie_weights:
        raise ValueError(
            f"d_hidden is {d_hidden}, but tie_weights is true: one table cannot have two widths. "
            "Set tie_weights: false, or d_hidden: null"
        )


class Plain(Vocabulary):
    """A full softmax: right for characters, bytes and small word lists."""

    def __init__(self, config: PlainConfig, d_model: int, n_classes: int):
        super().__init__()
        self.scale = math.sqrt(d_model) if config.scale_embedding else 1.0
        self.d_hidden = config.d_hidden or d_model
        d_embed = config.d_embed or d_model
        self.embedding = nn.Embedding(n_classes, d_embed)
        self.project_in: Projection | NoProjection = NoProjection()
        self.project_out: Projection | NoProjection = NoProjection()
        if d_embed != d_model:
            self.project_in = Projection(d_embed, d_model)
            tied = config.tie_projections
            self.project_out = self.project_in if tied else Projection(d_embed, self.d_hidden)
        d_read = self.d_hidden if d_embed == d_model else d_embed
        self.output = nn.Linear(d_read, n_classes, bias=config.bias)
        if config.tie_weights:
            self.output.weight = self.embedding.weight
        self.sampler = LogUniform(config.sampled, n_classes) if config.sampled else None

    def embed(self, tokens_BT: Tensor) -> Tensor:
        return self.project_in(self.embedding(tokens_BT)) * self.scale

    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        return precise(self.output(self.project_out.down(hidden_BTD)))

    def log_probs(self, hidden_BTD: Tensor) -> Tensor:
        return self._logits(hidden_BTD).log_softmax(-1)

    def nll(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        if self.training and self.sampler is not None:
            hidden_BTE = self.project_out.down(hidden_BTD)
            weight_CE, bias_C = self.output.weight, self.output.bias
            logits = self.sampler.logits(hidden_BTE, targets_BT, weight_CE, bias_C)
            return -precise(logits).log_softmax(-1)[..., 0]
        hidden_NE = self.project_out.down(hidden_BTD.flatten(0, 1))
        weight_CE, bias_C = self.output.weight, self.output.bias
        nll_N = kernels.linear_cross_entropy(hidden_NE, weight_CE, bias_C, targets_BT.flatten())
        return nll_N.view_as(targets_BT)
