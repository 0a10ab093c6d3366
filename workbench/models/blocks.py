"""A block: a sequence mixer, a channel mixer, and the only place where residuals are wired.

Paper: arXiv:1706.03762 section 3.1 (post-norm); arXiv:2002.04745 (pre-norm).
Shapes: B batch, T segment, D model width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from workbench.carry import State
from workbench.config import Config, slot
from workbench.errors import ConfigError
from workbench.models.channel import ChannelConfig, NoChannel
from workbench.models.mixers.base import MixerConfig

Residual = Literal["post_norm", "pre_norm", "pre_norm_normalised"]


class BlockConfig(Config):
    """What one layer is made of."""

    mixer: slot(MixerConfig)  # type: ignore[valid-type]
    channel: slot(ChannelConfig) = NoChannel()  # type: ignore[valid-type]
    residual: Residual = "post_norm"
    """post_norm: LN(x + f(x)). pre_norm: x + f(LN(x)). pre_norm_normalised: LN(x) + f(LN(x)) for
    the sequence mixer, as the fast-weight papers' code does under its flag pre_lnorm"""
    p_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout of what each of the two branches adds"""


class Block(nn.Module):
    """`x_BTD, state -> x_BTD, state`."""

    def __init__(self, config: BlockConfig, d_model: int):
        super().__init__()
        self.residual = config.residual
        self.mixer = config.mixer.build(d_model)
        self.mixer_norm = nn.LayerNorm(d_model)
        self.channel = config.channel.build(d_model)
        self.channel_norm = nn.LayerNorm(d_model) if self.channel is not None else None
        self.drop = nn.Dropout(config.p_drop)
        if self.mixer.d_out != d_model:
            raise ConfigError(
                f"model.stack: a residual needs equal widths, got {self.mixer.d_out} from the "
                f"mixer and d_model {d_model}"
            )

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        if self.residual == "post_norm":
            y_BTD, state = self.mixer(x_BTD, state)
            x_BTD = self.mixer_norm(x_BTD + self.drop(y_BTD))
        elif self.residual == "pre_norm":
            y_BTD, state = self.mixer(x_BTD, state, self.mixer_norm)
            x_BTD = x_BTD + self.drop(y_BTD)
        else:
            x_BTD = self.mixer_norm(x_BTD)
            y_BTD, state = self.mixer(x_BTD, state)
            x_BTD = x_BTD + self.drop(y_BTD)
        if self.channel is None or self.channel_norm is None:
            return x_BTD, state
        if self.residual == "post_norm":
            return self.channel_norm(x_BTD + self.drop(self.channel(x_BTD))), state
        return x_BTD + self.drop(self.channel(self.channel_norm(x_BTD))), state
