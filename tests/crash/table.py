"""The table of kills: how many each mixer's runs survived, and where they struck."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

KEY, SEED = "kills", "WORKBENCH_TESTS_CRASH_SEED"
PLACES = ("beginning", "checkpoint", "records", "elsewhere", "by the clock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crash-seed", type=int, help="when to kill (default: another each time)")


def pytest_configure(config: pytest.Config) -> None:
    # the processes that xdist starts inherit it
    given = config.getoption("--crash-seed")
    drawn = str(random.randrange(10**6) if given is None else given)
    os.environ[SEED] = drawn if given is not None else os.environ.get(SEED, drawn)


def seed() -> int:
    """From which all moments follow, but for how fast the machine is."""
    return int(os.environ[SEED])


def _told(stats: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, int], int]]:
    for reports in stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call" and report.passed:
                yield from (facts for key, facts in report.user_properties if key == KEY)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table; nothing where nothing was killed."""
    kills: dict[str, Counter[str]] = {}
    runs: Counter[str] = Counter()
    for mixer, places, n_runs in _told(terminalreporter.stats):
        kills.setdefault(mixer, Counter()).update(places)
        runs[mixer] += n_runs
    if not kills:
        return
    terminalreporter.section(f"kills (--crash-seed {seed()})")
    width = max(map(len, kills))
    line = terminalreporter.write_line
    line(f"{'mixer':<{width}}  kills  " + "  ".join(PLACES) + "  runs that came out the same")
    for mixer, places in sorted(kills.items()):
        each = "  ".join(f"{places[p]:>{len(p)}}" for p in PLACES)
        line(f"{mixer:<{width}}  {places.total():>5}  {each}  {runs[mixer]:>4}")
    line(f"kills survived: {sum(c.total() for c in kills.values())}")
