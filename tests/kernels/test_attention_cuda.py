"""The CUDA source of attention computes what the reference means: on a CPU, under the emulator."""

from __future__ import annotations

import ctypes

import pytest
import torch
from attention_cases import CALLS, FLOATS, Call, expected, floats, make, rebuilt
from emulated import COMMON, TYPES, Empty, Emulated, Fault, compiler, in_all_orders
from torch import Tensor

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
SOURCE = COMMON.parent / "attention" / "attention.cu"


@pytest.fixture(scope="module")
def device() -> Emulated:
    return Emulated(SOURCE)


class Launched:
    """What the launchers are told of a call."""

    def __init__(self, call: Call, dtype: torch.dtype, banded: bool = True):
        q, k, v, window, positions, span, persistent, dropout = call
        (B, T, H, K), S, V = q.shape, k.shape[1], v.shape[3]
        p, codes, bias = positions or (None, None, None)
        persistent_k, persistent_v, extra = persistent or (None, None, None)
        R, code_heads = (0, 0) if codes is None else codes.shape[:2]
        N = 0 if persistent_k is None else persistent_k.shape[1]
        tokens, ramp = span or (None, 0)
        kind = 0 if tokens is None else 1 if tokens.dim() == 1 else 2
        p_drop, seed = dropout or (0.0, None)
        tensors = [q, k, v, p, codes, bias, tokens, persistent_k, persistent_v, extra]
        self.tensors = [None if x is None else x.to(dtype) for x in tensors]
        self.tensors[6] = None if tokens is None else tokens.float()
        sizes = [TYPES[dtype], B, T, S, H, K, V, R, code_heads, N, kind]
        self.call = [*self.tensors, seed, *sizes, *window, ramp, float(p_drop), banded]
        self.scratch = [TYPES[dtype], B, T, S, H, K, V, N, positions is not None, *window]
        self.y, self.rows, self.dtype = (B, T, H, V), (B, H, T), dtype


def run(device: Emulated, it: Launched, order: str = "forward") -> dict[str, Tensor]:
    """Output and gradients, as `attention_cases.outcome` names and weights them."""
    outputs = (Empty(it.y, it.dtype), Empty(it.rows))
    y, log_norm = device.call("attention_cuda_forward", *it.call, *outputs, order=order)
    g = torch.Generator().manual_seed(1)
    gy = torch.randn(it.y, generator=g, dtype=torch.float64).to(it.dtype)
    scratch = device.library.attention_cuda_scratch
    scratch.restype, scratch.argtypes = ctypes.c_int64, [ctypes.c_int64] * len(it.scratch)
    grads = [None if x is None else Empty(tuple(x.shape), it.dtype) for x in it.tensors]
    if grads[6] is not None:
        grads[6] = Empty(it.rows)
    given = [*it.call, gy, y, log_norm, *grads, Empty((scratch(*it.scratch),))]
    *written, _ = device.call("attention_cuda_backward", *given, order=order)
    names = [name for name, x in zip(FLOATS, it.tensors, strict=True) if x is not None]
    found = dict(zip(names, written, strict=True))
    if "span" in found and it.tensors[6].dim() == 1:
        found["span"] = found["span"].sum((0, 2))
    return {"y": y} | {f"d{name}": grad for name, grad in found.items()}


CLOSE = {torch.float32: 4e-6, torch.bfloat16: 1.5e-2}


def assert_computes(device: Emulated, call: Call, dtype: torch.dtype, order: str = "forward"):
    """Output and gradients are the reference's in float64, of the numbers as `dtype` holds them."""
    held = {n: x if n == "span" else x.to(dtype).double() for n, x in floats(call).items()}
    call = rebuilt(call, held)
    got, want = run(device, Launched(call, dtype), order), expected(call)
    assert got.keys() == want.keys()
    most = max(x.abs().max() for x in want.values())
    for name, x in want.items():
        # some gradients are exactly 0 where terms of the size of others cancel
        scale = max(x.abs().max(), most / 4)
        torch.testing.assert_close(
            got[name].double(),
            x,
            rtol=0,
            atol=float(scale) * CLOSE[dtype],
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_option(device, name, dtype):
    assert_computes(device, CALLS[name](), dtype)


@pytest.mark.parametrize("spans", ["dynamic", [2.0, 30.0]], ids=str)
def test_what_is_not_a_number_shows(device, spans):
    call = make(T=6, S=90, rows=12, bias=True, spans=spans, N=3, extra=True)
    for name, x in floats(call).items():
        # of the last key, which every query of its own token sees
        spoilt = x.clone()
        spoilt.view(-1)[0 if name in ("codes", "bias") else -1] = float("nan")
        worse = rebuilt(call, floats(call) | {name: spoilt})
        got, want = run(device, Launched(worse, torch.float32)), expected(worse)
        for result in ("y", "dq"):
            assert want[result].isnan().any()
            assert torch.equal(got[result].isnan(), want[result].isnan()), (name, result)


# more than one tile each way, nothing a multiple of one; keys and values of different widths
LONG = {
    "table": lambda K, V: make(
        T=70, S=133, sizes=(2, 2, K, V), rows=90, bias=True, spans="dynamic", window=(1, 120)
    ),
    "all-attention": lambda K, V: make(
        T=67,
        S=131,
        sizes=(1, 2, K, V),
        rows=140,
        shared=True,
        spans=[0.0, 110.0],
        N=70,
        extra=True,
        p_drop=0.2,
        window=(1, 125),
    ),
}
WIDTHS = [
    (torch.float32, 16, 20),
    (torch.float32, 41, 64),
    (torch.float32, 128, 96),
    (torch.bfloat16, 32, 24),
    (torch.bfloat16, 48, 64),
    (torch.bfloat16, 128, 72),
]


@pytest.mark.parametrize(("dtype", "K", "V"), WIDTHS, ids=str)
@pytest.mark.parametrize("name", LONG)
def test_tiles_and_widths(device, name, dtype, K, V):
    assert_computes(device, LONG[name](K, V), dtype)


def test_the_widest_head(device):
    call = make(T=20, S=45, sizes=(1, 1, 256, 200), rows=30, N=3, spans=[9.0])
    assert_computes(device, call, torch.bfloat16)
    with pytest.raises(Fault, match=r"at most 128"):
        run(device, Launched(call, torch.float32))
    with pytest.raises(Fault, match=r"expected float32"):
        run(device, Launched(call, torch.float16))


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_no_order_of_threads_or_blocks_decides(device, dtype):
    it = Launched(
        make(T=18, S=40, sizes=(1, 2, 20, 16), rows=30, bias=True, spans=[9.0, 40.0], N=3), dtype
    )
    in_all_orders(lambda order: list(run(device, it, order).values()))


def test_keys_beyond_every_reach_are_never_read(device):
    """Reading one would be found: it is NaN. So a head costs what its own span asks for."""
    call = make(T=40, S=300, spans=[5.0, 30.0], rows=300, window=(0, 10**6))
    # ramp 3 and the first distance that weighs nothing: 34 tokens back from the oldest query
    unseen = 300 - 40 - 34
    poisoned = [x.clone() for x in (call.k_BSHK, call.v_BSHV)]
    for x in poisoned:
        x[:, :unseen] = float("nan")
    clean = run(device, Launched(call, torch.float32))
    call = call._replace(k_BSHK=poisoned[0], v_BSHV=poisoned[1])
    for name, x in run(device, Launched(call, torch.float32)).items():
        assert torch.equal(x, clean[name]), name
    # told not to pass over them, it does read them
    whole = run(device, Launched(call, torch.float32, banded=False))
    assert whole["y"].isnan().all()


def test_without_bands_the_softmax_is_over_the_whole_window(device):
    call = make(T=9, S=60, spans=[2.0, 5.0])
    # what lies beyond the spans takes nearly all of the softmax, so 1e-8 of it is seen
    call.k_BSHK[:, :30] *= 12
    got, want = run(device, Launched(call, torch.float32, banded=False)), expected(call)
    torch.testing.assert_close(got["y"].double(), want["y"], rtol=1e-4, atol=1e-6)
