"""The recurrence of QRNN pooling: a running mean with a weight for each token and unit.

Paper: arXiv:1611.01576 section 2.1 (f- and fo-pooling; there f is the share that is kept), 2.2
(zoneout).
Shapes: B batch, T segment, U units, X = 2 U or 3 U: what one projection makes side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.kernels import cuda
from workbench.kernels.checks import cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative


def reference(f_BTU: Tensor, z_BTU: Tensor, state_BU: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: `c = f z + (1 - f) c`.

    Args:
        f_BTU: share of the new value, 0 (keep what is there) to 1 (replace it).
        z_BTU: new values.
        state_BU: c before the first token, of the same type or float32; left unchanged.

    Returns:
        c after each token, (B, T, U), of the values' type; and after the last one, of the state's.
    """
    c_BU, c = state_BU, []
    for f_BU, z_BU in zip(f_BTU.unbind(1), z_BTU.unbind(1), strict=True):
        # c + f (z - c), in one pass over the numbers
        c_BU = c_BU.lerp(z_BU.to(c_BU), f_BU.to(c_BU))
        c.append(c_BU)
    return torch.stack(c, dim=1).to(z_BTU), c_BU


def pool_reference(
    gates_BTX: Tensor, state_BU: Tensor, mask_BTU: Tensor | None = None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`Z, F, O` side by side; `f = share mask sigmoid(F); c = f tanh(Z) + (1 - f) c`;
    `y = sigmoid(O) c`, or c itself where there is no O.

    Args:
        gates_BTX: what the projection makes, before any nonlinearity; X is 3 U, or 2 U without O.
        state_BU: c before the first token, of the same type or float32; left unchanged.
        mask_BTU: zoneout in training, zeros where a unit keeps what it has; of the gates' type or
            float32; gets no gradient.
        share: zoneout in evaluation.

    Returns:
        y after each token, (B, T, U), of the gates' type; c after the last one, of the state's.
    """
    return _pool(reference, gates_BTX, state_BU, mask_BTU, share)


def _pool(
    recurrence: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    gates_BTX: Tensor,
    state_BU: Tensor,
    mask_BTU: Tensor | None,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Pooling around one implementation of its recurrence."""
    z_BTU, f_BTU, *o = gates_BTX.split(state_BU.shape[-1], dim=-1)
    f_BTU = f_BTU.sigmoid() if share == 1 else f_BTU.sigmoid() * share
    f_BTU = f_BTU if mask_BTU is None else f_BTU * mask_BTU
    c_BTU, c_BU = recurrence(f_BTU, z_BTU.tanh(), state_BU)
    return (o[0].sigmoid() * c_BTU if o else c_BTU), c_BU


LIBRARY.define("forget_mult_forward(Tensor f, Tensor z, Tensor state) -> (Tensor, Tensor)")
LIBRARY.define(
    "forget_mult_backward(Tensor gy, Tensor glast, Tensor f, Tensor z, Tensor y, Tensor state)"
    " -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "fo_pool_forward(Tensor gates, Tensor state, Tensor? mask, float share) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "fo_pool_backward(Tensor gy, Tensor glast, Tensor gates, Tensor state, Tensor? mask,"
    " float share) -> (Tensor, Tensor)"
)


@torch.library.register_fake("workbench::forget_mult_forward")
def _(f: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), state.new_empty(state.shape)


@torch.library.register_fake("workbench::forget_mult_backward")
def _(
    gy: Tensor, glast: Tensor, f: Tensor, z: Tensor, y: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (f, z, state))


@torch.library.register_fake("workbench::fo_pool_forward")
def _(gates: Tensor, state: Tensor, mask: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    units = state.shape[-1]
    return gates.new_empty((*gates.shape[:2], units)), state.new_empty(state.shape)


@torch.library.register_fake("workbench::fo_pool_backward")
def _(
    gy: Tensor, glast: Tensor, gates: Tensor, state: Tensor, mask: Tensor | None, share: float
) -> tuple[Tensor, Tensor]:
    return gates.new_empty(gates.shape), state.new_empty(state.shape)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gy: Tensor | None, glast: Tensor | None) -> tuple[Tensor, ...]:
    f, z, state, y = ctx.saved_tensors
    gy = torch.zeros_like(y) if gy is None else gy
    glast = torch.zeros_like(state) if glast is None else glast
    return torch.ops.workbench.forget_mult_backward(gy, glast, f, z, y, state)


def _remember_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates, state, mask, ctx.share = inputs
    ctx.save_for_backward(gates, state, mask)
    ctx.set_materialize_grads(False)


def _backward_pool(
    ctx: Any, gy: Tensor | None, glast: Tensor | None
) -> tuple[Tensor, Tensor, None, None]:
    gates, state, mask = ctx.saved_tensors
    if gy is None:
        gy = gates.new_zeros((*gates.shape[:2], state.shape[-1]))
    glast = torch.zeros_like(state) if glast is None else glast
    grads = torch.ops.workbench.fo_pool_backward(gy, glast, gates, state, mask, ctx.share)
    return *grads, None, None


torch.library.register_autograd(
    "workbench::forget_mult_forward", _backward, setup_context=_remember
)
torch.library.register_autograd(
    "workbench::fo_pool_forward", _backward_pool, setup_context=_remember_pool
)
refuse_second_derivative("forget_mult")
refuse_second_derivative("fo_pool")


def _built(f: Tensor, z: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.workbench.forget_mult_forward(f, z, state)


def _cpp_pool(
    gates: Tensor, state: Tensor, mask: Tensor | None = None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    mask = None if mask is None else mask.to(gates.dtype)
    return torch.ops.workbench.fo_pool_forward(gates, state, mask, share)


def _cuda_pool(
    gates: Tensor, state: Tensor, mask: Tensor | None = None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    # the recurrence is what PyTorch has no kernel for; what surrounds it goes by number
    mask = None if mask is None else mask.to(gates.dtype)
    return _pool(_built, gates, state, mask, share)


def _why_not_cuda(*arguments: Any) -> list[str]:
    reasons = cuda.reasons("forget_mult", *arguments)
    if arguments and arguments[0].dtype not in (torch.float32, torch.bfloat16):
        reasons.append(
            f"the CUDA kernel takes float32 and bfloat16, the tensors hold {arguments[0].dtype}"
        )
    return reasons


def _check(f_BTU: Tensor, z_BTU: Tensor, state_BU: Tensor) -> None:
    _check_sequence("forget_mult", "weights", f_BTU)
    B, T, U = f_BTU.shape
    _check_like("forget_mult", "values", z_BTU, (B, T, U), "weights", f_BTU)
    _check_like("forget_mult", "state", state_BU, (B, U), "weights", f_BTU, torch.float32)


def _check_pool(
    gates_BTX: Tensor, state_BU: Tensor, mask_BTU: Tensor | None = None, share: float = 1.0
) -> None:
    _check_sequence("fo_pool", "gates", gates_BTX)
    if state_BU.dim() != 2 or not state_BU.shape[1]:
        raise ValueError(
            f"fo_pool: got a state of shape {tuple(state_BU.shape)}, expected (batch, units) with "
            "at least one unit"
        )
    (B, T, X), U = gates_BTX.shape, state_BU.shape[1]
    if X not in (2 * U, 3 * U):
        raise ValueError(
            f"fo_pool: got gates of width {X} beside a state of shape {tuple(state_BU.shape)}, "
            f"expected {2 * U} (f-pooling) or {3 * U} (fo-pooling)"
        )
    _check_like("fo_pool", "state", state_BU, (B, U), "gates", gates_BTX, torch.float32)
    if mask_BTU is not None:
        _check_like("fo_pool", "mask", mask_BTU, (B, T, U), "gates", gates_BTX, torch.float32)


def _check_sequence(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(
            f"{op}: got {name} of shape {tuple(x.shape)}, expected (batch, time, units) with at "
            "least one token"
        )


def _check_like(
    op: str,
    name: str,
    x: Tensor,
    shape: tuple[int, ...],
    beside: str,
    like: Tensor,
    other: torch.dtype | None = None,
) -> None:
    if x.shape != shape:
        raise ValueError(
            f"{op}: got {name} of shape {tuple(x.shape)}, expected {shape} beside {beside} of "
            f"shape {tuple(like.shape)}"
        )
    # half-precision segments may carry a state that is summed up in full precision
    allowed = like.dtype.itemsize == 2 and x.dtype == other
    if (x.dtype != like.dtype and not allowed) or x.device != like.device:
        raise ValueError(
            f"{op}: got {name} of type {x.dtype} on {x.device}, expected {like.dtype} on "
            f"{like.device} like the {beside}. Convert before the call"
        )


forget_mult = Op(
    "forget_mult",
    reference,
    [
        Backend("cuda", _built, _why_not_cuda, device="cuda"),
        Backend("cpp", _built, partial(cpp_reasons, "forget_mult"), device="cpu"),
    ],
    check=_check,
    takes_half=2,
)
fo_pool = Op(
    "fo_pool",
    pool_reference,
    [
        Backend("cuda", _cuda_pool, _why_not_cuda, device="cuda"),
        Backend("cpp", _cpp_pool, partial(cpp_reasons, "forget_mult"), device="cpu"),
    ],
    check=_check_pool,
    takes_half=1,
)
