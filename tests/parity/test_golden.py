"""Every file of the golden folder: passed, failed, or reported by name as not built yet.

`pytest tests/parity --golden DIR` runs another folder. The files in `tests/golden` are those that
must pass: one of them that turns out "not built" is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parity.golden import NotBuilt, OnlyABug
from parity.registry import compare, family, files
from parity.table import BUG, NOT_BUILT

MUST_PASS = Path(__file__).parents[1] / "golden"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        found = files(Path(metafunc.config.getoption("--golden")))
        metafunc.parametrize("golden_file", found, ids=[p.stem for p in found])


def test_the_folder_has_files(golden: Path) -> None:
    assert files(golden), f"no golden files in {golden}; give a folder with --golden DIR"


def test_golden_file(golden_file: Path, told: Callable[..., None]) -> None:
    told(golden_file.stem, family(golden_file))
    try:
        comparisons = compare(golden_file)
    except NotBuilt as missing:
        if (MUST_PASS / golden_file.name).exists():
            pytest.fail(f"{golden_file.name} must pass, but is not built: {missing}")
        pytest.skip(f"{NOT_BUILT}{missing}")
    except OnlyABug as reasons:
        pytest.skip(f"{BUG}{reasons}")
    told(golden_file.stem, family(golden_file), comparisons)
