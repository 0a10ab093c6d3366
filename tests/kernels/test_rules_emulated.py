"""The GPU kernels of the delta and the sum rule, on the emulator, against the float64 reference."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cases import ARGUMENTS, inputs
from emulated import COMMON, TYPES, Empty, Emulated, Fault, compiler, in_all_orders
from torch import Tensor

from workbench.kernels.checks import rule_shared_bytes
from workbench.kernels.dispatch import OPS

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

RULES = ["delta_rule", "sum_rule"]
H200 = (132, 232448)
SMALL = (1, 101376)  # one multiprocessor: wide column blocks, and one chunk at a time in them


def run(op: str, arguments: list[Tensor], gy: Tensor, glast: Tensor, gpu=H200, order="forward"):
    """An op's launchers, forward and backward: y, last, then the gradients of its arguments."""
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


@pytest.mark.parametrize("op", RULES)
def test_long_segment(op):
    compare(op, torch.float32, 1e-5, B=1, T=4097, H=1, F=16, V=16)
    compare(op, torch.bfloat16, 2e-2, B=1, T=4097, H=1, F=16, V=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", RULES)
def test_order_and_gpu_change_no_bit(op, dtype):
    """Neither the order of threads and blocks, nor whether the next chunk is fetched early."""
    arguments = [x.to(dtype) for x in inputs(op, B=1, T=100, H=2, F=40, V=24)]
    arguments[-1] = arguments[-1].float()
    gy, glast = torch.randn(arguments[2].shape).to(dtype), torch.randn(arguments[-1].shape)
    large = in_all_orders(lambda order: run(op, arguments, gy, glast, H200, order))
    small = in_all_orders(lambda order: run(op, arguments, gy, glast, SMALL, order))
    for x, y in zip(large, small, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("op", RULES)
def test_short_segments_are_the_long_one(op):
    """The recurrent form goes on where chunks ended."""
    *sequences, state = [x.float() for x in inputs(op, B=1, T=40, H=1, F=20, V=20)]
    gy = torch.zeros(1, 40, 1, 20)
    whole, last, *_ = run(op, [*sequences, state], gy, state)
    parts = []
    for cut in zip(*(x.split([33, 1, 6], dim=1) for x in sequences), strict=True):
        y, state, *_ = run(op, [*cut, state], gy[:, : cut[0].shape[1]], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", RULES)
def test_what_a_block_needs(op):
    """`why_not` and the launchers know the same formula, and too small a GPU is refused."""
    count = getattr(Emulated(COMMON.parent / op / f"{op}.cu").library, f"{op}_cuda_shared")
    count.restype, count.argtypes = ctypes.c_int64, [ctypes.c_int64] * 3
    for dtype in (torch.float32, torch.bfloat16):
        for F in (1, 16, 33, 96, 192, 256):
            for V in (1, 16, 17, 64):
                size = torch.empty(0, dtype=dtype).element_size()
                needed = rule_shared_bytes(op == "delta_rule", size, F, V)
                assert count(TYPES[dtype], F, V) == needed
                assert needed <= 163 * 1024  # every size runs on compute capability 8.0
    arguments = [x.float() for x in inputs(op, B=1, T=33, H=1, F=256, V=16)]
    with pytest.raises(Fault, match="too little shared memory"):
        run(op, arguments, torch.zeros(1, 33, 1, 16), torch.zeros(1, 1, 256, 16), (1, 65536))
    arguments = [x.float() for x in inputs(op, B=1, T=1, H=1, F=257, V=16)]
    with pytest.raises(Fault, match="at most 256 features"):
        run(op, arguments, torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 257, 16))
