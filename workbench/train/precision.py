"""In which numbers a model computes: what `train.precision` and `eval.precision` mean.

Under `bf16` and `fp16` matrix products take bfloat16 or float16 (PyTorch's autocast). Parameters,
optimizer, losses, sums and what a state accumulates stay in float32; each op gets what its contract
takes. Float16 has nothing below 6e-8: there training differentiates a multiple of the loss
(arXiv:1710.03740 section 3.2).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from workbench.errors import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 65536.0
"""where a dynamic scale begins"""


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Inside, the model computes in `precision`: `fp32`, `bf16` or `fp16`."""
    half = HALF.get(precision)
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)


def check_precision(precision: str, device: torch.device, field: str = "train.precision") -> None:
    """Refuse what the device cannot.

    Raises:
        ConfigError: bf16 on a GPU that has none.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"{field} is bf16, which {name} cannot compute in (it takes an Ampere GPU or a newer "
            "one); write precision: fp16 or fp32"
        )


class LossScale:
    """What a loss is multiplied by before it is differentiated, and its gradients divided by.

    Under another precision than fp16 all of this leaves everything as it is.

    Args:
        precision: `train.precision`.
        asked: `train.loss_scale`.
        device: where the model is.
    """

    def __init__(
        self, precision: str, asked: Literal["dynamic"] | float, device: torch.device
    ) -> None:
        self._fixed = None if asked == "dynamic" else asked
        self.used = precision == "fp16"
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=self._fixed or FIRST_SCALE, enabled=self.used
        )
        self._factor = torch.ones((), device=device)

    @property
    def dynamic(self) -> bool:
        """Whether overflows make it smaller."""
        return self.used and self._fixed is None

    @property
    def factor(self) -> Tensor:
        """The scale of the last loss, a scalar that stays on the device; 1 where there is none."""
        return self._factor

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        if not self.used:
            return loss
        self._factor = self._scaler.scale(torch.ones_like(loss))
        return loss * self._factor

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, once all of them are there."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights, but not by a gradient that has overflowed: then nothing is touched.

        Waits for the device under fp16, but where the optimizer is a fused one.
        """
        self._scaler.step(optimizer)
        self.skip()

    def skip(self) -> None:
        """Leave this update out; the scale learns from it as from all others."""
        self._scaler.update(self._fixed if self.used else None)

    def value(self) -> float | None:
        """The scale of the next loss, None where there is none; waits for the device."""
        return self._scaler.get_scale() if self.used else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint: empty where there is no scale; waits for the device."""
        return self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; a scale that the recipe gives stays that."""
        if self.dynamic and state:
            self._scaler.load_state_dict(state)
