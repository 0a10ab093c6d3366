"""Attention's backends for GPUs: what they refuse, and their numbers where they can run."""

from __future__ import annotations

import pytest
import torch
from attention_cases import CALLS, Call, expected, floats, make, outcome, rebuilt

from workbench import kernels
from workbench.kernels.attention import attention

PLAIN = {
    "causal": lambda: make(T=7, S=7),
    "memory": lambda: make(T=5, S=12, sizes=(2, 3, 8, 5)),
    "window": lambda: make(T=6, S=14, window=(1, 5)),
    "one token": lambda: make(T=1, S=9),
}


@pytest.mark.parametrize("name", PLAIN)
def test_pytorchs_attention_computes_the_same(name):
    call = PLAIN[name]()
    with kernels.use("sdpa"):
        got = outcome(attention, call)
    assert kernels.ran()["attention"] == "sdpa"
    for key, want in expected(call).items():
        torch.testing.assert_close(got[key], want, rtol=0, atol=1e-12)


def refusals(backend: str, call: Call) -> list[str]:
    (row,) = [row for row in attention.explain(*call) if row.backend == backend]
    return row.why_not


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("codes", ["scores by distance"]),
        ("long span", ["span"]),
        ("persistent", ["persistent vectors"]),
        ("before it", ["see nothing"]),
        ("everything", ["scores by distance", "span", "persistent vectors", "dropout by a seed"]),
    ],
)
def test_pytorchs_attention_says_what_it_has_not(name, said):
    reasons = refusals("sdpa", CALLS[name]())
    assert len(reasons) == len(said)
    assert all(part in reason for part, reason in zip(said, reasons, strict=True))


def test_the_cuda_kernel_says_what_it_cannot():
    call = make(T=2, S=3, sizes=(1, 1, 130, 4))
    reasons = refusals("cuda", rebuilt(call, {n: x.float() for n, x in floats(call).items()}))
    assert any("tensors are on cpu" in reason for reason in reasons)
    assert any("heads of up to 128" in reason and "130" in reason for reason in reasons)
    assert any("float64" in reason for reason in refusals("cuda", call))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_the_cuda_kernel_computes_the_same_on_a_gpu(name, dtype):
    kernels.prepare()
    call = CALLS[name]()
    held = {n: x.to(dtype).double() for n, x in floats(call).items()}
    want = expected(rebuilt(call, held))
    there = rebuilt(call, {n: x.cuda() for n, x in held.items()})
    if there.dropout is not None:
        there = there._replace(dropout=there.dropout._replace(seed=there.dropout.seed.cuda()))
    with kernels.use("cuda"):
        got = outcome(lambda *arguments: attention(*arguments).cpu(), there, dtype)
    most = max(float(x.abs().max()) for x in want.values())
    for key, x in want.items():
        scale = max(float(x.abs().max()), most / 4)
        close = 4e-6 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(got[key].double().cpu(), x, rtol=0, atol=close * scale)
