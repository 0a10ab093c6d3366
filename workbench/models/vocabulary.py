"""The two ends of the model, built together: token ids in, nats per token out.

Shapes: B batch, T segment, D model width, C classes (the vocabulary size).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.config import Choice


class Vocabulary(nn.Module, ABC):
    """Embedding and output distribution over one set of classes."""

    d_hidden: int | None = None
    """width of the hidden states that become distributions; None: the model's"""

    @abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D)."""

    @abstractmethod
    def log_probs(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C) natural logarithms, in float32 or better."""

    @abstractmethod
    def nll(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """(B, T) nats per token, unreduced, in float32 or better."""


class VocabularyConfig(Choice):
    """The model's slot `vocabulary`."""

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        raise TypeError(f"{type(self).__name__} does not define build(d_model, n_classes)")


class PlainConfig(VocabularyConfig):
    """One embedding table and one softmax over all classes."""

    kind: Literal["plain"] = "plain"
    tie_weights: bool = True
    """the output matrix is the embedding table"""
    scale_embedding: bool = True
    """multiply embeddings by sqrt(d_model)"""
    bias: bool = True
    """a bias per class in the softmax"""
    d_hidden: Annotated[int, Field(gt=0)] | None = None
    """width of the last layer's output where it is not d_model; the weights are not tied then"""

    @model_validator(mode="after")
    def _ties(self) -> PlainConfig:
        if self.tie_weights and self.d_hidden is not None:
            raise ValueError(
                f"d_hidden is {self.d_hidden}, but tie_weights is true: the embedding's width is "
                "d_model. Leave d_hidden out, or set tie_weights: false"
            )
        return self

    def build(self, d_model: int, n_classes: int) -> Vocabulary:
        return Plain(self, d_model, n_classes)


class Plain(Vocabulary):
    """A full softmax: right for characters, bytes and small word lists."""

    def __init__(self, config: PlainConfig, d_model: int, n_classes: int):
        super().__init__()
        self.scale = math.sqrt(d_model) if config.scale_embedding else 1.0
        self.embedding = nn.Embedding(n_classes, d_model)
        self.d_hidden = config.d_hidden
        self.output = nn.Linear(config.d_hidden or d_model, n_classes, bias=config.bias)
        if config.tie_weights:
            self.output.weight = self.embedding.weight

    def embed(self, tokens_BT: Tensor) -> Tensor:
        return self.embedding(tokens_BT) * self.scale

    def _logits(self, hidden_BTD: Tensor) -> Tensor:
        logits = self.output(hidden_BTD)
        return logits if logits.dtype == torch.float64 else logits.float()

    def log_probs(self, hidden_BTD: Tensor) -> Tensor:
        return self._logits(hidden_BTD).log_softmax(-1)

    def nll(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTC = self._logits(hidden_BTD)
        return F.cross_entropy(
            logits_BTC.flatten(0, 1), targets_BT.flatten(), reduction="none"
        ).view_as(targets_BT)
