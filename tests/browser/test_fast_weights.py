"""The fast-weight laboratory in a real browser: time, tokens, views, heads."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from browser.book import Book, answer_ms

RUN = "runs/delta-python-tiny"
LABORATORY_MS = 150.0
"""longest time from a key to a changed figure, for a demo model, on two idle cores;
the span explorer's limit is 100 ms, which a matrix, 128 tokens and three charts in one figure miss:
plotly alone takes 50 to 80 ms for them"""
STEMS = ".subplot.x2y2 .scatterlayer path.js-line"
"""cosines with what each token wrote, in two lines: all but the key's own, and the key's own"""
HEATS = "[...document.querySelector('.js-plotly-plot').querySelectorAll('.heatmaplayer image')]"
MATRICES = "nodes => nodes.map(node => node.href.baseVal)"
TOP = ".widget-hbox:has(> .widget-dropdown)"
"""where the laboratory begins"""
MAPS = "rules and feature maps"
VIEWS = {
    MAPS: "later writes a value comes back best",
    "interference": "Keys overlap least under",
    "capacity": "Layer 1, head 1 uses",
    "overwriting": "Written anew once",
}


def opened(open_notebook: Callable[..., Book]) -> Book:
    """The notebook, run, with its laboratory in sight: cells out of sight are not drawn."""
    book = open_notebook("fast_weights", run=RUN)
    book.run_all()
    book.page.locator(".wb-tokens").first.scroll_into_view_if_needed()
    wait_for(book, "After token 128 the key of")
    book.settle()
    return book


def wait_for(book: Book, words: str) -> None:
    """Until a figure's title says so."""
    book.page.locator(".gtitle", has_text=words).first.wait_for(timeout=60_000)


def stems(book: Book) -> list[str]:
    """The stem of each token, in no order, as it is drawn."""
    lines = book.figure("the key of").locator(STEMS)
    drawn = lines.evaluate_all("nodes => nodes.map(n => n.getAttribute('d'))")
    return [stem for line in drawn for stem in line.split("M")[1:]]


def slide(book: Book, times: int) -> float:
    """Median milliseconds from a key on the slider to the changed figure."""
    took = []
    for _ in range(times):
        took.append(book.move("after token", "ArrowLeft"))
        # until all of it is drawn, or the next change would be this one's end
        book.settle()
    return statistics.median(took)


def choose(book: Book, name: str, value: str) -> None:
    menu = book.page.locator(".widget-dropdown", has_text=name).locator("select").first
    menu.select_option(value)


def check_tokens(book: Book) -> None:
    """A click and the arrow keys ask the memory by another token's key."""
    before, tokens = stems(book), book.page.locator(".wb-token")
    assert tokens.count() == 128
    tokens.nth(20).click()
    wait_for(book, "(21) reads")
    assert stems(book) != before
    assert tokens.nth(20).get_attribute("aria-selected") == "true"
    # what is written after the moment has no colour
    style = "element => element.style.background"
    assert tokens.nth(20).evaluate(style) and not tokens.nth(125).evaluate(style)
    book.page.keyboard.press("ArrowRight")
    wait_for(book, "(22) reads")
    book.page.keyboard.press("Home")
    wait_for(book, "(1) reads")


def check_stem(book: Book) -> None:
    """So does a click on a stem, at its foot."""
    figure = book.figure("the key of")
    area = figure.locator(".nsewdrag[data-subplot=x2y2]")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    foot = box["x"] + box["width"] * (11 + 0.5) / (128 + 1.5), box["y"] + box["height"] / 2
    book.page.mouse.move(foot[0] - 30, foot[1])
    book.page.mouse.move(*foot)
    # plotly clicks what it hovers, and takes its time to hover
    figure.locator(".hovertext", has_text="value of token 11:").wait_for()
    book.page.mouse.click(*foot)
    wait_for(book, "(11) reads")


def check_maps(book: Book) -> None:
    """The slider moves the six matrices, too."""
    book.page.wait_for_function(f"() => ({MATRICES})({HEATS}).length === 6", timeout=60_000)
    book.settle()
    before = book.page.evaluate(f"() => ({MATRICES})({HEATS})")
    for _ in range(5):
        book.slider("after token").press("ArrowLeft")
    changed = f"was => String(({MATRICES})({HEATS})) !== String(was)"
    book.page.wait_for_function(changed, arg=before, timeout=60_000)


def test_the_laboratory(open_notebook: Callable[..., Book], say: Callable[[str], None]) -> None:
    book = opened(open_notebook)
    before = stems(book)
    # a figure that has just come may still be busy with itself, and is not what is timed
    for _ in range(5):
        book.slider("after token").press("ArrowLeft")
        book.settle()
    wait_for(book, "After token 123 the key of")
    took = slide(book, 10)
    message = book.round_trip_ms()
    say(
        f"fast_weights: the laboratory answers a key on its slider in {took:.0f} ms, "
        f"an empty message in {message:.0f} ms"
    )
    wait_for(book, "After token 113 the key of")
    assert len(before) == 128 and stems(book) != before
    assert took < answer_ms(LABORATORY_MS, message)
    check_tokens(book)
    check_stem(book)

    for name, words in VIEWS.items():
        book.click(name)
        wait_for(book, words)
        if name == MAPS:
            check_maps(book)
    choose(book, "layer", "3")
    choose(book, "head", "6")
    book.click("capacity")
    wait_for(book, "Layer 3, head 6 uses")
    book.click("what a key reads")
    wait_for(book, "After token 108 the key of")
    book.page.locator(".widget-play button").first.click()
    # where the machine is busy, moments are left out
    moved = "() => !document.querySelector('.gtitle').textContent.startsWith('After token 108 ')"
    book.page.wait_for_function(moved, timeout=60_000)


def test_pictures_of_the_laboratory(open_notebook: Callable[..., Book]) -> None:
    book = opened(open_notebook)

    def ask(shown: Book) -> None:
        # a page behind another draws nothing
        shown.page.bring_to_front()
        shown.page.locator(TOP).first.scroll_into_view_if_needed()
        shown.page.locator(".wb-token").nth(40).click()
        wait_for(shown, "(41) reads")

    ask(book)
    book.screenshot("fast_weights", at=TOP, prepare=ask)


def test_pictures_of_rules_and_feature_maps(open_notebook: Callable[..., Book]) -> None:
    book = opened(open_notebook)

    def compare(shown: Book) -> None:
        shown.page.bring_to_front()
        shown.page.locator(TOP).first.scroll_into_view_if_needed()
        shown.click(MAPS)
        wait_for(shown, VIEWS[MAPS])

    compare(book)
    book.screenshot("fast_weights_maps", at=TOP, prepare=compare)
