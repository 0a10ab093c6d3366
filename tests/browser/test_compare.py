"""The comparison in a browser: sort, filter, pick runs, change the axis; names are text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.book import FIGURE, Book
from workbench import start
from workbench.train.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Locator

RATES = (4e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RECIPE = """
name: small
data:
  corpus: {kind: text, path: TEXT, split: [0.6, 0.2, 0.2]}
  segment_len: 16
  batch_size: 4
model:
  d_model: 16
  stack:
    - block:
        mixer: {kind: fast_weight, n_heads: 2, d_head: 8}
        channel: {kind: feed_forward, d_ffn: 32}
train:
  steps: 12
  optimizer: {kind: adam, lr: 2.0e-3}
  log_every: 2
  eval_every: 4
  eval_tokens: 200
  checkpoint_every: 12
eval: {method: carried, segment_len: 64, batch_size: 2}
"""
NASTY = "<img src=x onerror=alert(1)>"
CURVE = ".scatterlayer .trace"


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rates of one model, and a wider one with a name that wants to be HTML."""
    folder = tmp_path_factory.mktemp("compared")
    text, recipe = folder / "text.txt", folder / "small.yaml"
    text.write_text("".join(f"x{i % 97} = {i * i % 1013}\n" for i in range(900)), encoding="utf-8")
    recipe.write_text(RECIPE.replace("TEXT", str(text)), encoding="utf-8")
    for rate in RATES:
        list(start(recipe, {"train.optimizer.lr": rate}, out=folder / "sweep" / f"lr{rate:g}"))
    list(start(recipe, {"model.d_model": 24}, out=folder / "sweep" / NASTY))
    return folder / "sweep"


@pytest.fixture
def book(sweep: Path, open_notebook: Callable[..., Book]) -> Iterator[Book]:
    opened = open_notebook("compare", sweep=str(sweep), over="step")
    opened.run_all()
    # widgets draw after their cell has ended
    opened.page.locator(".wb-runs tbody tr").first.wait_for()
    wait_traces(opened, 12)
    opened.page.locator(f"{FIGURE} {CURVE}").nth(11).wait_for()
    yield opened


def column(book: Book, place: int) -> list[str]:
    cells = book.page.locator(f".wb-runs tbody tr > :nth-child({place + 2})")
    return [text.strip() for text in cells.all_text_contents()]


def folders(sweep: Path) -> dict[str, RunFolder]:
    return {p.name: RunFolder(p) for p in sweep.iterdir() if RunFolder(p).exists()}


def wait_traces(book: Book, count: int) -> None:
    """Until the first figure has so many traces."""
    book.page.wait_for_function(
        "n => document.querySelector('.js-plotly-plot')?.data?.length === n", arg=count
    )


def names(book: Book) -> list[str]:
    return column(book, 0)


def head(book: Book, name: str) -> Locator:
    return book.page.locator(".wb-runs thead th").filter(has_text=name).first


def curves(book: Book) -> Locator:
    return book.page.locator(".js-plotly-plot").first


def test_runs_side_by_side(book: Book, sweep: Path, say: Callable[[str], None]) -> None:
    page = book.page
    columns = page.locator(".wb-runs thead th button").all_text_contents()
    assert columns[0] == "run" and {"lr", "parameters", "valid bits", "peak MB"} <= set(columns)
    assert sorted(names(book)) == sorted(
        p.name for p in sweep.iterdir() if p.is_dir() and (p / "recipe.yaml").is_file()
    )
    assert NASTY in names(book) and page.locator(".wb-runs img").count() == 0

    # a click on a head sorts, by size; Enter turns it round
    at = columns.index("valid bits")
    head(book, "valid bits").locator("button").click()
    assert head(book, "valid bits").get_attribute("aria-sort") == "ascending"
    bits = [float(b) for b in column(book, at)]
    own = {
        p.name: min(r["loss_nats"] for r in RunFolder(p).records("eval"))
        for p in sweep.iterdir()
        if (p / "recipe.yaml").is_file()
    }
    assert bits == sorted(bits)
    assert bits[0] == pytest.approx(min(own.values()) / math.log(2), abs=1e-4)
    assert names(book)[0] == min(own, key=own.__getitem__)
    page.keyboard.press("Enter")
    assert head(book, "valid bits").get_attribute("aria-sort") == "descending"
    assert [float(b) for b in column(book, at)] == bits[::-1]

    # the box takes words and conditions; "s" is no command of JupyterLab's here
    box = page.locator(".wb-runs input[type=search]")
    box.press_sequentially("lr lr<0.002")
    assert sorted(names(book)) == ["lr0.0004", "lr0.001"]
    assert page.locator(".wb-runs-status").text_content() == "2 of 6 runs, 6 in the figures"
    box.fill("")


def test_figures_show_the_runs_that_are_checked(book: Book, say: Callable[[str], None]) -> None:
    page, plot = book.page, curves(book)
    assert plot.locator(CURVE).count() == 12
    line = plot.locator(f"{CURVE} path.js-line").last
    before, title = line.get_attribute("d"), book.titles()[0]
    assert "is best" in title
    page.get_by_label("show lr0.0004", exact=True).focus()
    page.keyboard.press("Space")
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot')[0].data.length === 10"
    )
    page.get_by_role("button", name="Check none").click()
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot')[0].data.length === 0"
    )
    assert "No validation yet" in curves(book).locator(".gtitle").text_content()
    page.locator(".wb-runs input[type=search]").fill("img")
    page.get_by_role("button", name="Check all shown").click()
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot')[0].data.length === 2"
    )
    # what a name says is text, in the legend and in the title
    assert NASTY in curves(book).locator(".gtitle").text_content()
    assert page.locator(".jp-OutputArea img[src=x]").count() == 0
    page.locator(".wb-runs input[type=search]").fill("")
    page.get_by_role("button", name="Check all shown").click()
    page.wait_for_function(
        "() => document.querySelectorAll('.js-plotly-plot')[0].data.length === 12"
    )
    assert line.get_attribute("d") == before

    # another axis
    axis = page.locator(".widget-dropdown select").first
    axis.select_option(label="training time (s)")
    curves(book).locator(".xtitle", has_text="training time (s)").wait_for()
    assert plot.locator(f"{CURVE} path.js-line").last.get_attribute("d") != before

    with page.expect_download() as caught:
        page.get_by_role("button", name="Save CSV").click()
    text = Path(caught.value.path()).read_text("utf-8")
    assert text.startswith("run,") and len(text.splitlines()) == 7


def test_pictures_of_a_sweep(sweep: Path, desk: Path, open_notebook: Callable[..., Book]) -> None:
    """The rates alone, in a folder as a user has it."""
    for rate in RATES:
        shutil.copytree(sweep / f"lr{rate:g}", desk / "runs" / "sweep" / f"lr{rate:g}")
    book = open_notebook("compare", sweep="runs/sweep", over="step")
    book.run_all()
    wait_traces(book, 2 * len(RATES))
    assert "lr0.008 is best" in book.titles()[0]
    book.screenshot("compare", at=".wb-runs")
    book.screenshot("compare-sweep", at=".js-plotly-plot >> nth=1")
