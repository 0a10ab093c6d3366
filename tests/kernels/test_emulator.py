"""The emulator computes what a GPU would and finds the faults it says it finds."""

from __future__ import annotations

import pytest
import torch
from emulated import EMULATOR, ORDERS, Changed, Empty, Emulated, Fault, compiler, in_all_orders

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def device() -> Emulated:
    return Emulated(EMULATOR / "selftest.cu")


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32", "padded", "conflicting"])
def test_tensor_core_multiplies(device, name):
    dtype = {"fp16": torch.float16, "tf32": torch.float32}.get(name, torch.bfloat16)
    K = 8 if name == "tf32" else 16
    a, b = torch.randn(16, K).to(dtype), torch.randn(K, 8).to(dtype)
    device.conflicts()
    (d,) = in_all_orders(
        lambda order: device.call(f"matmul_{name}", a, b, Empty((16, 8)), order=order)
    )
    want = a.double() @ b.double()
    torch.testing.assert_close(d.double(), want, rtol=0, atol=4e-3 if name == "tf32" else 1e-6)
    assert (device.conflicts() > 0) == (name == "conflicting")


@pytest.mark.parametrize("n", [1, 128, 1000])
def test_shuffles_shared_memory_and_atomics(device, n):
    x = torch.randint(-50, 50, (n,)).float()
    (total,) = in_all_orders(
        lambda order: device.call("sum", x, Changed(torch.zeros(1)), n, order=order)
    )
    assert total == x.sum()


def test_order_decides_where_there_is_a_race(device):
    with pytest.raises(AssertionError, match="the order decides"):
        in_all_orders(lambda order: device.call("race", Empty((64,)), order=order))
    with pytest.raises(AssertionError, match="the order decides"):
        in_all_orders(lambda order: device.call("blocks", Changed(torch.zeros(2)), order=order))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "a barrier"),
        (1, "threads of a block wait at different barriers"),
        (2, "a warp operation that lanes of its mask never reach"),
        (3, "a lane that its own mask leaves out"),
        (4, "lanes of a warp meet in different operations"),
        (5, "a barrier"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_divergence_is_found(device, how, message, order):
    with pytest.raises(Fault, match=rf"{message}.*selftest\.cu:\d+"):
        device.call("divergent", how, order=order)
    device.call("divergent", 9, order=order)  # and the emulator goes on


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (0, "outside the dynamic shared memory"),
        (1, "outside a shared array"),
        (2, "outside a tensor"),
        (3, "outside a tensor"),
        (4, "a write to an input"),
        (6, "nobody's"),
    ],
)
def test_stray_accesses_are_found(device, how, message):
    with pytest.raises(Fault, match=rf"{message}.*thread \(3, 0, 0\)"):
        device.call("outside", how, torch.zeros(64), Empty((64,)))


def test_fresh_shared_memory_is_nan(device):
    (y,) = device.call("outside", 5, torch.zeros(64), Empty((64,)))
    assert y.isnan().all()


def test_unwaited_copies_are_found(device):
    x = torch.randn(64)
    (y,) = in_all_orders(lambda order: device.call("unwaited", x, Empty((64,)), 1, order=order))
    assert torch.equal(x, y)
    (y,) = device.call("unwaited", x, Empty((64,)), 0, order="reversed")
    assert y.isnan().all()
