"""The most memory that a call holds at a time, beyond what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from bench.timing import Call

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""what tells Linux to count the peak of resident memory anew"""


def _kb(field: str) -> int:
    (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith(field)]
    return int(line.split()[1])


def give_back() -> None:
    """Let the allocator return what is free, so that it counts when it is taken again."""
    gc.collect()
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # not glibc: what it keeps is not counted, and the figure is a lower bound
    trim(0)


def peak_mb(call: Call) -> float | None:
    """Megabytes (10**6 bytes) by which a call exceeds what was held before; None: cannot tell."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    give_back()
    before_kb = _begin()
    call()
    return None if before_kb is None else max(0, _kb("VmHWM") - before_kb) * 1024 / 1e6


def _begin() -> int | None:
    """Resident memory, from which on the peak is counted; None where nobody counts."""
    try:
        CLEAR.write_text(RESET_PEAK)
        return _kb("VmRSS")
    except (OSError, ValueError):
        return None
