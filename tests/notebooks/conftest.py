"""What the tests of the notebooks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import executed
import nbformat
import papermill
import pytest
from small_recipes import DELTA, SPAN, write_recipe, write_text

from workbench import demo, notebook


@pytest.fixture(autouse=True)
def every_executed_notebook(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Looks at whatever papermill executes in this process, by whomever it was called; a test that
    is marked `executes` must have executed what the mark names."""
    really, done = papermill.execute_notebook, []

    def execute(book: Any, out: Any, *args: Any, **named: Any) -> Any:
        nb = really(book, out, *args, **named)
        done.append(Path(book).stem)
        assert executed.faults(Path(out)) == []
        return nb

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    yield
    marks = request.node.iter_markers("executes")
    assert {name for mark in marks for name in mark.args} <= set(done)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs the cells of a notebook in this process, which is quick; gives what they showed."""

    def run(name: str, **values: Any) -> list[Any]:
        shown: list[Any] = []
        monkeypatch.setattr(notebook, "display", lambda x, **_: shown.append(x))
        space: dict[str, Any] = {}
        cells = nbformat.read(demo.BOOKS / f"{name}.ipynb", 4).cells
        for cell in (c for c in cells if c.cell_type == "code"):
            # as a cell runs, without this file's own __future__ import
            exec(compile(cell.source, name, "exec", dont_inherit=True), space)
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
