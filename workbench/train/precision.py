"""In which numbers a model computes: what `train.precision` and `eval.precision` mean.

Under `bf16` matrix products take bfloat16 (PyTorch's autocast). Parameters, optimizer, losses, sums
and what a state accumulates stay in float32; each op gets what its contract takes.
"""

from __future__ import annotations

import torch

from workbench.errors import ConfigError


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Inside, the model computes in `precision`, `fp32` or `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device cannot.

    Raises:
        ConfigError: bf16 on a GPU that has none.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"train.precision is bf16, which {name} cannot compute in (it takes an Ampere GPU or a "
            "newer one); write precision: fp32"
        )
