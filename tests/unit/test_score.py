"""Scores of any text: tokens, units, alternatives, unknown symbols."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from workbench import score
from workbench.config import load
from workbench.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    PreparedVocabulary,
    WordVocabulary,
)
from workbench.errors import ConfigError, DataError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.evaluate import evaluate

CHARS = CharVocabulary(list("abcdefgh \n"))
TEXT = "a bad cab\nfaced a bead\n" * 3


def model(n_symbols: int) -> LanguageModel:
    mixer = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 9}
    torch.manual_seed(2)
    data = {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}], "p_output": 0.4}
    return load(ModelConfig, data).build(n_symbols).double().train()


def test_a_text_token_by_token() -> None:
    subject, ids = model(CHARS.size), CHARS.encode(TEXT)
    got = score(subject, TEXT, vocabulary=CHARS)
    expected = evaluate(subject, ids, EvalConfig()).nll_nats
    assert torch.equal(got.nll_nats, expected) and torch.equal(got.ids, ids)
    assert got.positions.tolist() == list(range(1, len(TEXT))) and got.settings == "carried"
    assert got.symbols[:11] == ["a", "␣", "b", "a", "d", "␣", "c", "a", "b", "↵", "f"]
    assert got.mean_nats == pytest.approx(float(expected.mean()))
    torch.testing.assert_close(got.cumulative_nats, expected.cumsum(0))
    assert got.bits_per_character == pytest.approx(got.mean_nats / math.log(2))
    assert got.log_probs is None and got.alternatives is None and subject.training


@pytest.mark.parametrize(
    "config",
    [
        EvalConfig(context_len=4, batch_size=3),
        EvalConfig(method="windows", context_len=6, batch_size=4),
        EvalConfig(method="streams", batch_size=2, segment_len=7),
        EvalConfig(segment_len=8, cache=CacheConfig(window=12, theta=0.5, lam=0.3)),
    ],
    ids=lambda c: c.describe(),
)
def test_distributions_and_alternatives_by_every_method(config: EvalConfig) -> None:
    subject = model(CHARS.size)
    plain = score(subject, TEXT, config=config, vocabulary=CHARS)
    got = score(subject, TEXT, config=config, log_probs=True, alternatives=3, vocabulary=CHARS)
    assert got.log_probs is not None and got.alternatives is not None
    torch.testing.assert_close(got.nll_nats, plain.nll_nats, rtol=0, atol=1e-10)
    targets = got.ids[got.positions]
    gathered = -got.log_probs.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(gathered, plain.nll_nats, rtol=0, atol=1e-10)
    ones = torch.ones(len(targets), dtype=torch.float64)
    torch.testing.assert_close(got.log_probs.exp().sum(-1), ones)
    best = got.log_probs.topk(3)
    assert torch.equal(got.alternatives, best.indices)
    torch.testing.assert_close(got.alternative_log_probs, best.values)
    assert score(subject, TEXT, alternatives=99, vocabulary=CHARS).alternatives.shape[1] == 11


def test_what_comes_before_is_read_and_not_scored() -> None:
    subject = model(CHARS.size)
    whole = score(subject, TEXT, vocabulary=CHARS)
    got = score(subject, TEXT[20:], before=TEXT[:20], vocabulary=CHARS)
    torch.testing.assert_close(got.nll_nats, whole.nll_nats[19:])
    assert got.positions.tolist() == list(range(len(TEXT) - 20))
    assert score(subject, "a", before="b", vocabulary=CHARS).nll_nats.shape == (1,)


def test_unknown_symbols_are_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="workbench"):
        got = score(model(CHARS.size), "a xyz bx", vocabulary=CHARS)
    assert got.unknown == 4 and got.symbols.count("<unk>") == 4
    assert "4 tokens scored as <unk>: ['x', 'y', 'z']" in caplog.text
    caplog.clear()
    # a corpus has its own <unk>
    assert score(model(CHARS.size), got.ids, vocabulary=CHARS).unknown == 4 and not caplog.text
    words = WordVocabulary(["the", "cat", "sat"])
    got = score(model(words.size), "the dog sat\n", vocabulary=words)
    assert got.unknown == 1 and got.symbols == ["the", "<unk>", "sat", "<eos>"]
    # nobody knows how long that word was
    assert got.characters is got.bits_per_character is got.bits_per_byte is None
    assert score(model(words.size), "the cat sat\n", vocabulary=words).characters == 8
    assert score(model(256), "\u20ac", vocabulary=ByteVocabulary()).unknown == 0


def test_units() -> None:
    got = score(model(256), "a\u20acb", vocabulary=ByteVocabulary())
    assert len(got.nll_nats) == 4 and got.characters == 2
    assert got.bits_per_character == pytest.approx(got.total_nats / math.log(2) / 2)
    assert torch.equal(
        score(model(256), b"abc", vocabulary=ByteVocabulary()).ids.byte(),
        torch.tensor([97, 98, 99]).byte(),
    )
    prepared = PreparedVocabulary("byte", ["98", "97", "<eos>"])
    assert score(model(3), b"ab\na", vocabulary=prepared).ids.tolist() == [1, 0, 2, 1]
    bare = score(model(20), [3, 1, 4])
    assert bare.bits_per_character is None and bare.symbols == ["3", "1", "4"]


def test_refusals() -> None:
    subject = model(CHARS.size)
    with pytest.raises(DataError, match="at least 2 tokens"):
        score(subject, "a", vocabulary=CHARS)
    with pytest.raises(ConfigError, match="alternatives"):
        score(subject, "abc", alternatives=-1, vocabulary=CHARS)
    with pytest.raises(DataError, match="no UTF-8"):
        score(subject, b"\xff\xfe", vocabulary=CHARS)
    with pytest.raises(DataError, match="whole numbers"):
        score(subject, torch.rand(5))
