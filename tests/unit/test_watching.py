"""What is told of a token while it is written, against other ways to the same numbers."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from workbench import generate, inspect, score
from workbench.config import load
from workbench.data.vocabulary import BYTES, CharVocabulary, WordVocabulary
from workbench.errors import ConfigError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import Limits, MixerConfig
from workbench.plots.rules import effective_rank
from workbench.plots.style import visible
from workbench.train.config import EvalConfig
from workbench.watching import (
    FILLED,
    LOOKS_BACK,
    NORM,
    RANK,
    RANK_EVERY,
    SPAN,
    STATE,
    STRENGTH,
    Written,
    ceilings,
    effective_ranks,
    promised,
    watch,
)
from workbench.writing import CONTINUES, Ask, Writing, spelt

C, D, PROMPT = 11, 16, [1, 2, 3]
CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]
ATTENTION: dict[str, Any] = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 64}
DYNAMIC = {**ATTENTION, "span": {"limit": 64, "ramp": 4, "initial": 0.1, "dynamic": True}}
DELTA = {"kind": "fast_weight", "n_heads": 2, "d_head": 4}


def build(mixer: MixerConfig | dict[str, Any], repeat: int = 2) -> LanguageModel:
    torch.manual_seed(3)
    stack = [{"block": {"mixer": mixer}, "repeat": repeat}]
    model = load(ModelConfig, {"d_model": D, "stack": stack}).build(C).double()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.after_step()
    return model.eval()


def written(model: LanguageModel, length: int = 12, **more: Any) -> list[Written]:
    drawn = generate(model, PROMPT, length=length, seed=5, context_len=64)
    return list(watch(drawn, model, **more))


def text_of(tokens: list[Written]) -> torch.Tensor:
    return torch.tensor([*PROMPT, *(t.id for t in tokens)])


@pytest.mark.parametrize("config", CASES)
def test_chances_are_those_of_a_score_and_gauges_those_that_were_promised(
    config: MixerConfig,
) -> None:
    model = build(config)
    tokens = written(model, alternatives=4)
    ids = text_of(tokens)[len(PROMPT) :]
    scored = score(
        model,
        ids,
        before=PROMPT,
        config=EvalConfig(context_len=64),
        log_probs=True,
        alternatives=4,
    )
    assert scored.log_probs is not None and scored.alternatives is not None
    expected = scored.nll_nats.tolist()
    assert [t.nats for t in tokens] == pytest.approx(expected, abs=1e-9)
    for token, logp, best in zip(tokens, scored.log_probs, scored.alternatives, strict=True):
        order = logp.argsort(descending=True).tolist()
        assert token.rank == 1 + order.index(token.id)
        assert [i for i, _ in token.alternatives] == best.tolist() == order[:4]
        told = [-nats for _, nats in token.alternatives]
        assert told == pytest.approx(logp[best].tolist(), abs=1e-9)
    assert [t.position for t in tokens] == list(range(3, 15))
    told = {name: list(layers) for name, layers in tokens[0].gauges.items()}
    assert told == promised(model) and told
    plain = list(generate(model, PROMPT, length=12, seed=5, context_len=64))
    assert [t.id for t in plain] == ids.tolist(), "who looks on changes nothing"


@pytest.mark.parametrize("config", CASES)
def test_bytes_are_those_of_all_tensors_of_the_carry(config: MixerConfig) -> None:
    model = build(config)
    tokens = written(model, look=False)
    ids = text_of(tokens)
    for at in (0, 11):
        limits = Limits(64, "beyond_self", constant_weights=True)
        with torch.no_grad():
            _, carry = model(ids[None, : tokens[at].position], model.initial_carry(1, limits))
        leaves = [leaf for state in carry for leaf in state if isinstance(leaf, torch.Tensor)]
        assert tokens[at].carry_bytes == sum(8 * leaf.numel() for leaf in leaves)
        # a key and a value of the model's width, in each of two layers, in float64
        assert tokens[at].full_bytes == 2 * 2 * D * 8 * tokens[at].position


def test_attention_looks_as_far_back_as_its_map_says() -> None:
    model = build(ATTENTION)
    tokens = written(model)
    ids = text_of(tokens)[:-1]
    with inspect.capture(model, "attention_probs") as taps:
        model(ids[None], model.initial_carry(1))
    for token in tokens:
        t = token.position - 1
        for layer, probs_BHTS in enumerate(taps["attention_probs"]):
            means = [
                sum(float(p) * (t - s) for s, p in enumerate(row)) for row in probs_BHTS[0, :, t]
            ]
            assert token.gauges[LOOKS_BACK][layer] == pytest.approx(np.mean(means), abs=1e-5)
            assert token.gauges[FILLED][layer] == token.position
    assert ceilings(model) == {FILLED: 64}


def test_dynamic_spans_are_those_of_each_token() -> None:
    model = build(DYNAMIC)
    tokens = written(model)
    for at in (0, 7):
        ids = text_of(tokens)[None, : tokens[at].position]
        with torch.no_grad():
            _, carry = model(ids[:, :-1], model.initial_carry(1))
            model(ids[:, -1:], carry)
        spans = model.readings()["span"]
        for layer in range(2):
            expected = np.mean(spans[layer])
            assert tokens[at].gauges[SPAN][layer] == pytest.approx(expected, rel=1e-5)


def test_fast_weights_are_told_as_they_are() -> None:
    model = build(DELTA)
    tokens = written(model, length=RANK_EVERY + 1)
    with inspect.capture(model, "fast_weight_inputs") as taps:
        model(text_of(tokens)[None, :-1], model.initial_carry(1))
    for layer, inputs in enumerate(taps["fast_weight_inputs"]):
        lives = [inspect.trajectory(inputs, 0, head) for head in range(2)]
        for token in tokens:
            W = [life.W_TFV[token.position - 1].numpy() for life in lives]
            norm = np.mean([np.sqrt((x**2).sum()) for x in W])
            assert token.gauges[NORM][layer] == pytest.approx(norm, rel=1e-4)
            beta = np.mean([float(life.write_strength_T[token.position - 1]) for life in lives])
            assert token.gauges[STRENGTH][layer] == pytest.approx(beta, rel=1e-5)
            if RANK in token.gauges:
                rank = np.mean([effective_rank(x) for x in W])
                assert token.gauges[RANK][layer] == pytest.approx(rank, rel=1e-4)
    assert [RANK in t.gauges for t in tokens] == [i % RANK_EVERY == 0 for i in range(9)]
    assert ceilings(model) == {RANK: 4}


def test_ranks_of_many_matrices() -> None:
    W = torch.randn(3, 5, 4, dtype=torch.float64)
    W[1] = 0
    assert effective_ranks(W).tolist() == pytest.approx(effective_rank(W.numpy()).tolist())


def test_the_state_of_a_recurrent_net() -> None:
    model = build({"kind": "lstm", "d_hidden": D})
    tokens = written(model)
    with torch.no_grad():
        _, carry = model(text_of(tokens)[None, :-1], model.initial_carry(1))
    for layer, state in enumerate(carry):
        norm = float((state.h_BU.square().sum() + state.c_BU.square().sum()).sqrt())
        assert tokens[-1].gauges[STATE][layer] == pytest.approx(norm, rel=1e-9)


def test_a_capture_does_not_hear_other_threads() -> None:
    model = build(ATTENTION)
    ids = torch.tensor([PROMPT])
    begun, done = threading.Event(), threading.Event()

    def elsewhere() -> None:
        begun.wait(10)
        with torch.no_grad():
            model(ids, model.initial_carry(1))
        done.set()
        with inspect.capture(model, "attention_probs") as theirs:
            model(ids, model.initial_carry(1))
        counts.append(len(theirs["attention_probs"]))

    counts: list[int] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    with inspect.capture(model, "attention_probs") as taps:
        model(ids, model.initial_carry(1))
        begun.set()
        assert done.wait(10)
    thread.join(10)
    assert len(taps["attention_probs"]) == 2 and counts == [2]


# a text that is stopped and gone on with

CHARS = CharVocabulary(list("abcdefghi "))


def test_a_stopped_text_goes_on_as_if_it_had_not_stopped() -> None:
    model = build(ATTENTION)
    whole = Writing(model, vocabulary=CHARS)
    expected = list(whole.begin(Ask("abc", 20, temperature=0)))
    parts = Writing(model, vocabulary=CHARS)
    with closing(parts.begin(Ask("abc", 20, temperature=0))) as tokens:
        list(islice(tokens, 8))
    assert parts.can_go_on and len(parts.written) == 8
    list(parts.go_on(Ask("ignored", 7, temperature=0)))
    list(parts.go_on(Ask(length=5, temperature=0)))
    assert parts.ids == whole.ids and parts.text == whole.text and parts.n_prompt == 3
    for a, b in zip(parts.written, expected, strict=True):
        assert (a.id, a.position, a.rank) == (b.id, b.position, b.rank)
        assert a.nats == pytest.approx(b.nats, abs=1e-9)
        assert a.gauges[LOOKS_BACK] == pytest.approx(b.gauges[LOOKS_BACK])
        assert (a.carry_bytes, a.full_bytes) == (b.carry_bytes, b.full_bytes)


def test_going_on_draws_other_numbers_and_the_same_again() -> None:
    model = build(DELTA)
    texts = []
    for _ in range(2):
        text = Writing(model, vocabulary=CHARS)
        list(text.begin(Ask("a", 30, temperature=5.0, seed=4)))
        list(text.go_on(Ask(length=30, temperature=5.0, seed=4)))
        texts.append(text.ids)
    assert texts[0] == texts[1]
    assert texts[0][1:31] != texts[0][31:]


def test_a_bad_prompt_leaves_the_text_that_was_there() -> None:
    text = Writing(build(DELTA), vocabulary=CHARS)
    with pytest.raises(ConfigError, match="there is no text to go on with yet"):
        text.go_on(Ask())
    list(text.begin(Ask("ab", 3, seed=1)))
    before = text.text
    with pytest.raises(ConfigError, match="got temperature -1"):
        text.begin(Ask("ab", 3, temperature=-1))
    assert text.text == before and text.can_go_on


def test_a_failure_in_the_middle_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(DELTA)
    text = Writing(model, vocabulary=CHARS)
    tokens = text.begin(Ask("ab", 9, seed=1))
    next(tokens)
    monkeypatch.setattr(model, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(tokens)
    assert not text.can_go_on and len(text.written) == 1


def test_half_a_character_is_seen_until_it_is_whole() -> None:
    ids = list("aé€".encode())
    assert [visible(x) for x in spelt(BYTES, ids[:2])] == ["a", "\\xc3"]
    assert spelt(BYTES, ids[:3]) == ["a", "é", CONTINUES]
    assert [visible(x) for x in spelt(BYTES, ids[:5])] == ["a", "é", CONTINUES, "\\xe2", "\\x82"]
    assert spelt(BYTES, ids) == ["a", "é", CONTINUES, "€", CONTINUES, CONTINUES]
    # never a character: it stays as it is, and what follows is read
    assert [visible(x) for x in spelt(BYTES, [0xE2, 0x82, ord("b")])] == ["\\xe2", "\\x82", "b"]
    assert spelt(None, [7, 10]) == ["7", "10"]
    words = WordVocabulary(["the"])
    assert spelt(words, words.ids("the cat\n").tolist()) == ["the ", "<unk> ", "<eos> "]


def test_tips_say_what_was_likely() -> None:
    text = Writing(build(DELTA), vocabulary=CHARS)
    (token,) = text.begin(Ask("a ", 1, temperature=0))
    assert text.tip(1) == "␣   (prompt)" and text.bits[:2] == [0.0, 0.0]
    chance = float(np.exp(-token.nats))
    assert token.rank == 1 and f"{chance:.2%}" in text.tip(2)
    assert f"{text.label(token.id)} {chance:.1%}" in text.tip(2)
