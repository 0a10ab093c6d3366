"""The attention op: what it means, what it refuses, and that its mixer's numbers are these."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import CALLS, Call, by_hand, floats, make, rebuilt

from workbench import kernels
from workbench.kernels.attention import (
    Dropout,
    Persistent,
    Positions,
    SoftSpan,
    Window,
    kept,
    reference,
)
from workbench.models.mixers.attention import ANY_DISTANCE, AttentionConfig


@pytest.mark.parametrize("name", CALLS)
def test_reference_is_the_definition(name):
    call = CALLS[name]()
    torch.testing.assert_close(reference(*call), by_hand(call), rtol=1e-12, atol=1e-14)


def test_a_query_that_sees_nothing_reads_zeros():
    y = kernels.attention(*make(T=4, S=4, window=(2, 9)))
    assert y[:, :2].abs().max() == 0 and y[:, 2:].abs().min() > 0
    assert kernels.attention(*make(T=4, S=9, window=(0, -1))).abs().max() == 0


@pytest.mark.parametrize("name", ["long span", "dynamic", "everything"])
def test_reference_gradcheck(name):
    call = CALLS[name]()
    leaves = {n: x.detach().requires_grad_() for n, x in floats(call).items()}
    names = list(leaves)

    def read(*tensors):
        return kernels.attention(*rebuilt(call, dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(read, list(leaves.values()))


def test_the_span_feels_the_first_key_that_it_does_not_see():
    """With R = 3, z = 0 distance 4 weighs exactly 0; a longer span would let it in."""
    call = make(1, 9, (1, 1, 4, 3), spans=[0.0])
    span = call.span.tokens.requires_grad_()
    full = torch.autograd.grad(reference(*call).sum(), span)[0]
    nearer = call._replace(window=Window(0, 3))
    assert not torch.isclose(torch.autograd.grad(reference(*nearer).sum(), span)[0], full)
    nearer = call._replace(window=Window(0, 4))
    torch.testing.assert_close(torch.autograd.grad(reference(*nearer).sum(), span)[0], full)


def test_dropout_is_a_function_of_seed_and_place():
    drop = Dropout(0.3, torch.tensor(7))
    first = kept(drop, torch.Size((3, 4, 50)), 200)
    assert torch.equal(first, kept(drop, torch.Size((3, 4, 50)), 200))
    # rows are numbered, so other rows of a batch change nothing; nor do more columns
    assert torch.equal(first[:2], kept(drop, torch.Size((2, 4, 50)), 200))
    assert torch.equal(first[..., :90], kept(drop, torch.Size((3, 4, 50)), 90))
    n = first.numel()
    assert abs(float(first.double().mean()) - 0.7) < 5 * math.sqrt(0.3 * 0.7 / n)
    others = [Dropout(0.3, torch.tensor(s)) for s in (8, 7 + 2**32, -7)]
    for other in others:
        same = float((first == kept(other, torch.Size((3, 4, 50)), 200)).double().mean())
        assert abs(same - (0.49 + 0.09)) < 0.01
    # neighbours along each axis are independent
    for axis in range(4):
        size = first.shape[axis]
        pair = first.narrow(axis, 1, size - 1) & first.narrow(axis, 0, size - 1)
        assert abs(float(pair.double().mean()) - 0.49) < 0.012


def test_dropout_hash_is_what_its_docstring_says():
    word = 0xFFFFFFFF

    def mixed(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & word
        x = (x ^ x >> 15) * 0x846CA68B & word
        return x ^ x >> 16

    seed = 0x0123456789ABCDEF
    got = kept(Dropout(0.5, torch.tensor(seed)), torch.Size((1, 2, 3)), 4)
    for r in range(6):
        first = mixed(r ^ seed & word)
        second = mixed(r + (seed >> 32) + 0x9E3779B9 & word)
        for c in range(4):
            x = c * 0x9E3779B1 + first & word
            x = (x ^ x >> 16) * 0x7FEB352D & word
            x = ((x ^ x >> 15) + second & word) * 0x846CA68B & word
            assert bool(got[0, r // 3, r % 3, c]) == ((x ^ x >> 16) >= 2**31)


def test_dropout_scales_what_it_keeps():
    call = make(1, 4000, (1, 1, 4, 3), p_drop=0.25)
    whole = call._replace(v_BSHV=torch.ones_like(call.v_BSHV))
    assert abs(float(reference(*whole)[0, 0, 0, 0]) - 1) < 0.1
    assert torch.equal(reference(*call), reference(*call))


BROKEN = {
    "widths": lambda c: c._replace(k_BSHK=c.k_BSHK[..., :3]),
    "values": lambda c: c._replace(v_BSHV=c.v_BSHV[:, 1:]),
    "few keys": lambda c: c._replace(k_BSHK=c.k_BSHK[:, :3], v_BSHV=c.v_BSHV[:, :3]),
    "dimensions": lambda c: c._replace(q_BTHK=c.q_BTHK[0]),
    "type": lambda c: c._replace(k_BSHK=c.k_BSHK.float()),
    "window": lambda c: c._replace(window=Window(-1, 3)),
    "codes": lambda c: c._replace(positions=Positions(c.q_BTHK, torch.zeros(0, 2, 4).double())),
    "heads": lambda c: c._replace(positions=Positions(c.q_BTHK, torch.zeros(4, 3, 4).double())),
    "bias": lambda c: c._replace(
        positions=Positions(
            c.q_BTHK, torch.zeros(4, 2, 4).double(), torch.zeros(5, 2, dtype=torch.float64)
        )
    ),
    "span": lambda c: c._replace(span=SoftSpan(torch.zeros(3).double(), 3)),
    "ramp": lambda c: c._replace(span=SoftSpan(torch.zeros(2).double(), 0)),
    "persistent": lambda c: c._replace(
        persistent=Persistent(torch.zeros(2, 3, 4).double(), torch.zeros(2, 3, 4).double())
    ),
    "p_drop": lambda c: c._replace(dropout=Dropout(1.0, torch.tensor(1))),
    "seed": lambda c: c._replace(dropout=Dropout(0.5, torch.tensor(1.0))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_what_does_not_fit(name):
    with pytest.raises(ValueError, match=r"attention: got .*expected"):
        kernels.attention(*BROKEN[name](make()))


@pytest.mark.parametrize("index", range(len(AttentionConfig.tiny())))
@pytest.mark.parametrize("past", [0, 7])
def test_a_mixers_numbers_are_these(index, past):
    """Weights of its own, memory or none: the mixer without its last projection."""
    torch.manual_seed(index)
    config = AttentionConfig.tiny()[index]
    H, K = config.n_heads, config.d_head
    mixer = config.build(6).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.9)
    mixer.out = torch.nn.Identity()
    x = torch.randn(2, 5, 6).double()
    state = mixer.initial_state(2)
    if past:
        _, state = mixer(torch.randn(2, past, 6).double(), state)
    y, _ = mixer(x, state)
    seen = torch.cat([state.hidden_BMD, x], dim=1)
    S = seen.shape[1]
    q, k, v = (
        f(z).view(2, -1, H, K)
        for f, z in ((mixer.query, x), (mixer.key, seen), (mixer.value, seen))
    )
    content, by_code = (
        f(q) / math.sqrt(K) for f in (mixer.positions.content_query, mixer.positions.position_query)
    )
    bounds = [S, *(b for b in (config.limit, state.window) if b not in (None, ANY_DISTANCE))]
    window = Window(0 if config.attend_self else 1, min(bounds))
    call = Call(content, k, v, window, positions_of(mixer, by_code, S))
    if mixer.span:
        share = mixer.span.shares(x)
        share = share.squeeze(-1) if share.dim() == 2 else share
        call = call._replace(span=SoftSpan(share * mixer.span.limit, mixer.span.ramp))
    if config.persistent:
        key = mixer.persistent_key_HKN.mT * math.sqrt(K)
        value = mixer.persistent_value_HNK * math.sqrt(config.persistent.n_vectors)
        u_HK = getattr(mixer.positions, "u_HK", torch.zeros(H, K).double())
        raw = torch.einsum("hk,hnk->hn", -u_HK / math.sqrt(K), key)
        call = call._replace(persistent=Persistent(key, value, raw))
    torch.testing.assert_close(kernels.attention(*call).flatten(2), y, rtol=1e-12, atol=1e-13)


def positions_of(mixer, query, S):
    """Codes row by row of distance, from each kind's own tables."""
    kind, own = mixer.config.positions.kind, mixer.positions
    H, K = mixer.config.n_heads, mixer.config.d_head
    if kind == "none":
        return None
    if kind == "relative_sinusoid":
        codes = own.project(own.sinusoid(torch.arange(S)).double()).view(S, H, K)
        return Positions(query, codes)
    if kind == "relative_table":
        return Positions(query, own.key_RHK, own.bias_RH / math.sqrt(K))
    return Positions(query, torch.cat([torch.zeros(1, K).double(), own.key_KL.T.flip(0)])[:, None])
