"""Units of loss and the baselines."""

import math
import random

import pytest
import torch

from workbench.metrics import (
    bits_per_token,
    compressed_bits,
    describe,
    perplexity,
    unigram_nats,
)


def test_bits_and_perplexity_say_the_same():
    assert bits_per_token(math.log(2)) == pytest.approx(1.0)
    assert perplexity(math.log(256)) == pytest.approx(256)
    assert 2 ** bits_per_token(1.7) == pytest.approx(perplexity(1.7))


def test_perplexity_of_a_diverged_loss_is_infinite():
    assert perplexity(1e6) == math.inf


def test_describe_uses_what_is_published_for_the_unit():
    assert describe(math.log(2) * 1.5, "character") == "1.500 bits per character"
    assert describe(math.log(24.1), "word") == "perplexity 24.10 (4.591 bits per word)"
    told = describe(math.log(24.1), "token", 4.0)
    assert told == "perplexity 24.10 (4.591 bits per token), 1.148 bits per byte"
    assert describe(math.log(2), "character", 1.0) == "1.000 bits per character"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_unigram_by_hand(dtype):
    train = torch.tensor([0, 0, 0, 1], dtype=torch.int64).to(dtype)
    test = torch.tensor([0, 1, 2], dtype=torch.int64).to(dtype)
    # add one over three symbols: 4/7, 2/7, 1/7
    expected = -(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert unigram_nats(train, test, 3) == pytest.approx(expected, rel=1e-12)


def test_unigram_in_blocks_equals_unigram_at_once(monkeypatch):
    ids = torch.randint(0, 50, (1000,), generator=torch.Generator().manual_seed(0))
    at_once = unigram_nats(ids[:700], ids[700:], 50)
    monkeypatch.setattr("workbench.metrics.BLOCK_TOKENS", 64)
    assert unigram_nats(ids[:700], ids[700:], 50) == pytest.approx(at_once, rel=1e-12)


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_compressors_cannot_squeeze_noise(method):
    noise = random.Random(0).randbytes(200_000)
    assert 8.0 <= compressed_bits(b"", noise, method) < 8.02


def test_xz_profits_from_train_however_far_back_and_gzip_only_within_its_window():
    source = random.Random(1)
    test, filler = source.randbytes(20_000), source.randbytes(100_000)
    assert compressed_bits(test + filler, test, "xz") < 0.5
    assert compressed_bits(test + filler, test, "gzip") > 7.9
    assert compressed_bits(filler + test, test, "gzip") < 0.2


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="empty test"):
        compressed_bits(b"abc", b"", "xz")
    with pytest.raises(ValueError, match="'bzip', expected 'gzip' or 'xz'"):
        compressed_bits(b"", b"abc", "bzip")
