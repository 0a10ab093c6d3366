"""The writer in a browser: type a prompt, write, stop, go on, point at tokens and choose them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from browser.book import Book

if TYPE_CHECKING:
    from playwright.sync_api import Locator

QUICK = {
    "length": 60,
    "temperatures": [1.0],
    "text_len": 100,
    "tune_tokens": 200,
    "thetas": [0.3],
    "lams": [0.1],
    "window": 50,
}
# more than one is written until a button is pressed
ENDLESS = "100000"
AT_LEAST = "n => document.querySelectorAll('.wb-writer .wb-token').length >= n"
WHOLE = """prompt => document.querySelector('.wb-tokens-title').textContent.startsWith(
  `${document.querySelectorAll('.wb-writer .wb-token').length - prompt} tokens, `)"""


def button(book: Book, name: str) -> Locator:
    return book.page.locator(".wb-writer button", has_text=name)


def say_number(book: Book, name: str, value: str) -> None:
    box = book.page.locator(".wb-writer .widget-inline-hbox", has_text=name).locator("input")
    box.fill(value)
    box.press("Enter")


def past_title(book: Book) -> str:
    return book.figure("The past takes").locator(".gtitle").text_content() or ""


def whole(book: Book) -> int:
    """Let the first text be written to its end, which a busy machine leaves to a button.

    Returns:
        its tokens.
    """
    tokens, wanted = book.page.locator(".wb-writer .wb-token"), 4 + int(QUICK["length"])
    if (count := tokens.count()) < wanted:
        say_number(book, "length", str(wanted - count))
        button(book, "Go on").click()
        book.page.wait_for_function(AT_LEAST, arg=wanted, timeout=120_000)
        done(book, f"{wanted - count} tokens")
    assert tokens.count() == wanted
    return wanted


def done(book: Book, words: str) -> None:
    """Wait until a text has been written, and the message begins with these words."""
    book.page.wait_for_function(
        "words => document.querySelector('.wb-writer-message').textContent.startsWith(words)",
        arg=words,
        timeout=120_000,
    )


def rivals_follow(book: Book) -> None:
    """Choose tokens until the figure of the chosen one's rivals says which it is.

    Where a page loads slowly, the first figure may be deaf and the one in its place follows.
    """
    tokens, title = (
        book.page.locator(".wb-writer .wb-token"),
        book.page.locator(".wb-writer .gtitle"),
    )
    for at in range(12, 60):
        tokens.nth(at).click()
        label = (book.page.locator(".wb-tokens-tip").text_content() or "").split()[0]
        told = title.first
        for _ in range(10):
            if (told.text_content() or "").startswith(f"{label} "):
                return
            book.page.wait_for_timeout(200)
    raise AssertionError("the figure says nothing of the chosen token")


def test_write_stop_and_go_on(
    open_notebook: Callable[..., Book], say: Callable[[str], None]
) -> None:
    book = open_notebook("generate", **QUICK)
    book.run_all()
    tokens, tip = book.page.locator(".wb-writer .wb-token"), book.page.locator(".wb-tokens-tip")
    whole(book)
    assert "".join(tokens.all_text_contents()).startswith("def ")
    before = past_title(book)

    # a prompt of one's own, with a character of three bytes
    book.page.locator(".wb-writer textarea").fill("class A<b>:  # 5 €\n")
    say_number(book, "length", ENDLESS)
    button(book, "Write").click()
    book.page.wait_for_function(
        "() => document.querySelectorAll('.wb-writer .wb-token').length > 40 "
        "&& document.querySelector('.wb-writer .wb-token').textContent === 'c'",
        timeout=120_000,
    )
    text = "".join(tokens.all_text_contents())
    assert text.startswith("class A<b>:  # 5 €··↵")
    # while it goes on, a token can be chosen and the figures have changed
    tokens.nth(30).click()
    assert tokens.nth(30).get_attribute("aria-selected") == "true"
    assert re.search(r"%, \d+\.\d\d bits, rank \d+", tip.text_content() or "")
    assert button(book, "Write").is_disabled() and button(book, "Go on").is_disabled()
    button(book, "Stop").click()
    book.page.wait_for_function(
        "() => document.querySelector('.wb-writer-message').textContent.includes('a second')",
        timeout=30_000,
    )
    # the message may come before the last token; the prompt is 21 bytes
    book.page.wait_for_function(WHOLE, arg=21)
    count = tokens.count()
    say(f"generate: {book.page.locator('.wb-writer-message').text_content()}")

    say_number(book, "length", "25")
    button(book, "Go on").click()
    book.page.wait_for_function(AT_LEAST, arg=count + 25, timeout=120_000)
    done(book, "25 tokens")
    assert tokens.count() == count + 25
    assert "".join(tokens.all_text_contents()).startswith(text)
    # a page that loads slowly hears of the next figure only
    for _ in range(3):
        if past_title(book) != before:
            break
        button(book, "Go on").click()
        book.page.wait_for_timeout(6000)
    assert past_title(book) != before


def test_tokens_are_pointed_at_and_walked_through(open_notebook: Callable[..., Book]) -> None:
    book = open_notebook("generate", run="runs/delta-python-tiny", **QUICK)
    book.run_all()
    tokens, tip = book.page.locator(".wb-writer .wb-token"), book.page.locator(".wb-tokens-tip")
    count = whole(book)
    tokens.nth(10).hover()
    assert "likeliest:" in (tip.text_content() or "")
    tokens.nth(2).hover()
    assert "(prompt)" in (tip.text_content() or "")
    tokens.nth(10).click()
    told = tip.text_content()
    tokens.nth(10).press("ArrowRight")
    assert tokens.nth(11).get_attribute("aria-selected") == "true"
    assert tip.text_content() != told
    rivals_follow(book)
    # what is wrong is said, as text
    say_number(book, "temperature", "-1")
    button(book, "Write").click()
    message = book.page.locator(".wb-writer-message")
    message.filter(has_text="expected 0 (the likeliest token) or more").wait_for(timeout=30_000)
    assert tokens.count() == count, "the text that was there stays"


def test_pictures_of_the_writer(open_notebook: Callable[..., Book]) -> None:
    book = open_notebook("generate", run="runs/delta-python-tiny", **QUICK)
    book.run_all()
    book.screenshot("generate", at=".wb-writer", prepare=choose)


def choose(book: Book) -> None:
    whole(book)
    book.page.locator(".wb-writer .wb-token").nth(20).click()
