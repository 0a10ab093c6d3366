"""What the tests of the notebooks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from small_recipes import DELTA, SPAN, write_recipe, write_text

from workbench import demo, notebook


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs the cells of a notebook in this process, which is quick; gives what they showed."""

    def run(name: str, **values: Any) -> list[Any]:
        shown: list[Any] = []
        monkeypatch.setattr(notebook, "display", lambda x, **_: shown.append(x))
        space: dict[str, Any] = {}
        cells = nbformat.read(demo.BOOKS / f"{name}.ipynb", 4).cells
        for cell in (c for c in cells if c.cell_type == "code"):
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(values) <= set(space)
                space |= values
        return shown

    return run


@pytest.fixture
def span_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny-span.yaml", write_text(tmp_path / "text.txt"), SPAN)


@pytest.fixture
def delta_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny-delta.yaml", write_text(tmp_path / "text.txt"), DELTA)
