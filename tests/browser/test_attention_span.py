"""The span explorer in a real browser: click a head, go through the steps, try out another mask."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from browser.book import FIGURE, Book, answer_ms

if TYPE_CHECKING:
    from playwright.sync_api import Locator

SPANS = "runs/span-python-tiny"
ANSWER_MS = 100.0
"""from a key to the first change in a figure, on two idle cores"""


def title(figure: Locator) -> str:
    return figure.locator(".gtitle").text_content() or ""


def wait_title(book: Book, place: int, words: str) -> None:
    """Until the figure at this place of the page has a title that begins so."""
    book.page.wait_for_function(
        "([at, words]) => (document.querySelectorAll('.js-plotly-plot')[at]"
        "?.querySelector('.gtitle')?.textContent ?? '').startsWith(words)",
        arg=[place, words],
        timeout=60_000,
    )


def click_head(book: Book, layer: int, head: int, layers: int = 4, heads: int = 4) -> None:
    """Click the middle of a cell of the map of spans, counted from 1."""
    figure = book.page.locator(FIGURE).first
    figure.scroll_into_view_if_needed()
    box = figure.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] * (head - 0.5) / heads
    y = box["y"] + box["height"] * (layers - layer + 0.5) / layers
    book.page.mouse.move(x - 3, y - 2)
    book.page.wait_for_timeout(150)  # plotly looks for what is under the mouse now and then
    book.page.mouse.click(x, y)


def explore(book: Book) -> None:
    """The view as its pictures show it: a head chosen, a step of the training, another mask."""
    click_head(book, 3, 1)
    wait_title(book, 2, "Layer 3, head 1")
    for _ in range(6):
        book.move("span z", "ArrowRight")
    book.page.get_by_text("bits per character").first.wait_for(timeout=60_000)


def hover(attention: Locator) -> None:
    """Point at the map of a head: the label tells both tokens."""
    attention.scroll_into_view_if_needed()
    box = attention.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    mouse = attention.page.mouse
    mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.75 * box["height"])
    mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.72 * box["height"])
    label = attention.locator(".hovertext").first
    label.wait_for()
    assert re.search(r"query -?\d+ “.+”\s*key -?\d+ “.+”", label.text_content() or "")


def test_spans_are_explored(open_notebook: Callable[..., Book], say: Callable[[str], None]) -> None:
    book = open_notebook("attention_span", run=SPANS)
    seconds = book.run_all()
    heads, mask, attention = (book.page.locator(FIGURE).nth(i) for i in range(3))
    say(f"attention_span: first figure after {book.first_figure_s:.1f} s, all after {seconds:.1f}")

    # the step slider, by keys
    took = [book.move("step", "ArrowLeft")]
    wait_title(book, 0, "Step ")
    told = {title(heads)}
    for _ in range(4):
        took.append(book.move("step", "ArrowLeft"))
        book.settle()
        told.add(title(heads))
    assert len(told) >= 4, told
    steps = [int(re.sub(r"\D", "", t.split(":")[0])) for t in told]
    assert len(set(steps)) == len(steps)
    say(f"attention_span: step slider {statistics.median(took):.0f} ms ({max(took):.0f} at most)")

    # a click on another head
    cells = [(1, 2), (4, 3), (2, 1)]
    for layer, head in cells:
        drawn = attention.locator(".heatmaplayer image").get_attribute("href")
        click_head(book, layer, head)
        wait_title(book, 2, f"Layer {layer}, head {head} looks back")
        wait_title(book, 1, f"Layer {layer}, head {head} may see")
        assert attention.locator(".heatmaplayer image").get_attribute("href") != drawn

    # or by the pickers
    book.page.locator(".widget-dropdown", has_text="layer").locator("select").select_option("3")
    wait_title(book, 2, "Layer 3, head 1")
    book.page.locator(".widget-dropdown", has_text="head").locator("select").select_option("4")
    wait_title(book, 2, "Layer 3, head 4")

    # another mask: the ramp moves at once, the loss follows when the slider rests
    ramp = mask.locator(".scatterlayer path.js-line").last
    moved = []
    for label in ("span z", "ramp R", "span z", "ramp R"):
        before = mask.locator(".scatterlayer").inner_html()
        moved.append(book.move(label, "ArrowRight"))
        book.page.wait_for_function(
            "([at, old]) => document.querySelectorAll('.js-plotly-plot')[at]"
            ".querySelector('.scatterlayer').innerHTML !== old",
            arg=[1, before],
        )
    assert ramp.get_attribute("d")
    say(
        f"attention_span: mask sliders {statistics.median(moved):.0f} ms ({max(moved):.0f} at most)"
    )
    book.page.get_by_text(re.compile(r"bits per character, [+-]0\.\d{4}")).wait_for(timeout=60_000)

    hover(attention)

    message = book.round_trip_ms()
    say(f"attention_span: an empty message {message:.0f} ms")
    assert statistics.median(took) < answer_ms(ANSWER_MS, message)
    assert statistics.median(moved) < answer_ms(ANSWER_MS, message)
    book.screenshot("attention-span", prepare=explore)


def test_the_training_is_played(open_notebook: Callable[..., Book]) -> None:
    book = open_notebook("attention_span", run=SPANS)
    book.run_all()
    grown = book.figure("the mean span is")
    grown.scroll_into_view_if_needed()
    last = title(grown)
    bars = grown.locator(".barlayer path").first.get_attribute("d")
    grown.locator(".updatemenu-button", has_text="▶").click()
    book.page.wait_for_function(
        "old => ![...document.querySelectorAll('.gtitle')].some(t => t.textContent === old)",
        arg=last,
    )
    assert "At step" in title(grown) and title(grown) != last
    # played from its end it begins anew and comes back to it
    book.page.wait_for_function(
        "old => [...document.querySelectorAll('.gtitle')].some(t => t.textContent === old)",
        arg=last,
        timeout=60_000,
    )
    assert grown.locator(".barlayer path").first.get_attribute("d") == bars
