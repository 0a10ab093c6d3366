"""Static pages in a browser without a network: the report, and executed notebooks by nbconvert."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.engines import papermill_engines

from browser import books, hostile
from browser.book import DRAWN, FIGURE
from browser.test_hostile import check
from workbench import report
from workbench.engine import WorkbenchEngine
from workbench.notebook_page import page as notebook_page
from workbench.plots.live import PLOTLY_MIME
from workbench.train.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenFile = Callable[[Path], "Page"]
EXECUTED: dict[str, dict[str, Any]] = {
    "attention_span": {},
    "evaluate": {"max_tokens": 2_000, "context_sample": 8},
}


@pytest.fixture(scope="module")
def night(demo_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder `run` after a night of papermill, with the executed notebooks beside it."""
    folder = tmp_path_factory.mktemp("night")
    shutil.copytree(demo_runs / "span-python-tiny", folder / "run")
    papermill_engines.register("workbench", WorkbenchEngine)
    for name, values in EXECUTED.items():
        papermill.execute_notebook(
            books.BOOKS / f"{name}.ipynb",
            folder / f"{name}.ipynb",
            {"run": str(folder / "run"), **values},
            engine_name="workbench",
            progress_bar=False,
        )
    return folder


def scroll(page: Page) -> None:
    """Past every figure: what is far below may be drawn only when it comes near."""
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_timeout(30)


def test_the_report(night: Path, open_file: OpenFile, tmp_path: Path) -> None:
    page = open_file(report.build(tmp_path / "report.html", [RunFolder(night / "run")]))
    count = len(list((night / "run" / "figures").glob("*.json")))
    assert count >= 8
    page.wait_for_selector(DRAWN)
    scroll(page)
    figures = page.locator("[data-figure]")
    drawn = f"count => document.querySelectorAll('{DRAWN}').length === count"
    page.wait_for_function(drawn, arg=figures.count())
    assert all(figures.evaluate_all("all => all.map(e => e.getAttribute('aria-label'))"))
    title = page.locator(".gtitle").first
    before = title.evaluate("element => getComputedStyle(element).fill")
    page.get_by_role("button", name="Dark theme").press("Enter")
    page.wait_for_function(
        "before => getComputedStyle(document.querySelector('.gtitle')).fill !== before", arg=before
    )


@pytest.mark.parametrize("name", EXECUTED)
def test_an_executed_notebook(
    name: str, night: Path, open_file: OpenFile, tmp_path: Path, say: Callable[[str], None]
) -> None:
    book = nbformat.read(night / f"{name}.ipynb", 4)
    outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
    figures = [o.data[PLOTLY_MIME] for o in outputs if PLOTLY_MIME in o.get("data", {})]
    size = (night / f"{name}.ipynb").stat().st_size
    say(f"{name} by papermill: {len(figures)} figures, {size / 1e3:,.0f} kB")
    file = tmp_path / f"{name}.html"
    file.write_text(notebook_page(book, name), encoding="utf-8")
    page = open_file(file)
    page.wait_for_selector(DRAWN)
    scroll(page)
    drawn = f"count => document.querySelectorAll('{DRAWN}').length === count"
    page.wait_for_function(drawn, arg=len(figures))
    titles = page.locator(".gtitle").all_text_contents()
    assert [f["layout"]["title"]["text"] for f in figures] == titles


def hostile_notebook() -> Any:
    """A notebook of somebody who wishes us ill: every kind of output, and its texts."""
    every = {"text/html": hostile.MARKUP, "text/plain": hostile.SCRIPT}
    kinds = [
        every,
        {PLOTLY_MIME: hostile.figure(), "text/plain": "a figure"},
        {"application/javascript": "alert('javascript')", "text/plain": hostile.IMAGE},
        {"text/markdown": hostile.MARKUP},
        {"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg' onload=alert(1)></svg>"},
        {"image/png": f"x' onerror='alert(1)'><script>alert('png')</script>{hostile.QUOTES}"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": hostile.SCRIPT}},
    ]
    outputs = [new_output("display_data", data=data) for data in kinds]
    outputs.append(new_output("stream", name="stdout", text=hostile.MARKUP))
    trace = [hostile.SCRIPT, f"\x1b[31m{hostile.IMAGE}\x1b[0m"]
    outputs.append(new_output("error", ename="E", evalue=hostile.SCRIPT, traceback=trace))
    link = f"[{hostile.IMAGE}](javascript:alert('link')) ![x]({hostile.ELSEWHERE}/markdown.png)"
    text = f"# {hostile.NAME} {hostile.SCRIPT}\n\n{hostile.MARKUP}\n\n{link}"
    code = new_code_cell(f"print({hostile.CLOSING!r})", outputs=outputs)
    return new_notebook(cells=[new_markdown_cell(text), code])


def test_a_hostile_notebook(open_file: OpenFile, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(notebook_page(hostile_notebook(), hostile.NAME), encoding="utf-8")
    page = open_file(file)
    page.wait_for_selector(f"{FIGURE} .main-svg")
    text = check(page, "body")
    assert hostile.SCRIPT in text and hostile.CLOSING in text
    assert page.url == file.resolve().as_uri()
