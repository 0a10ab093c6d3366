"""Dropout: of single numbers, over all tokens of a segment, over symbols.

Paper: arXiv:1207.0580; arXiv:1708.02182 section 4.2 (locked dropout, after arXiv:1512.05287), 4.3
(embedding).
Shapes: B batch, T segment, D width, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import kernels
from workbench.models.draws import of_weights

Kind = Literal["element", "locked"]


def mask(like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Zeros with probability `p`, else `1 / (1 - p)`."""
    return like.new_empty(shape).bernoulli_(1 - p).div_(1 - p)


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Each number alone: 0 with probability `p`, else scaled by `1 / (1 - p)`; only in training."""
    if not training or p == 0:
        return x
    if x.device.type == "cpu":
        return kernels.dropout(x, draw_seed(x.device), p)
    # on a GPU PyTorch's own is one pass over the numbers, and stores no more than bits
    return F.dropout(x, p)


def draw_seed(device: torch.device) -> Tensor:
    """One int64 from PyTorch's generator of a device; nothing waits for it."""
    return torch.randint(-(2**63), 2**63 - 1, (), device=device)


class Element(nn.Dropout):
    """`drop` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p, self.training)


class Locked(nn.Module):
    """The same units are dropped at every token of a segment."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def draw(self, x_BTD: Tensor) -> Tensor:
        """The segment's mask, (B, 1, D)."""
        return mask(x_BTD, (x_BTD.shape[0], 1, x_BTD.shape[2]), self.p)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.draw(x_BTD) if self.training and self.p else x_BTD


class DroppedSymbols(nn.Module):
    """Some symbols are not read in a segment, wherever they stand in it.

    Applied to what was looked up, which equals dropping rows of the embedding table; an output
    matrix that is tied to that table keeps its rows.
    """

    def __init__(self, p: float, n_classes: int):
        super().__init__()
        self.p, self.n_classes = p, n_classes

    def draw(self, x_BTD: Tensor) -> Tensor:
        """The segment's mask, (C, 1)."""
        return of_weights(x_BTD.device, lambda: mask(x_BTD, (self.n_classes, 1), self.p))

    def forward(self, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        return x_BTD * self.draw(x_BTD)[tokens_BT] if self.training and self.p else x_BTD


def dropout(kind: Kind, p: float) -> nn.Module:
    """Of single numbers, or locked over a segment."""
    return Locked(p) if kind == "locked" else Element(p)
