"""The next batches, prepared by a thread while the step before computes.

The thread reads the text (cold disks included), and for a GPU copies from pinned memory on a stream
of its own, so that neither the host nor the GPU waits for a batch unless all steps are shorter than
its preparation. On a CPU this would only take turns with the step's own threads: a batch costs some
0.1 ms there, and is made when it is asked for.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch

from workbench.data.batches import Batch, Batches


class Prepared(NamedTuple):
    """A batch that waits to be asked for."""

    batch: Batch
    state: dict[str, Any]
    """the position behind it"""
    copied: torch.cuda.Event | None
    """when it is on the GPU"""


def ahead(batches: Batches, device: torch.device) -> Batches:
    """The same batches, prepared ahead where that helps."""
    return Ahead(batches, device) if device.type == "cuda" else batches


class Ahead:
    """The same batches in the same order, the next of them prepared by a thread.

    Its position is that of the batches handed out. What goes wrong in the thread is raised by the
    `next` that asks for that batch; asking again tries again. The thread ends with this object, and
    with the interpreter.

    Args:
        batches: nobody else may use them from now on.
        device: where they put their batches.
        depth: batches that are ready or in work.
    """

    def __init__(self, batches: Batches, device: torch.device, depth: int = 2) -> None:
        self._batches, self._depth = batches, depth
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # ends its thread when it is collected, and when the interpreter ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="workbench-batches")
        self._pending: deque[Future[Prepared]] = deque()
        self._state = batches.state()

    @property
    def ext_len(self) -> int:
        """Tokens of context before each segment that are read again."""
        return self._batches.ext_len

    def next(self) -> Batch:
        """The next batch; the one after it is in work when this returns."""
        self._fill()
        try:
            batch, state, copied = self._pending.popleft().result()
        except BaseException:
            # even if it was Ctrl-C that ended the waiting, no batch is lost
            self.restore(self._state)
            raise
        self._state = state
        self._fill()
        if copied is not None:
            now = torch.cuda.current_stream(batch.tokens_BT.device)
            now.wait_event(copied)
            for tensor in (batch.tokens_BT, batch.targets_BT):
                # its memory belongs to the other stream, which must not take it back too early
                tensor.record_stream(now)
        return batch

    def _fill(self) -> None:
        while len(self._pending) < self._depth:
            self._pending.append(self._thread.submit(_prepare, self._batches, self._stream))

    def state(self) -> dict[str, Any]:
        """The position behind the last batch handed out."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken; what was prepared is dropped."""
        dropped, self._pending = self._pending, deque()
        for future in dropped:
            future.cancel()
        wait(dropped)
        self._batches.restore(state)
        self._state = self._batches.state()


def _prepare(batches: Batches, stream: torch.cuda.Stream | None) -> Prepared:
    """In the thread; it knows nothing of who asked, or they would keep each other alive."""
    if stream is None:
        return Prepared(batches.next(), batches.state(), None)
    with torch.cuda.stream(stream):
        batch = batches.next()
        return Prepared(batch, batches.state(), stream.record_event())
