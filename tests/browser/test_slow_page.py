"""A page so busy that anywidget gives up its widgets: figures and texts follow nevertheless."""

from __future__ import annotations

from collections.abc import Callable

from browser.book import DRAWN, Book
from browser.watch import GAVE_UP

# a widget's own program is small; the page is busy when it begins to load each
BUSY = """() => {
  const make = URL.createObjectURL;
  URL.createObjectURL = function (blob) {
    const begin = performance.now();
    if (blob.type === 'text/javascript' && blob.size < 100_000)
      while (performance.now() - begin < 2300);
    return make.call(URL, blob);
  };
}"""


def test_a_page_that_was_busy_hears_of_changes(
    open_notebook: Callable[..., Book],
) -> None:
    book = open_notebook("fast_weights")
    book.start_all()
    book.page.wait_for_function("() => window.__workbench_plotly", timeout=60_000)
    book.page.evaluate(BUSY)
    book.page.locator(DRAWN).first.wait_for(state="attached", timeout=240_000)
    book.wait_idle()
    assert any(GAVE_UP in said for said in book.watch.known), "the page was not busy enough"

    figure = book.page.locator(".wb-plot .gtitle").first
    before = figure.text_content()
    book.page.locator(".wb-token").nth(20).click()
    book.page.locator(".wb-plot .gtitle", has_text="(21) reads").first.wait_for()
    assert figure.text_content() != before
    # the text is a widget of its own: what is written after the moment loses its colour
    last = book.page.locator(".wb-token").nth(127)
    style = "element => element.style.background"
    assert last.evaluate(style)
    book.move("after token", "ArrowLeft")
    book.page.wait_for_function(
        "() => !document.querySelectorAll('.wb-token')[127].style.background"
    )
    assert book.errors() == []
