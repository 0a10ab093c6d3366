"""Recurrent layers: LSTM, GRU and the plain tanh network, with dropped recurrent weights.

Paper: arXiv:1402.1128 (LSTM with projection), arXiv:1406.1078 (GRU); arXiv:1708.02182 section 2
(weight drop).
Shapes: B batch, T segment, D model width, U units of the layer; G gates, all in one matrix in
PyTorch's order: input, forget, cell, output (LSTM); reset, update, new (GRU).
State: `LSTMState` or `HiddenState`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from workbench import kernels
from workbench.config import Positive, Probability
from workbench.models.draws import of_weights
from workbench.models.dropout import Element, drop
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)


class LSTMState(NamedTuple):
    """Hidden units and cells after the last token."""

    h_BU: Tensor
    c_BU: Tensor


class HiddenState(NamedTuple):
    """Hidden units after the last token."""

    h_BU: Tensor


class RecurrentConfig(MixerConfig):
    """A plain recurrent network: `h = tanh(W x + b + R h + c)`."""

    kind: Literal["rnn"] = "rnn"
    d_hidden: Positive
    """units; also the output's width, unless it is projected"""
    p_weight: Probability = 0.0
    """weight drop: entries of the matrix from hidden to hidden that a segment goes without"""
    project_out: bool = False
    """a linear map from the units back to the width of the input, without bias"""
    p_hidden: Probability = 0.0
    """dropout of the units before that map"""

    @property
    def token_by_token(self) -> bool:
        return True

    def build(self, d_model: int) -> SequenceMixer:
        return Recurrent(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [
            cls(d_hidden=16, p_weight=0.2),
            cls(d_hidden=5, project_out=True, p_hidden=0.1),
        ]


class GRUConfig(RecurrentConfig):
    """Gated recurrent units."""

    kind: Literal["gru"] = "gru"  # type: ignore[assignment]


class LSTMConfig(RecurrentConfig):
    """Long short-term memory."""

    kind: Literal["lstm"] = "lstm"  # type: ignore[assignment]


class Cell(NamedTuple):
    """What tells the kinds apart."""

    n_gates: int
    state: type[LSTMState] | type[HiddenState]
    run: Any
    """PyTorch's fused function, over a whole segment"""
    step: Any
    """the same for one token: it does not lay out the weights anew, as the other does on a CPU"""


CELLS = {
    "rnn": Cell(1, HiddenState, torch.rnn_tanh, torch.rnn_tanh_cell),
    "gru": Cell(3, HiddenState, torch.gru, torch.gru_cell),
    "lstm": Cell(4, LSTMState, torch.lstm, torch.lstm_cell),
}


ACCOUNTS = {kind: kernels.Account(kind) for kind in CELLS}
LIBRARIES = {"CudnnRnnBackward0": "cudnn", "MkldnnRnnLayerBackward0": "onednn"}
"""by the name of the step back that a library leaves in the graph"""


def library_of(y_BTU: Tensor) -> str | None:
    """What PyTorch computed a layer's outputs with: `cudnn`, `onednn`, or `aten` for its own loop.

    Read from the graph, not guessed from the arguments; None where there is none.
    """
    node = y_BTU.grad_fn
    if node is None:
        return None
    # the library's step, below the views that put the batch first
    for _ in range(3):
        if node is None or node.name() in LIBRARIES:
            break
        node = node.next_functions[0][0] if node.next_functions else None
    return "aten" if node is None else LIBRARIES.get(node.name(), "aten")


class Recurrent(SequenceMixer):
    """One layer of PyTorch's recurrent networks, its parameters under their names there."""

    def __init__(self, config: RecurrentConfig, d_model: int):
        super().__init__()
        self.config, self.cell = config, CELLS[config.kind]
        self.account = ACCOUNTS[config.kind]
        self.d_out = d_model if config.project_out else config.d_hidden
        G, U = self.cell.n_gates, config.d_hidden
        self.weight_ih = nn.Parameter(torch.empty(G * U, d_model))
        self.weight_hh = nn.Parameter(torch.empty(G * U, U))
        self.bias_ih = nn.Parameter(torch.empty(G * U))
        self.bias_hh = nn.Parameter(torch.empty(G * U))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(U), 1 / math.sqrt(U))
        self.drop_hidden = Element(config.p_hidden)
        self.out = nn.Linear(U, d_model, bias=False) if config.project_out else None

    def initial_state(
        self, batch_size: int, limits: Limits = CONFIGURED
    ) -> LSTMState | HiddenState:
        fields = self.cell.state._fields
        zeros = self.weight_hh.new_zeros(batch_size, self.config.d_hidden)
        return self.cell.state(*(zeros.clone() for _ in fields))

    def forward(
        self, x_BTD: Tensor, state: LSTMState | HiddenState, norm: Norm = identity
    ) -> tuple[Tensor, LSTMState | HiddenState]:
        weights = [self.weight_ih, self.drop_weight(self.weight_hh), self.bias_ih, self.bias_hh]
        y_BTU, after = self._run(norm(x_BTD), state, weights)
        y_BTD = y_BTU if self.out is None else self.out(self.drop_hidden(y_BTU))
        return y_BTD, after

    @kernels.in_float32
    def _run(
        self, x_BTD: Tensor, state: LSTMState | HiddenState, weights: list[Tensor]
    ) -> tuple[Tensor, LSTMState | HiddenState]:
        if x_BTD.shape[1] == 1:
            given = tuple(state) if len(state) > 1 else state[0]
            made = self.cell.step(x_BTD[:, 0], given, *weights)
            self.account.ran_on = "aten"
            after = self.cell.state(*(made if len(state) > 1 else (made,)))
            return after.h_BU[:, None], after
        before = tuple(leaf[None] for leaf in state)
        y_BTU, *leaves = self.cell.run(
            x_BTD,
            before if len(before) > 1 else before[0],
            weights,
            True,  # with biases
            1,  # layers
            0.0,  # dropout between layers
            self.training,
            False,  # in one direction
            True,  # batch first
        )
        if not torch.compiler.is_compiling():
            # without gradients, as in validation, what is known from training stays
            self.account.ran_on = library_of(y_BTU) or self.account.ran_on
        return y_BTU, self.cell.state(*(leaf[0] for leaf in leaves))

    def drop_weight(self, weight: Tensor) -> Tensor:
        """The recurrent matrix that one segment works with: some entries 0, the others scaled."""
        p = self.config.p_weight
        return of_weights(weight.device, lambda: drop(weight, p, self.training))
