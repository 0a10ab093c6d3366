"""Options of the browser tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("browser")
    group.addoption(
        "--screenshots",
        action="store_true",
        help="store a picture of each view in tests/browser/screenshots",
    )
    group.addoption(
        "--demo",
        metavar="DIR",
        help="open the runs in this folder of `make demo` (default: train anew, briefly)",
    )
