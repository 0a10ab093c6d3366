"""Quasi-recurrent layers: a short convolution makes all gates at once, pooling runs along time.

Paper: arXiv:1611.01576 section 2 (fo-pooling, zoneout 2.2); arXiv:1803.08240 section 3 (as a
language model).
Shapes: B batch, T segment, D input width, U units; P = window - 1 inputs before the segment.
State: `QRNNState`: the last inputs, as many as the window looks back, and the pooled cells.
Deviates: from the paper and as its code, F weighs the new value and 1 - F the old one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import kernels
from workbench.config import Positive, Probability
from workbench.models.draws import of_weights
from workbench.models.dropout import drop
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)


class QRNNConfig(MixerConfig):
    """Gates from a window of inputs, a recurrence without matrix products."""

    kind: Literal["qrnn"] = "qrnn"
    d_hidden: Positive
    """units; also the output's width"""
    window: Positive = 1
    """inputs that the gates of a token see: its own and those before it"""
    output_gate: bool = True
    """true: fo-pooling. false: f-pooling, the output is the cells themselves"""
    p_zoneout: Probability = 0.0
    """how often a unit keeps its old value, whatever its gate says; in evaluation the gates are
    scaled instead"""
    p_weight: Probability = 0.0
    """weight drop: entries of the matrix from inputs to gates that a segment goes without"""

    def build(self, d_model: int) -> SequenceMixer:
        return QRNN(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [
            cls(d_hidden=16, window=2, p_weight=0.2),
            cls(d_hidden=16, window=3, p_zoneout=0.2),
            cls(d_hidden=16, output_gate=False),
        ]


class QRNNState(NamedTuple):
    """What a layer knows of the text before."""

    inputs_BPD: Tensor
    """raw, oldest first; zeros before the text"""
    c_BU: Tensor


class QRNN(SequenceMixer):
    """`Z, F, O = tanh, sigmoid, sigmoid (W [x_t, x_t-1, ...]); c = F Z + (1 - F) c; y = O c`."""

    def __init__(self, config: QRNNConfig, d_model: int):
        super().__init__()
        self.config, self.d_in, self.d_out = config, d_model, config.d_hidden
        self.gates = nn.Linear(config.window * d_model, (2 + config.output_gate) * config.d_hidden)

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> QRNNState:
        new = self.gates.weight.new_zeros
        return QRNNState(
            new(batch_size, self.config.window - 1, self.d_in), new(batch_size, self.d_out)
        )

    def forward(
        self, x_BTD: Tensor, state: QRNNState, norm: Norm = identity
    ) -> tuple[Tensor, QRNNState]:
        P, T = self.config.window - 1, x_BTD.shape[1]
        seen_BSD = torch.cat([state.inputs_BPD, x_BTD], dim=1)
        normed_BSD = norm(seen_BSD)
        # a token's own input first, then the older ones
        inputs = [normed_BSD[:, P - back : P - back + T] for back in range(P + 1)]
        weight = self.drop_weight(self.gates.weight)
        gates = F.linear(torch.cat(inputs, dim=-1), weight, self.gates.bias)
        y_BTU, c_BU = kernels.fo_pool(gates, state.c_BU, *self.zoneout(gates))
        return y_BTU, QRNNState(seen_BSD[:, T:], c_BU)

    def drop_weight(self, weight: Tensor) -> Tensor:
        """The matrix that one segment works with: some entries 0, the others scaled."""
        p = self.config.p_weight
        return of_weights(weight.device, lambda: drop(weight, p, self.training))

    def zoneout(self, gates_BTX: Tensor) -> tuple[Tensor | None, float]:
        """Which gates let new values in, (B, T, U), and how far they all do; nothing is scaled in
        training."""
        keep = 1 - self.config.p_zoneout
        if keep == 1 or not self.training:
            return None, keep
        return gates_BTX.new_empty((*gates_BTX.shape[:2], self.d_out)).bernoulli_(keep), 1.0
