"""Executed notebooks as pages: everything is there, nothing is fetched, nothing of theirs runs."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from executed import PLOTLY, fetches
from nbconvert.exporters import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench.notebook_page import Page, page
from workbench.plots.passages import Passage, render

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>"
FIGURE = {
    "data": [{"type": "scatter", "x": [1, 2], "y": [3.5, 4.5], "name": EVIL}],
    "layout": {"title": {"text": "A title"}, "height": 300},
    "config": {"plotlyServerURL": "https://evil.example"},
}


def shown(mime: str, content: Any) -> Any:
    return new_output("display_data", {mime: content, "text/plain": "instead"})


def page_of(*outputs: Any, text: str = "# The title\n\nSome *words*.") -> str:
    cells = [new_markdown_cell(text), new_code_cell("x < 1", outputs=list(outputs))]
    return page(new_notebook(cells=cells))


class Elements(HTMLParser):
    """The tags and attributes of a page, without what its own scripts hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def scripts(html: str) -> int:
    """Those that a browser would run."""
    found = [attrs for tag, attrs in Elements(html).tags if tag == "script"]
    return sum(attrs.get("type") != "application/json" for attrs in found)


def test_all_of_a_notebook_is_there() -> None:
    html = page_of(
        new_output("stream", name="stdout", text="bar 1\rbar 2"),
        new_output("stream", name="stdout", text="\rbar 3\ntwo & \x1b[31mred\x1b[0m\n"),
        shown(PLOTLY, FIGURE),
        shown("text/html", "<table><tr><td style='color: red'>a cell</td></tr></table>"),
        shown("image/png", "QUJD"),
        new_output("display_data", {"text/plain": "<plain>"}),
        new_output("error", ename="E", evalue="why", traceback=["E: why"]),
    )
    assert "<title>The title</title>" in html and "<h1>The title</h1>" in html
    assert html.count("The title") == 2 and "Some <em>words</em>." in html
    assert "<code>x &lt; 1</code>" in html
    assert "bar 3\ntwo &amp; <span" in html and "bar 2" not in html
    assert html.count('<pre class="cell-out" tabindex="0">') == 2, "printed in pieces, one output"
    assert 'data-figure="out-2-2-data"' in html and 'aria-label="A title' in html
    (plain,) = re.findall(r"id='out-2-2-data'>(.*?)</script>", html)
    assert json.loads(plain)["data"][0]["y"] == [3.5, 4.5]
    assert '<td style="color: red;">a cell</td>' in html
    assert 'alt="instead" src="data:image/png;base64,QUJD"' in html
    assert "&lt;plain&gt;" in html and "E: why" in html


@pytest.mark.parametrize(
    "output",
    [
        shown("text/html", f"<p onclick='alert(1)'>kept{EVIL}</p>"),
        shown("text/html", "<a href='javascript:alert(1)'>kept</a>"),
        shown("text/html", "kept<meta http-equiv='refresh' content='0; url=https://x'>"),
        shown("text/html", "kept<iframe src='https://x'></iframe><link href='https://x'>"),
        shown("text/html", "kept<form action='https://x'><input></form></main></body>"),
        shown("text/html", "kept<p style='position: fixed; background: url(https://x)'>"),
        shown("text/html", "<style>@import 'https://x';</style>kept"),
        shown("application/javascript", "kept = 1"),
        shown("image/png", "QQ=='><script>alert(1)</script>kept"),
        shown(PLOTLY, FIGURE),
        new_output("stream", name="stdout", text=f"kept {EVIL}"),
        new_output("error", ename="E", evalue="", traceback=[f"kept {EVIL}"]),
        new_output("display_data", {EVIL: "kept"}),
    ],
    ids=lambda output: output.output_type,
)
def test_nothing_of_a_foreign_notebook_runs_or_is_fetched(output: Any) -> None:
    html = page_of(output, text=f"# A{EVIL}\n\n{EVIL}<img src='https://x/y.png'>")
    assert scripts(html) == 2, "plotly's and the page's own"
    elements = Elements(html).tags
    assert {tag for tag, _ in elements}.isdisjoint({"iframe", "link", "form", "base", "object"})
    policies = [attrs for tag, attrs in elements if tag == "meta" and "http-equiv" in attrs]
    assert len(policies) == 1 and policies[0]["http-equiv"] == "Content-Security-Policy"
    names = {name for _, attrs in elements for name in attrs}
    assert not [name for name in names if name.startswith("on")]
    styles = [attrs.get("style") or "" for _, attrs in elements]
    assert not [s for s in styles if "fixed" in s or "url(" in s]
    own = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert fetches(own) == [] and "javascript:" not in own


def test_texts_of_the_package_keep_their_looks() -> None:
    texts = [Passage("a title", ["one ", "two"], [0.5, 6.0]), Passage("another", ["x"])]
    drawn = render(texts)
    ours, kept = (Elements(html).tags for html in (drawn, page_of(shown("text/html", drawn))))
    looks = [style for _, attrs in ours if (style := attrs.get("style"))]
    assert len(looks) > 4 and any("rgba(" in style for style in looks)

    def plain(style: str) -> list[str]:
        return sorted(part.replace(" ", "") for part in style.split(";") if part.strip())

    found = [plain(attrs.get("style") or "") for _, attrs in kept]
    assert [style for style in looks if plain(style) not in found] == []


def test_a_figure_that_is_none_is_shown_as_its_words() -> None:
    html = page_of(shown(PLOTLY, {"data": [{"type": "no such"}], "layout": {}}))
    assert "instead</pre>" in html and 'data-figure="' not in html


def test_both_exporters_take_what_papermill_leaves(tmp_path: Path) -> None:
    cell = new_code_cell("f", outputs=[shown(PLOTLY, FIGURE)])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "mine.ipynb")
    ours, resources = Page().from_filename(str(tmp_path / "mine.ipynb"))
    assert resources["output_extension"] == ".html" and "<title>mine</title>" in ours
    theirs, _ = HTMLExporter().from_filename(str(tmp_path / "mine.ipynb"))
    assert "instead" in theirs, "where there is no place for a figure, its title"


def test_nbconvert_finds_it_by_name() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = points["nbconvert.exporters"]["workbench"].partition(":")
    assert getattr(importlib.import_module(module), name) is Page
