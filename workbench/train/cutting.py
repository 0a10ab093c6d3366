"""How a text is cut for a measurement: into streams, sentences, or rows that overlap.

Shapes: B rows side by side, n tokens of text.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workbench.data.sentences import SentenceStreams, bounds
from workbench.errors import DataError
from workbench.train.config import EvalConfig


def streams(tokens: Tensor, n_streams: int) -> Tensor:
    """(B, n): contiguous streams of equal length; the remainder is dropped."""
    length = len(tokens) // n_streams
    return tokens[: n_streams * length].view(n_streams, length)


def positions(n_streams: int, length: int, first: int, stop: int) -> Tensor:
    """Where in the text the tokens `first` to `stop` of each stream stand."""
    return (torch.arange(n_streams)[:, None] * length + torch.arange(first, stop)).flatten()


def sentence_streams(tokens: Tensor, config: EvalConfig) -> SentenceStreams:
    """The sentences of a text, in its order, for the streams of `config`.

    Raises:
        DataError: the text is not made of marked sentences.
    """
    ids = tokens.numpy()
    # what follows the last mark is no whole sentence
    stop = int(np.flatnonzero(ids == ids[0])[-1])
    if stop == 0:
        raise DataError(
            f"eval.order is sentences, but the token {ids[0]} that begins the text, and so should "
            "open and close each sentence, does not come again. Write eval.order: contiguous"
        )
    starts = bounds(ids, int(ids[0]), 0, stop)
    return SentenceStreams(starts, None, config.batch_size, config.ext_len)


def plan_rows(n_inputs: int, batch_size: int, reach: int | None) -> tuple[int, int, int]:
    """How `carried` cuts a text into rows that can be read side by side.

    Row b reads `warm_up + stride` inputs from position `b * stride`. Row 0 is scored throughout,
    the others after their warm-up: by then all that can influence them has been read.

    Args:
        n_inputs: positions to predict from, n - 1.
        batch_size: rows at most.
        reach: past positions that can influence a prediction; None where there is no bound.

    Returns:
        rows, stride and warm_up.
    """
    if reach is None or reach >= n_inputs or batch_size == 1:
        return 1, n_inputs, 0
    # not more warm-up than text: beyond that, more rows cost more than they save
    rows = min(batch_size, 1 + n_inputs // max(1, reach), n_inputs - reach)
    if rows < 2:
        return 1, n_inputs, 0
    stride = math.ceil((n_inputs - reach) / rows)
    return math.ceil((n_inputs - reach) / stride), stride, reach
