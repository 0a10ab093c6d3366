"""Contiguous streams, one segment after another, as all the language-modelling codes read texts.

A text of n tokens becomes B streams of n // B tokens (the remainder is dropped); step by step
all streams give their next segment, so that the carry of row b continues row b. Every token of a
stream but its first is a target once an epoch; the last segment of an epoch may be shorter.

Paper: arXiv:1901.02860 section 3.2; arXiv:1708.02182 section 4.1 (segments of random lengths).
Shapes: B streams, T segment length.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from workbench.config import Config, model_validator, slot

# the kinds register themselves
from workbench.data import published, python_source, sentences, text  # noqa: F401
from workbench.data.batches import (
    ALONE,
    Batch,
    Order,
    Reader,
    check_position,
    generator,
    generator_state,
    set_generator,
    upload,
)
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.errors import DataError

Restart = Literal["begin", "random_offset"]


class RandomLengths(Config):
    """Segments of random lengths, so that an epoch cuts the text elsewhere than the last one.

    A length is drawn around `segment_len`, now and then around half of it:
    `min(segment_len + extra, max(min_len, int(N(base, std))))`.

    The draws are those of the AWD-LSTM and Transformer-XL codes after `np.random.seed(seed)`, a
    uniform and a normal number for each segment. Nothing else there draws from NumPy's generator
    once training has begun, so the lengths are theirs through all epochs, where the streams are as
    long and `drop_single` is set (else an epoch may have one segment more than there).
    """

    p_half: Annotated[float, Field(ge=0, le=1)] = 0.05
    """how often `base` is half of segment_len"""
    std: Annotated[float, Field(ge=0)] = 5.0
    """standard deviation, in tokens"""
    min_len: Annotated[int, Field(ge=1)] = 5
    """tokens at least, but for the end of the text"""
    extra: Annotated[int, Field(ge=0)] | None = None
    """tokens above segment_len at most: 15 in Transformer-XL's code, 10 in AWD-LSTM's fine-tuning;
    null for no limit, as in its training"""
    scale_lr: bool = True
    """the learning rate of a step is multiplied by drawn length / segment_len, as in AWD-LSTM and
    not in Transformer-XL"""
    drop_single: bool = False
    """an epoch ends where a single target is left, which is not read, as in both codes' loops"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """of the lengths: 331 in AWD-LSTM's fine-tuning; null: train.seed, as in its training"""

    def draw(self, random: np.random.RandomState, segment_len: int) -> int:
        """The next length that follows from a generator."""
        base = segment_len if random.random_sample() < 1 - self.p_half else segment_len / 2
        length = max(self.min_len, int(random.normal(base, self.std)))
        return length if self.extra is None else min(length, segment_len + self.extra)


class Contiguous(Order):
    """B pieces of the text side by side, each read from its begin to its end."""

    kind: Literal["contiguous"] = "contiguous"
    restart: Restart = "begin"
    """Where an epoch begins, the carry with it. `begin`: with the streams; the last segment of an
    epoch may be shorter, so that every target is read. `random_offset`, as the adaptive-span code:
    the first with the streams, each later one at a random offset below segment_len; segments are
    whole and what is left is dropped. The offsets are the first of Python's `random.seed(seed)`;
    there, validation draws from the same generator each time it comes to the end of its text."""

    def batches(
        self, corpus: Corpus, data: DataConfig, seed: int, reader: Reader = ALONE
    ) -> Segments:
        return Segments(
            corpus.splits["train"],
            data.batch_size,
            data.segment_len,
            ext_len=data.ext_len,
            lengths=data.random_lengths,
            restart=self.restart,
            seed=seed,
            reader=reader,
        )


class DataConfig(Config):
    """The text and how training walks through it."""

    corpus: slot(CorpusConfig)  # type: ignore[valid-type]
    """Where the text comes from: `{kind: python-source}` or `{kind: text, path: ...}`."""
    segment_len: Annotated[int, Field(ge=1)]
    """Tokens of one segment of one stream."""
    batch_size: Annotated[int, Field(ge=1)]
    """Streams read side by side, by all processes together."""
    ext_len: Annotated[int, Field(ge=0)] = 0
    """Tokens before each segment that are read again with it as context, and not scored again."""
    order: slot(Order) = Contiguous()  # type: ignore[valid-type]
    """What the streams are made of: `{kind: contiguous}`, or `{kind: sentences}` for lm1b."""
    random_lengths: RandomLengths | None = None
    """Segments of random lengths around `segment_len`; null for always the same."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.random_lengths is not None and self.order != Contiguous():
            raise ValueError(
                "random_lengths is given, but the segments of this order are all of one length; "
                "write random_lengths: null, or order: {kind: contiguous}"
            )
        return self

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.corpus.dataset

    @property
    def n_symbols(self) -> int | None:
        """Size of the vocabulary, where it is known without the text."""
        return self.corpus.n_symbols


def check_length(n_tokens: int, batch_size: int, segment_len: int) -> None:
    """Refuse a text that does not give every stream one whole segment.

    Raises:
        DataError: with the numbers and what to change.
    """
    need = batch_size * (segment_len + 1)
    if n_tokens < need:
        cures = ["use a longer text"]
        if rows := n_tokens // (segment_len + 1):
            cures.append(f"set data.batch_size to at most {rows}")
        if (longest := n_tokens // batch_size - 1) > 0:
            cures.append(f"set data.segment_len to at most {longest}")
        raise DataError(
            f"text: got {n_tokens:,} tokens, expected at least {need:,} = {batch_size} streams x "
            f"({segment_len} + 1) tokens for one segment of each. To mend: {', or '.join(cures)}."
        )


class Segments:
    """An endless walk through a text; its position saves and restores exactly.

    Args:
        tokens: 1-D ids of any integer type, mapped or not; int64 is made of one batch at a time.
        batch_size: B, streams of all processes together.
        segment_len: T, tokens.
        ext_len: tokens before a segment that are read again with it; an epoch's first has none.
        lengths: how to draw T; None for always `segment_len`.
        restart: where an epoch begins, see `Contiguous`.
        seed: of the lengths and offsets.
        reader: who reads, and where to. It reads its rows only; positions are those of all, and
            restore in any number of processes.

    Raises:
        DataError: the text is too short for one segment of every stream.
        ConfigError: the rows cannot be shared evenly.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        segment_len: int,
        *,
        ext_len: int = 0,
        lengths: RandomLengths | None = None,
        restart: Restart = "begin",
        seed: int = 0,
        reader: Reader = ALONE,
    ) -> None:
        # from the last offset on, there must be a whole segment
        longest = 2 * segment_len - 1 if restart == "random_offset" else segment_len
        check_length(len(tokens), batch_size, longest)
        self.segment_len, self.ext_len = segment_len, ext_len
        self.lengths, self.restart, self.seed = lengths, restart, seed
        self.device = torch.device(reader.device)
        self._batch_size, stream_len = batch_size, len(tokens) // batch_size
        rows = reader.rows(batch_size)
        self._rows_BN = tokens[: batch_size * stream_len].view(batch_size, stream_len)[rows]
        # an epoch goes on while so many targets are left
        self._least = segment_len if restart == "random_offset" else 1
        if lengths is not None:
            self._random = generator(seed if lengths.seed is None else lengths.seed)
            self._least += lengths.drop_single
        self._offsets = random.Random(seed)
        self._epoch = self._begin = self._position = 0

    def __len__(self) -> int:
        """Batches of this epoch; where lengths are random, about so many."""
        n_targets = self._rows_BN.shape[1] - 1 - self._begin
        return (n_targets - self._least) // self.segment_len + 1

    def next(self) -> Batch:
        """The next segment of every stream; after the last one the next epoch begins."""
        start = self._position
        n_targets = self._rows_BN.shape[1] - 1
        length, lr_scale = self._draw()
        stop = min(start + length, n_targets)
        context = min(self.ext_len, start - self._begin)
        piece = upload(self._rows_BN[:, start - context : stop + 1], self.device)
        batch = Batch(
            piece[:, :-1].contiguous(),
            piece[:, context + 1 :].contiguous(),
            start == self._begin,
            lr_scale,
        )
        self._position = stop
        if n_targets - stop < self._least:
            self._restart()
        return batch

    def _restart(self) -> None:
        self._epoch += 1
        if self.restart == "random_offset":
            self._begin = self._offsets.randrange(self.segment_len)
        self._position = self._begin

    def _draw(self) -> tuple[int, float]:
        """Length of the next segment, before the text's end cuts it, and the rate's factor."""
        if self.lengths is None:
            return self.segment_len, 1.0
        length = self.lengths.draw(self._random, self.segment_len)
        return length, length / self.segment_len if self.lengths.scale_lr else 1.0

    def state(self) -> dict[str, Any]:
        """The position, as plain numbers for a checkpoint."""
        state: dict[str, Any] = {
            "position": self._position,
            "epoch": self._epoch,
            "batch_size": self._batch_size,
            "stream_len": self._rows_BN.shape[1],
        }
        if self.lengths is not None:
            state["lengths"] = generator_state(self._random)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it was taken from another text or another number of streams.
        """
        n_targets = self._rows_BN.shape[1] - 1
        check_position(state, {"batch_size": self._batch_size, "stream_len": n_targets + 1})
        position = state.get("position", -1)
        if not 0 <= position < n_targets:
            raise DataError(
                f"data position: got {position}, expected 0 to {n_targets - 1}. "
                "The checkpoint is damaged: continue from an earlier one."
            )
        if self.lengths is not None:
            set_generator(self._random, state["lengths"])
        self._offsets = random.Random(self.seed)
        self._epoch = self._begin = 0
        for _ in range(state["epoch"]):
            self._restart()
        self._position = position
