"""Every checkpoint beside the golden files: imported, run, and written back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parity.checkpoints import check, expectation, files
from parity.golden import NotBuilt
from parity.table import NOT_BUILT
from parity.test_golden import MUST_PASS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "checkpoint" in metafunc.fixturenames:
        found = files(Path(metafunc.config.getoption("--golden")))
        metafunc.parametrize("checkpoint", found, ids=[p.name for p in found])


def test_checkpoint(checkpoint: Path, tmp_path: Path, told: Callable[..., None]) -> None:
    family = f"checkpoints of {expectation(checkpoint).meta['codebase']}"
    told(checkpoint.name, family)
    try:
        comparisons = check(checkpoint, tmp_path)
    except NotBuilt as missing:
        if (MUST_PASS / "checkpoints" / checkpoint.name).exists():
            pytest.fail(f"{checkpoint.name} must pass, but is not built: {missing}")
        pytest.skip(f"{NOT_BUILT}{missing}")
    told(checkpoint.name, family, comparisons)
