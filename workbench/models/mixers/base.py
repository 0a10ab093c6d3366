"""The protocol of a sequence mixer: state is an argument and a result, never hidden.

Shapes: B batch, T segment, D model width. Every tensor leaf of a state has B on dim 0.
A mixer knows nothing of residuals, losses or data; `Block` wires the residual, the trainer cuts
the gradient between segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from workbench.carry import State
from workbench.config import CarryMode, Choice, SameLength

Norm = Callable[[Tensor], Tensor]


class Limits(NamedTuple):
    """How far a state reaches, where that is not as the mixer was configured; None: as configured.

    Evaluation asks for other limits than training without touching the model. Mixers with a state
    of fixed size ignore them.
    """

    memory_len: int | None = None
    """past inputs to keep, in tokens"""
    same_length: SameLength | None = None
    """equally many keys for every query, however the text is cut: memory_len of them, its own
    counted or not"""
    clamp_len: int | None = None
    """distances beyond it share one position code; 0: never"""
    ext_len: int = 0
    """tokens at the end of each segment that the next one repeats as context: they are not kept.
    Only where `MixerConfig.has_memory` can the state leave them out"""
    constant_weights: bool = False
    """the weights will not change while the state lives, as in evaluation and generation: then
    attention keeps keys and values, each computed once, instead of inputs"""


CONFIGURED = Limits()


def identity(x: Tensor) -> Tensor:
    return x


class MixerConfig(Choice):
    """The slot `mixer` of a block. A member defines `build` and, for the law tests, `tiny`."""

    has_memory: ClassVar[bool] = False
    """Whether the state is nothing but past inputs: then an evaluation may choose how many
    (`Limits.memory_len`), and those that will be read again can be left out (`Limits.ext_len`)."""

    def unfit(self, carry: CarryMode) -> str | None:
        """Why it cannot be trained with `train.carry` set so; None where it can."""
        return None

    @property
    def reads_raw(self) -> bool:
        """Whether something is read without the block's norm, and so without its codes."""
        return False

    @property
    def token_by_token(self) -> bool:
        """Whether a segment's tokens are mixed one after another, so that only rows side by side
        fill a machine."""
        return False

    def build(self, d_model: int) -> SequenceMixer:
        """The mixer for inputs of width `d_model`, with freshly drawn parameters."""
        raise TypeError(f"{type(self).__name__} does not define build(d_model)")

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        """Small configs that cover the options; the eight laws run over each of them."""
        raise TypeError(f"{cls.__name__} does not define tiny()")


class SequenceMixer(nn.Module, ABC):
    """Mixes information along time and hands a state to the next segment."""

    d_out: int
    """Width of the output; equals the input width unless the block says otherwise."""

    shared: tuple[str, ...] = ()
    """Parameters of this mixer that all layers of the same kind share (the model ties them)."""

    @abstractmethod
    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> State:
        """The state before the first token, of `batch_size` rows."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State, norm: Norm = identity) -> tuple[Tensor, State]:
        """Mix one segment.

        Args:
            x_BTD: inputs.
            state: what the segment before left behind; not changed.
            norm: applied to every input that is read, remembered ones included. A pre-norm block
                passes its LayerNorm, so that memory holds raw inputs.

        Returns:
            outputs (B, T, d_out) and the state after the last token.
        """

    def forward_last(
        self, x_BTD: Tensor, state: State, n_last: int, norm: Norm = identity
    ) -> tuple[Tensor, State]:
        """As `forward`, where nobody asks for more than the outputs of the last tokens.

        A mixer that can leave out work for the others, such as their queries, does so here.

        Args:
            x_BTD, state, norm: as for `forward`.
            n_last: how many tokens' outputs are asked for, 1 to T.

        Returns:
            outputs (B, n_last, d_out), equal to the last ones of `forward`, and the same state.
        """
        y_BTD, state = self(x_BTD, state, norm)
        return y_BTD[:, -n_last:], state

    def change_memory(self, state: State, change: Callable[[Tensor], Tensor]) -> State:
        """The state with the past inputs that it remembers, (B, M, D), changed; itself where it
        remembers none."""
        return state

    def reach(self, memory_len: int | None = None) -> int | None:
        """How many past tokens can influence an output; None where there is no bound."""
        return None

    def penalties(self) -> dict[str, Tensor]:
        """Named scalars (nats per token) that the objective adds to the loss."""
        return {}

    def readings(self) -> dict[str, Tensor]:
        """Named quantities to log, such as the span of each head (H,)."""
        return {}

    def after_step(self) -> None:
        """Called after each optimizer step: project parameters back into their range."""
