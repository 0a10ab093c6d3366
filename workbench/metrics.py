"""Losses in a reader's units, and the baselines that a trained model must beat.

Losses are nats per token everywhere else; bits and perplexity are derived here only. What a token
counts as is the corpus's `unit`: "character" (byte and character level), "word" or "token" (BPE);
bits per byte compare across them.
"""

from __future__ import annotations

import lzma
import math
import zlib
from typing import Literal

import torch
from torch import Tensor

BLOCK_TOKENS = 1 << 24
DEFLATE_WINDOW = 32 << 10


def bits_per_token(nats: float) -> float:
    """nats / ln 2; bits per character where a token is a character."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that is beyond floating point."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def describe(nats: float, unit: str, bytes_per_token: float | None = None) -> str:
    """A mean loss as it is published for this unit.

    Args:
        nats: mean loss per token.
        unit: of the corpus: "character" gives bits per character, any other perplexity first.
        bytes_per_token: of the scored text; known and not 1 it adds bits per byte, which compare
            across vocabularies.
    """
    bits = f"{bits_per_token(nats):.3f} bits per {unit}"
    told = bits if unit == "character" else f"perplexity {perplexity(nats):.2f} ({bits})"
    if bytes_per_token is None or bytes_per_token == 1:
        return told
    return f"{told}, {bits_per_token(nats) / bytes_per_token:.3f} bits per byte"


def unigram_nats(train: Tensor, test: Tensor, vocab_size: int) -> float:
    """Mean nats per token of test under add-one counts of train: context ignored altogether.

    p(c) = (count of c in train + 1) / (tokens of train + vocab_size)

    Args:
        train, test: 1-D token ids of any integer type, mapped or not.
        vocab_size: symbols of the vocabulary.
    """
    counts = _counts(train, vocab_size).double() + 1
    log_p = (counts / counts.sum()).log()
    seen = _counts(test, vocab_size).double()
    return float(-(seen * log_p).sum() / seen.sum())


def _counts(ids: Tensor, vocab_size: int) -> Tensor:
    total = torch.zeros(vocab_size, dtype=torch.int64)
    for block in ids.split(BLOCK_TOKENS):
        total += torch.bincount(block.to(torch.int64), minlength=vocab_size)
    return total


def compressed_bits(train: bytes, test: bytes, method: Literal["gzip", "xz"]) -> float:
    """Bits per byte that a general compressor spends on test after it has seen train.

    Only what test adds is counted, so the figure compares with a model trained on train; with
    `train = b""` test is compressed alone. gzip (deflate) looks back 32 KiB, so of train only the
    end helps; xz looks back over all of it and takes seconds for 10 MB.

    Args:
        train: text seen before; may be empty.
        test: text that is charged.
        method: "gzip" or "xz".
    """
    if not test:
        raise ValueError("compressed_bits: got an empty test text, expected at least one byte")
    if method == "gzip":
        seen = train[-DEFLATE_WINDOW:]
        packer = zlib.compressobj(9, zdict=seen) if seen else zlib.compressobj(9)
        return 8 * len(packer.compress(test) + packer.flush()) / len(test)
    if method != "xz":
        raise ValueError(f"compressed_bits: got method '{method}', expected 'gzip' or 'xz'")
    window = min(max(len(train) + len(test), 1 << 20), 1 << 28)
    n_bytes = len(_xz(train + test, window)) - (len(_xz(train, window)) if train else 0)
    return 8 * n_bytes / len(test)


def _xz(data: bytes, window: int) -> bytes:
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": window}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=chain)
