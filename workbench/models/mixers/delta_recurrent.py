"""Fast weights that are read with their own last output: the Delta RNN and the Delta LSTM.

Paper: arXiv:2106.06295 section 3.2 (fast recurrent networks).
Shapes: B batch, T segment, H heads, K head width, F features of a key, V = K value width; G gates:
1 in the RNN; input, update and output in the LSTM.
State: `DeltaRecurrentState`: W, read with queries, and R, read with the last output.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench import kernels
from workbench.config import CarryMode, Positive, slot
from workbench.inspect import FastWeightInputs, SlowOutputs, tap
from workbench.models.feature_maps import (
    EluConfig,
    FeatureMapConfig,
    KeyNorm,
    SoftmaxConfig,
    features,
)
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)
from workbench.models.mixers.fast_weight import READ_EPSILON

FEEDBACK_EPSILON = 1e-6


class DeltaRNNConfig(MixerConfig):
    """`h = W^T phi(q) + R^T softmax(h)`, both matrices written by the delta rule."""

    kind: Literal["delta_rnn"] = "delta_rnn"
    n_heads: Positive
    d_head: Positive
    feature_map: slot(FeatureMapConfig) = EluConfig()  # type: ignore[valid-type]
    """of queries and keys of W; keys of R go through a softmax"""
    key_norm: KeyNorm = "sum"
    """sum: features of queries and keys are divided by their sum"""
    read_norm: Literal["none", "output"] = "none"
    """output: divide what the layer puts out by z . phi(q)"""
    softmax: Literal["feedback", "output"] = "feedback"
    """where h becomes positive and adds up to one: as it is fed back, or before it is put out"""
    scale: bool = True
    """multiply what the layer puts out by 1/sqrt(d_head)"""
    project_out: bool = True
    """a linear map from the heads back to the width of the input, without bias"""
    n_gates: ClassVar[int] = 1

    def unfit(self, carry: CarryMode) -> str | None:
        why: str | None = self.feature_map.unfit(carry)
        return why

    @property
    def token_by_token(self) -> bool:
        return True

    def build(self, d_model: int) -> SequenceMixer:
        return DeltaRNN(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        common: dict[str, Any] = {"n_heads": 2, "d_head": 4}
        first: dict[str, Any] = {"softmax": "output", "scale": False, "key_norm": "none"}
        return [
            cls(**common),
            cls(**common, **first, feature_map=SoftmaxConfig()),
            cls(n_heads=2, d_head=8, read_norm="output", project_out=False),
        ]


class DeltaLSTMConfig(DeltaRNNConfig):
    """Three gates, each with its own W and R, around a cell: `c = i u + (1 - i) c; h = o c`."""

    kind: Literal["delta_lstm"] = "delta_lstm"  # type: ignore[assignment]
    read_norm: Literal["none"] = "none"
    """gates have no common sum of keys to divide by"""
    update: Literal["linear", "sigmoid"] = "linear"
    """what becomes of u on its way into the cell"""
    skip: bool = False
    """add what W of the update gate reads to the output"""
    n_gates: ClassVar[int] = 3

    def build(self, d_model: int) -> SequenceMixer:
        return DeltaLSTM(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        common: dict[str, Any] = {"n_heads": 2, "d_head": 4}
        return [
            cls(**common),
            cls(**common, update="sigmoid", skip=True),
            cls(**common, update="sigmoid", softmax="output", scale=False),
        ]


class DeltaRecurrentState(NamedTuple):
    """What a Delta RNN or Delta LSTM hands on."""

    W_BGHFV: Tensor
    z_BHF: Tensor
    """sum of all keys of W; stays zero where nothing is normalised by it"""
    R_BGHKV: Tensor
    h_BHV: Tensor
    """the last output, before it is scaled"""
    c_BHV: Tensor
    """the cell; stays zero in the RNN"""


class DeltaRecurrent(SequenceMixer):
    """W over the whole segment at once, as nothing it needs is fed back; then R token by token."""

    def __init__(self, config: DeltaRNNConfig, d_model: int):
        super().__init__()
        H, K, G = config.n_heads, config.d_head, config.n_gates
        self.config = config
        self.d_out = d_model if config.project_out else H * K
        # per head: q, k, v, and key and value of R, a gate; then the two write strengths a gate
        self.project = nn.Linear(d_model, H * G * (5 * K + 2), bias=False)
        self.out = nn.Linear(H * K, d_model, bias=False) if config.project_out else None
        self.feature_map = config.feature_map.build(K)

    @abstractmethod
    def cell(self, a_BGHV: Tensor, z_BGHV: Tensor, c_BHV: Tensor) -> tuple[Tensor, Tensor]:
        """The output h and the cell c of the gates' values a and of W's part in them z."""

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> DeltaRecurrentState:
        G, H, K = self.config.n_gates, self.config.n_heads, self.config.d_head
        F, new = self.feature_map.n_features, self.project.weight.new_zeros
        return DeltaRecurrentState(
            W_BGHFV=new(batch_size, G, H, F, K),
            z_BHF=new(batch_size, H, F),
            R_BGHKV=new(batch_size, G, H, K, K),
            h_BHV=new(batch_size, H, K),
            c_BHV=new(batch_size, H, K),
        )

    def forward(
        self, x_BTD: Tensor, state: DeltaRecurrentState, norm: Norm = identity
    ) -> tuple[Tensor, DeltaRecurrentState]:
        config, (B, T, _) = self.config, x_BTD.shape
        G, H, K = config.n_gates, config.n_heads, config.d_head
        mixed = self.project(norm(x_BTD)).view(B, T, H, -1)
        vectors, strengths = mixed.split([5 * G * K, 2 * G], dim=-1)
        self.feature_map.begin_segment()
        q, k, v, rk, rv = (
            x.squeeze(-2).transpose(2, 3) for x in vectors.view(B, T, H, G, 5, K).split(1, dim=-2)
        )
        beta, rbeta = strengths.sigmoid().view(B, T, H, G, 2).transpose(2, 3).unbind(-1)
        tap("slow_outputs", SlowOutputs(k.flatten(2, 3), beta.flatten(2, 3)))
        q, k = (features(self.feature_map, config.key_norm, x) for x in (q, k))

        # for W, gates are so many more heads
        q, k, v, beta = (x.flatten(2, 3) for x in (q, k, v, beta))
        W_BXFV = state.W_BGHFV.flatten(1, 2)
        tap("fast_weight_inputs", FastWeightInputs(q, k, v, beta, W_BXFV, "delta"))
        z_BTXV, W_BXFV = kernels.delta_rule(q, k, v, beta, W_BXFV)
        h_BTHV, c_BHV, R_BGHKV = self.recur(
            z_BTXV.unflatten(2, (G, H)), rk.softmax(-1), rv, rbeta, state
        )
        y_BTHV, z_BHF = h_BTHV / math.sqrt(K) if config.scale else h_BTHV, state.z_BHF
        if config.read_norm == "output":
            # one gate: its heads are all there are
            z_BTHF = z_BHF[:, None] + k.cumsum(1)
            y_BTHV = y_BTHV / ((z_BTHF * q).sum(-1, keepdim=True) + READ_EPSILON)
            z_BHF = z_BTHF[:, -1]
        y_BTD = y_BTHV.flatten(2)
        return y_BTD if self.out is None else self.out(y_BTD), DeltaRecurrentState(
            W_BXFV.unflatten(1, (G, H)), z_BHF, R_BGHKV, h_BTHV[:, -1], c_BHV
        )

    @kernels.in_float32
    def recur(
        self,
        z_BTGHV: Tensor,
        k_BTGHK: Tensor,
        v_BTGHV: Tensor,
        beta_BTGH: Tensor,
        state: DeltaRecurrentState,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token by token: write R, read it with what is fed back, add z, go through the cell.

        Returns:
            all outputs h (B, T, H, V), the last cell and the last R.
        """
        R_BGHKV, h_BHV, c_BHV, outputs = state.R_BGHKV, state.h_BHV, state.c_BHV, []
        feedback = self.config.softmax == "feedback"
        tokens = zip(*(x.unbind(1) for x in (z_BTGHV, k_BTGHK, v_BTGHV, beta_BTGH)), strict=True)
        for z_BGHV, k_BGHK, v_BGHV, beta_BGH in tokens:
            R_BGHKV = kernels.delta_step(R_BGHKV, k_BGHK, v_BGHV, beta_BGH)
            fed_BHK = guarded_softmax(h_BHV) if feedback else h_BHV
            a_BGHV = z_BGHV + kernels.read(R_BGHKV, fed_BHK[:, None])
            h_BHV, c_BHV = self.cell(a_BGHV, z_BGHV, c_BHV)
            outputs.append(h_BHV)
        return torch.stack(outputs, dim=1), c_BHV, R_BGHKV

    def _put_out(self, h_BHV: Tensor) -> Tensor:
        return h_BHV.softmax(-1) if self.config.softmax == "output" else h_BHV


class DeltaRNN(DeltaRecurrent):
    """`h = z + R^T s`."""

    def cell(self, a_BGHV: Tensor, z_BGHV: Tensor, c_BHV: Tensor) -> tuple[Tensor, Tensor]:
        return self._put_out(a_BGHV[:, 0]), c_BHV


class DeltaLSTM(DeltaRecurrent):
    """`i, u, o = z + R^T s`, input and forget gate coupled."""

    config: DeltaLSTMConfig

    def cell(self, a_BGHV: Tensor, z_BGHV: Tensor, c_BHV: Tensor) -> tuple[Tensor, Tensor]:
        i_BHV, u_BHV, o_BHV = a_BGHV.unbind(1)
        u_BHV = u_BHV.sigmoid() if self.config.update == "sigmoid" else u_BHV
        c_BHV = c_BHV.lerp(u_BHV, i_BHV.sigmoid())
        h_BHV = o_BHV.sigmoid() * c_BHV
        return self._put_out(h_BHV + z_BGHV[:, 1] if self.config.skip else h_BHV), c_BHV


def guarded_softmax(x: Tensor) -> Tensor:
    """`exp(x - max) / (sum + 1e-6)`, the published recurrences' own, to whose gradient the maximum
    is a constant."""
    positive = (x - x.detach().amax(-1, keepdim=True)).exp()
    return positive / (positive.sum(-1, keepdim=True) + FEEDBACK_EPSILON)
