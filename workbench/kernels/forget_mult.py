"""The recurrence of QRNN pooling: a running mean with a weight for each token and unit.

Paper: arXiv:1611.01576 section 2.1 (f-pooling; there f is the share that is kept).
Shapes: B batch, T segment, U units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.dispatch import Op


def reference(f_BTU: Tensor, z_BTU: Tensor, state_BU: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: `c = f z + (1 - f) c`.

    Args:
        f_BTU: share of the new value, 0 (keep what is there) to 1 (replace it).
        z_BTU: new values.
        state_BU: c before the first token; left unchanged.

    Returns:
        c after each token, (B, T, U), and after the last one.
    """
    c_BU, c = state_BU, []
    for f_BU, z_BU in zip(f_BTU.unbind(1), z_BTU.unbind(1), strict=True):
        # c + f (z - c), in one pass over the numbers
        c_BU = c_BU.lerp(z_BU, f_BU)
        c.append(c_BU)
    return torch.stack(c, dim=1), c_BU


def _check(f_BTU: Tensor, z_BTU: Tensor, state_BU: Tensor) -> None:
    if f_BTU.dim() != 3 or f_BTU.shape[1] == 0:
        raise ValueError(
            f"forget_mult: got weights of shape {tuple(f_BTU.shape)}, expected (batch, time, "
            "units) with at least one token"
        )
    B, T, U = f_BTU.shape
    for name, tensor, shape in (("values", z_BTU, (B, T, U)), ("state", state_BU, (B, U))):
        if tensor.shape != shape:
            raise ValueError(
                f"forget_mult: got {name} of shape {tuple(tensor.shape)}, expected {shape} "
                f"beside weights of shape {(B, T, U)}"
            )
        if tensor.dtype != f_BTU.dtype or tensor.device != f_BTU.device:
            raise ValueError(
                f"forget_mult: got {name} of type {tensor.dtype} on {tensor.device}, expected "
                f"{f_BTU.dtype} on {f_BTU.device} like the weights. Convert before the call"
            )


forget_mult = Op("forget_mult", reference, [], check=_check)
