"""The attention op: what it means, what it refuses, and that its mixer's numbers are these."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import (
    CALLS,
    LARGE,
    RAMP,
    Call,
    by_hand,
    expected,
    floats,
    make,
    outcome,
    rebuilt,
)
from cases import scattered

from workbench import kernels
from workbench.kernels.attention import (
    Persistent,
    Positions,
    SoftSpan,
    Window,
    flat,
    reference,
)
from workbench.kernels.dropout import Dropout
from workbench.models.mixers.attention import AttentionConfig


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
    """From its parameters by the papers' formulas, one query and one key at a time."""
    torch.manual_seed(index)
    config = AttentionConfig.tiny()[index]
    H, K = config.n_heads, config.d_head
    mixer = config.build(6).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.9)
    W = {name: x.detach() for name, x in mixer.named_parameters()}
    before, x = torch.randn(2, past, 6).double(), torch.randn(2, 5, 6).double()
    state = mixer.initial_state(2)
    if past:
        _, state = mixer(before, state)
    y, _ = mixer(x, state)

    zeros = torch.zeros(2, config.memory_len if config.memory_start == "zeros" else 0, 6).double()
    seen = torch.cat([torch.cat([zeros, before], 1)[:, -config.memory_len :], x], 1)
    q, k, v = (
        (z @ W[f"{name}.weight"].T).unflatten(-1, (H, K))
        for name, z in (("query", x), ("key", seen), ("value", seen))
    )
    root = math.sqrt(K)
    u, v_bias = (
        W.get(f"positions.{name}", torch.zeros(H, K).double()) for name in ("u_HK", "v_HK")
    )
    farthest = [6] if config.span or config.positions.kind == "relative_learned" else []
    farthest += [config.memory_len] if config.same_length == "beyond_self" else []
    window = Window(0 if config.attend_self else 1, min([seen.shape[1], *farthest]))
    positions = codes_of(config.positions.kind, W, (q + v_bias) / root, seen.shape[1])
    call = Call((q + u) / root, k, v, window, positions)
    if config.span:
        shares = W.get("span.share_H")
        if shares is None:
            shares = (x @ W["span.v_HD"].T + W["span.b_H"]).sigmoid().transpose(1, 2)
        call = call._replace(span=SoftSpan(shares * config.span.limit, config.span.ramp))
    if config.persistent:
        key = W["persistent_key_HKN"].mT * root
        value = W["persistent_value_HNK"] * math.sqrt(config.persistent.n_vectors)
        # a token's query meets persistent keys without u
        extra = -torch.einsum("hk,hnk->hn", u / root, key)
        call = call._replace(persistent=Persistent(key, value, extra))
    read = by_hand(call).flatten(2) @ W["out.weight"].T
    torch.testing.assert_close(y, read, rtol=1e-10, atol=1e-12)


def codes_of(kind, W, query, S):
    """Codes row by row of distance, from each kind's own tables."""
    H, K = query.shape[2:]
    if kind == "none":
        return None
    if kind == "relative_sinusoid":
        frequencies = (10000.0 ** (-torch.arange(0, 6, 2).double() / 6)).float().double()
        angles = torch.arange(S)[:, None] * frequencies
        sinusoid = torch.cat([angles.sin(), angles.cos()], dim=1)
        return Positions(query, (sinusoid @ W["positions.project.weight"].T).view(S, H, K))
    if kind == "relative_table":
        return Positions(query, W["positions.key_RHK"], W["positions.bias_RH"] / math.sqrt(K))
    # the column of distance d is L - d; a token's own has none
    nearest_first = W["positions.key_KL"].T.flip(0)
    return Positions(query, torch.cat([torch.zeros(1, K).double(), nearest_first])[:, None])


NEEDS_CPP = pytest.mark.skipif(
    any(row.why_not for row in kernels.attention.explain() if row.backend == "cpp"),
    reason="no C++ compiler here",
)


def cpp(*call):
    with kernels.use("cpp"):
        return kernels.attention(*call)


WITH_ALL = {"T": 6, "rows": 12, "bias": True, "N": 3, "extra": True}


@NEEDS_CPP
@pytest.mark.parametrize("spans", ["dynamic", [2.0, 30.0]], ids=str)
@pytest.mark.parametrize("S", [19, 200])
def test_what_is_not_a_number_shows(S, spans):
    """A model that has diverged must not read zeros; S 200 goes through bands of keys."""
    call = make(S=S, spans=spans, **WITH_ALL)
    for name, x in floats(call).items():
        # of the last key, which every query of its own token sees
        spoilt = x.float().clone()
        spoilt.view(-1)[0 if name in ("codes", "bias") else -1] = float("nan")
        held = {n: y.float() for n, y in floats(call).items()} | {name: spoilt}
        found = []
        for backend in ("cpp", "reference"):
            leaves = {n: y.clone().requires_grad_() for n, y in held.items()}
            with kernels.use(backend):
                y = kernels.attention(*rebuilt(call, leaves))
            dq = torch.autograd.grad(y.sum(), leaves["q"])[0]
            found.append((y.isnan(), dq.isnan()))
        (y, dq), (y_want, dq_want) = found
        assert y_want.any() and dq_want.any()
        assert torch.equal(y, y_want) and torch.equal(dq, dq_want), name


@NEEDS_CPP
@pytest.mark.parametrize("sizes", [(0, 2, 4, 3), (2, 0, 4, 3), (2, 2, 4, 0)], ids=str)
def test_no_rows_no_heads_no_width(sizes):
    call = make(sizes=sizes, rows=4, bias=True, spans=[2.0] * sizes[1], N=2)
    got, want = outcome(cpp, call), expected(call)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x)


def assert_close(got, want, relative):
    for name, expected_ in want.items():
        # a gradient that vanishes exactly is noise of the size of the others
        scale = max(float(expected_.abs().max()), 0.5)
        torch.testing.assert_close(
            got[name].double(), expected_, rtol=0, atol=relative * scale, msg=f"{name} differs"
        )


@NEEDS_CPP
@pytest.mark.parametrize("name", [*CALLS, *LARGE])
def test_cpp_is_the_reference(name):
    call = {**CALLS, **LARGE}[name]()
    want = expected(call)
    assert_close(outcome(cpp, call), want, 1e-12)
    assert_close(outcome(cpp, call, torch.float32), want, 2e-5)
    got = outcome(cpp, call, torch.bfloat16)
    assert all(x.dtype == torch.bfloat16 for x in got.values())
    assert float((got["y"].double() - want["y"]).abs().max()) < 0.05 * max(
        1.0, float(want["y"].abs().max())
    )


@NEEDS_CPP
@pytest.mark.parametrize("name", ["whole span", "long span", "100"])
def test_cpp_passes_over_keys_beyond_the_mask(name):
    """Bands in float64: as the reference that hides what the mask has ended for."""
    call = LARGE[name]() if name in LARGE else CALLS[name]()
    names = list(floats(call))

    def banded(*args):
        return torch.ops.workbench.attention_forward(*flat(Call(*args)), True)[0]

    got = outcome(banded, call)
    for h, tokens in enumerate(call.span.tokens.tolist()):
        end = min(call.window.farthest, math.floor(RAMP + 1 + tokens))
        alone = {
            n: x[h : h + 1] if n == "span" else x if n == "codes" else x[:, :, h : h + 1]
            for n, x in floats(call).items()
        }
        if "codes" in alone and alone["codes"].shape[1] > 1:
            alone["codes"] = alone["codes"][:, h : h + 1]
        head = rebuilt(call, alone)._replace(window=Window(call.window.nearest, end))
        y = reference(*head)
        torch.testing.assert_close(got["y"][:, :, h : h + 1], y, rtol=1e-12, atol=1e-14)
    # and its gradients differ from those of all keys by the 1e-8 alone
    for n in names:
        torch.testing.assert_close(got[f"d{n}"], expected(call)[f"d{n}"], rtol=1e-4, atol=1e-5)


@NEEDS_CPP
@pytest.mark.parametrize("name", ["all-attention", "everything", "table"])
def test_cpp_takes_any_memory_layout_and_leaves_its_inputs(name):
    call = CALLS[name]()
    apart = rebuilt(call, {n: scattered(x) for n, x in floats(call).items()})
    assert_close(outcome(cpp, apart), expected(call), 1e-12)
    before = {n: x.clone() for n, x in floats(call).items()}
    outcome(cpp, call)
    assert all(torch.equal(x, before[n]) for n, x in floats(call).items())


@NEEDS_CPP
@pytest.mark.parametrize("name", ["before it", "all-attention", "everything", "100"])
def test_cpp_writes_every_fresh_number(name):
    call = {**CALLS, **LARGE}[name]()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        results = outcome(cpp, call, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    assert all(x.isfinite().all() for x in results.values())


@NEEDS_CPP
def test_cpp_threads_change_no_bit():
    call = make(
        260, 700, (2, 3, 32, 32), (1, 500), rows=501, shared=True, spans=[5.0, 60.5, 480.0], N=9
    )
    alone = outcome(cpp, call, torch.float32)
    torch.set_num_threads(3)
    try:
        together = outcome(cpp, call, torch.float32)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(alone[n], together[n]) for n in alone)


@NEEDS_CPP
@pytest.mark.parametrize("name", ["few codes", "long span", "dynamic", "everything", "dropout"])
def test_cpp_gradcheck(name):
    call = CALLS[name]()
    leaves = {n: x.detach().requires_grad_() for n, x in floats(call).items()}
    names = list(leaves)

    def read(*tensors):
        return cpp(*rebuilt(call, dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(read, list(leaves.values()))


@NEEDS_CPP
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["content", "everything"])
def test_cpp_registration(name):
    call = CALLS[name]()
    call = rebuilt(call, {n: x.detach().requires_grad_() for n, x in floats(call).items()})
    torch.library.opcheck(torch.ops.workbench.attention_forward.default, (*flat(call), False))
    plain = (*flat(CALLS[name]()), False)
    y, log_norm = torch.ops.workbench.attention_forward(*plain)
    saved = (torch.randn_like(y), y, log_norm, *plain)
    torch.library.opcheck(torch.ops.workbench.attention_backward.default, saved)


@NEEDS_CPP
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_compiles_in_one_graph(backend):
    call = CALLS["everything"]()
    torch._dynamo.reset()
    with kernels.use(backend):
        compiled = torch.compile(kernels.attention, fullgraph=True, backend="aot_eager")
        want, got = outcome(kernels.attention, call), outcome(compiled, call)
    assert_close(got, want, 1e-12)


@NEEDS_CPP
def test_cpp_exp_is_accurate_and_ends_at_zero():
    """Two keys, scores 0 and -x: the second one's weight tells exp(-x)."""
    x = torch.cat([torch.linspace(0, 87, 4001), torch.tensor([88.0, 200.0, 1e9])])
    q = torch.ones(len(x), 1, 1, 1)
    k = torch.stack([torch.zeros_like(x), -x], 1)[..., None, None]
    v = torch.tensor([0.0, 1.0])[None, :, None, None].expand(len(x), 2, 1, 1)
    weight = cpp(q, k, v, Window(0, 1)).flatten()
    e = (-x.double()).exp()
    error = (weight.double() / (e / (1 + e)) - 1)[: len(x) - 3].abs()
    assert float(error.max()) < 4 * 2**-24 * 2
    assert weight[-2:].abs().max() == 0


@pytest.mark.parametrize("index", range(len(AttentionConfig.tiny())))
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=NEEDS_CPP)])
def test_a_mixer_runs_under_autocast(index, backend):
    torch.manual_seed(index)
    mixer = AttentionConfig.tiny()[index].build(6)
    x, state = torch.randn(2, 5, 6), mixer.initial_state(2)
    want, _ = mixer(x, state)
    with kernels.use(backend), torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(x, state)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    y, want = y.detach(), want.detach()
    assert float((y.float() - want).abs().max()) < 0.1 * max(1.0, float(want.abs().max()))
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in mixer.parameters())
