"""Where attention's mass lies and what spans save, against loops, counters and real memories."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from workbench import probe, span_use
from workbench.carry import nbytes
from workbench.config import load
from workbench.distances import mass_by_distance, mean_distances, reaches
from workbench.kernels.attention import Persistent, Positions, Window, reference
from workbench.models.language_model import LanguageModel, ModelConfig, build_model
from workbench.models.mixers.attention import Attention
from workbench.models.mixers.base import Limits

LIMIT, RAMP = 300, 4
SPAN = {"limit": LIMIT, "ramp": RAMP, "initial": 0.1}
ATTENTION = {
    "kind": "attention",
    "n_heads": 2,
    "d_head": 3,
    "memory_len": LIMIT,
    "memory_start": "zeros",
    "attend_self": False,
    "positions": {"kind": "relative_learned", "max_distance": LIMIT},
    "span": SPAN,
}
TEXT = torch.randint(11, (700,), generator=torch.Generator().manual_seed(0))
T = 12


def model_of(**changes: object) -> LanguageModel:
    stack = [{"repeat": 2, "block": {"mixer": {**ATTENTION, **changes}}}]
    model = build_model(load(ModelConfig, {"d_model": 8, "stack": stack}), 11, seed=0).eval()
    for block, shares in zip(model.layers, ([0.02, 0.31], [0.0, 0.1]), strict=True):
        if isinstance(block.mixer, Attention) and block.mixer.span and "span" not in changes:
            block.mixer.span.load_state_dict({"share_H": torch.tensor(shares)})
    return model


def look(model: LanguageModel) -> probe.AttentionView:
    return probe.attention(model, probe.stretch(TEXT, 650, T, before=620))


def random_probs(H: int = 3, queries: int = 5, S: int = 17) -> np.ndarray:
    rng = np.random.default_rng(1)
    weights = rng.random((H, queries, S)) ** 6
    weights *= np.arange(queries)[:, None] + S - queries - np.arange(S) >= 0
    return weights / weights.sum(-1, keepdims=True)


def test_mass_and_its_reaches_by_loops() -> None:
    probs = random_probs()
    H, queries, S = probs.shape
    mass = mass_by_distance(probs)
    for h in range(H):
        far: dict[int, float] = {}
        for t in range(queries):
            for s in range(S):
                d = S - queries + t - s
                far[d] = far.get(d, 0.0) + probs[h, t, s] / queries
        assert mass[h] == pytest.approx([far[d] for d in range(S)], abs=1e-12)
        for q, found in zip((0.5, 0.9, 0.99), reaches(mass)[h], strict=True):
            d, within = 0, far[0]
            while within < q:
                d += 1
                within += far[d]
            assert found == d
        mean = sum(d * share for d, share in far.items())
        assert mean_distances(mass)[h] == pytest.approx(mean)


def test_attention_at_one_distance_lies_within_it() -> None:
    gap = np.arange(4)[:, None] + 6 - np.arange(10)
    exactly = (gap == 3).astype(np.float32)
    assert reaches(mass_by_distance(exactly[None])).tolist() == [[3, 3, 3]]
    # a head that attends to persistent vectors alone has no distance
    assert mass_by_distance(np.zeros((1, 4, 10))).tolist() == [[0.0] * 10]
    assert reaches(np.zeros((1, 10))).tolist() == [[0, 0, 0]]


def test_heads_are_allowed_what_their_mask_lets_through() -> None:
    model = model_of()
    seen = look(model)
    for mixer, mask_HD, use, probs in zip(
        span_use.attention_mixers(model),
        seen.masks_LHD,
        span_use.heads_use(model, seen),
        seen.probs_LHTS,
        strict=True,
    ):
        open_H = [int((mask > 0).sum()) for mask in mask_HD]
        assert use.allowed_H.tolist() == open_H
        assert use.span_H is not None and mixer.span is not None
        assert use.span_H == pytest.approx((mixer.span.shares(TEXT) * LIMIT).detach().numpy())
        assert (use.reach_HQ <= use.allowed_H[:, None]).all() and use.persistent_H is None
        # nothing lies beyond what is allowed
        for head, allowed in enumerate(open_H):
            mass = mass_by_distance(probs)[head]
            assert mass[: allowed + 1].sum() == pytest.approx(1.0) and not mass[allowed + 1 :].any()


def test_persistent_vectors_take_the_rest() -> None:
    model = model_of(persistent={"n_vectors": 5})
    seen = look(model)
    for use, probs, share in zip(
        span_use.heads_use(model, seen), seen.probs_LHTS, seen.persistent_LHT, strict=True
    ):
        assert share.shape == (2, T) and (share > 0).all()
        assert use.persistent_H == pytest.approx(1 - probs.sum(-1).mean(-1), abs=1e-5)
    assert look(model_of()).persistent_LHT == []


def test_without_spans_heads_may_see_all_memory() -> None:
    model = model_of(span=None, memory_len=40, positions={"kind": "relative_sinusoid"})
    seen = look(model)
    use = span_use.heads_use(model, seen)[0]
    assert use.span_H is None and use.allowed_H.tolist() == [40 + T - 1] * 2
    assert span_use.layer_costs(model, seen, T) == [] and seen.spans_LHT == []


def test_dynamic_spans_are_those_of_each_token() -> None:
    model = model_of(span={**SPAN, "dynamic": True})
    generator = torch.Generator().manual_seed(3)
    mixer = span_use.attention_mixers(model)[0]
    assert mixer.span is not None
    v_HD = torch.randn(2, 8, generator=generator)
    mixer.span.load_state_dict({"v_HD": v_HD, "b_H": torch.tensor([-1.0, 0.5])})
    seen = look(model)
    x_TD = model.vocabulary.embed(TEXT[None, 650 : 650 + T])[0].detach()
    for t in range(T):
        for head, bias in enumerate((-1.0, 0.5)):
            z = LIMIT / (1 + float(torch.exp(-(v_HD[head] @ x_TD[t]) - bias)))
            assert seen.spans_LHT[0][head, t] == pytest.approx(z, rel=1e-4)
    use = span_use.heads_use(model, seen)[0]
    widest = [min(LIMIT, int(np.ceil(z.max())) + RAMP) for z in seen.spans_LHT[0]]
    assert use.allowed_H.tolist() == widest


@pytest.mark.parametrize("kind", ["relative_learned", "none"])
@pytest.mark.parametrize("vectors", [0, 5])
def test_flops_are_those_of_the_products(kind: str, vectors: int) -> None:
    """One query, keys enough for the widest head; torch counts the products that are made."""
    positions = {"kind": kind, **({"max_distance": LIMIT} if kind != "none" else {})}
    persistent = {"persistent": {"n_vectors": vectors}} if vectors else {}
    config = span_use.attention_mixers(model_of(positions=positions, **persistent))[0].config
    H, K, keys = 2, 3, 7
    q, k, v = (torch.randn(1, n, H, K) for n in (1, keys, keys))
    call: dict[str, object] = {}
    if kind != "none":
        call["positions"] = Positions(q, torch.randn(keys, 1, K))
    if vectors:
        call["persistent"] = Persistent(torch.randn(H, vectors, K), torch.randn(H, vectors, K))
    with FlopCounterMode(display=False) as counted:
        reference(q, k, v, Window(0, keys), **call)  # type: ignore[arg-type]
    assert span_use.attention_flops(config, keys) == counted.get_total_flops()
    each = span_use.attention_flops(config, [3, 11])
    assert each == span_use.attention_flops(config, 7)


@pytest.mark.parametrize("attend_self", [False, True])
def test_keys_are_counted_one_by_one(attend_self: bool) -> None:
    config = span_use.attention_mixers(model_of(attend_self=attend_self))[0].config
    for allowed in (1, 5, 20, 100):
        seen = 0
        for t in range(T):
            for key in range(10 + t + 1):
                distance = 10 + t - key
                seen += (0 if attend_self else 1) <= distance <= allowed
        assert float(span_use.keys_seen(allowed, config, 10, T)) == pytest.approx(seen / T)


@pytest.mark.parametrize("trim", [True, False])
def test_costs_are_those_of_the_spans_and_bytes_those_of_the_carry(trim: bool) -> None:
    model = model_of(span={**SPAN, "trim_memory": trim})
    for block, shares in zip(model.layers, ([0.02, 0.31], [0.0, 0.1]), strict=True):
        assert isinstance(block.mixer, Attention) and block.mixer.span
        block.mixer.span.load_state_dict({"share_H": torch.tensor(shares)})
    seen = look(model)
    costs = span_use.layer_costs(model, seen, T)
    # what the model really hands on, and what the same model hands on with all of its memory
    assert [c.bytes_kept for c in costs] == seen.carry_bytes_L
    full = model_of()
    with torch.no_grad():
        _, carry = full(TEXT[None, :400], full.initial_carry(1))
    assert [c.bytes_full for c in costs] == [nbytes((state,)) for state in carry]
    assert (costs[0].bytes_kept < costs[0].bytes_full) is trim
    # spans 6, 93 and 0, 30 with ramp 4: 10 and 97, 4 and 34 keys of one product three times
    per_key = 2 * 3 * 3
    assert [c.flops_heads for c in costs] == [per_key * (10 + 97), per_key * (4 + 34)]
    assert [c.flops_full for c in costs] == [per_key * 2 * LIMIT] * 2
    # the longest of a layer, in steps of 64 from the limit: 300 - 3 * 64, 300 - 4 * 64
    assert [c.flops_layer for c in costs] == [per_key * 2 * 108, per_key * 2 * 44]
    assert [c.bytes_needed for c in costs] == [4 * 8 * 97, 4 * 8 * 34]
    flops, room = span_use.saved(costs)
    assert flops == pytest.approx((107 + 38) / 1200)
    assert room == pytest.approx(sum(seen.carry_bytes_L) / (2 * 4 * 8 * LIMIT))


def test_cached_keys_and_values_take_their_own_room() -> None:
    model = model_of()
    config = span_use.attention_mixers(model)[0].config
    with torch.no_grad():
        start = model.initial_carry(1, Limits(constant_weights=True))
        _, carry = model(TEXT[None, :400], start)
    expected = span_use.carried_bytes(config, 8, LIMIT, cached=True)
    assert nbytes(carry[:1]) == expected == 4 * 2 * 2 * 3 * LIMIT


def test_loss_under_another_span_is_that_of_a_model_made_so() -> None:
    model = model_of(span={**SPAN, "trim_memory": True})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    text = probe.stretch(TEXT, 400, 20, before=350)
    found = probe.loss_with_span(model, text, at=1, head=0, span=77.0, ramp=9)
    # layers of unequal ramps need two entries of the stack
    mixers = [{**ATTENTION, "span": {**SPAN, "ramp": r}} for r in (RAMP, 9)]
    stack = [{"repeat": 1, "block": {"mixer": mixer}} for mixer in mixers]
    other = build_model(load(ModelConfig, {"d_model": 8, "stack": stack}), 11).eval()
    other.load_state_dict(
        {**before, "blocks.1.mixer.span.share_H": torch.tensor([77.0 / LIMIT, 0.1])}
    )
    with torch.no_grad():
        tokens = TEXT[None, 50:420]
        nll_BT, _ = other.nll(tokens[:, :-1], tokens[:, 1:], other.initial_carry(1))
    assert found == pytest.approx(float(nll_BT[0, -20:].mean()), rel=1e-4)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    own = span_use.attention_mixers(model)[1].span
    assert own is not None and own.ramp == RAMP
    first = probe.loss_with_span(model, probe.stretch(TEXT, 0, 5, 9), 0, 0, 30.0, RAMP)
    with torch.no_grad():
        nll_BT, _ = model.nll(TEXT[None, :4], TEXT[None, 1:5], model.initial_carry(1))
    assert first == pytest.approx(float(nll_BT.mean()), rel=1e-4)
