"""A sweep in a browser: it trains while the page lives, stops by its button, is found again."""

from __future__ import annotations

from collections.abc import Callable

from browser.book import Book

SMALL = {
    "capacity": ["elu", "softmax"],
    "capacity_pairs": [10, 20],
    "update": [],
}
MESSAGE = ".wb-sweep-message"


def message(book: Book, words: str, place: int = 0) -> None:
    told = book.page.locator(MESSAGE).nth(place)
    told.filter(has_text=words).wait_for(timeout=120_000)


def test_a_sweep_is_stopped_and_goes_on(open_notebook: Callable[..., Book]) -> None:
    overrides = {"train.steps": 100_000, "train.log_every": 5, "train.stop": None}
    book = open_notebook("retrieval", overrides=overrides, **SMALL)
    book.start_all()
    message(book, "elu at 10 pairs, update")
    title = book.figure("elu at 10 pairs").locator(".gtitle").text_content()
    stop = book.page.locator(".wb-sweep button", has_text="Stop")
    # the cell is busy, and its buttons work
    assert book.page.evaluate("window.executed") == "running"
    stop.first.click()
    message(book, "stopped; Continue goes on from there")
    book.wait_idle()
    assert book.errors() == []
    book.page.locator(".wb-sweep button", has_text="Continue").first.click()
    message(book, "elu at 10 pairs, update")
    book.page.wait_for_function(
        "old => ![...document.querySelectorAll('.gtitle')].some(t => t.textContent === old)",
        arg=title,
        timeout=60_000,
    )
    stop.first.click()
    message(book, "stopped; Continue goes on from there")


def test_points_are_drawn_and_found_again(
    open_notebook: Callable[..., Book], say: Callable[[str], None]
) -> None:
    overrides = {"train.steps": 60, "train.log_every": 10, "train.eval_every": 20}
    book = open_notebook("retrieval", overrides=overrides, **SMALL)
    book.run_all()
    message(book, "all points are done")
    say(f"retrieval: first figure after {book.first_figure_s or 0:.1f} s")
    points = ".wb-sweep .scatterlayer .points path"
    assert book.page.locator(points).count() >= 4
    curves = book.figure("Pairs retrieved").locator(".gtitle").text_content()
    # another session finds what is there, and trains nothing
    again = open_notebook("retrieval", overrides=overrides, **SMALL)
    again.run_all()
    message(again, "all points are done")
    assert again.figure("Pairs retrieved").locator(".gtitle").text_content() == curves
    # with the curve of the last training
    assert again.figure("softmax at 20 pairs: lowest validation").count() == 1
    told = again.page.locator(".jp-OutputArea-output", has_text="elu at 20 pairs").last
    assert "after 60 updates" in (told.text_content() or "")
    book.screenshot("retrieval", at=".wb-sweep")
