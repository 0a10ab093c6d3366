"""Every notebook opens in JupyterLab, runs to its end, and is there again after a reload."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import __main__ as bench

from browser import books
from browser.book import DRAWN, KEPT, Book
from browser.test_quickstart import SMALL

SPANS, DELTA = "runs/span-python-tiny", "runs/delta-python-tiny"
FIRST_FIGURE_S = 10.0
"""longest time from "run all" to the first figure of a notebook that looks into a run"""
MAX_SAVED_BYTES = 2_000_000
INSPECTION = ("attention_span", "evaluate", "fast_weights", "generate")

# what makes a notebook quick; everything else as it is
QUICK: dict[str, dict[str, Any]] = {
    "benchmark": {"rows": "bench/bench.json"},
    "compare": {"sweep": "runs"},
    "evaluate": {"max_tokens": 4_000, "context_sample": 16},
    "fast_weights": {"run": DELTA},
    "generate": {"length": 60, "temperatures": [0.5, 1.0], "text_len": 200, "tune_tokens": 500},
    "quickstart": {"steps": 40, "overrides": SMALL},
    "recipes": {"words": "tiny"},
    "retrieval": {
        "capacity": ["elu"],
        "update": ["dpfp1-delta"],
        "capacity_pairs": [3, 20],
        "update_pairs": [3],
        "overrides": {"train.steps": 4, "model.d_key": 4},
    },
    "train": {
        "out": "runs/new",
        "steps": 4,
        "overrides": {"train.schedule.warmup_steps": 2, "train.eval_tokens": 400},
    },
}


@pytest.fixture(scope="session")
def measured_speed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of the benchmark, for the notebook that draws it."""
    folder = tmp_path_factory.mktemp("bench")
    assert bench.main(["--tiny", "--out", str(folder), "--groups", "vocabulary"]) == 0
    return folder / "bench.json"


@pytest.mark.parametrize("name", sorted(path.stem for path in books.BOOKS.glob("*.ipynb")))
def test_a_notebook(
    name: str,
    desk: Path,
    open_notebook: Callable[..., Book],
    say: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    if name == "benchmark":
        (desk / "bench").mkdir()
        rows = request.getfixturevalue("measured_speed").read_bytes()
        (desk / "bench" / "bench.json").write_bytes(rows)
    book = open_notebook(name, **QUICK.get(name, {}))
    seconds = book.run_all()
    figures = book.page.locator(DRAWN)
    if name != "train":  # which has nothing to draw before its button is pressed
        figures.first.wait_for(state="attached")
    first, drawn = book.first_figure_s or seconds, figures.count()
    if drawn:
        no_uploads(book)
    book.save()
    size = (desk / f"{name}.ipynb").stat().st_size
    say(f"{name}: first figure {first:.1f} s, all {seconds:.1f} s, saved {size / 1e3:,.0f} kB")
    assert size < MAX_SAVED_BYTES
    if name in INSPECTION:
        # other programs on the same cores are no fault of the notebook's
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert first < FIRST_FIGURE_S * busy
    book.reload()
    book.see_all(drawn)
    if (picture := book.page.locator(KEPT)).count():
        picture.first.locator("img").dispatch_event("mouseenter")
        book.page.locator(DRAWN).first.wait_for(state="attached")


def no_uploads(book: Book) -> None:
    """No figure offers to send its data away, and each has its other buttons."""
    titles = book.page.locator(".modebar-btn").evaluate_all(
        "all => all.map(button => button.dataset.title ?? '')"
    )
    assert any("Zoom" in title for title in titles)
    away = ("share", "upload", "cloud", "chart studio", "send")
    assert [t for t in titles if any(word in t.lower() for word in away)] == []
