"""The parity table: every file by name, with what became of it; printed, and written as a page.

A test enters the table by the fixture `told`: first with the file's name and code base, then again
with what it compared. `make parity` writes the page, `runs/parity.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from parity.golden import Comparison, Deviation

NOT_BUILT, BUG = "not built yet: ", "listed as bug: "
KEY = "parity"


class Row(NamedTuple):
    """One file."""

    name: str
    family: str
    status: str
    worst: list[Deviation]
    """the largest deviation of each kind, measured by its tolerance"""
    left_out: dict[str, str]
    """arrays that are not compared, and why"""

    @property
    def verdict(self) -> str:
        """passed, failed, not built or bug."""
        words = {"passed": "passed", NOT_BUILT: "not built", BUG: "bug"}
        return next((v for start, v in words.items() if self.status.startswith(start)), "failed")

    @property
    def measured(self) -> str:
        """Each kind's largest deviation, as a share of the scale, beside its tolerance."""
        return ", ".join(f"{d.kind} {d.share:.1e} (<= {d.tolerance:.1e})" for d in self.worst)


def worst_of(deviations: Sequence[Deviation]) -> list[Deviation]:
    """The largest deviation of each kind, by name of the kind."""
    worst: dict[str, Deviation] = {}
    for d in deviations:
        if d.kind not in worst or not d.share <= worst[d.kind].share:
            worst[d.kind] = d
    return [worst[kind] for kind in sorted(worst)]


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`told(name, family, comparisons)`: what a test has to say for the table."""

    def tell(name: str, family: str, comparisons: Sequence[Comparison] = ()) -> None:
        worst = worst_of([d for c in comparisons for d in c.deviations])
        left_out = {pattern: why for c in comparisons for pattern, why in c.left_out.items()}
        record_property(KEY, [name, family, [list(d) for d in worst], left_out])

    return tell


def rows(stats: dict[str, list[Any]]) -> list[Row]:
    """Every file that a test told about, from pytest's reports, sorted by code base and name."""
    table = {}
    for reports in stats.values():
        for report in reports:
            # deselected tests and warnings stand in the same lists
            if not isinstance(report, pytest.TestReport):
                continue
            facts = dict(report.user_properties).get(KEY)
            if facts is None or (report.when != "call" and report.passed):
                continue
            name, family, worst, left_out = facts
            deviations = [Deviation(*d) for d in worst]
            table[family, name] = Row(name, family, _status(report), deviations, left_out)
    return [table[at] for at in sorted(table)]


def _status(report: pytest.TestReport) -> str:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return reason.removeprefix("Skipped: ")
    return "passed" if report.passed else "FAILED"


def totals(table: Sequence[Row]) -> str:
    """How many files there are, and how many of each verdict."""
    count = {v: sum(row.verdict == v for row in table) for v in ("passed", "bug", "not built")}
    failed = len(table) - sum(count.values())
    bugs = f"{count['bug']} listed as bug, " if count["bug"] else ""
    return (
        f"{len(table)} files: {count['passed']} passed, {bugs}{count['not built']} not built yet, "
        f"{failed} failed"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-report", metavar="FILE", help="write the parity table to this file")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table and its totals, and write the page; nothing when no file was run."""
    table = rows(terminalreporter.stats)
    if not table:
        return
    terminalreporter.section("parity with the papers' code")
    width = max(len(row.name) for row in table)
    for row in table:
        terminalreporter.write_line(f"{row.name:<{width}}  {row.status}  {row.measured}".rstrip())
    terminalreporter.write_line(totals(table))
    if target := config.getoption("--parity-report"):
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(table), encoding="utf-8")
        terminalreporter.write_line(f"the table is in {path}")


def page(table: Sequence[Row]) -> str:
    """The table as Markdown: code bases, then their files, then what is left out and why."""
    families = sorted({row.family for row in table})
    lines = [
        "# Parity with the papers' code",
        "",
        f"{totals(table)}. An error is the largest difference in an array as a share of its scale; "
        "each file is run in float32 and in float64 wherever it can be compared in both.",
        "",
        *heading("code base", "files", "passed", "bug", "not built", "failed", "worst error"),
    ]
    for family in families:
        those = [row for row in table if row.family == family]
        count = [
            sum(row.verdict == v for row in those) for v in ("passed", "bug", "not built", "failed")
        ]
        lines.append(line(family, len(those), *count, told_worst(those)))
    for family in families:
        those = [row for row in table if row.family == family]
        lines += ["", f"## {family}", "", *heading("file", "verdict", "worst error <= tolerance")]
        lines += [line(row.name, row.status, row.measured or "-") for row in those]
    if any(row.left_out for row in table):
        lines += ["", "## Left out", "", *heading("why", "arrays", "files"), *left_out(table)]
    return "\n".join([*lines, ""])


def left_out(table: Sequence[Row]) -> list[str]:
    """What no file's arrays are compared with, reason by reason."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in table:
        for pattern, why in row.left_out.items():
            found.setdefault(why, []).append((row.name, pattern))
    lines = []
    for why, places in found.items():
        files = ", ".join(dict.fromkeys(name for name, _ in places))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(line(why, f"`{places[0][1]}`{more}", files))
    return lines


def told_worst(those: Sequence[Row]) -> str:
    """The deviation that comes closest to its tolerance (or exceeds it), and where."""
    found = [(d.used, d, row.name) for row in those for d in row.worst]
    if not found:
        return "-"
    share, d, name = max(found, key=lambda item: item[0])
    return f"{d.share:.1e}, {share:.0%} of the tolerance ({name}, `{d.key}`)"


def heading(*cells: str) -> list[str]:
    return [line(*cells), line(*["---"] * len(cells))]


def line(*cells: object) -> str:
    escaped = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
