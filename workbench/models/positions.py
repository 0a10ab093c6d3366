"""Absolute position codes: added to inputs, of the model or of a layer.

They count from the end of a segment or from its start, so they restart at every segment: a token
that attention remembers gets another code whenever it is read.

Paper: arXiv:1706.03762 section 3.5 (sinusoid); arXiv:1808.04444 section 2 (learned, every layer).
Shapes: B batch, T segment, S memory + segment, D model width, R rows of a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.config import Choice, Positive
from workbench.errors import ConfigError


class Sinusoid(nn.Module):
    """`[sin(p f_0) ... sin(p f_{d/2-1}), cos(p f_0) ...]` with `f_i = 10000^(-2i/d)`: halves side
    by side, not interleaved, as in Transformer-XL's code."""

    def __init__(self, d_model: int):
        super().__init__()
        if d_model % 2:
            raise ConfigError(f"model.d_model: a sinusoid needs an even width, got {d_model}")
        frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, positions_T: Tensor) -> Tensor:
        """(T,) positions -> (T, D) codes."""
        frequencies = self.get_buffer("frequencies")
        angles = positions_T.to(frequencies.dtype)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PositionsConfig(Choice):
    """The slots `positions` of the model, for codes added to the embedding, and of a block, for
    codes added to the input of its layer."""

    memory: Literal["clean", "accumulate"] = "clean"
    """clean: what attention remembers holds no codes; a block adds them to a copy when it is read,
    the model's own slot refuses memory. accumulate: codes are added to memory itself, again at
    every segment, as Transformer-XL's code does"""

    def build(self, d_model: int) -> InputPositions | None:
        raise TypeError(f"{type(self).__name__} does not define build(d_model)")


class InputPositions(nn.Module, ABC):
    """A code for every position of memory and segment."""

    def __init__(self, config: PositionsConfig):
        super().__init__()
        self.accumulate = config.memory == "accumulate"

    @abstractmethod
    def codes(self, S: int, T: int) -> Tensor:
        """(S, D) codes of S positions in a row, of which the last T are the segment's."""

    def forward(self, x_BSD: Tensor, T: int) -> Tensor:
        """The inputs with their codes; the last T of them are the segment's."""
        return x_BSD + self.codes(x_BSD.shape[1], T).to(x_BSD.dtype)

    def into_memory(self, hidden_BMD: Tensor, T: int) -> Tensor:
        """What is remembered when a segment of T tokens comes, with its codes."""
        M = hidden_BMD.shape[1]
        return hidden_BMD + self.codes(M + T, T)[:M].to(hidden_BMD.dtype)


class NoPositions(PositionsConfig):
    """Nothing is added: the mixers know about order themselves."""

    kind: Literal["none"] = "none"

    def build(self, d_model: int) -> None:
        return None


class AbsoluteSinusoid(PositionsConfig):
    """A sinusoid of the position inside the segment; codes start again at every segment."""

    kind: Literal["sinusoid"] = "sinusoid"
    order: Literal["ascending", "descending"] = "ascending"
    """descending: the last token of a segment has position 0, as in Transformer-XL's code and the
    fast-weight papers', where a token's code depends on how long its segment is"""
    clamp_len: Annotated[int, Field(ge=0)] = 0
    """descending positions beyond it share one code; 0: never"""

    @model_validator(mode="after")
    def _clamps_the_past(self) -> AbsoluteSinusoid:
        if self.clamp_len and self.order == "ascending":
            raise ValueError("clamp_len is for order: descending, where far means long ago")
        return self

    def build(self, d_model: int) -> InputPositions:
        return SegmentSinusoid(self, d_model)


class SegmentSinusoid(InputPositions):
    """The sinusoid of the position, counted inside the segment."""

    def __init__(self, config: AbsoluteSinusoid, d_model: int):
        super().__init__(config)
        self.descending, self.clamp_len = config.order == "descending", config.clamp_len
        self.sinusoid = Sinusoid(d_model)

    def codes(self, S: int, T: int) -> Tensor:
        position_S = torch.arange(S, device=self.sinusoid.get_buffer("frequencies").device)
        if not self.descending:
            return self.sinusoid(position_S - (S - T))
        position_S = position_S.flip(0)
        return self.sinusoid(position_S.clamp(max=self.clamp_len) if self.clamp_len else position_S)


class LearnedPositions(PositionsConfig):
    """A learned code for each distance from the end of the segment."""

    kind: Literal["learned"] = "learned"
    n_positions: Positive
    """R: rows of the table; positions further from the end share the last one"""

    def build(self, d_model: int) -> InputPositions:
        return PositionTable(self, d_model)


class PositionTable(InputPositions):
    """Row r is added r tokens before the end of the segment."""

    def __init__(self, config: LearnedPositions, d_model: int):
        super().__init__(config)
        self.code_RD = nn.Parameter(torch.randn(config.n_positions, d_model) * 0.02)

    def codes(self, S: int, T: int) -> Tensor:
        # without a clamp, as in Transformer-XL's code: the table ends by itself
        last = len(self.code_RD) - 1
        return self.code_RD[torch.arange(S - 1, -1, -1, device=self.code_RD.device).clamp(max=last)]
