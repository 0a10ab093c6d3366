"""Each rule about executed notebooks can fail, and every notebook is executed by some test."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import executed
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

HERE = Path(__file__).parent
CONFIG = {"showSendToCloud": False}


def shown(tmp_path: Path, mime: str, content: Any, **metadata: Any) -> list[str]:
    output = new_output("display_data", {mime: content})
    nb = new_notebook(cells=[new_code_cell("", outputs=[output])], metadata=metadata)
    nbformat.write(nb, tmp_path / "x.ipynb")
    return executed.faults(tmp_path / "x.ipynb")


@pytest.mark.parametrize(
    ("mime", "good", "bad", "word"),
    [
        ("text/html", "<p>see http://x.y", "<img src='http://x.y/z.png'>", "fetch"),
        ("text/html", "&lt;script src=//x&gt;", "<script src=//x></script>", "fetch"),
        ("text/html", "<a href='#top'>", "<link href='//cdn.x/y.css'>", "fetch"),
        ("text/html", "<p style='color: red'>", "<p style='background: url(//x)'>", "fetch"),
        ("text/html", "<style>p {}</style>", "<style>@import 'x'</style>", "fetch"),
        ("text/html", "x" * 900_000, "x" * 1_000_001, "at most 1,000,000"),
        ("image/svg+xml", "<svg/>", "<svg><image xlink:href='http://x'/></svg>", "fetch"),
        ("text/plain", "x" * 999_999, "x" * 2_000_001, "at most 2,000,000"),
        ("text/plain", "x", None, ""),
        ("application/json", {}, None, ""),
        (
            executed.PLOTLY,
            {"data": [{"type": "heatmap"}], "layout": {}, "config": CONFIG},
            {"data": [{"type": "scattermap"}], "layout": {}, "config": CONFIG},
            "scattermap",
        ),
        (
            executed.PLOTLY,
            {"data": [], "layout": {}, "config": CONFIG},
            {"data": [], "layout": {"images": [{"source": "https://x/y.png"}]}, "config": CONFIG},
            "image of https",
        ),
        (
            executed.PLOTLY,
            {"data": [], "layout": {}, "config": CONFIG},
            {"data": [], "layout": {}},
            "sends the figure away",
        ),
    ],
)
def test_a_rule_tells_good_from_bad(
    tmp_path: Path, mime: str, good: Any, bad: Any, word: str
) -> None:
    assert shown(tmp_path, mime, good) == []
    if bad is not None:
        assert word in "\n".join(shown(tmp_path, mime, bad)) != ""


def test_widget_state_and_errors_are_seen(tmp_path: Path) -> None:
    assert shown(tmp_path, "text/plain", "x", widgets={"state": {}}) == ["widget state is saved"]
    wrong = [new_output("error", ename="E", evalue="v"), new_output("stream", name="stderr")]
    nbformat.write(new_notebook(cells=[new_code_cell("", outputs=wrong)]), tmp_path / "y.ipynb")
    assert [fault.split(":")[1] for fault in executed.faults(tmp_path / "y.ipynb")] == [
        " E",
        " red text in a good run",
    ]


def test_every_notebook_is_executed_by_a_test() -> None:
    """`conftest.py` sees to it that a test marked so does what its mark says."""
    named = set()
    for file in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.executes":
                named |= {ast.literal_eval(name) for name in node.args}
    assert named == {book.stem for book in (HERE.parents[1] / "notebooks").glob("*.ipynb")}
