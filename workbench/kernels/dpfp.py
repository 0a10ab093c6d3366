"""DPFP: products of rectified neighbours, and their division by their sum.

Paper: arXiv:2102.11174 section 5.3 (the map), section 4.2 (the sum).
Shapes: K head width, F = 2 K nu features.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import cuda
from workbench.kernels.checks import cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative
from workbench.kernels.features import sum_normalise, widened

WIDEST = 512
"""head that the CUDA kernel has shared memory for"""


def reference(x: Tensor, nu: int, normalise: bool) -> Tensor:
    """With `y = [relu(x), relu(-x)]`: `y * roll(y, i)` for shifts i = 1..nu, side by side.

    Args:
        x: (..., K).
        nu: number of shifts, 1 to 2 K - 1.
        normalise: divide by the sum of all features, where it is not 0.

    Returns:
        (..., 2 K nu), of the type of x; what is between is in float32 at least.
    """
    wide = widened(x)
    y = torch.cat([wide.relu(), (-wide).relu()], dim=-1)
    features = torch.cat([y * y.roll(i, dims=-1) for i in range(1, nu + 1)], dim=-1)
    return (sum_normalise(features) if normalise else features).to(x.dtype)


LIBRARY.define("dpfp_forward(Tensor x, int nu, bool normalise) -> Tensor")
LIBRARY.define("dpfp_backward(Tensor g, Tensor x, int nu, bool normalise) -> Tensor")


@torch.library.register_fake("workbench::dpfp_forward")
def _(x: Tensor, nu: int, normalise: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], 2 * x.shape[-1] * nu))


@torch.library.register_fake("workbench::dpfp_backward")
def _(g: Tensor, x: Tensor, nu: int, normalise: bool) -> Tensor:
    return x.new_empty(x.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.nu, ctx.normalise = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.workbench.dpfp_backward(g, x, ctx.nu, ctx.normalise), None, None


torch.library.register_autograd("workbench::dpfp_forward", _backward, setup_context=_remember)
refuse_second_derivative("dpfp")


def _built(x: Tensor, nu: int, normalise: bool) -> Tensor:
    features: Tensor = torch.ops.workbench.dpfp_forward(x, nu, normalise)
    return features


def _why_not_cuda(*arguments: Any) -> list[str]:
    reasons = cuda.reasons("dpfp", *arguments)
    if arguments:
        x: Tensor = arguments[0]
        if x.dtype not in (torch.float32, torch.bfloat16):
            reasons.append(
                f"the CUDA kernel takes float32 and bfloat16, the tensor holds {x.dtype}"
            )
        if x.shape[-1] > WIDEST:
            reasons.append(f"the CUDA kernel has heads of up to {WIDEST}, got {x.shape[-1]}")
    return reasons


def _check(x: Tensor, nu: int, normalise: bool) -> None:
    if x.dim() == 0 or not 0 < nu < 2 * x.shape[-1]:
        raise ValueError(
            f"dpfp: got {nu} shifts of heads of shape {tuple(x.shape)}, expected 1 to twice their "
            "width less one"
        )


dpfp = Op(
    "dpfp",
    reference,
    [
        Backend("cuda", _built, _why_not_cuda, device="cuda"),
        Backend("cpp", _built, partial(cpp_reasons, "dpfp"), device="cpu"),
    ],
    check=_check,
    takes_half=1,
)
