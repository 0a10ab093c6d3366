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
from workbench.kernels.attention import align_distances
from workbench.models.dropout import Element
from workbench.models.positions import Sinusoid


class AttentionPositions(nn.Module, ABC):
    """How distance enters an attention score; the mixer divides the queries by sqrt(K)."""

    shared: tuple[str, ...] = ()
    clamp_len: int = 0
    """distances beyond it share one code, unless the state says otherwise; 0: never"""

    def content_query(self, q_BTHK: Tensor) -> Tensor:
        """The query that meets the content keys."""
        return q_BTHK

    def position_query(self, q_BTHK: Tensor) -> Tensor:
        """The query that meets the codes of distances."""
        return q_BTHK

    def codes(self, n: int, clamp_len: int) -> Tensor | None:
        """(n, H, K) projected codes of the distances 0 to n - 1, where making them is work that is
        the same for every query; None where there are none."""
        return None

    @abstractmethod
    def scores(
        self, q_BTHK: Tensor, S: int, clamp_len: int, codes_SHK: Tensor | None
    ) -> Tensor | None:
        """(B, H, T, S) addends by key, or None.

        Args:
            q_BTHK: `position_query`'s, divided by sqrt(K).
            S: keys; the last of them are the queries' own positions.
            clamp_len: distances beyond it share one code; 0: never.
            codes_SHK: `codes`'s for S distances.
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

    def scores(
        self, q_BTHK: Tensor, S: int, clamp_len: int, codes_SHK: Tensor | None
    ) -> Tensor | None:
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

    def content_query(self, q_BTHK: Tensor) -> Tensor:
        return q_BTHK + self.u_HK

    def position_query(self, q_BTHK: Tensor) -> Tensor:
        return q_BTHK + self.v_HK

    def codes(self, n: int, clamp_len: int) -> Tensor:
        weight = self.project.weight
        distances = torch.arange(n, device=weight.device)
        if clamp_len > 0:
            distances = distances.clamp(max=clamp_len)
        codes_RD = self.drop(self.sinusoid(distances).to(weight.dtype))
        return self.project(codes_RD).view(n, *self.shape)

    def scores(self, q_BTHK: Tensor, S: int, clamp_len: int, codes_SHK: Tensor | None) -> Tensor:
        assert codes_SHK is not None, "`codes` makes them"
        return align_distances(torch.einsum("bthk,shk->bhts", q_BTHK, codes_SHK.flip(0)))


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

    def content_query(self, q_BTHK: Tensor) -> Tensor:
        return q_BTHK + self.u_HK

    def scores(self, q_BTHK: Tensor, S: int, clamp_len: int, codes_SHK: Tensor | None) -> Tensor:
        rows = len(self.key_RHK)
        rows = min(rows, clamp_len or rows)
        distances = torch.arange(S - 1, -1, -1, device=q_BTHK.device).clamp(max=rows - 1)
        scores_BHTS = torch.einsum("bthk,shk->bhts", q_BTHK, self.key_RHK[distances])
        bias_HS = self.bias_RH[distances].T / math.sqrt(q_BTHK.shape[-1])
        return align_distances(scores_BHTS + bias_HS[:, None])


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

    def scores(self, q_BTHK: Tensor, S: int, clamp_len: int, codes_SHK: Tensor | None) -> Tensor:
        limit = self.key_KL.shape[1]
        nearest = self.key_KL[:, max(0, limit - (S - 1)) :]
        scores = torch.einsum("bthk,kl->bhtl", q_BTHK, nearest)
        # distances beyond the table get zeros on the left; distance 0 has no code: one on the right
        return align_distances(F.pad(scores, (S - 1 - nearest.shape[1], 1)))
