"""Channel mixers: what follows the sequence mixer in a block, token by token.

Paper: arXiv:1706.03762 section 3.3. All-attention (arXiv:1907.01470) has none.
Shapes: B batch, T segment, D model width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from workbench.config import Choice, Positive, Probability
from workbench.models.dropout import Element


class ChannelConfig(Choice):
    """The slot `channel` of a block."""

    def build(self, d_model: int) -> nn.Module | None:
        raise TypeError(f"{type(self).__name__} does not define build(d_model)")


class NoChannel(ChannelConfig):
    """The block ends after its sequence mixer."""

    kind: Literal["none"] = "none"

    def build(self, d_model: int) -> None:
        return None


class FeedForwardConfig(ChannelConfig):
    """Two linear maps with a ReLU between them."""

    kind: Literal["feed_forward"] = "feed_forward"
    d_ffn: Positive
    """hidden units"""
    p_hidden: Probability = 0.0
    """dropout of the hidden units"""

    def build(self, d_model: int) -> nn.Module:
        return FeedForward(self, d_model)


class FeedForward(nn.Module):
    """`W2 drop(relu(W1 x + b1)) + b2`, (B, T, D) -> (B, T, D)."""

    def __init__(self, config: FeedForwardConfig, d_model: int):
        super().__init__()
        self.expand = nn.Linear(d_model, config.d_ffn)
        self.drop = Element(config.p_hidden)
        self.contract = nn.Linear(config.d_ffn, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.contract(self.drop(self.expand(x_BTD).relu()))
