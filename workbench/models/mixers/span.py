"""Adaptive attention span: each head learns how far back it looks.

Paper: arXiv:1905.07799 section 2.2, equations 3 to 7.
Shapes: H heads, T segment, S memory + segment.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.config import Config
from workbench.inspect import tap, wanted

TRIM_STEP = 64  # memory is trimmed in steps of this many tokens, as in the paper's code


class SpanConfig(Config):
    """The learned span of every head."""

    limit: Annotated[int, Field(gt=0)]
    """the longest span, in tokens"""
    ramp: Annotated[int, Field(gt=0)] = 32
    """R: over how many tokens the soft mask falls from 1 to 0"""
    penalty: Annotated[float, Field(ge=0)] = 2e-6
    """nats per token and per token of mean span, for each layer"""
    initial: Annotated[float, Field(ge=0, le=1)] = 0.0
    """span at the start, as a share of the limit"""
    trim_memory: bool = False
    """keep only as much memory as the longest head of the layer can see (in steps of 64). Exact up
    to the 1e-8 of the renormalisation; costs one host sync per layer"""


class Span(nn.Module):
    """The soft mask `m_z(distance) = clamp((R + z + 1 - distance) / R, 0, 1)` of each head."""

    def __init__(self, config: SpanConfig, n_heads: int):
        super().__init__()
        self.limit, self.ramp = config.limit, config.ramp
        self.penalty_per_token, self.trims = config.penalty, config.trim_memory
        self.share_H = nn.Parameter(torch.full((n_heads,), config.initial))

    def mask(self, distance_TS: Tensor) -> Tensor:
        """(H, T, S) weights in [0, 1] for integer distances."""
        if wanted("span_mask"):
            tap("span_mask", self._ramp(torch.arange(1, self.limit + 1, device=distance_TS.device)))
        return self._ramp(distance_TS)

    def _ramp(self, distance: Tensor) -> Tensor:
        span = self.share_H.view(-1, *(1,) * distance.ndim) * self.limit
        return ((self.ramp + 1 + span - distance.to(span.dtype)) / self.ramp).clamp(0, 1)

    def tokens(self) -> Tensor:
        """(H,) learned spans in tokens, without the ramp."""
        return self.share_H * self.limit

    def penalty(self) -> Tensor:
        """Scalar in nats per token: `penalty * limit * mean over heads of z`."""
        return self.penalty_per_token * self.limit * self.share_H.mean()

    def clamp(self) -> None:
        """Keep every share in [0, 1]; the optimizer's statistics are not touched."""
        with torch.no_grad():
            self.share_H.clamp_(0, 1)

    def trimmed(self) -> int:
        """How many of the `limit` oldest distances no head of this layer can see (host sync)."""
        longest = math.ceil(float(self.share_H.detach().max()) * self.limit) + self.ramp
        longest = min(max(longest, 0), self.limit)
        return TRIM_STEP * (min(self.limit - 1, self.limit - longest) // TRIM_STEP)
