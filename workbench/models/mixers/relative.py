"""Relative position codes: how the distance of a key enters an attention score.

Paper: arXiv:1901.02860 section 3.3 (sinusoid, biases u and v); arXiv:1803.02155 section 3.2 (a
learned key per distance); arXiv:1905.07799 section 2 (one for all heads).
Shapes: B batch, T segment, S memory + segment, H heads, K head width, M memory, R rows of a table.
The distance of key j from query i is `M + i - j`: 0 is the query's own token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.config import Choice, Positive, Probability
from workbench.kernels.attention import Positions
from workbench.models.draws import of_weights
from workbench.models.dropout import Element
from workbench.models.positions import Sinusoid


class AttentionPositions(nn.Module, ABC):
    """How distance enters an attention score; the mixer divides the queries by sqrt(K)."""

    shared: tuple[str, ...] = ()
    clamp_len: int = 0
    """distances beyond it share one code, unless the state says otherwise; 0: never"""

    def content_bias(self) -> Tensor | None:
        """(H, K) what a query adds before it meets the content keys, or None."""
        return None

    def content_query(self, q_BTHK: Tensor) -> Tensor:
        """The query that meets the content keys."""
        bias_HK = self.content_bias()
        return q_BTHK if bias_HK is None else q_BTHK + bias_HK

    def position_query(self, q_BTHK: Tensor) -> Tensor:
        """The query that meets the codes of distances."""
        return q_BTHK

    def codes(self, n: int, clamp_len: int) -> Tensor | None:
        """(n, H, K) projected codes of the distances 0 to n - 1, where making them is work that is
        the same for every query; None where there are none."""
        return None

    @abstractmethod
    def by_distance(
        self, q_BTHK: Tensor, n: int, clamp_len: int, codes_RHK: Tensor | None
    ) -> Positions | None:
        """What scores add for distances, as `kernels.attention` takes it, or None.

        Args:
            q_BTHK: `position_query`'s, divided by sqrt(K).
            n: distances 0 to n - 1 can be seen.
            clamp_len: distances beyond it share one code; 0: never.
            codes_RHK: `codes`'s for n distances.
        """


class AttentionPositionsConfig(Choice):
    """The attention mixer's slot `positions`."""

    @property
    def farthest(self) -> int | None:
        """The farthest distance that has a code, in tokens; None where there is no bound."""
        return None

    def build(self, d_model: int, n_heads: int, d_head: int) -> AttentionPositions:
        raise TypeError(f"{type(self).__name__} does not define build")


class NoRelativeConfig(AttentionPositionsConfig):
    """Scores know nothing of distance (use absolute positions at the model's input)."""

    kind: Literal["none"] = "none"

    def build(self, d_model: int, n_heads: int, d_head: int) -> AttentionPositions:
        return NoRelative()


class NoRelative(AttentionPositions):
    """Content scores only."""

    def by_distance(self, q_BTHK: Tensor, n: int, clamp_len: int, codes_RHK: Tensor | None) -> None:
        return None


class RelativeSinusoidConfig(AttentionPositionsConfig):
    """Transformer-XL's relative code: `(q + u) . k_j + (q + v) . W_r sinusoid(distance)`."""

    kind: Literal["relative_sinusoid"] = "relative_sinusoid"
    clamp_len: Annotated[int, Field(ge=0)] = 0
    """distances beyond it share one code; 0: never"""
    share_biases: bool = True
    """u and v are one pair for all layers, as in the PyTorch code of the paper"""
    p_drop: Probability = 0.0
    """dropout of the sinusoid"""

    def build(self, d_model: int, n_heads: int, d_head: int) -> AttentionPositions:
        return RelativeSinusoid(self, d_model, n_heads, d_head)


class RelativeSinusoid(AttentionPositions):
    """Distance through a projected sinusoid, with global content bias u and position bias v."""

    def __init__(self, config: RelativeSinusoidConfig, d_model: int, n_heads: int, d_head: int):
        super().__init__()
        self.clamp_len, self.shape = config.clamp_len, (n_heads, d_head)
        self.sinusoid = Sinusoid(d_model)
        self.drop = Element(config.p_drop)
        self.project = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.u_HK = nn.Parameter(torch.zeros(n_heads, d_head))
        self.v_HK = nn.Parameter(torch.zeros(n_heads, d_head))
        if config.share_biases:
            self.shared = ("u_HK", "v_HK")

    def content_bias(self) -> Tensor:
        return self.u_HK

    def position_query(self, q_BTHK: Tensor) -> Tensor:
        return q_BTHK + self.v_HK

    def codes(self, n: int, clamp_len: int) -> Tensor:
        weight = self.project.weight
        distances = torch.arange(n, device=weight.device)
        if clamp_len > 0:
            distances = distances.clamp(max=clamp_len)
        codes_RD = self.sinusoid(distances).to(weight.dtype)
        if self.training and self.drop.p:
            # one draw for all rows, whichever process reads them
            codes_RD = of_weights(weight.device, lambda: self.drop(codes_RD))
        return self.project(codes_RD).view(n, *self.shape)

    def by_distance(
        self, q_BTHK: Tensor, n: int, clamp_len: int, codes_RHK: Tensor | None
    ) -> Positions:
        assert codes_RHK is not None, "`codes` makes them"
        return Positions(q_BTHK, codes_RHK)


class RelativeTableConfig(AttentionPositionsConfig):
    """Transformer-XL's fully learned code: `(q + u) . k_j + q . key_distance + bias_distance`, all
    of them per layer and head."""

    kind: Literal["relative_table"] = "relative_table"
    n_distances: Positive
    """R: rows of the table; farther distances share the last one"""
    clamp_len: Annotated[int, Field(ge=0)] = 0
    """only so many rows are used, the nearest; 0: all"""

    def build(self, d_model: int, n_heads: int, d_head: int) -> AttentionPositions:
        return RelativeTable(self, n_heads, d_head)


class RelativeTable(AttentionPositions):
    """Row r of the tables belongs to distance r."""

    def __init__(self, config: RelativeTableConfig, n_heads: int, d_head: int):
        super().__init__()
        self.clamp_len = config.clamp_len
        self.u_HK = nn.Parameter(torch.zeros(n_heads, d_head))
        self.key_RHK = nn.Parameter(torch.randn(config.n_distances, n_heads, d_head) * 0.02)
        self.bias_RH = nn.Parameter(torch.zeros(config.n_distances, n_heads))

    def content_bias(self) -> Tensor:
        return self.u_HK

    def by_distance(
        self, q_BTHK: Tensor, n: int, clamp_len: int, codes_RHK: Tensor | None
    ) -> Positions:
        rows = len(self.key_RHK)
        rows = min(rows, clamp_len or rows)
        bias_RH = self.bias_RH[:rows] / math.sqrt(q_BTHK.shape[-1])
        return Positions(q_BTHK, self.key_RHK[:rows], bias_RH)


class RelativeLearnedConfig(AttentionPositionsConfig):
    """Adaptive span's code: one learned key per distance, shared by heads and layers."""

    kind: Literal["relative_learned"] = "relative_learned"
    max_distance: Positive
    """farthest visible distance, in tokens (the papers' span limit)"""
    share_keys: bool = True
    """one table for all layers"""

    @property
    def farthest(self) -> int:
        return self.max_distance

    def build(self, d_model: int, n_heads: int, d_head: int) -> AttentionPositions:
        return RelativeLearned(self, d_head)


class RelativeLearned(AttentionPositions):
    """`q . key_distance`: adds a score to distances 1 to `max_distance` and none to distance 0."""

    def __init__(self, config: RelativeLearnedConfig, d_head: int):
        super().__init__()
        # column p belongs to distance max_distance - p: the last one is the previous token
        self.key_KL = nn.Parameter(torch.randn(d_head, config.max_distance))
        if config.share_keys:
            self.shared = ("key_KL",)

    def by_distance(
        self, q_BTHK: Tensor, n: int, clamp_len: int, codes_RHK: Tensor | None
    ) -> Positions:
        limit = self.key_KL.shape[1]
        nearest_KR = self.key_KL[:, max(0, limit - (n - 1)) :].flip(1)
        # distance 0 has no code
        return Positions(q_BTHK, F.pad(nearest_KR.T, (0, 0, 1, 0))[:, None])
