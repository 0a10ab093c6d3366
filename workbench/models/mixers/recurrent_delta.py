"""Recurrent Delta net: queries, keys, values and strengths depend on the last read.

Paper: arXiv:2106.06295 section 3.3 (self-reference through the last output).
Shapes: B batch, T segment, H heads, K = V head width; X = 3 K + 1 for query, key, value, strength.
State: `RecurrentDeltaState`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench import kernels
from workbench.config import Positive
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)


class RecurrentDeltaConfig(MixerConfig):
    """The delta rule with softmax features, driven also by what the layer read last."""

    kind: Literal["recurrent_delta"] = "recurrent_delta"
    n_heads: Positive
    d_head: Positive

    @property
    def token_by_token(self) -> bool:
        return True

    def build(self, d_model: int) -> SequenceMixer:
        return RecurrentDelta(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [cls(n_heads=2, d_head=4)]


class RecurrentDeltaState(NamedTuple):
    """The matrix and what was last read from it."""

    W_BHKV: Tensor
    y_BHV: Tensor
    """before it is scaled"""


class RecurrentDelta(SequenceMixer):
    """`q, k, v, beta = W_slow x + R tanh(y); W <- delta(W, k, v, beta); y = W^T q`."""

    def __init__(self, config: RecurrentDeltaConfig, d_model: int):
        super().__init__()
        self.config, self.d_out = config, d_model
        H, K = config.n_heads, config.d_head
        self.project = nn.Linear(d_model, H * (3 * K + 1), bias=False)
        self.recurrent_HKX = nn.Parameter(torch.empty(H, K, 3 * K + 1))
        nn.init.normal_(self.recurrent_HKX, 0.0, 1 / math.sqrt(K))
        self.out = nn.Linear(H * K, d_model, bias=False)

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> RecurrentDeltaState:
        H, K = self.config.n_heads, self.config.d_head
        new = self.project.weight.new_zeros
        return RecurrentDeltaState(new(batch_size, H, K, K), new(batch_size, H, K))

    def forward(
        self, x_BTD: Tensor, state: RecurrentDeltaState, norm: Norm = identity
    ) -> tuple[Tensor, RecurrentDeltaState]:
        mixed_BTHX = self.project(norm(x_BTD)).unflatten(-1, (self.config.n_heads, -1))
        y_BTHV, state = recur(mixed_BTHX, self.recurrent_HKX, state)
        return self.out(y_BTHV.flatten(2) / math.sqrt(self.config.d_head)), state


@kernels.in_float32
def recur(
    mixed_BTHX: Tensor, recurrent_HKX: Tensor, state: RecurrentDeltaState
) -> tuple[Tensor, RecurrentDeltaState]:
    """The recurrence, token by token: what each token reads, and the state after the last."""
    (W_BHKV, y_BHV), K, outputs = state, recurrent_HKX.shape[1], []
    for mixed_BHX in mixed_BTHX.unbind(1):
        fed_BHX = kernels.read(recurrent_HKX, y_BHV.tanh())
        q_BHK, k_BHK, v_BHV, beta_BH1 = (mixed_BHX + fed_BHX).split([K, K, K, 1], dim=-1)
        W_BHKV = kernels.delta_step(
            W_BHKV, k_BHK.softmax(-1), v_BHV, beta_BH1.sigmoid().squeeze(-1)
        )
        y_BHV = kernels.read(W_BHKV, q_BHK.softmax(-1))
        outputs.append(y_BHV)
    return torch.stack(outputs, dim=1), RecurrentDeltaState(W_BHKV, y_BHV)
