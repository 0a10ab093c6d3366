"""Batches in the order of the originals: contiguous streams, one segment after another.

A text of n tokens becomes B streams of n // B tokens (the remainder is dropped); step by step
all streams give their next segment, so that the carry of row b continues row b. Every token of a
stream but its first is a target once an epoch; the last segment of an epoch may be shorter.

Paper: arXiv:1901.02860 section 3.2; arXiv:1708.02182 section 4.1 (segments of random lengths).
Shapes: B streams, T segment length.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from workbench.config import Config, slot
from workbench.data import published, python_source, text  # noqa: F401  the kinds register themselves
from workbench.data.corpus import CorpusConfig
from workbench.errors import DataError


class RandomLengths(Config):
    """Segments of random lengths, so that an epoch cuts the text elsewhere than the last one.

    A length is drawn around `segment_len`, now and then around half of it:
    `min(segment_len + extra, max(min_len, int(N(base, std))))`.
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

    def draw(self, segment_len: int, seed: int, n: int) -> int:
        """The length number `n` of all that follow from a seed."""
        # a generator for each number needs no state but the count
        own = random.Random(f"{seed} {n}")
        base = segment_len / 2 if own.random() < self.p_half else segment_len
        length = max(self.min_len, int(own.gauss(base, self.std)))
        return length if self.extra is None else min(length, segment_len + self.extra)


class DataConfig(Config):
    """The text and how training walks through it."""

    corpus: slot(CorpusConfig)  # type: ignore[valid-type]
    """Where the text comes from: `{kind: python-source}` or `{kind: text, path: ...}`."""
    segment_len: Annotated[int, Field(ge=1)]
    """Tokens of one segment of one stream."""
    batch_size: Annotated[int, Field(ge=1)]
    """Streams read side by side."""
    ext_len: Annotated[int, Field(ge=0)] = 0
    """Tokens before each segment that are read again with it as context, and not scored again."""
    random_lengths: RandomLengths | None = None
    """Segments of random lengths around `segment_len`; null for always the same."""

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.corpus.dataset

    @property
    def n_symbols(self) -> int | None:
        """Size of the vocabulary, where it is known without the text."""
        return self.corpus.n_symbols


class Batch(NamedTuple):
    """One segment of every stream."""

    tokens_BT: Tensor
    """What the model reads, int64; up to `ext_len` tokens of context come before the segment."""
    targets_BT: Tensor
    """The token after each of the segment, int64."""
    fresh: bool
    """True where the streams begin (again): start from a new carry."""
    lr_scale: float
    """Factor of the learning rate for this step (1 for segments of constant length)."""


class Batches(Protocol):
    """An endless source of batches; its position saves and restores exactly."""

    @property
    def ext_len(self) -> int:
        """Tokens of context before each segment that are read again."""

    def next(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def check_length(n_tokens: int, batch_size: int, segment_len: int, name: str = "text") -> None:
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
            f"{name}: got {n_tokens:,} tokens, expected at least {need:,} = {batch_size} streams x "
            f"({segment_len} + 1) tokens for one segment of each. To mend: {', or '.join(cures)}."
        )


class Segments:
    """An endless walk through a text; its position saves and restores exactly.

    Args:
        tokens: 1-D ids of any integer type, mapped or not; int64 is made of one batch at a time.
        batch_size: B, streams.
        segment_len: T, tokens.
        ext_len: tokens before a segment that are read again with it; the streams' first has none.
        lengths: how to draw T; None for always `segment_len`.
        seed: of the lengths.
        device: where the batches go.

    Raises:
        DataError: the text is too short for one segment of every stream.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        segment_len: int,
        *,
        ext_len: int = 0,
        lengths: RandomLengths | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_length(len(tokens), batch_size, segment_len)
        self.segment_len, self.ext_len = segment_len, ext_len
        self.lengths, self.seed = lengths, seed
        self.device = torch.device(device)
        stream_len = len(tokens) // batch_size
        self._streams_BN = tokens[: batch_size * stream_len].view(batch_size, stream_len)
        self._position = 0
        self._epoch = 0
        self._drawn = 0

    def __len__(self) -> int:
        """Batches of one epoch; where lengths are random, about so many."""
        return -(-(self._streams_BN.shape[1] - 1) // self.segment_len)

    def next(self) -> Batch:
        """The next segment of every stream; after the last one the streams begin again."""
        start = self._position
        n_targets = self._streams_BN.shape[1] - 1
        length, lr_scale = self._draw()
        stop = min(start + length, n_targets)
        # the small type travels to the device, the conversion happens there
        begin = max(0, start - self.ext_len)
        piece = self._streams_BN[:, begin : stop + 1].to(self.device).to(torch.int64, copy=True)
        if stop == n_targets:
            self._position, self._epoch = 0, self._epoch + 1
        else:
            self._position = stop
        targets_BT = piece[:, start - begin + 1 :].contiguous()
        return Batch(piece[:, :-1].contiguous(), targets_BT, start == 0, lr_scale)

    def _draw(self) -> tuple[int, float]:
        """Length of the next segment, before the text's end cuts it, and the rate's factor."""
        if self.lengths is None:
            return self.segment_len, 1.0
        length = self.lengths.draw(self.segment_len, self.seed, self._drawn)
        self._drawn += 1
        return length, length / self.segment_len if self.lengths.scale_lr else 1.0

    def state(self) -> dict[str, int]:
        """The position, as plain numbers for a checkpoint."""
        batch_size, stream_len = self._streams_BN.shape
        return {
            "position": self._position,
            "epoch": self._epoch,
            "drawn": self._drawn,
            "batch_size": batch_size,
            "stream_len": stream_len,
        }

    def restore(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it was taken from another text or another number of streams.
        """
        now = self.state()
        for field in ("batch_size", "stream_len"):
            if state.get(field) != now[field]:
                raise DataError(
                    f"data position: got one with {field} {state.get(field)}, expected "
                    f"{now[field]}. Continue with the same corpus and data.batch_size as the "
                    "checkpoint, or start a new run."
                )
        position = state.get("position", -1)
        if not 0 <= position < now["stream_len"] - 1:
            raise DataError(
                f"data position: got {position}, expected 0 to {now['stream_len'] - 2}. "
                "The checkpoint is damaged: continue from an earlier one."
            )
        self._position, self._epoch = position, state.get("epoch", 0)
        self._drawn = state.get("drawn", 0)
