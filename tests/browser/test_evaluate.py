"""The evaluate notebook: tokens are pointed at, clicked and walked through; passages are picked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workbench
from browser.book import CLOCK, Book

if TYPE_CHECKING:
    from playwright.sync_api import Locator

SPANS, DELTA = "runs/span-python-tiny", "runs/delta-python-tiny"
QUICK = {"max_tokens": 4_000, "context_sample": 16}
HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\x1b[31m\x00 \u202e"


class Reading:
    """One panel of tokens on the page, and the figure that belongs to it."""

    def __init__(self, book: Book, place: int) -> None:
        page = book.page
        self.page, self.text = page, page.locator(".wb-tokens").nth(place)
        self.text.scroll_into_view_if_needed()
        self.panel = page.locator(".widget-vbox").filter(has=page.locator(".wb-tokens")).nth(place)
        self.panel.locator(".gtitle").first.wait_for()

    def token(self, i: int) -> Locator:
        return self.text.locator(f".wb-token[data-index='{i}']")

    @property
    def tip(self) -> str:
        return self.text.locator(".wb-tokens-tip").text_content() or ""

    @property
    def title(self) -> str:
        return self.panel.locator(".gtitle").first.text_content() or ""

    def changes(self, act: Callable[[], Any]) -> str:
        """Do something that draws the figure anew; its new title."""
        before = self.title
        act()
        self.page.wait_for_function(
            "([panel, before]) => panel.querySelector('.gtitle').textContent !== before",
            arg=[self.panel.element_handle(), before],
            timeout=10_000,
        )
        return self.title


def other_token(reading: Reading) -> int:
    """A token whose cost is not that of the chosen one, so that the figure must change."""
    tips = [reading.token(i).get_attribute("aria-label") or "" for i in range(12)]
    chosen = reading.tip.split("\n")[0]
    return next(i for i, tip in enumerate(tips) if tip.split("\n")[0] != chosen)


def test_tokens_tell_what_was_expected(
    open_notebook: Callable[..., Book], say: Callable[[str], None]
) -> None:
    book = open_notebook("evaluate", run=SPANS, other=DELTA, **QUICK)
    seconds = book.run_all()
    say(f"evaluate, two models: first figure {book.first_figure_s:.1f} s, all {seconds:.1f} s")
    for place in range(2):
        reading = Reading(book, place)
        chosen = reading.text.locator("[aria-selected='true']")
        assert chosen.count() == 1 and "rank" in reading.tip and "likeliest:" in reading.tip

        i = other_token(reading)
        before = reading.tip
        reading.token(i).hover()
        assert reading.tip == reading.token(i).get_attribute("aria-label") != before
        title = reading.changes(reading.token(i).click)
        assert reading.token(i).get_attribute("aria-selected") == "true"
        nats = reading.tip.split(" nats")[0].split()[-1]
        assert nats in title

        book.page.evaluate(CLOCK)
        book.page.keyboard.press("ArrowRight")
        assert reading.token(i + 1).get_attribute("aria-selected") == "true"
        book.page.wait_for_function("() => window.answered !== null", timeout=10_000)
        say(f"evaluate: a token by key draws after {book.page.evaluate('answered'):.0f} ms")

        text = reading.text.locator(".wb-tokens-text").text_content()
        picker = reading.panel.locator("select")
        names = picker.locator("option").all_text_contents()
        reading.changes(lambda picker=picker: picker.select_option(index=3))
        assert reading.text.locator(".wb-tokens-text").text_content() != text
        title = reading.text.locator(".wb-tokens-title").text_content() or ""
        # a list of choices shows blanks that do not break
        assert title == names[3].replace("\xa0", " ")

        bright = "els => els.filter(e => e.style.background).length"
        coloured = reading.text.locator(".wb-token").evaluate_all(bright)
        handle = reading.panel.locator(".noUi-handle").first
        handle.focus()
        for _ in range(12):
            handle.press("ArrowRight")
        book.page.wait_for_function(
            "([text, n]) => [...text.querySelectorAll('.wb-token')]"
            ".filter(e => e.style.background).length < n",
            arg=[reading.text.element_handle(), coloured],
        )
    panel = ".widget-vbox:has(.wb-tokens)"
    book.screenshot("evaluate", panel)
    book.screenshot("evaluate-compared", f":nth-match({panel}, 2)")


def test_text_of_a_stranger_is_text(open_notebook: Callable[..., Book], desk: Path) -> None:
    path = desk / "strange.txt"
    lines = [f"{HOSTILE} {i} \u00e9\n".encode() + b"\xe2\x82 half\n" for i in range(400)]
    path.write_bytes(b"".join(lines))
    corpus = {"kind": "text", "path": str(path), "split": [0.5, 0.25, 0.25]}
    changes = {"data.corpus": corpus, "train.steps": 2, "train.schedule.warmup_steps": 1}
    name = "strange<b>"
    list(workbench.start("delta-python-tiny", changes, out=desk / "runs" / name))
    book = open_notebook("evaluate", run=f"runs/{name}", **QUICK)
    book.run_all()
    reading = Reading(book, 0)
    shown = reading.text.locator(".wb-tokens-text").text_content() or ""
    assert "<script>window.hurt = 1</script><img" in shown
    assert "\\x1b[31m\\x00" in shown and "\\xe2\\x82 half" in shown
    assert not set("\x1b\x00\u202e") & set(shown)
    assert book.page.locator(".jp-OutputArea img[src='x']").count() == 0
    for i in range(6):
        reading.token(i).hover()
        reading.token(i).click()
    assert book.page.evaluate("() => window.hurt === undefined")
