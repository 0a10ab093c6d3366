"""The parity table at the end of a test run: every golden file by name, with what became of it."""

from __future__ import annotations

from typing import Any

import pytest

NOT_BUILT = "not built yet: "
TEST = "test_golden_file["


def rows(stats: dict[str, list[Any]]) -> list[tuple[str, str, str]]:
    """(file, status, measured) of every golden file in pytest's reports, sorted by file."""
    table = {}
    for reports in stats.values():
        for report in reports:
            # deselected tests and warnings stand in the same lists
            if not isinstance(report, pytest.TestReport) or TEST not in report.nodeid:
                continue
            if report.when != "call" and report.passed:
                continue
            name = report.nodeid.partition(TEST)[2].removesuffix("]")
            measured = dict(report.user_properties).get("parity", "")
            table[name] = (name, _status(report), measured)
    return [table[name] for name in sorted(table)]


def _status(report: pytest.TestReport) -> str:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return reason.removeprefix("Skipped: ")
    return "passed" if report.passed else "FAILED"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table and its totals; nothing when no golden file was run."""
    table = rows(terminalreporter.stats)
    if not table:
        return
    terminalreporter.section("parity with the papers' code")
    width = max(len(name) for name, _, _ in table)
    for name, status, measured in table:
        terminalreporter.write_line(f"{name:<{width}}  {status}  {measured}".rstrip())
    passed = sum(status == "passed" for _, status, _ in table)
    later = sum(status.startswith(NOT_BUILT) for _, status, _ in table)
    failed = len(table) - passed - later
    terminalreporter.write_line(
        f"{len(table)} files: {passed} passed, {later} not built yet, {failed} failed"
    )
