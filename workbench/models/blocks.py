"""A block: a sequence mixer, a channel mixer, and the only place where residuals are wired.

Paper: arXiv:1706.03762 section 3.1 (post-norm); arXiv:2002.04745 (pre-norm).
Shapes: B batch, T segment, D model width.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.carry import State
from workbench.config import Config, Probability, slot
from workbench.errors import ConfigError
from workbench.models.channel import ChannelConfig, NoChannel
from workbench.models.dropout import Kind, dropout
from workbench.models.mixers.base import MixerConfig, Norm, identity
from workbench.models.positions import InputPositions, NoPositions, PositionsConfig

Residual = Literal["post_norm", "pre_norm", "pre_norm_normalised", "none"]


class BlockConfig(Config):
    """What one layer is made of."""

    positions: slot(PositionsConfig) = NoPositions()  # type: ignore[valid-type]
    """codes added to the layer's input"""
    mixer: slot(MixerConfig)  # type: ignore[valid-type]
    channel: slot(ChannelConfig) = NoChannel()  # type: ignore[valid-type]
    residual: Residual = "post_norm"
    """post_norm: LN(x + f(x)). pre_norm: x + f(LN(x)). pre_norm_normalised: LN(x) + f(LN(x)) for
    the sequence mixer, as the fast-weight papers' code does under its flag pre_lnorm. none: f(x),
    neither norm nor residual; the mixer may change the width, and there is no channel mixer"""
    mixer_norm: bool = True
    """false: the sequence mixer's branch goes without LayerNorm; the channel mixer's keeps it"""
    mixer_residual: bool = True
    """false: the sequence mixer's branch replaces its input; the channel mixer's adds to it"""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """added to the variance in both LayerNorms; 1e-12 in TensorFlow's"""
    p_drop: Probability = 0.0
    """dropout of what each of the two branches adds"""

    @model_validator(mode="after")
    def _consistent(self) -> BlockConfig:
        if self.residual == "none" and self.channel.kind != "none":
            raise ValueError(
                f"residual is none, but channel is {self.channel.kind}, which needs a residual. "
                "Set channel: {kind: none}, or mixer_norm: false and mixer_residual: false instead"
            )
        if self.residual == "pre_norm_normalised" and self.positions.kind != "none":
            raise ValueError(
                f"positions are {self.positions.kind}, but under residual: pre_norm_normalised no "
                "input is left to add them to; use residual: pre_norm"
            )
        coded_apart = self.positions.kind != "none" and self.positions.memory == "clean"
        if coded_apart and self.mixer.reads_raw:
            raise ValueError(
                "mixer.normed_queries is false, but positions.memory is clean: queries would be "
                "read without codes; set normed_queries: true"
            )
        return self


class Block(nn.Module):
    """`x_BTD, state -> x_BTD, state`; the width may change where nothing is added."""

    def __init__(self, config: BlockConfig, d_model: int, drop: Kind = "element"):
        super().__init__()
        self.residual = config.residual
        bare = config.residual == "none"
        self.adds_input = config.mixer_residual and not bare
        self.positions = config.positions.build(d_model)
        self.mixer = config.mixer.build(d_model)
        self.d_out = self.mixer.d_out
        normed = self.d_out if config.residual == "post_norm" else d_model
        has_norm = config.mixer_norm and not bare
        norm = partial(nn.LayerNorm, eps=config.norm_eps)
        self.mixer_norm = norm(normed) if has_norm else nn.Identity()
        self.channel = config.channel.build(self.d_out)
        self.channel_norm = norm(self.d_out) if self.channel is not None else None
        self.drop = dropout(drop, config.p_drop)
        if self.adds_input and self.d_out != d_model:
            raise ConfigError(
                f"model.stack: a residual needs equal widths, got {self.d_out} from the mixer and "
                f"{d_model} from below; give the mixer that width, or set residual: none"
            )

    def forward(
        self, x_BTD: Tensor, state: State, n_last: int | None = None
    ) -> tuple[Tensor, State]:
        """Run one layer; with `n_last` only the outputs of so many last tokens are made."""
        if self.residual == "pre_norm_normalised":
            x_BTD = self.mixer_norm(x_BTD)
        norm = self.mixer_norm if self.residual == "pre_norm" else identity
        if self.positions is None:
            y_BTD, state = self._mix(x_BTD, state, norm, n_last)
        else:
            x_BTD, y_BTD, state = self._mix_coded(self.positions, x_BTD, state, norm, n_last)
        if n_last is not None:
            x_BTD = x_BTD[:, -n_last:]
        y_BTD = self.drop(y_BTD)
        x_BTD = x_BTD + y_BTD if self.adds_input else y_BTD
        if self.residual == "post_norm":
            x_BTD = self.mixer_norm(x_BTD)
        if self.channel is None or self.channel_norm is None:
            return x_BTD, state
        if self.residual == "post_norm":
            return self.channel_norm(x_BTD + self.drop(self.channel(x_BTD))), state
        return x_BTD + self.drop(self.channel(self.channel_norm(x_BTD))), state

    def _mix(
        self, x_BTD: Tensor, state: State, norm: Norm, n_last: int | None
    ) -> tuple[Tensor, State]:
        if n_last is None:
            return cast(tuple[Tensor, State], self.mixer(x_BTD, state, norm))
        return self.mixer.forward_last(x_BTD, state, n_last, norm)

    def _mix_coded(
        self,
        positions: InputPositions,
        x_BTD: Tensor,
        state: State,
        norm: Norm,
        n_last: int | None,
    ) -> tuple[Tensor, Tensor, State]:
        """The input with its codes, what the mixer makes of it, and the new state."""
        T = x_BTD.shape[1]
        coded_BTD = positions(x_BTD, T)
        if positions.accumulate:
            state = self.mixer.change_memory(state, lambda x_BMD: positions.into_memory(x_BMD, T))
            return coded_BTD, *self._mix(coded_BTD, state, norm, n_last)
        # the mixer remembers what has no codes, and reads a copy that has them

        def coded_norm(x_BSD: Tensor) -> Tensor:
            return norm(positions(x_BSD, T))

        return coded_BTD, *self._mix(x_BTD, state, coded_norm, n_last)
