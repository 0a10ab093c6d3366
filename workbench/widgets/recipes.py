"""Choosing a recipe: words to look for, a list of what has them, and all about the chosen one."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from workbench import catalogue
from workbench.catalogue import Entry
from workbench.plots import page
from workbench.plots.style import visible

ROWS = 9
NAME, DATASET, SIZE, RESULT, PAPER = 34, 8, 8, 15, 16
"""columns of the list, in characters"""
NBSP = "\xa0"


class RecipePicker:
    """A list of recipes that is searched as one types; the arrow keys walk through it.

    Args:
        entries: what there is to choose from.
        chosen: name of the one that is chosen at first.

    Attributes:
        value: the chosen one; None while the list has none.
    """

    def __init__(self, entries: Sequence[Entry], chosen: str) -> None:
        self._entries = list(entries)
        self._listeners: list[Callable[[Entry], object]] = []
        self.search = ipywidgets.Text(
            placeholder="words in name, paper, dataset, description",
            description="search",
            continuous_update=True,
            layout={"width": "calc(100% - 4px)"},
        )
        self.table = ipywidgets.Select(rows=ROWS, layout={"width": "calc(100% - 4px)"})
        self.table.add_class("workbench-mono")
        self.about = ipywidgets.HTML()
        self.count = ipywidgets.HTML()
        self._show(self._entries, chosen)
        self.search.observe(self._look, "value")
        self.table.observe(self._choose, "value")

    @property
    def value(self) -> Entry | None:
        chosen = self.table.value
        return next((e for e in self._entries if e.name == chosen), None)

    def on_choice(self, listener: Callable[[Entry], object]) -> None:
        """Have a function called with each recipe that is chosen."""
        self._listeners.append(listener)

    def fill(self, entries: Sequence[Entry]) -> None:
        """Offer more recipes; the choice stays, and so do the words that are looked for."""
        mine = {e.name for e in self._entries}
        self._entries += [e for e in entries if e.name not in mine]
        self._look()

    def widget(self) -> ipywidgets.Widget:
        """Search, list and description, one below the other."""
        head = ipywidgets.HTML(f"<div class='workbench-head'>{html.escape(_head())}</div>")
        return ipywidgets.VBox([self.search, head, self.table, self.count, self.about])

    def _look(self, _: Any = None) -> None:
        self._show(catalogue.matching(self._entries, self.search.value), self.table.value)

    def _show(self, found: Sequence[Entry], chosen: str | None) -> None:
        names = [e.name for e in found]
        self.table.options = [(row(e), e.name) for e in found]
        if names:
            self.table.value = chosen if chosen in names else names[0]
        count, all_ = len(found), len(self._entries)
        said = f"{count} of {all_} recipes" if count else f"none of {all_} recipes has these words"
        self.count.value = f"<span style='color:{page.MUTED}'>{said}</span>"
        self._choose()

    def _choose(self, _: Any = None) -> None:
        chosen = self.value
        self.about.value = description(chosen) if chosen else ""
        if chosen is not None:
            for listener in self._listeners:
                listener(chosen)


def _head() -> str:
    cells = (
        _cell("recipe", NAME),
        _cell("data", DATASET),
        _cell("params", SIZE, right=True),
        _cell("published", RESULT),
        "paper",
    )
    return " ".join(cells)


def row(e: Entry) -> str:
    """An entry as one line of the list; blanks that a browser would squeeze do not break."""
    cells = (
        _cell(e.name, NAME),
        _cell(e.dataset, DATASET),
        _cell(size(e.parameters), SIZE, right=True),
        _cell(catalogue.figure(e.published), RESULT),
        e.paper or "-",
    )
    return visible(" ".join(cells)).replace(" ", NBSP)


def _cell(text: str, width: int, right: bool = False) -> str:
    short = text if len(text) <= width else text[: width - 1] + "…"
    return short.rjust(width) if right else short.ljust(width)


def size(parameters: int | None) -> str:
    """Trainable numbers in short, such as `41.2M`; a dash where only the text knows them."""
    if parameters is None:
        return "-"
    if parameters >= 1_000_000:
        return f"{parameters / 1e6:.1f}M"
    return f"{parameters / 1e3:.0f}k" if parameters >= 1_000 else f"{parameters}"


def description(e: Entry) -> str:
    """All about an entry, as HTML; what it says of itself is text."""
    facts = {
        "paper": e.paper or "-",
        "code": e.code or "-",
        "parameters": "as the text has symbols" if e.parameters is None else f"{e.parameters:,}",
        "published": "; ".join(map(_result, e.published)) or "-",
    }
    lines = "".join(
        f"<dt style='color:{page.MUTED}'>{name}</dt><dd>{html.escape(visible(value))}</dd>"
        for name, value in facts.items()
    )
    name, about = html.escape(visible(e.name)), html.escape(visible(e.about))
    return f"<div class='workbench-about'><b>{name}</b> {about}<dl>{lines}</dl></div>"


def _result(result: dict[str, Any]) -> str:
    told = catalogue.figure([result])
    return f"{told} ({result['source']})" if result.get("source") else told
