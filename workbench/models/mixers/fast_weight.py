"""Linear attention as a fast-weight memory: outer-product writes, matrix-vector reads.

Paper: arXiv:2102.11174 sections 3 and 4 (delta rule eq. 23 to 25, sum normalisation 4.2);
arXiv:2006.16236 section 3.3 (sum rule); arXiv:2106.06295 section 3 (carried fast weights).
Shapes: B batch, T segment, H heads, K head width, F features of a key, V = K value width.
State: `FastWeights`: the matrix W (row = key feature, column = value) and z, the sum of keys; with
an LSTM as slow network `DrivenFastWeights`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from workbench import kernels
from workbench.config import CarryMode, Positive, Probability, slot
from workbench.inspect import FastWeightInputs, SlowOutputs, tap, wanted
from workbench.models.dropout import drop
from workbench.models.feature_maps import (
    DpfpConfig,
    EluConfig,
    FavorConfig,
    FeatureMapConfig,
    KeyNorm,
    SoftmaxConfig,
    TanhConfig,
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
from workbench.models.mixers.recurrent import LSTMConfig, LSTMState

READ_EPSILON = 1e-5


class FastWeightConfig(MixerConfig):
    """A key-value memory that is written and read once per token and head."""

    kind: Literal["fast_weight"] = "fast_weight"
    n_heads: Positive
    d_head: Positive
    """width of a head's query and key before the feature map, and of its value"""
    rule: Literal["sum", "delta"] = "delta"
    """sum: W += k v^T. delta: first subtract what the key reads, scaled by a learned strength"""
    feature_map: slot(FeatureMapConfig) = EluConfig()  # type: ignore[valid-type]
    key_norm: KeyNorm = "sum"
    """sum: features of queries and keys are divided by their sum"""
    read_norm: Literal["none", "output", "memory"] = "none"
    """output: divide what is read by z . phi(q). memory: the delta rule's own reads too"""
    scale: Literal["output", "scores"] = "output"
    """where 1/sqrt(d_head) enters: after the read normalisation, or before it, where it cancels"""
    slow_net: Literal["linear", "lstm"] = "linear"
    """what makes queries, keys, values and write strengths of the inputs"""
    p_attention: Probability = 0.0
    """dropout of the scores q . k of the tokens of a segment, for the sum rule, which is then
    computed as quadratic attention in training; sums of keys are left whole"""
    normed_queries: bool = True
    """false: a pre-norm block's LayerNorm is applied for keys and values only, as in the authors'
    PyTorch layers"""

    @model_validator(mode="after")
    def _consistent(self) -> FastWeightConfig:
        if self.p_attention and self.rule != "sum":
            raise ValueError(
                "p_attention drops scores of the sum rule; the delta rule has none: set it to 0"
            )
        if not self.normed_queries and self.slow_net != "linear":
            raise ValueError(
                "normed_queries: false needs queries of their own; use slow_net: linear"
            )
        if self.read_norm == "memory" and self.rule != "delta":
            raise ValueError("read_norm: memory normalises the delta rule's reads; use rule: delta")
        return self

    def unfit(self, carry: CarryMode) -> str | None:
        why: str | None = self.feature_map.unfit(carry)
        return why

    @property
    def reads_raw(self) -> bool:
        return not self.normed_queries

    @property
    def token_by_token(self) -> bool:
        return self.slow_net == "lstm"

    def build(self, d_model: int) -> SequenceMixer:
        return FastWeight(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        common: dict[str, Any] = {"n_heads": 2, "d_head": 4}
        favor = FavorConfig(n_projections=3, redraw="never")
        return [
            cls(**common),
            cls(**common, rule="sum", key_norm="none", read_norm="output", p_attention=0.1),
            cls(**common, rule="sum", feature_map=favor, read_norm="output", scale="scores"),
            cls(**common, feature_map=DpfpConfig(nu=2)),
            cls(**common, feature_map=favor, read_norm="output"),
            cls(**common, read_norm="memory"),
            cls(**common, read_norm="output", slow_net="lstm"),
            cls(**common, feature_map=SoftmaxConfig(), key_norm="none"),
            cls(**common, rule="sum", feature_map=TanhConfig(), key_norm="none"),
        ]


class FastWeights(NamedTuple):
    """What a fast-weight layer remembers: constant in size, unbounded in reach."""

    W_BHFV: Tensor
    z_BHF: Tensor
    """sum of all written keys; stays zero where nothing is normalised by it"""


class DrivenFastWeights(NamedTuple):
    """The same and the state of the slow LSTM."""

    W_BHFV: Tensor
    z_BHF: Tensor
    h_BU: Tensor
    c_BU: Tensor


class FastWeight(SequenceMixer):
    """`q, k, v, beta = W_slow x; W <- rule(W, phi(k), v, beta); y = W^T phi(q)`."""

    def __init__(self, config: FastWeightConfig, d_model: int):
        super().__init__()
        self.config, self.d_out = config, d_model
        H, K = config.n_heads, config.d_head
        # per head: query, key, value, and the write strength's logit under the delta rule
        self.rows = 3 * K + (config.rule == "delta")
        self.state: type[FastWeights] | type[DrivenFastWeights] = FastWeights
        self.project: nn.Module = nn.Linear(d_model, H * self.rows, bias=False)
        if config.slow_net == "lstm":
            self.state = DrivenFastWeights
            self.project = LSTMConfig(d_hidden=H * self.rows).build(d_model)
        self.out = nn.Linear(H * K, d_model, bias=False)
        self.feature_map = config.feature_map.build(K)

    def initial_state(
        self, batch_size: int, limits: Limits = CONFIGURED
    ) -> FastWeights | DrivenFastWeights:
        H, F, V = self.config.n_heads, self.feature_map.n_features, self.config.d_head
        new = self.out.weight.new_zeros
        slow = (new(batch_size, H * self.rows) for _ in self.state._fields[2:])
        return self.state(new(batch_size, H, F, V), new(batch_size, H, F), *slow)

    def forward(
        self, x_BTD: Tensor, state: FastWeights | DrivenFastWeights, norm: Norm = identity
    ) -> tuple[Tensor, FastWeights | DrivenFastWeights]:
        return self._run(x_BTD, state, x_BTD.shape[1], norm)

    def forward_last(
        self,
        x_BTD: Tensor,
        state: FastWeights | DrivenFastWeights,
        n_last: int,
        norm: Norm = identity,
    ) -> tuple[Tensor, FastWeights | DrivenFastWeights]:
        # dropped scores and taps are about all queries
        if self.training or wanted("fast_weight_inputs"):
            return super().forward_last(x_BTD, state, n_last, norm)
        return self._run(x_BTD, state, n_last, norm)

    def _run(
        self,
        x_BTD: Tensor,
        state: FastWeights | DrivenFastWeights,
        n_last: int,
        norm: Norm,
    ) -> tuple[Tensor, FastWeights | DrivenFastWeights]:
        """Write every token, read after the last `n_last` of them, the T of q, z and y."""
        inside = n_last == x_BTD.shape[1] and self._normalised_inside()
        q_BTHF, k_BSHF, v_BSHV, beta_BSH, slow = self._inputs(x_BTD, state, norm, n_last, inside)
        z_BSHF, z_BHF = self._key_sums(k_BSHF, state.z_BHF)
        if self.config.read_norm == "memory":
            assert beta_BSH is not None and z_BSHF is not None, "it is the delta rule's"
            before_BSHF = torch.cat([state.z_BHF[:, None], z_BSHF[:, :-1]], dim=1)
            k_BSHF, beta_BSH = self._normalise_write(k_BSHF, beta_BSH, before_BSHF)
        W_BHFV, first = state.W_BHFV, x_BTD.shape[1] - n_last
        if first:
            W_BHFV = self._write(k_BSHF, v_BSHV, beta_BSH, W_BHFV, first)
            k_BSHF, v_BSHV = k_BSHF[:, first:], v_BSHV[:, first:]
            beta_BSH = None if beta_BSH is None else beta_BSH[:, first:]
            z_BSHF = None if z_BSHF is None else z_BSHF[:, first:]
        inputs = FastWeightInputs(q_BTHF, k_BSHF, v_BSHV, beta_BSH, W_BHFV, self.config.rule)
        tap("fast_weight_inputs", inputs)
        y_BTHV, W_BHFV = self._write_and_read(inputs, inside)
        y_BTHV = self._normalise_read(y_BTHV, q_BTHF, z_BSHF)
        return self.out(y_BTHV.flatten(2)), self.state(W_BHFV, z_BHF, *slow)

    def _inputs(
        self,
        x_BTD: Tensor,
        state: FastWeights | DrivenFastWeights,
        norm: Norm,
        n_last: int,
        inside: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Queries of the last tokens and keys of all, as features, values, write strengths (delta
        rule), the slow state."""
        config, K = self.config, self.config.d_head
        mixed, slow = self._slow(norm(x_BTD), state)
        q_BTHK, k_BTHK, v_BTHV, *strength = mixed.split([K, K, K, *[1] * (self.rows - 3 * K)], -1)
        q_BTHK = q_BTHK[:, -n_last:]
        if not config.normed_queries:
            q_BTHK = self._slow(x_BTD[:, -n_last:], state)[0][..., :K]
        self.feature_map.begin_segment()
        key_norm: KeyNorm = "none" if inside else config.key_norm
        q_BTHF, k_BTHF = (features(self.feature_map, key_norm, x) for x in (q_BTHK, k_BTHK))
        beta_BTH = strength[0].sigmoid().squeeze(-1) if strength else None
        tap("slow_outputs", SlowOutputs(k_BTHK, beta_BTH))
        return q_BTHF, k_BTHF, v_BTHV, beta_BTH, slow

    @staticmethod
    @kernels.in_float32
    def _write(
        k_BSHF: Tensor, v_BSHV: Tensor, beta_BSH: Tensor | None, W_BHFV: Tensor, stop: int
    ) -> Tensor:
        """W after the tokens before `stop`, which nothing reads."""
        k_BSHF, v_BSHV = k_BSHF[:, :stop], v_BSHV[:, :stop]
        if beta_BSH is None:
            return W_BHFV + torch.einsum("bshf,bshv->bhfv", k_BSHF, v_BSHV)
        return kernels.delta_rule(k_BSHF, k_BSHF, v_BSHV, beta_BSH[:, :stop], W_BHFV)[1]

    def _slow(
        self, x_BTD: Tensor, state: FastWeights | DrivenFastWeights
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The slow network's output, per head, and its own state."""
        slow: tuple[Tensor, ...] = ()
        if isinstance(state, DrivenFastWeights):
            mixed, slow = self.project(x_BTD, LSTMState(state.h_BU, state.c_BU))
        else:
            mixed = self.project(x_BTD)
        return mixed.unflatten(-1, (self.config.n_heads, self.rows)), slow

    def _normalised_inside(self) -> bool:
        """Whether the op itself divides features by their sums, which nothing else asks for."""
        alone = self.config.key_norm == "sum" and self.config.read_norm == "none"
        drops = self.training and self.config.p_attention > 0
        return alone and not drops and not wanted("fast_weight_inputs")

    def _write_and_read(self, inputs: FastWeightInputs, inside: bool) -> tuple[Tensor, Tensor]:
        """What each query reads after its token was written, and the last W."""
        q_BTHF, k_BTHF, v_BTHV, beta_BTH, W_BHFV, _ = inputs
        if beta_BTH is not None:
            return kernels.delta_rule(q_BTHF, k_BTHF, v_BTHV, beta_BTH, W_BHFV, inside)
        if self.training and self.config.p_attention:
            return self._drop_scores(q_BTHF, k_BTHF, v_BTHV, W_BHFV)
        return kernels.sum_rule(q_BTHF, k_BTHF, v_BTHV, W_BHFV, inside)

    @kernels.in_float32
    def _drop_scores(
        self, q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, W_BHFV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum rule as attention without softmax, some of whose scores are dropped."""
        scores_BHTS = torch.einsum("bthf,bshf->bhts", q_BTHF, k_BTHF).tril()
        dropped_BHTS = drop(scores_BHTS, self.config.p_attention, self.training)
        y_BTHV = torch.einsum("bhts,bshv->bthv", dropped_BHTS, v_BTHV)
        y_BTHV = y_BTHV + torch.einsum("bthf,bhfv->bthv", q_BTHF, W_BHFV)
        return y_BTHV, W_BHFV + torch.einsum("bthf,bthv->bhfv", k_BTHF, v_BTHV)

    @kernels.in_float32
    def _key_sums(self, k_BTHF: Tensor, z_BHF: Tensor) -> tuple[Tensor | None, Tensor]:
        """Running sums of keys, each token's own included, and the last of them."""
        if self.config.read_norm == "none":
            return None, z_BHF
        z_BTHF = z_BHF[:, None] + k_BTHF.cumsum(1)
        return z_BTHF, z_BTHF[:, -1]

    @kernels.in_float32
    def _normalise_read(self, y_BTHV: Tensor, q_BTHF: Tensor, z_BTHF: Tensor | None) -> Tensor:
        """Divided by sqrt(K), and by the sum of keys as the query reads it."""
        root = math.sqrt(self.config.d_head)
        if z_BTHF is None:
            return y_BTHV / root
        sums_BTH1 = (z_BTHF * q_BTHF).sum(-1, keepdim=True)
        if self.config.scale == "scores":
            sums_BTH1 = sums_BTH1 / root
        return y_BTHV / root / (sums_BTH1 + READ_EPSILON)

    @staticmethod
    @kernels.in_float32
    def _normalise_write(
        k_BTHF: Tensor, beta_BTH: Tensor, before_BTHF: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`d = z_{t-1} . k_t`; write with key `k / (d + eps)` and strength `beta d`.

        Where nothing was written before, d counts as 1.
        """
        # the sum of keys is exactly zero before the first write, and only then
        first = torch.zeros_like(beta_BTH, dtype=torch.bool)
        first[:, 0] = (before_BTHF[:, 0] == 0).all(-1)
        d_BTH = torch.where(first, 1.0, (before_BTHF * k_BTHF).sum(-1))
        return k_BTHF / (d_BTH[..., None] + READ_EPSILON), beta_BTH * d_BTH
