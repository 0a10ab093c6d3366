"""Every notebook opens in JupyterLab and runs to its end."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from browser.book import DRAWN, Book

SPANS, DELTA = "runs/span-python-tiny", "runs/delta-python-tiny"
FIRST_FIGURE_S = 10.0
"""longest time from "run all" to the first figure of a notebook that looks into a run"""
QUICK = {"max_tokens": 4_000, "context_sample": 16}

LOOK_INSIDE = {
    "attention_span": {"run": SPANS},
    "evaluate": {"run": SPANS, **QUICK},
    "fast_weights": {"run": DELTA},
}


@pytest.mark.parametrize("name", LOOK_INSIDE)
def test_looks_inside(
    name: str, open_notebook: Callable[..., Book], say: Callable[[str], None]
) -> None:
    book = open_notebook(name, **LOOK_INSIDE[name])
    seconds = book.run_all()
    assert book.page.locator(DRAWN).count()
    say(f"{name}: first figure after {book.first_figure_s:.1f} s, all after {seconds:.1f} s")
    # other programs on the same cores are no fault of the notebook's
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert book.first_figure_s is not None and book.first_figure_s < FIRST_FIGURE_S * busy
