"""JupyterLab, Chromium, runs to look at, and `open_notebook`."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser import books, runs
from browser.book import Book, opened
from browser.chromium import chromium, missing
from browser.lab import Lab, jupyterlab
from browser.watch import Watch
from workbench.train.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

HERE = Path(__file__).parent
OUTCOME = pytest.StashKey[bool]()
TOLD = pytest.StashKey[list[str]]()
NO_BROWSER = {"test_harness.py"}
"""tests of what the browser tests stand on, which need no browser: part of `make test`"""

if importlib.util.find_spec("playwright") is None:
    # the others import it; `make test-browser` installs it
    collect_ignore = sorted({path.name for path in HERE.glob("test_*.py")} - NO_BROWSER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name not in NO_BROWSER:
            item.add_marker(pytest.mark.browser)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    if report.when == "call":
        item.stash[OUTCOME] = report.failed
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := terminalreporter.config.stash.get(TOLD, []):
        terminalreporter.section("measured in the browser")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def needed() -> None:
    """Skips, with the packages that are missing, where there is no browser to drive."""
    pytest.importorskip("playwright", reason="pip install 'workbench[browser]'")
    if why := missing():
        pytest.skip(why)


@pytest.fixture(scope="session")
def lab(needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with throw-away folders; notebooks belong into its `root`."""
    with jupyterlab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def context(needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """The browser."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def demo_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each demo model; tests get copies of it."""
    folder = tmp_path_factory.mktemp("runs")
    if given := request.config.getoption("--demo"):
        runs.take(Path(given).resolve(), folder)
    else:
        runs.train(folder)
    for name in runs.NAMES:
        # prepared once, so that no notebook waits for it
        RunFolder(folder / name).recipe().data.corpus.open()
    return folder


@pytest.fixture
def desk(lab: Lab, demo_runs: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of this test's own in JupyterLab, with `runs/span-python-tiny` and
    `runs/delta-python-tiny` in it: what the parameters of notebooks say from the start."""
    folder = lab.root / re.sub(r"\W+", "-", request.node.name).strip("-")
    shutil.copytree(demo_runs, folder / "runs")
    return folder


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to what is told at the end: times, sizes."""
    return request.config.stash.setdefault(TOLD, []).append


@pytest.fixture
def watched(
    context: BrowserContext,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    say: Callable[[str], None],
) -> Iterator[Any]:
    """Opens pages; when the test ends, none may have a fault."""
    pages: list[tuple[Page, Watch]] = []

    def new() -> tuple[Page, Watch]:
        page = context.new_page()
        pages.append((page, Watch(page)))
        return pages[-1]

    yield new
    for i, (page, _) in enumerate(pages):
        if not page.is_closed():
            if request.node.stash.get(OUTCOME, True):
                picture = tmp_path / f"failed-{i}.png"
                page.screenshot(path=picture)
                say(f"{request.node.name} failed; how the page looked: {picture}")
            page.close()
    faults = [fault for _, watch in pages for fault in watch.faults]
    assert faults == [], "the page must have no errors and ask no other machine for anything"


@pytest.fixture
def open_notebook(
    lab: Lab, desk: Path, watched: Callable[[], tuple[Page, Watch]], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Book]]:
    """`open_notebook(name, theme="light", **parameters)`: a notebook of the project, its first cell
    edited as by hand, open in JupyterLab with its Jupyter kernel ready. Relative paths in it count
    from `desk`."""
    count = 0

    def open_book(name: str, theme: str = "light", **parameters: Any) -> Book:
        nonlocal count
        count += 1
        target = desk / f"{name}{'' if count == 1 else f'-{count}'}.ipynb"
        books.copy(name, target, parameters)
        lab.use_theme(theme)
        page, watch = watched()
        address = lab.address(str(target.relative_to(lab.root)))
        book = opened(
            page,
            watch,
            address,
            theme=theme,
            again=lambda other: open_book(name, other, **parameters),
        )
        book.pictures_wanted = request.config.getoption("--screenshots")
        return book

    yield open_book
    lab.end_kernels()


@pytest.fixture
def open_file(watched: Callable[[], tuple[Page, Watch]]) -> Callable[[Path], Page]:
    """`open_file(path)`: an HTML file, opened as by a double click."""

    def open_page(path: Path) -> Page:
        page, _ = watched()
        page.goto(path.resolve().as_uri(), wait_until="load")
        return page

    return open_page
