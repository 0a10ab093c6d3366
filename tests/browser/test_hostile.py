"""Texts, names and run folders of a stranger show as text, and nothing of them runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser import hostile
from browser.book import FIGURE, Book
from workbench import report
from workbench.train.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page

SPAN, DELTA = (f"runs/{hostile.NAME} {kind}" for kind in ("span", "delta"))
SOWN = (
    "img[src='x'], img[src*='elsewhere'], a[href^='javascript' i], iframe, object, video, "
    "meta[http-equiv=refresh i], base, form[action], [onerror], [onload], [ontoggle]"
)
"""elements that only a hostile text would put onto a page"""


@pytest.fixture(scope="session")
def hostile_runs(demo_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    hostile.train(folder)
    return folder


@pytest.fixture
def hostile_desk(desk: Path, hostile_runs: Path) -> Path:
    """The folder of the test, with the hostile runs among its `runs`."""
    return Path(shutil.copytree(hostile_runs, desk / "runs", dirs_exist_ok=True)).parent


def point_at_figures(page: Page) -> None:
    """Have every figure draw what it says of a point."""
    for figure in page.locator(FIGURE).all():
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        assert box is not None
        for share in (0.2, 0.35, 0.5, 0.65):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            page.wait_for_timeout(60)


def check(page: Page, within: str) -> str:
    """Nothing hostile has become an element; all text that is there, drawn text too."""
    point_at_figures(page)
    sown = page.locator(within).locator(SOWN).evaluate_all("all => all.map(e => e.outerHTML)")
    assert sown == []
    scripts = page.locator(within).locator("script").all_text_contents()
    assert not [s for s in scripts if s.startswith("alert(")]
    return "\n".join(page.locator(within).all_text_contents())


OUTPUTS = ".jp-OutputArea-output"
SMALL: dict[str, Any] = {"length": 48, "start": 100}
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    # notebook, parameters, what must be there as text
    "spans": ("attention_span", {"run": SPAN, **SMALL}, []),
    "evaluation": (
        "evaluate",
        {"run": SPAN, "contexts": [1, 8], "context_sample": 20},
        [hostile.NAME, hostile.SCRIPT, hostile.IMAGE],
    ),
    "fast weights": ("fast_weights", {"run": DELTA, **SMALL, "before": 32}, []),
    "generation": (
        "generate",
        {
            "run": DELTA,
            "prompt": f"{hostile.SCRIPT} {hostile.IMAGE}",
            "length": 40,
            "temperatures": [1.0, 1.5],
            "text_len": 120,
            "window": 20,
            "thetas": [0.3],
            "lams": [0.1],
            "tune_tokens": 200,
        },
        [hostile.SCRIPT, hostile.IMAGE],
    ),
    "comparison": ("compare", {"sweep": "runs"}, [hostile.NAME]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_text_in_a_notebook(
    case: str, hostile_desk: Path, open_notebook: Callable[..., Book]
) -> None:
    name, parameters, told = CASES[case]
    book = open_notebook(name, **parameters)
    book.run_all()
    text = check(book.page, OUTPUTS)
    assert [t for t in told if t not in text] == []


def test_a_hostile_recipe_in_notebooks(
    hostile_runs: Path, open_notebook: Callable[..., Book]
) -> None:
    path = str(hostile_runs / "hostile-span.yaml")
    book = open_notebook("recipes", recipe=path, words="tiny")
    book.run_all()
    text = check(book.page, OUTPUTS)
    assert hostile.NAME in text and hostile.SCRIPT in text
    book = open_notebook("train", recipe=path, out=f"runs/{hostile.NAME}")
    book.run_all()
    assert hostile.SCRIPT in check(book.page, OUTPUTS)


def test_a_hostile_folder_in_the_report(
    hostile_desk: Path, open_file: Callable[[Path], Page], tmp_path: Path
) -> None:
    for path in (SPAN, DELTA):
        hostile.plant(hostile_desk / path)
    folders = [RunFolder(hostile_desk / path) for path in (SPAN, DELTA)]
    page = open_file(report.build(tmp_path / "report.html", folders))
    page.wait_for_selector(f"{FIGURE} .main-svg")
    text = check(page, "body")
    assert hostile.NAME in text and hostile.ABOUT in text


def test_a_hostile_folder_in_a_notebook(
    hostile_desk: Path, open_notebook: Callable[..., Book]
) -> None:
    hostile.plant(hostile_desk / SPAN)
    book = open_notebook("attention_span", run=SPAN, **SMALL)
    book.run_all()
    check(book.page, OUTPUTS)
