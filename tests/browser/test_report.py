"""The report of runs: offline, in both themes, by keyboard; nothing of a run folder is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from browser import pictures
from workbench import export, report
from workbench.kept import records
from workbench.notebook import keep_figure
from workbench.plots import curves, spans
from workbench.plots.passages import Passage, plain
from workbench.plots.style import PAGES
from workbench.train.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page

BAD = "<img src=x onerror=alert(1)><script>alert(2)</script>"
DRAWN = "html[data-drawn]"


@pytest.fixture
def runs(demo_runs: Path, tmp_path: Path) -> list[RunFolder]:
    """Two runs with figures and texts, some of them from somebody who means harm."""
    shutil.copytree(demo_runs, tmp_path / "runs")
    folders = [RunFolder(path) for path in sorted((tmp_path / "runs").iterdir())]
    for folder in folders:
        for old in (folder.path / "figures").glob("*"):
            old.unlink()
        keep_figure(folder, "training", curves.training(records(folder)))
        keep_figure(folder, "span_bars", spans.span_bars([[3.0, 5.0, 9.0], [4.0, 20.0, 1.0]]))
        text = plain([Passage(f"hardest {BAD}", ["def ", BAD, "\x1b", "\n", "x"], np.arange(5.0))])
        (folder.path / "figures" / "hardest.json").write_text(json.dumps(text))
    hostile: dict[str, Any] = {
        "data": [
            {"type": "scatter", "y": [1, 2], "name": BAD, "text": [BAD, BAD], "mode": "text"},
            {"type": "choropleth", "geojson": "https://evil.example/a.json"},
        ],
        "layout": {
            "title": {"text": f"<a href='javascript:alert(3)'>{BAD}</a></script>"},
            "images": [{"source": "https://evil.example/a.png"}],
            "meta": {"caption": BAD},
            "xaxis": {
                "title": {"text": '<span style="cursor:url(https://evil.example/c)">x</span>'}
            },
        },
    }
    (folders[0].path / "figures" / "zz.json").write_text(json.dumps(hostile))
    (folders[0].path / "figures" / "old.html").write_text(f"<script>alert(4)</script>{BAD}")
    return folders


def paper(page: Page) -> str:
    """Background of the first figure."""
    first = page.locator(".js-plotly-plot .main-svg").first
    return str(first.evaluate("e => getComputedStyle(e).backgroundColor"))


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_a_report_offline_in_both_themes(
    runs: list[RunFolder],
    tmp_path: Path,
    open_file: Callable[[Path], Page],
    say: Callable[[str], None],
) -> None:
    file = report.build(tmp_path / "report.html", runs)
    page = open_file(file)  # its watch refuses every call to another machine, dialog and error
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(DRAWN)
    assert page.locator("html").get_attribute("data-drawn") == "5"
    assert page.locator(".js-plotly-plot").count() == page.locator("[role=img]").count() == 5
    assert page.locator("img[src=x]").count() == 0 and page.get_by_text("alert(4)").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert "alert(2)" in page.locator("#run1-figure3 pre").inner_text()
    assert page.get_by_text("old.html is not shown").count() == 1

    # the system's theme, then the button's
    assert paper(page) == rgb(PAGES["light"].paper)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => document.querySelector('[data-figure]').dataset.theme === 'dark'")
    assert paper(page) == rgb(PAGES["dark"].paper)
    for theme in ("dark", "light"):
        if theme == "light":
            page.locator("#wb-theme").focus()
            page.keyboard.press("Enter")
            page.wait_for_function(
                "() => [...document.querySelectorAll('[data-figure]')]"
                ".every(place => place.dataset.theme === 'light')"
            )
        assert paper(page) == rgb(PAGES[theme].paper)
    # print is light, whatever was chosen
    page.emulate_media(media="print")
    ink = page.locator("body").evaluate("e => getComputedStyle(e).color")
    assert ink == rgb(PAGES["light"].ink)
    page.emulate_media(media="screen")
    # narrow: nothing is wider than the page
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    say(f"report of two runs: {file.stat().st_size / 1e6:.1f} MB")


def test_a_report_by_keyboard(
    runs: list[RunFolder], tmp_path: Path, open_file: Callable[[Path], Page]
) -> None:
    page = open_file(report.build(tmp_path / "report.html", runs))
    page.wait_for_selector(DRAWN)
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and levels.count(2) == 2
    assert all(b - a <= 1 for a, b in pairwise(levels))
    labels = page.locator("[role=img]").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert all(len(label) > 20 for label in labels)
    targets = page.locator("nav a").evaluate_all("all => all.map(e => e.hash.slice(1))")
    assert len(targets) == 2 + 8
    assert all(page.locator(f"[id='{target}']").count() == 1 for target in targets)
    # from the top: skip link, theme button, then the list of contents
    seen = []
    for _ in range(4):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert seen[0] == "Skip to the content" and "theme" in seen[1] and seen[2] == runs[0].path.name
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#run1-figure1"
    summary = page.locator("details summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] td").count() > 10


def test_one_figure_as_a_page_and_a_picture(
    tmp_path: Path, open_file: Callable[[Path], Page]
) -> None:
    fig = spans.span_bars([[3.0, 5.0], [4.0, 20.0]])
    page = open_file(export.figure(fig, tmp_path / "a.html"))
    page.wait_for_selector(DRAWN)
    assert page.locator(".modebar-btn").count() > 2
    told = page.locator(".modebar-btn").evaluate_all("all => all.map(e => e.dataset.title)")
    assert not [text for text in told if "share" in text.lower() or "cloud" in text.lower()]
    svg = open_file(export.figure(fig, tmp_path / "a.svg", theme="dark"))
    assert svg.locator("svg > title").first.text_content() == fig.layout.title.text


def test_pictures_of_a_report(
    demo_runs: Path,
    tmp_path: Path,
    open_file: Callable[[Path], Page],
    request: pytest.FixtureRequest,
) -> None:
    """The runs as they are: with `--demo`, all that its notebooks drew."""
    folders = [RunFolder(path) for path in sorted(demo_runs.iterdir())]
    for folder in folders:
        keep_figure(folder, "training", curves.training(records(folder)))
    page = open_file(report.build(tmp_path / "report.html", folders))
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_selector(DRAWN)
        page.wait_for_function(
            "theme => document.querySelector('[data-figure]').dataset.theme === theme", arg=theme
        )
        assert paper(page) == rgb(PAGES[theme].paper)
        if request.config.getoption("--screenshots"):
            for name, pixels in pictures.WIDTHS.items():
                page.set_viewport_size({"width": pixels, "height": pictures.HEIGHT})
                page.evaluate("scrollTo(0, 0)")
                page.wait_for_timeout(500)
                pictures.store(page.screenshot(), "report", theme, name)
