"""What happens to features inside the ops: their type, and their normalisation."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_normalise(features: Tensor, epsilon: float = 0.0) -> Tensor:
    """Divide by the sum over features, so that they add up to one (arXiv:2102.11174 section 4.2).

    A vector of zeros, which DPFP can produce, stays zero: the authors' code gives NaN there, but
    for the layers in which it adds an epsilon to the sum.
    """
    total = features.sum(-1, keepdim=True) + epsilon
    return features / torch.where(total == 0, 1.0, total)


def computed_type(x: Tensor) -> torch.dtype:
    """The type that an op computes with: float32, or float64 where that is what it gets."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """`x` in the type that an op computes with."""
    return x.to(computed_type(x))
