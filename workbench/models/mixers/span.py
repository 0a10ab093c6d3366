"""Adaptive attention span: each head learns how far back it looks, always or at each token.

Paper: arXiv:1905.07799 section 2.2: equations 3 to 7, and its last paragraph (dynamic span).
Shapes: B batch, H heads, T segment, S memory + segment, D model width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.config import Config, Positive
from workbench.inspect import tap, wanted
from workbench.kernels.attention import SoftSpan, soft_mask

TRIM_STEP = 64  # memory is trimmed in steps of this many tokens, as in the paper's code


class SpanConfig(Config):
    """The learned span of every head."""

    limit: Positive
    """the longest span, in tokens"""
    ramp: Positive = 32
    """R: over how many tokens the soft mask falls from 1 to 0"""
    penalty: Annotated[float, Field(ge=0)] = 2e-6
    """nats per token and per token of mean span, for each layer"""
    initial: Annotated[float, Field(ge=0, le=1)] = 0.0
    """span at the start, as a share of the limit"""
    dynamic: bool = False
    """each token has its own span, `limit * sigmoid(v . x_t + b)` with v and b learned per head"""
    trim_memory: bool = False
    """keep only as much memory as the longest head of the layer can see (in steps of 64). Exact up
    to the 1e-8 of the renormalisation; costs one host sync per layer"""
    trim_keys: bool = False
    """attend only to so much of it, and keep it all: as the paper's code where it does not trim
    memory, whose softmax never sees the other keys"""

    @model_validator(mode="after")
    def _consistent(self) -> SpanConfig:
        if self.dynamic and not 0 < self.initial < 1:
            raise ValueError(
                f"initial is {self.initial}, which no sigmoid reaches; a dynamic span starts "
                "between 0 and 1, at 0.1 for example"
            )
        if self.dynamic and (self.trim_memory or self.trim_keys):
            raise ValueError(
                "trim_memory and trim_keys need spans known before the text; set both to false"
            )
        return self

    def build(self, d_model: int, n_heads: int) -> Span:
        return DynamicSpan(self, d_model, n_heads) if self.dynamic else LearnedSpan(self, n_heads)


class Span(nn.Module, ABC):
    """The soft mask `m_z(distance) = clamp((R + z + 1 - distance) / R, 0, 1)` of each head."""

    def __init__(self, config: SpanConfig):
        super().__init__()
        self.limit, self.ramp = config.limit, config.ramp
        self.penalty_per_token = config.penalty
        self.trims_memory = config.trim_memory
        self.trims_keys = config.trim_keys or config.trim_memory

    @abstractmethod
    def shares(self, x_BTD: Tensor) -> Tensor:
        """Spans as shares of the limit, (H,) or (B, H, T), for the inputs of the queries."""

    @abstractmethod
    def mean_share_H(self) -> Tensor:
        """Share of the limit of each head, in the mean over tokens."""

    def soft(self, x_BTD: Tensor) -> SoftSpan:
        """The spans of the queries whose inputs these are, as `kernels.attention` takes them."""
        span = SoftSpan(self.shares(x_BTD) * self.limit, self.ramp)
        tap("span_tokens", span.tokens)
        if wanted("span_mask"):
            distance_D = torch.arange(1, self.limit + 1, device=x_BTD.device)
            mean = SoftSpan(self.mean_share_H() * self.limit, self.ramp)
            tap("span_mask", soft_mask(mean, distance_D)[:, 0])
        return span

    def penalty(self) -> Tensor:
        """Scalar in nats per token: `penalty * limit * mean of z over heads (and tokens)`."""
        return self.penalty_per_token * self.limit * self.mean_share_H().mean()

    def readings(self) -> dict[str, Tensor]:
        """Spans in tokens, without the ramp."""
        return {"span": self.limit * self.mean_share_H().detach()}

    def clamp(self) -> None:
        """Put the parameters back into their range, after an optimizer step."""

    def trimmed(self) -> int:
        """How many of the `limit` oldest distances no head of this layer can see (host sync)."""
        longest = math.ceil(float(self.mean_share_H().detach().max()) * self.limit) + self.ramp
        longest = min(max(longest, 0), self.limit)
        return TRIM_STEP * (min(self.limit - 1, self.limit - longest) // TRIM_STEP)


class LearnedSpan(Span):
    """One span for each head."""

    def __init__(self, config: SpanConfig, n_heads: int):
        super().__init__(config)
        self.share_H = nn.Parameter(torch.full((n_heads,), config.initial))

    def shares(self, x_BTD: Tensor) -> Tensor:
        return self.share_H

    def mean_share_H(self) -> Tensor:
        return self.share_H

    def clamp(self) -> None:
        # the optimizer's statistics are not touched
        with torch.no_grad():
            self.share_H.clamp_(0, 1)


class DynamicSpan(Span):
    """One span for each head and token: `z_t = limit * sigmoid(v . x_t + b)`.

    Remembers the spans of the newest segment, which `penalty` and `readings` are about.
    """

    def __init__(self, config: SpanConfig, d_model: int, n_heads: int):
        super().__init__(config)
        self.v_HD = nn.Parameter(torch.zeros(n_heads, d_model))
        start = math.log(config.initial / (1 - config.initial))
        self.b_H = nn.Parameter(torch.full((n_heads,), start))
        self._newest_BHT: Tensor | None = None

    def shares(self, x_BTD: Tensor) -> Tensor:
        logits_BHT = torch.einsum("btd,hd->bht", x_BTD, self.v_HD) + self.b_H[:, None]
        share_BHT = logits_BHT.sigmoid()
        self._newest_BHT = share_BHT if self.training else share_BHT.detach()
        return share_BHT

    def mean_share_H(self) -> Tensor:
        return self.b_H.sigmoid() if self._newest_BHT is None else self._newest_BHT.mean((0, 2))

    def penalty(self) -> Tensor:
        penalty = super().penalty()
        if self._newest_BHT is not None:
            # asked once a segment: what is only read later needs no gradient
            self._newest_BHT = self._newest_BHT.detach()
        return penalty

    def readings(self) -> dict[str, Tensor]:
        newest_BHT = self.b_H.sigmoid()[None, :, None]
        newest_BHT = newest_BHT if self._newest_BHT is None else self._newest_BHT
        spread_H = newest_BHT.detach().std((0, 2), correction=0) * self.limit
        return {**super().readings(), "span_spread": spread_H}
