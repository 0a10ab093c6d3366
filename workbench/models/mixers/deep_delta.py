"""Fast networks of several layers, each written by the delta rule: Delta MLP and Delta Delta net.

Paper: arXiv:2106.06295 section 3.1 (deep fast networks) and 3.3 (fast weights that program fast
weights).
Shapes: B batch, T segment, H heads, K = V head width, F hidden width of a head's fast network,
N its depth in blocks.
State: `DeltaMLPState`, `DeltaDeltaState`: the fast matrices.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench import kernels
from workbench.config import Positive
from workbench.kernels.features import sum_normalise
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)

SUM_EPSILON = 1e-5


def normalised_elu(x: Tensor) -> Tensor:
    """`elu(x) + 1`, divided by its sum."""
    return sum_normalise(functional.elu(x) + 1, SUM_EPSILON)


class DeltaMLPConfig(MixerConfig):
    """A residual feed-forward network of fast weights, applied to the query."""

    kind: Literal["delta_mlp"] = "delta_mlp"
    n_heads: Positive
    d_head: Positive
    d_fast: Positive
    """hidden width of a head's fast network"""
    depth: Positive = 1
    """blocks of two fast matrices each"""
    unused_rows: bool = False
    """as the authors' code: the slow projection makes twice the keys and values that are used"""

    def build(self, d_model: int) -> SequenceMixer:
        return DeltaMLP(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [
            cls(n_heads=2, d_head=4, d_fast=6),
            cls(n_heads=2, d_head=4, d_fast=5, depth=2, unused_rows=True),
        ]


class DeltaMLPState(NamedTuple):
    """The matrices of all blocks: from head width to hidden width, and back."""

    up_BNHKF: Tensor
    down_BNHFV: Tensor


class DeltaMLP(SequenceMixer):
    """`q <- q + W2^T phi(W1^T phi(LN(q)))`, block after block."""

    def __init__(self, config: DeltaMLPConfig, d_model: int):
        super().__init__()
        self.config, self.d_out = config, d_model
        H, K, N = config.n_heads, config.d_head, config.depth
        # per head: query; keys of W1 and W2, values of W1 and W2, both for all blocks; strengths
        pair = N * (K + config.d_fast)
        self.parts = [K, pair, pair, 2 * N, 2 * pair if config.unused_rows else 0]
        self.project = nn.Linear(d_model, H * sum(self.parts), bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(K) for _ in range(N))
        self.out = nn.Linear(H * K, d_model, bias=False)

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> DeltaMLPState:
        config, new = self.config, self.project.weight.new_zeros
        sizes = (batch_size, config.depth, config.n_heads)
        K, F = config.d_head, config.d_fast
        return DeltaMLPState(new(*sizes, K, F), new(*sizes, F, K))

    def forward(
        self, x_BTD: Tensor, state: DeltaMLPState, norm: Norm = identity
    ) -> tuple[Tensor, DeltaMLPState]:
        config = self.config
        mixed = self.project(norm(x_BTD)).unflatten(-1, (config.n_heads, -1))
        q_BTHK, keys, values, strengths, _ = mixed.split(self.parts, dim=-1)
        K, F, N = config.d_head, config.d_fast, config.depth
        keys, values = keys.split([K, F] * N, dim=-1), values.split([F, K] * N, dim=-1)
        betas = strengths.sigmoid().unbind(-1)
        ups, downs = [], []
        for n, norm_n in enumerate(self.norms):
            i, j = 2 * n, 2 * n + 1
            y_BTHF, up_BHKF = kernels.delta_rule(
                normalised_elu(norm_n(q_BTHK)),
                normalised_elu(keys[i]),
                values[i],
                betas[i],
                state.up_BNHKF[:, n],
            )
            y_BTHV, down_BHFV = kernels.delta_rule(
                normalised_elu(y_BTHF),
                normalised_elu(keys[j]),
                values[j],
                betas[j],
                state.down_BNHFV[:, n],
            )
            q_BTHK = q_BTHK + y_BTHV
            ups.append(up_BHKF)
            downs.append(down_BHFV)
        new = DeltaMLPState(torch.stack(ups, dim=1), torch.stack(downs, dim=1))
        return self.out(q_BTHK.flatten(2)), new


class DeltaDeltaConfig(MixerConfig):
    """Fast weights that are programmed by a fast weight memory instead of by a slow network."""

    kind: Literal["delta_delta"] = "delta_delta"
    n_heads: Positive
    d_head: Positive
    base_weights: Literal["none", "trained", "frozen"] = "none"
    """what the first memory holds before the first token: nothing, or slow weights. frozen: drawn
    and never trained, as happens in the authors' code"""

    def build(self, d_model: int) -> SequenceMixer:
        return DeltaDelta(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [cls(n_heads=2, d_head=4), cls(n_heads=2, d_head=4, base_weights="trained")]


class DeltaDeltaState(NamedTuple):
    """The first memory, whose values are queries, keys, values and strengths of the second."""

    first_BHKX: Tensor
    second_BHKV: Tensor


class DeltaDelta(SequenceMixer):
    """`q', k', v', beta' = W1^T phi(q); y = W2^T phi(q')`, both written by the delta rule."""

    def __init__(self, config: DeltaDeltaConfig, d_model: int):
        super().__init__()
        self.config, self.d_out = config, d_model
        H, K = config.n_heads, config.d_head
        self.project = nn.Linear(d_model, H * (5 * K + 2), bias=False)
        self.out = nn.Linear(H * K, d_model, bias=False)
        self.base_HKX: nn.Parameter | None = None
        if config.base_weights != "none":
            trained = config.base_weights == "trained"
            self.base_HKX = nn.Parameter(torch.rand(H, K, 3 * K + 1) + 1, requires_grad=trained)

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> DeltaDeltaState:
        H, K, new = self.config.n_heads, self.config.d_head, self.project.weight.new_zeros
        first_BHKX = new(batch_size, H, K, 3 * K + 1)
        if self.base_HKX is not None:
            first_BHKX = first_BHKX + self.base_HKX
        return DeltaDeltaState(first_BHKX, new(batch_size, H, K, K))

    def forward(
        self, x_BTD: Tensor, state: DeltaDeltaState, norm: Norm = identity
    ) -> tuple[Tensor, DeltaDeltaState]:
        K = self.config.d_head
        mixed = self.project(norm(x_BTD)).unflatten(-1, (self.config.n_heads, -1))
        programmed, first_BHKX = write_and_read(mixed, [K, K, 3 * K + 1, 1], state.first_BHKX)
        y_BTHV, second_BHKV = write_and_read(programmed, [K, K, K, 1], state.second_BHKV)
        return self.out(y_BTHV.flatten(2)), DeltaDeltaState(first_BHKX, second_BHKV)


def write_and_read(mixed_BTHX: Tensor, parts: list[int], W_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """The delta rule on a projection's queries, keys, values and logits of strengths."""
    q_BTHK, k_BTHK, v_BTHV, beta_BTH1 = mixed_BTHX.split(parts, dim=-1)
    return kernels.delta_rule(
        normalised_elu(q_BTHK),
        normalised_elu(k_BTHK),
        v_BTHV,
        beta_BTH1.sigmoid().squeeze(-1),
        W_BHKV,
    )
