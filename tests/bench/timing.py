"""Taking turns: medians of candidates that are timed side by side, and who disturbed them."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

Call = Callable[[], object]
Sample = tuple[float, bool]
"""milliseconds of a call, and whether others used the processor meanwhile"""

STAT = Path("/proc/stat")
TICKS_PER_S = 100
"""of the counts in /proc/stat, on every Linux that PyTorch runs on"""
TOLERATED = 0.06
"""share of a sample's time that other processes may use of one core"""
COUNTED_S = 0.02
"""counts come in ticks: two of them prove nothing"""


def sync() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def busy_s() -> float | None:
    """Seconds that all processes of the machine have used; None where nobody counts."""
    try:
        counts = [int(x) for x in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = counts
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def own_s() -> float:
    """Seconds that this process has used, of all cores."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Times:
    """Milliseconds of one candidate's calls."""

    quiet_ms: list[float] = field(default_factory=list)
    disturbed_ms: list[float] = field(default_factory=list)
    """others used the processor meanwhile"""

    def add(self, ms: float, disturbed: bool) -> None:
        (self.disturbed_ms if disturbed else self.quiet_ms).append(ms)

    @property
    def samples_ms(self) -> list[float]:
        """What counts: the quiet samples where they are three, else all."""
        enough = len(self.quiet_ms) >= min(3, len(self.quiet_ms) + len(self.disturbed_ms))
        return self.quiet_ms if enough else self.quiet_ms + self.disturbed_ms

    @property
    def is_disturbed(self) -> bool:
        """Whether disturbed samples had to be counted."""
        return self.samples_ms is not self.quiet_ms

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def spread_ms(self) -> tuple[float, float]:
        """Quartiles; of less than four samples the least and the most."""
        samples = self.samples_ms
        if len(samples) < 4:
            return min(samples), max(samples)
        low, _, high = statistics.quantiles(samples, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 7
    """turns of each candidate"""
    sample_s: float = 0.06
    """a shorter call is repeated until a sample takes so long"""
    budget_s: float = 4.0
    """of a case: from then on no further round, and no sample is taken again; but three rounds"""
    slow_s: float = 2.0
    """a candidate whose call takes longer is sampled twice in all"""
    all_backends: bool = True
    """whether backends of ours that are not preferred are timed too"""


QUICK = Effort(rounds=3, sample_s=0.02, budget_s=1.0, slow_s=0.3, all_backends=False)
TINY = Effort(rounds=2, sample_s=0.0, budget_s=0.2, slow_s=0.1)


def sample_ms(call: Call, repeats: int) -> Sample:
    """Milliseconds of one call among `repeats`, and whether others used the processor meanwhile."""
    sync()
    busy, own, begin = busy_s(), own_s(), time.perf_counter()
    for _ in range(repeats):
        call()
    sync()
    taken_s = time.perf_counter() - begin
    after = busy_s()
    foreign_s = 0.0
    if busy is not None and after is not None:
        foreign_s = (after - busy) - (own_s() - own)
    return 1e3 * taken_s / repeats, foreign_s > COUNTED_S + TOLERATED * taken_s


def take_turns(
    candidates: Mapping[str, Call],
    effort: Effort,
    first: Mapping[str, Sample] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sample: Callable[[Call, int], Sample] = sample_ms,
) -> dict[str, Times]:
    """Time candidates in turns, so that what befalls the machine befalls all of them.

    Args:
        candidates: name -> what to call.
        effort: how long to go on.
        first: of a first call of each, where there was one; else one is made to warm up. It never
            counts: it may have built something.
        clock, sample: what measures; tests put their own here.

    Returns:
        The samples of each. A disturbed one is taken again once, if there is time.
    """
    begin, times = clock(), {name: Times() for name in candidates}
    for name, call in candidates.items():
        if first is None or name not in first:
            sample(call, 1)
    slow: set[str] = set()
    repeats: dict[str, int] = {}
    for name, call in candidates.items():
        ms, disturbed = sample(call, 1)
        if ms > 1e3 * effort.slow_s:
            slow.add(name)
            times[name].add(ms, disturbed)
        repeats[name] = max(1, round(1e3 * effort.sample_s / max(ms, 1e-3)))
    for round_ in range(effort.rounds):
        late = clock() - begin > effort.budget_s
        if late and round_ >= 3:
            break
        for name, call in candidates.items():
            if name in slow and round_ >= 1:
                continue
            ms, disturbed = sample(call, repeats[name])
            if disturbed and name not in slow and clock() - begin < effort.budget_s:
                times[name].add(ms, disturbed)
                ms, disturbed = sample(call, repeats[name])
            times[name].add(ms, disturbed)
    return times
