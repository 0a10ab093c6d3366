"""QRNN pooling on an NVIDIA GPU (`make test-gpu`, `make sanitize`), and what can be seen of it
without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench import kernels
from workbench.kernels.forget_mult import _cuda_pool, fo_pool, forget_mult, pool_reference

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def drawn(B: int, T: int, U: int, parts: int, masked: bool) -> list[Tensor | None]:
    """Gates, state and mask in float64."""
    generator = torch.Generator().manual_seed(B + T + U)
    gates = torch.randn(B, T, parts * U, generator=generator, dtype=torch.float64)
    state = torch.randn(B, U, generator=generator, dtype=torch.float64)
    mask = (torch.rand(B, T, U, generator=generator) < 0.8).double() if masked else None
    return [gates, state, mask]


def gradients(run, gates: Tensor, state: Tensor, mask: Tensor | None, share: float) -> list[Tensor]:
    """Outputs, and the gradients of the gates and of the state."""
    gates, state = gates.detach().requires_grad_(), state.detach().requires_grad_()
    y, last = run(gates, state, mask, share)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return [y, last, *torch.autograd.grad([(y * weights).sum() + last.sum()], [gates, state])]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_pooling_around_the_compiled_recurrence_is_the_reference(parts: int, masked: bool) -> None:
    if reasons := forget_mult.backends[1].why_not():
        pytest.skip(reasons[0])
    values = drawn(3, 9, 5, parts, masked)
    # on a CPU the same call reaches the C++ recurrence
    got = gradients(_cuda_pool, *values, 0.9)
    want = gradients(pool_reference, *values, 0.9)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", ["forget_mult", "fo_pool"])
def test_a_cpu_is_told_why_not(op: str) -> None:
    chosen = {"forget_mult": forget_mult, "fo_pool": fo_pool}[op]
    backend = next(b for b in chosen.backends if b.name == "cuda")
    x = torch.zeros(1, 2, 6, dtype=torch.float64)
    reasons = " ".join(backend.why_not(x, x, x[:, 0]))
    assert "run on a GPU, the tensors are on cpu" in reasons
    assert "takes float32 and bfloat16, the tensors hold torch.float64" in reasons


class TestOnAGPU:
    pytestmark = on_gpu

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("size", [(1, 1, 1), (3, 63, 33), (2, 700, 40)])
    @pytest.mark.parametrize("parts", [2, 3])
    def test_small_outputs_and_gradients(
        self, size: tuple[int, int, int], parts: int, dtype: torch.dtype
    ) -> None:
        report = kernels.prepare()
        assert "forget_mult" in report.cuda, str(report)
        gates, state, mask = (None if x is None else x.cuda() for x in drawn(*size, parts, True))
        assert gates is not None and state is not None
        want = gradients(pool_reference, gates, state, mask, 0.9)
        with kernels.use("cuda"):
            got = gradients(kernels.fo_pool, gates.to(dtype), state.float(), mask, 0.9)
        for ours, exact in zip(got, want, strict=True):
            worst = (ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1)
            print(f"{dtype} {size} {parts}: {worst:.1e}")  # noqa: T201  (for the record)
            assert worst < TOLERANCE[dtype]

    def test_small_auto_takes_it(self) -> None:
        kernels.prepare()
        kernels.forget()
        gates = torch.randn(2, 5, 12, device="cuda")
        kernels.fo_pool(gates, torch.zeros(2, 4, device="cuda"))
        assert kernels.ran()["fo_pool"] == "cuda"
