"""The view of training in JupyterLab: choose, change, start, pause, stop, continue, come back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Locator, expect

from browser.book import FIGURE, Book
from workbench.recipe import load_recipe
from workbench.train.control import ask
from workbench.train.folder import RunFolder
from workbench.train.lock import holder

EVIL = "<script>document.title='run'</script>"
# a small model that trains for as long as the test needs, on a text of its own
LONG = {
    "train.steps": 100_000,
    "train.log_every": 2,
    "train.eval_every": 100,
    "train.eval_tokens": 2_000,
    "data.batch_size": 4,
    "data.segment_len": 32,
    "model.stack.0.repeat": 2,
}
PATIENCE_MS = 180_000


@pytest.fixture
def begun(desk: Path) -> Iterator[Path]:
    """Where runs are; none is left in training when the test ends."""
    yield desk / "runs"
    for path in (desk / "runs").iterdir():
        if holder(path) is not None:
            ask(path, "stop")
    deadline = time.monotonic() + 60
    while any(holder(p) for p in (desk / "runs").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.2)


def button(book: Book, name: str) -> Locator:
    return book.page.get_by_role("button", name=name, exact=True)


def field(book: Book, label: str) -> Locator:
    """The box beside a label."""
    named = book.page.locator(".jupyter-widgets", has=book.page.get_by_text(label, exact=True))
    return named.locator("input, select").last


def points(book: Book) -> int:
    """Of the first curve: how many pieces its line has."""
    line = book.page.locator(f"{FIGURE} .scatterlayer path.js-line").first
    return (line.get_attribute("d") or "").count("L") if line.count() else 0


def grows(book: Book) -> None:
    before, deadline = points(book), time.monotonic() + PATIENCE_MS / 1000
    while points(book) <= before:
        assert time.monotonic() < deadline, "the curve did not grow"
        time.sleep(0.3)


def stands(book: Book, words: str) -> None:
    # in bold, apart from the folder's name, in which any word may be
    state = book.page.locator(".workbench-train [role=status] b")
    expect(state).to_contain_text(words, timeout=PATIENCE_MS)


def all_recipes(book: Book) -> None:
    """Until the list has all of them, which are read after the view is there."""
    expect(book.page.get_by_text(re.compile(r"of \d\d recipes"))).to_be_visible()


def test_a_recipe_is_looked_for_and_changed(
    open_notebook: Callable[..., Book], begun: Path
) -> None:
    book = open_notebook("train", recipe="span-python-tiny", out="runs/mine")
    book.run_all()
    page = book.page
    expect(page.get_by_text("recipes", exact=False).first).to_be_visible()
    search = page.get_by_placeholder("words in name")
    expect(page.locator(".workbench-mono option")).not_to_have_count(1, timeout=PATIENCE_MS)
    search.fill("1905.07799 text8")
    expect(page.locator(".workbench-mono option").first).to_contain_text("text8")
    listed = page.locator(".workbench-mono option").all_text_contents()
    assert listed and all("arXiv:1905.07799" in line and "bpc" in line for line in listed)
    # by keyboard: the next one in the list is described below it
    about = page.locator(".workbench-about")
    before = about.inner_text()
    page.locator(".workbench-mono select").focus()
    page.keyboard.press("ArrowDown")
    expect(about).not_to_have_text(before)
    search.fill("span-python-tiny")
    expect(about).to_contain_text("span-python-tiny")

    page.get_by_placeholder("such as train.optimizer.lr").fill("train.stepz")
    page.get_by_placeholder("new value").fill("3")
    expect(page.get_by_role("alert")).to_contain_text("Did you mean 'steps'?")
    expect(button(book, "Set")).to_be_disabled()
    page.get_by_placeholder("such as train.optimizer.lr").fill("train.steps")
    page.get_by_placeholder("new value").fill("70")
    expect(button(book, "Set")).to_be_enabled()
    page.get_by_placeholder("new value").press("Enter")
    expect(page.locator(".workbench-changes")).to_contain_text("train.steps: 70 instead of 300")
    book.screenshot("train-recipe", at=".workbench-train", prepare=all_recipes)


def test_a_run_is_started_paused_stopped_continued_and_found_again(
    open_notebook: Callable[..., Book], begun: Path, desk: Path
) -> None:
    # what a recipe says of itself is text
    recipe = load_recipe("span-python-tiny", LONG)
    data = yaml.safe_load(recipe.to_yaml()) | {"about": EVIL}
    (desk / "own.yaml").write_text(yaml.safe_dump(data))
    asked = {"recipe": "own.yaml", "out": "runs/mine", "sample_every": 10, "sample_length": 60}
    book = open_notebook("train", **asked)
    book.run_all()
    page = book.page
    assert "&lt;script" not in page.locator(".workbench-about").inner_text()
    assert EVIL in page.locator(".workbench-about").inner_text()
    run = RunFolder(begun / "mine", writes=False)

    button(book, "Start").click()
    expect(page.locator(FIGURE)).to_have_count(1, timeout=PATIENCE_MS)
    grows(book)
    status = page.locator(".workbench-train [role=status]")
    expect(status).to_contain_text("left", timeout=PATIENCE_MS)
    expect(page.locator("pre[tabindex]").first).to_be_visible(timeout=PATIENCE_MS)
    button(book, "Pause").click()
    stands(book, "paused")
    step = run.status()["step"]
    time.sleep(1.5)
    assert run.status()["step"] == step and holder(run.path) is not None
    button(book, "Continue").click()
    stands(book, "training")
    grows(book)

    # the Jupyter kernel is started again: the training goes on, and is found
    seen = run.status()["step"]
    page.evaluate(
        "async () => { await jupyterapp.shell.currentWidget.sessionContext"
        ".session.kernel.restart(); }"
    )
    page.reload(wait_until="domcontentloaded")
    book.wait_ready()
    assert holder(run.path) is not None
    book.run_all()
    stands(book, "training")
    grows(book)
    assert run.status()["step"] > seen and len(run.records("done")) == 0

    button(book, "Stop").click()
    stands(book, "stopped")
    deadline = time.monotonic() + 60
    while holder(run.path) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert json.loads((run.path / "status.json").read_text())["message"] == "asked to stop"
    stopped = run.status()["step"]
    button(book, "Continue").click()
    stands(book, "training")
    grows(book)
    assert run.status()["step"] > stopped
    assert page.title() != "run"
    button(book, "Stop").click()
    stands(book, "stopped")


def test_pictures_of_a_run(open_notebook: Callable[..., Book], begun: Path) -> None:
    """A run that is done is shown as the parameters say, in either theme."""
    book = open_notebook("train", out="runs/span-python-tiny")
    book.run_all()
    expect(book.page.locator(FIGURE)).to_have_count(1, timeout=PATIENCE_MS)
    stands(book, "done")
    book.screenshot("train", at=".workbench-train")
