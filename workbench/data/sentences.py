"""Streams of shuffled sentences, as the Transformer-XL code reads One Billion Word.

A sentence is a piece of the text from one `<S>` to the next, which closes it and opens another;
the closing one is only ever a target. B streams are filled sentence after sentence: in each step,
row after row takes its segment, first from what is left of its sentence, then from the sentences
that nobody has had yet. So a target is always the next token of the same sentence, and the carry
goes on across sentences.

An epoch takes the shards of the text in shuffled order, and the sentences of each in shuffled
order. A shard begins with empty streams and ends where a row can no longer be filled: that last,
incomplete batch is dropped. The carry starts afresh with an epoch only.

The order is that of the code after `np.random.seed(seed)`, where it lists the shards' files in the
order of the text: its epochs shuffle the list of shards in place, and each shard's sentences when
it comes to them; nothing else draws from that generator.

Paper: arXiv:1901.02860 section 4.1. Shapes: B streams, T segment, E context before a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from workbench.data.corpus import Corpus
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.data.segments import DataConfig

Positions = NDArray[np.int64]
CHUNK = 2**24


class Sentences(Order):
    """Shards in shuffled order, in each its sentences in shuffled order, dealt out to B streams."""

    kind: Literal["sentences"] = "sentences"

    def batches(
        self, corpus: Corpus, data: DataConfig, seed: int, reader: Reader = ALONE
    ) -> SentenceBatches:
        about = corpus.info.get("sentences")
        if about is None:
            raise DataError(
                f"data.order is sentences, but the text of {corpus.name} is not made of marked "
                "sentences, as lm1b is. Write data.order: {kind: contiguous}"
            )
        return SentenceBatches(
            corpus.splits["train"],
            about["shards"]["train"],
            about["id"],
            data.batch_size,
            data.segment_len,
            ext_len=data.ext_len,
            seed=seed,
            reader=reader,
        )


def bounds(ids: NDArray[Any], mark: int, start: int, stop: int) -> Positions:
    """Where the sentences of `ids[start : stop + 1]` begin, and at last where they end.

    Raises:
        DataError: the piece does not begin and end with the mark.
    """
    edges = range(start, stop + 1, CHUNK)
    found = [e + np.flatnonzero(ids[e : min(e + CHUNK, stop + 1)] == mark) for e in edges]
    starts = np.concatenate(found)
    if len(starts) < 2 or starts[0] != start or starts[-1] != stop:
        raise DataError(
            f"sentences: got a text without the mark {mark} at {start:,} or {stop:,}, expected "
            "each shard to begin and end with it. Delete the prepared corpus; it is made again"
        )
    return starts


class SentenceStreams:
    """Streams that are filled sentence after sentence, until there are none left.

    Args:
        starts: (sentences + 1,) where in the text each begins, and the end of the last.
        order: (sentences,) in which they are dealt out; None for that of the text.
        n_streams: B.
        ext_len: E, inputs of a stream that are read again before its segment.
    """

    def __init__(
        self, starts: Positions, order: Positions | None, n_streams: int, ext_len: int = 0
    ) -> None:
        firsts, sizes = starts[:-1], np.diff(starts)
        self._firsts = firsts if order is None else firsts[order]
        self._sizes = sizes if order is None else sizes[order]
        self.dealt, self.ext_len = 0, ext_len
        self._context_BE = np.zeros((n_streams, 0), dtype=np.int64)
        # position of each stream's next input, and inputs left of its sentence
        self.at, self.left = [0] * n_streams, [0] * n_streams

    def take(self, length: int) -> tuple[Positions, Positions] | None:
        """Where the next segment's inputs stand, context first, and where its targets do.

        Returns:
            (B, E + T), with less context while there is none, and (B, T); None when not all rows
            can be filled any more, after which nothing can be taken.
        """
        index_BT = self._deal(length)
        if index_BT is None:
            return None
        read_BT = np.concatenate([self._context_BE, index_BT], axis=1)
        self._context_BE = read_BT[:, max(0, read_BT.shape[1] - self.ext_len) :]
        return read_BT, index_BT + 1

    def _deal(self, length: int) -> Positions | None:
        pieces: list[tuple[int, int]] = []
        for row in range(len(self.at)):
            needed = length
            while needed:
                if not self.left[row]:
                    if self.dealt == len(self._sizes):
                        return None
                    self.at[row] = self._firsts.item(self.dealt)
                    self.left[row] = self._sizes.item(self.dealt)
                    self.dealt += 1
                count = min(needed, self.left[row])
                pieces.append((self.at[row], count))
                self.at[row] += count
                self.left[row] -= count
                needed -= count
        begins, counts = np.array(pieces, dtype=np.int64).T
        shift = begins - (counts.cumsum() - counts)
        index = np.arange(len(self.at) * length) + shift.repeat(counts)
        return index.reshape(len(self.at), length)

    def state(self) -> dict[str, Any]:
        """The position, as a number and small tensors for a checkpoint."""
        return {
            "dealt": self.dealt,
            "at": torch.tensor(self.at),
            "left": torch.tensor(self.left),
            "context": torch.from_numpy(self._context_BE.copy()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.dealt, self._context_BE = state["dealt"], state["context"].numpy()
        self.at, self.left = state["at"].tolist(), state["left"].tolist()


class SentenceBatches:
    """An endless walk through shuffled sentences; its position saves and restores exactly.

    Of the text, a process reads its rows, and each shard once from end to end to find where its
    sentences begin; in memory are 16 bytes for each sentence of one shard, 40 while it is opened.

    Args:
        tokens: 1-D ids of any integer type, mapped or not.
        shards: (shards + 1,) shard i is `tokens[shards[i] : shards[i + 1] + 1]`.
        mark: the id that opens and closes sentences.
        batch_size: B, streams of all processes together.
        segment_len: T, tokens.
        ext_len: tokens of the row before a segment that are read again with it; a shard's first
            segment has none.
        seed: of both shuffles.
        reader: who reads, and where to, see `Segments`.

    Raises:
        DataError: no shard has enough tokens for a batch.
        ConfigError: the rows cannot be shared evenly.
    """

    def __init__(
        self,
        tokens: Tensor,
        shards: Sequence[int],
        mark: int,
        batch_size: int,
        segment_len: int,
        *,
        ext_len: int = 0,
        seed: int = 0,
        reader: Reader = ALONE,
    ) -> None:
        if (longest := int(np.diff(shards).max())) < batch_size * segment_len:
            raise DataError(_too_short(longest, batch_size, segment_len))
        self.segment_len, self.ext_len = segment_len, ext_len
        self.device = torch.device(reader.device)
        self._ids, self._shards, self._mark = tokens.numpy(), shards, mark
        self._batch_size, self._rows = batch_size, reader.rows(batch_size)
        self._random = generator(seed)
        self._order = np.arange(len(shards) - 1)
        self._epoch, self._fresh = -1, True
        self._begin_epoch()

    def next(self) -> Batch:
        """The next segment of every stream."""
        where, fresh = self._take(), self._fresh
        tokens_BT, targets_BT = (
            upload(torch.from_numpy(self._ids.take(x[self._rows])), self.device) for x in where
        )
        self._fresh = False
        return Batch(tokens_BT, targets_BT, fresh, 1.0)

    def _take(self) -> tuple[Positions, Positions]:
        # enough to come to every shard, wherever in an epoch this begins
        for _ in range(2 * len(self._order)):
            where = self._streams.take(self.segment_len)
            if where is not None:
                return where
            self._shard += 1
            if self._shard < len(self._order):
                self._begin_shard()
            else:
                self._begin_epoch()
        longest = int(np.diff(self._shards).max())
        raise DataError(_too_short(longest, self._batch_size, self.segment_len))

    def _begin_epoch(self) -> None:
        self._epoch, self._shard, self._fresh = self._epoch + 1, 0, True
        self._random.shuffle(self._order)
        self._begin_shard()

    def _begin_shard(self) -> None:
        """Find the sentences of the shard whose turn it is, and shuffle them."""
        self._before = generator_state(self._random)
        which = self._order[self._shard]
        starts = bounds(self._ids, self._mark, self._shards[which], self._shards[which + 1])
        order = np.arange(len(starts) - 1)
        self._random.shuffle(order)
        self._streams = SentenceStreams(starts, order, self._batch_size, self.ext_len)

    def state(self) -> dict[str, Any]:
        """The position, as numbers and small tensors for a checkpoint."""
        return {
            "batch_size": self._batch_size,
            "tokens": len(self._ids),
            "epoch": self._epoch,
            "order": torch.from_numpy(self._order.copy()),
            "shard": self._shard,
            "fresh": self._fresh,
            "generator": self._before,
            "streams": self._streams.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it was taken from another text or another number of streams.
        """
        check_position(state, {"batch_size": self._batch_size, "tokens": len(self._ids)})
        self._epoch, self._shard = state["epoch"], state["shard"]
        self._order = state["order"].numpy().copy()
        set_generator(self._random, state["generator"])
        self._begin_shard()
        self._streams.restore(state["streams"])
        self._fresh = state["fresh"]


def _too_short(longest: int, batch_size: int, segment_len: int) -> str:
    return (
        f"sentences: got shards of at most {longest:,} tokens, too few for a batch of {batch_size} "
        f"streams x {segment_len} tokens, each filled with sentences of its own. Use longer "
        "shards, or set data.batch_size and data.segment_len to smaller numbers"
    )
