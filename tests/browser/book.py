"""A notebook in JupyterLab, and the few verbs that a test needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from browser import pictures

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from browser.watch import Watch

FIGURE = ".js-plotly-plot"
DRAWN = f"{FIGURE}:has(.main-svg .subplot)"
"""a figure that plotly has drawn"""
KEPT = ".jp-RenderedPlotly:not(:has(.plot-container)):has(img.plot-img[src^='data:'])"
"""a figure of a saved notebook: its picture, until the mouse comes near"""

# JupyterLab's toolbar says idle before a Jupyter kernel is attached, and running a cell then asks
# which one to take, for ever; the session itself knows
READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  const kernel = session?.session?.kernel;
  return Boolean(session?.isReady && kernel?.connectionStatus === 'connected'
    && kernel.status === 'idle');
}"""
# the promise of a command settles when all cells are done; it must not be awaited by `evaluate`,
# which has no time limit
EXECUTE = """command => {
  window.executed = 'running';
  window.jupyterapp.commands.execute(command).then(
    () => { window.executed = 'done'; }, error => { window.executed = String(error); });
}"""
FAILED = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
  cell => (cell.outputs ?? []).flatMap(output => {
    if (output.output_type === 'error') return [`${output.ename}: ${output.evalue}`];
    if (output.name === 'stderr') return [`stderr: ${[output.text].flat().join('')}`];
    return [];
  }))"""
SELECT = """place => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const code = notebook.widgets.map((cell, i) => [cell.model.type, i]).filter(c => c[0] === 'code');
  notebook.activeCellIndex = code[place][1];
}"""
# from the key to the first change in a figure, as the page itself measures it
CLOCK = """() => {
  let begin = 0;
  window.answered = null;
  document.addEventListener('keydown', () => { begin = performance.now(); },
    {capture: true, once: true});
  const seen = new MutationObserver(() => {
    if (!begin) return;
    window.answered = performance.now() - begin;
    seen.disconnect();
  });
  for (const drawn of document.querySelectorAll('.js-plotly-plot .main-svg'))
    seen.observe(drawn, {subtree: true, childList: true, attributes: true, characterData: true});
}"""
# a question that the Jupyter kernel answers at once
ROUND_TRIP = """async () => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const took = [];
  for (let i = 0; i < 15; i++) {
    await new Promise(done => setTimeout(done, 100));
    const begin = performance.now();
    await kernel.requestCommInfo({target_name: 'none'});
    took.push(performance.now() - begin);
  }
  return took.sort((a, b) => a - b)[7];
}"""
ROUND_TRIP_MS = 35.0
"""how long that takes on two cores that do nothing else"""
SETTLE = """() => new Promise(done => document.fonts.ready.then(() =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 400)))))"""


def answer_ms(limit_ms: float, round_trip_ms: float) -> float:
    """How long a figure may take to answer: longer where even a message without a figure does, as
    beside other programs on the same cores."""
    return limit_ms * max(1.0, round_trip_ms / ROUND_TRIP_MS)


class Book:
    """One notebook, open in one page.

    `page` is Playwright's, for whatever has no verb here. Times are in seconds.
    """

    def __init__(
        self, page: Page, watch: Watch, theme: str, again: Callable[[str], Book] | None = None
    ) -> None:
        """
        Args:
            page: with the notebook open and its Jupyter kernel ready.
            watch: what is wrong with the page, from its beginning.
            theme: of JupyterLab: `light` or `dark`.
            again: opens the same notebook afresh in another theme.
        """
        self.page, self.watch, self.theme = page, watch, theme
        self.pictures_wanted = False
        self.first_figure_s: float | None = None
        """from `run_all` to the first figure that is drawn; None where there is none"""
        self._again = again

    def run_all(self, timeout_s: float = 240, check: bool = True) -> float:
        """Run all cells and wait for the last.

        Args:
            timeout_s: longest time for all of it.
            check: whether a cell that fails fails the test.

        Returns:
            how long it took.
        """
        begin, fresh = time.monotonic(), not self.page.locator(DRAWN).count()
        self.start_all()
        if fresh:
            appears = f"() => document.querySelector('{DRAWN}') || executed !== 'running'"
            self.page.wait_for_function(appears, timeout=timeout_s * 1000)
            if self.page.locator(DRAWN).count():
                self.first_figure_s = time.monotonic() - begin
        self.wait_idle(timeout_s)
        if check:
            found = self.errors()
            assert not found, found
        return time.monotonic() - begin

    def start_all(self) -> None:
        """Begin to run all cells, and return at once."""
        self.page.evaluate(EXECUTE, "notebook:run-all-cells")

    def run_cell(self, place: int, timeout_s: float = 240) -> None:
        """Run one code cell, counted from 0 (or from the last: -1), and wait for it."""
        count = "() => jupyterapp.shell.currentWidget.content.widgets"
        count += ".filter(cell => cell.model.type === 'code').length"
        at = place if place >= 0 else self.page.evaluate(count) + place
        self.page.evaluate(SELECT, at)
        self.page.evaluate(EXECUTE, "notebook:run-cell")
        self.wait_idle(timeout_s)

    def wait_idle(self, timeout_s: float = 240) -> None:
        """Until what was started has ended."""
        ended = "() => window.executed !== 'running'"
        self.page.wait_for_function(ended, timeout=timeout_s * 1000)
        assert self.page.evaluate("window.executed") == "done"
        self.page.wait_for_function(READY, timeout=timeout_s * 1000)

    def errors(self) -> list[str]:
        """Errors of cells, and what they wrote to standard error."""
        return list(self.page.evaluate(FAILED))

    def titles(self) -> list[str]:
        """Titles of the figures on the page."""
        return self.page.locator(f"{FIGURE} .gtitle").all_text_contents()

    def figure(self, words: str) -> Locator:
        """The figure in whose title these words are."""
        title = self.page.locator(".gtitle", has_text=words)
        return self.page.locator(FIGURE).filter(has=title).first

    def slider(self, label: str) -> Locator:
        """The handle of the slider with this label; `press("ArrowRight")` moves it."""
        named = self.page.locator(".widget-slider", has_text=label).first
        return named.locator(".noUi-handle").first

    def move(self, label: str, key: str = "ArrowRight") -> float:
        """Move a slider by a key, as who has no mouse does.

        Returns:
            milliseconds from the key to the first change in a figure.
        """
        handle = self.slider(label)
        handle.focus()
        self.page.evaluate(CLOCK)
        handle.press(key)
        self.page.wait_for_function("() => window.answered !== null", timeout=30_000)
        return float(self.page.evaluate("window.answered"))

    def round_trip_ms(self) -> float:
        """How long a message to the Jupyter kernel and its answer take now."""
        return float(self.page.evaluate(ROUND_TRIP))

    def click(self, words: str) -> None:
        """Press the button with these words."""
        self.page.get_by_role("button", name=words).first.click()

    def save(self) -> None:
        """Save the notebook as the user does."""
        self.page.evaluate(EXECUTE, "docmanager:save")
        self.wait_idle()

    def reload(self) -> None:
        """Load the page again, as after a closed tab; the Jupyter kernel goes on."""
        self.page.reload(wait_until="domcontentloaded")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until the notebook is there and its Jupyter kernel answers."""
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.page.wait_for_function(READY)

    def see_all(self, figures: int, timeout_s: float = 60) -> None:
        """After a reload: wait until so many figures are there again, drawn or as their pictures.

        JupyterLab builds what comes into sight, so this scrolls.
        """
        begin = time.monotonic()
        while (found := self.page.locator(f"{DRAWN}, {KEPT}").count()) < figures:
            late = time.monotonic() - begin > timeout_s
            assert not late, f"{found} of {figures} figures after {timeout_s:g} s"
            for cell in self.page.locator(".jp-Notebook .jp-CodeCell").all():
                cell.evaluate("element => element.scrollIntoView({block: 'center'})")
                self.page.wait_for_timeout(100)

    def settle(self) -> None:
        """Until fonts are there and nothing moves."""
        self.page.evaluate(SETTLE)

    def screenshot(
        self,
        view: str,
        at: str | None = None,
        prepare: Callable[[Book], object] | None = None,
    ) -> list[Path]:
        """Store this view in two widths and both themes, where `--screenshots` asks for it.

        The other theme is another page, in which all cells run again.

        Args:
            view: name of the view, such as `spans`.
            at: selector of what stands at the top of the picture; None: the first figure.
            prepare: what to do on the page before, such as to move a slider; it gets the book,
                here and in the other theme.

        Returns:
            the files; none without the option.
        """
        if not self.pictures_wanted:
            return []
        assert self._again is not None
        stored = self._photograph(view, at, prepare)
        # only now: what is drawn from here on is in the theme of the settings
        other = self._again("dark" if self.theme == "light" else "light")
        other.run_all()
        return stored + other._photograph(view, at, prepare)

    def _photograph(
        self, view: str, at: str | None, prepare: Callable[[Book], object] | None
    ) -> list[Path]:
        stored, before = [], self.page.viewport_size
        if prepare is not None:
            prepare(self)
        self.page.mouse.move(0, 0)  # away from figures, whose buttons come with it
        for name, pixels in pictures.WIDTHS.items():
            self.page.set_viewport_size({"width": pixels, "height": pictures.HEIGHT})
            for _ in range(2):  # cells that come into sight may turn out higher than thought
                top = self.page.locator(at or FIGURE).first
                top.evaluate("element => element.scrollIntoView({block: 'start'})")
                self.settle()
            stored.append(pictures.store(self.page.screenshot(), view, self.theme, name))
        if before is not None:
            self.page.set_viewport_size(before)
        return stored


def opened(page: Page, watch: Watch, address: str, **options: Any) -> Book:
    """Go to a notebook and wait until it can be run."""
    page.goto(address, wait_until="domcontentloaded")
    book = Book(page, watch, **options)
    book.wait_ready()
    return book
