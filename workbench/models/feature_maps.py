"""Feature maps phi of linear attention: from a head's query or key (K) to F features.

Paper: arXiv:2006.16236 section 3.2.1 (ELU + 1); arXiv:2009.14794 section 2.2 (FAVOR+);
arXiv:2102.11174 section 5.3 (DPFP), section 6.1 (tanh); arXiv:2106.06295 section 3 (softmax).
Shapes: `(..., K) -> (..., F)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import kernels
from workbench.config import CarryMode, Choice, Positive
from workbench.errors import ConfigError
from workbench.kernels.features import sum_normalise
from workbench.models.draws import of_weights

KeyNorm = Literal["none", "sum"]
"""sum: features are divided by their sum"""


class FeatureMap(nn.Module, ABC):
    """One map for queries and keys of all heads of a layer."""

    n_features: int

    def begin_segment(self) -> None:
        """Called once per forward pass, before queries and keys are mapped."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features of `x` (..., K)."""

    def normalised(self, x: Tensor) -> Tensor:
        """Features of `x` (..., K), divided by their sum."""
        return sum_normalise(self(x))


class FeatureMapConfig(Choice):
    """The slot `feature_map` of the fast-weight mixer."""

    def unfit(self, carry: CarryMode) -> str | None:
        """Why its features cannot be those of a state that is carried so; None where they can."""
        return None

    def build(self, d_head: int) -> FeatureMap:
        raise TypeError(f"{type(self).__name__} does not define build(d_head)")


class EluConfig(FeatureMapConfig):
    """`elu(x) + 1`: positive, as many features as inputs."""

    kind: Literal["elu"] = "elu"

    def build(self, d_head: int) -> FeatureMap:
        return Elu(d_head)


class Elu(FeatureMap):
    """`elu(x) + 1`."""

    def __init__(self, d_head: int):
        super().__init__()
        self.n_features = d_head

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


class TanhConfig(FeatureMapConfig):
    """`tanh(x)`: signed, so nothing can be normalised by its sum."""

    kind: Literal["tanh"] = "tanh"

    def build(self, d_head: int) -> FeatureMap:
        return Tanh(d_head)


class Tanh(FeatureMap):
    """`tanh(x)`."""

    def __init__(self, d_head: int):
        super().__init__()
        self.n_features = d_head

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class SoftmaxConfig(FeatureMapConfig):
    """`softmax(x)` over a head's width: positive features that add up to one."""

    kind: Literal["softmax"] = "softmax"

    def build(self, d_head: int) -> FeatureMap:
        return Softmax(d_head)


class Softmax(FeatureMap):
    """`softmax(x)` over the last dimension."""

    def __init__(self, d_head: int):
        super().__init__()
        self.n_features = d_head

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class DpfpConfig(FeatureMapConfig):
    """Deterministic parameter-free projection: products of rectified neighbours."""

    kind: Literal["dpfp"] = "dpfp"
    nu: int = 1
    """number of shifts; F = 2 K nu"""

    def build(self, d_head: int) -> FeatureMap:
        if not 0 < self.nu < 2 * d_head:
            raise ConfigError(
                f"feature_map.nu: got {self.nu}, expected 1 to 2 * d_head - 1 = {2 * d_head - 1}; "
                "more shifts would repeat the first ones"
            )
        return Dpfp(d_head, self.nu)


class Dpfp(FeatureMap):
    """With `y = [relu(x), relu(-x)]`: `y * roll(y, i)` for shifts i = 1..nu, side by side."""

    def __init__(self, d_head: int, nu: int):
        super().__init__()
        self.nu, self.n_features = nu, 2 * d_head * nu

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = kernels.dpfp(x, self.nu, False)
        return features

    def normalised(self, x: Tensor) -> Tensor:
        features: Tensor = kernels.dpfp(x, self.nu, True)
        return features


class FavorConfig(FeatureMapConfig):
    """FAVOR+: random features that estimate exp(q . k) without bias."""

    kind: Literal["favor"] = "favor"
    n_projections: Positive = 16
    """m random directions; F = 2 m"""
    redraw: Literal["each_step", "each_pass", "never"] = "each_step"
    """each_step: a new matrix at every training forward pass; evaluation uses the last one, which
    is saved with the weights. each_pass: in evaluation too, so that its result is random. Fast
    weights carried between segments hold old features, so recipes that carry them must say never"""
    orthogonal: Literal["rows", "columns"] = "rows"
    """which vectors of the matrix (d_head, n_projections) are orthogonal, in blocks. columns, the
    random directions, is the paper's; rows is what the language-model code does"""
    epsilon: Annotated[float, Field(ge=0)] = 1e-4
    """added to every feature before scaling"""

    def unfit(self, carry: CarryMode) -> str | None:
        if carry == "keep" and self.redraw != "never":
            return (
                f"feature_map.redraw is {self.redraw}, but train.carry is keep: carried fast "
                "weights hold features of the old projection. Set train.carry: reset, or redraw: "
                "never"
            )
        return None

    def build(self, d_head: int) -> FeatureMap:
        return Favor(self, d_head)


class Favor(FeatureMap):
    """`([exp(x P - |x|^2/2), exp(-x P - |x|^2/2)] + epsilon) / sqrt(2 m)`.

    Deviates: from the paper, as the fast-weight codes do: x is not scaled by K^(-1/4), and nothing
    is subtracted before the exponential. From the retrieval code of arXiv:2102.11174: it takes the
    columns' lengths from the Gaussian block that it orthogonalises, here they are drawn afresh.
    """

    def __init__(self, config: FavorConfig, d_head: int):
        super().__init__()
        self.config, self.n_features = config, 2 * config.n_projections
        self.d_head, self.m = d_head, config.n_projections
        self.register_buffer("projection_KM", self.draw())

    def draw(self) -> Tensor:
        """(K, m): rows or columns as `orthogonal_vectors`."""
        if self.config.orthogonal == "columns":
            return orthogonal_vectors(self.m, self.d_head).T
        return orthogonal_vectors(self.d_head, self.m)

    def begin_segment(self) -> None:
        redraw = self.config.redraw
        if redraw == "each_pass" or (self.training and redraw == "each_step"):
            buffer = self.get_buffer("projection_KM")
            buffer.copy_(of_weights(buffer.device, self.draw))

    def forward(self, x: Tensor) -> Tensor:
        # a copy: the buffer is redrawn in place before this pass's backward may have run
        u = x @ self.get_buffer("projection_KM").to(x.dtype).clone()
        half_square = x.square().sum(-1, keepdim=True) / 2
        features = torch.cat([(u - half_square).exp(), (-u - half_square).exp()], dim=-1)
        return (features + self.config.epsilon) / math.sqrt(2 * self.m)


def orthogonal_vectors(count: int, width: int) -> Tensor:
    """(count, width): orthogonal in blocks of `width`, each with the norm of a Gaussian vector."""
    rows: list[Tensor] = []
    for start in range(0, count, width):
        q, _ = torch.linalg.qr(torch.randn(width, width))
        rows.append(q.T[: count - start])
    lengths = torch.randn(count, width).norm(dim=1, keepdim=True)
    return lengths * torch.cat(rows)


def features(feature_map: FeatureMap, key_norm: KeyNorm, x: Tensor) -> Tensor:
    """What a key or query (..., K) is written or read with, (..., F)."""
    if key_norm == "sum":
        return feature_map.normalised(x)
    mapped: Tensor = feature_map(x)
    return mapped
