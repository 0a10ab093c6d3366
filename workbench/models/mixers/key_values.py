"""Keys and values of past inputs, computed once: attention's memory while weights are constant.

Paper: arXiv:1901.02860 section 4 (evaluation that reuses the past); arXiv:1911.02150 section 2.
Shapes: B batch, T segment, M memory, H heads, K head width, R rows of codes.
State: `KeyValues`. Its tensors are views of a buffer with free room behind them, so that new tokens
are written there and the past is not copied for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_ROOM = 64
"""tokens for which a new buffer has room, at least; a quarter of what it holds if that is more"""


class Fields(NamedTuple):
    """The leaves of `KeyValues`."""

    key_BMHK: Tensor
    """of the newest inputs, oldest first"""
    value_BMHK: Tensor
    memory_len: int
    """how many to keep"""
    window: int
    """the farthest distance that is visible, or `ANY_DISTANCE`"""
    clamp_len: int
    """distances beyond it share one position code; 0: never"""
    ext_len: int
    """tokens at the end of a segment that the next one repeats"""


class Buffer:
    """Where a line of states keeps its keys and values, and what it need not compute again.

    Only free room is ever written, by the state that ends where the room begins: whoever goes on
    from an older state finds its room taken, and copies. So no state sees a change.
    """

    def __init__(self, keys: Tensor, values: Tensor, capacity: int, used: int):
        B, _, H, K = keys.shape
        self.keys, self.values = (x.new_empty(B, capacity, H, K) for x in (keys, values))
        self.used = used
        self._codes_RHK: Tensor | None = None

    def codes(self, n: int, make: Callable[[int], Tensor | None]) -> Tensor | None:
        """Position codes of the distances 0 to n - 1, made once for all that can come."""
        if self._codes_RHK is None or len(self._codes_RHK) < n:
            self._codes_RHK = make(max(n, self.keys.shape[1]))
        return None if self._codes_RHK is None else self._codes_RHK[:n]


class KeyValues(Fields):
    """What attention remembers where weights do not change while the state lives.

    A state that was cut, joined, moved or loaded has no buffer and goes on as well, after one copy.
    """

    buffer: Buffer | None = None
    end = 0
    """in the buffer, where the newest of these entries ends"""

    def codes(self, n: int, make: Callable[[int], Tensor | None]) -> Tensor | None:
        """What `make` makes for n distances, kept where there is a buffer."""
        return make(n) if self.buffer is None else self.buffer.codes(n, make)

    def preceded(self, key_11HK: Tensor, value_11HK: Tensor, n: int) -> KeyValues:
        """With one key and value n times before all others."""
        shape = (len(self.key_BMHK), n, -1, -1)
        return self._replace(
            key_BMHK=torch.cat([key_11HK.expand(*shape), self.key_BMHK], dim=1),
            value_BMHK=torch.cat([value_11HK.expand(*shape), self.value_BMHK], dim=1),
        )

    def extended(self, key_BTHK: Tensor, value_BTHK: Tensor) -> KeyValues:
        """With the keys and values of further tokens, all of them kept."""
        T = key_BTHK.shape[1]
        M, buffer, end = self.key_BMHK.shape[1], self.buffer, self.end
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            # gradients and compiled graphs want tensors that nobody writes to
            return self._replace(
                key_BMHK=torch.cat([self.key_BMHK, key_BTHK], dim=1),
                value_BMHK=torch.cat([self.value_BMHK, value_BTHK], dim=1),
            )
        if buffer is None or buffer.used != end or end + T > buffer.keys.shape[1]:
            room = max(LEAST_ROOM, T, M // 4)
            new = Buffer(self.key_BMHK, self.value_BMHK, M + T + room, M)
            new.keys[:, :M], new.values[:, :M] = self.key_BMHK, self.value_BMHK
            new._codes_RHK = None if buffer is None else buffer._codes_RHK
            buffer, end = new, M
        stop = buffer.used = end + T
        buffer.keys[:, end:stop], buffer.values[:, end:stop] = key_BTHK, value_BTHK
        return self._seen(buffer, stop - T - M, stop)

    def kept(self, start: int, stop: int) -> KeyValues:
        """Entries `start` to `stop` alone."""
        if self.buffer is not None:
            end = self.end - self.key_BMHK.shape[1]
            return self._seen(self.buffer, end + start, end + stop)
        key, value = self.key_BMHK[:, start:stop], self.value_BMHK[:, start:stop]
        return self._replace(key_BMHK=key, value_BMHK=value)

    def _seen(self, buffer: Buffer, start: int, end: int) -> KeyValues:
        state = self._replace(
            key_BMHK=buffer.keys[:, start:end], value_BMHK=buffer.values[:, start:end]
        )
        state.buffer, state.end = buffer, end
        return state
