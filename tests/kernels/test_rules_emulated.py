"""The GPU kernels of the delta and the sum rule, on the emulator, against the float64 reference."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cases import ARGUMENTS, inputs
from emulated import COMMON, TYPES, Emulated, Empty, Fault, compiler, in_all_orders
from torch import Tensor

from workbench.kernels.dispatch import OPS

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

RULES = ["delta_rule", "sum_rule"]
H200 = (132, 232448)
SMALL = (1, 101376)  # one multiprocessor: wide column blocks, and one chunk at a time in them


def run(op: str, arguments: list[Tensor], gy: Tensor, glast: Tensor, gpu=H200, order="forward"):
    """Forward and backward pass of an op's launchers: y, last, then the gradients of its arguments."""
    device = Emulated(COMMON.parent / op / f"{op}.cu")
    delta = op == "delta_rule"
    *sequences, state = arguments
    q, _, v = sequences[:3]
    dtype, F, V = q.dtype, q.shape[-1], v.shape[-1]
    sizes = (TYPES[dtype], *q.shape[:3], F, V)
    vector = F % (16 // q.itemsize) == 0 and V % (16 // q.itemsize) == 0

    def scratch(backward: bool) -> Empty:
        count = getattr(device.library, f"{op}_cuda_scratch")
        count.restype, count.argtypes = ctypes.c_int64, [ctypes.c_int64] * 8
        return Empty((count(*sizes, gpu[0], backward),), torch.uint8)

    outputs = [Empty(v.shape, dtype), Empty(state.shape)] + [Empty(v.shape, dtype)] * delta
    y, last, *rest = device.call(
        f"{op}_cuda_forward",
        *(*sequences, state, *outputs, scratch(False), *sizes, vector, *gpu),
        order=order,
    )
    kept = [*sequences[:2], sequences[3], state, rest[0]] if delta else [*sequences, state]
    grads = [Empty(x.shape, dtype) for x in sequences] + [Empty(state.shape)]
    *grads, _ = device.call(
        f"{op}_cuda_backward",
        *(gy, glast, *kept, *grads, scratch(True), *sizes, vector, *gpu),
        order=order,
    )
    assert device.conflicts() == 0
    return [y, last, *grads]


def compare(op: str, dtype: torch.dtype, tolerance: float, gpu=H200, **sizes: int) -> None:
    arguments = [x.to(dtype) for x in inputs(op, **sizes)]
    arguments[-1] = arguments[-1].float()
    generator = torch.Generator().manual_seed(2)
    gy = torch.randn(arguments[2].shape, generator=generator).to(dtype)
    glast = torch.randn(arguments[-1].shape, generator=generator)
    leaves = [x.double().requires_grad_() for x in arguments]
    y, last = OPS[op].reference(*leaves)
    grads = torch.autograd.grad([y, last], leaves, [gy.double(), glast.double()])
    got = run(op, arguments, gy, glast, gpu)
    names = ["y", "last", *(f"d{name}" for name in ARGUMENTS[op])]
    for name, x, want in zip(names, got, [y, last, *grads], strict=True):
        error = (x.double() - want).norm() / want.norm()
        assert error < tolerance, f"{name}: {error:.2e}"


SIZES = [
    # T, F, V: one token; the recurrent form; its end; less than a chunk; a chunk and more
    (1, 16, 16),
    (5, 70, 33),
    (17, 20, 16),
    (63, 16, 16),
    (100, 24, 40),
    (130, 96, 32),
    (65, 192, 32),
    (70, 256, 48),
    (66, 7, 3),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("op", RULES)
def test_float32(op, sizes):
    T, F, V = sizes
    compare(op, torch.float32, 2e-6, B=1, T=T, H=2, F=F, V=V)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("op", RULES)
def test_bfloat16(op, sizes):
    T, F, V = sizes
    compare(op, torch.bfloat16, 1e-2, B=2, T=T, H=1, F=F, V=V)
