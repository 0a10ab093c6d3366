"""Runs side by side, to play with: a table that sorts and filters, and the curves of those checked.

Paper: arXiv:1803.08240 (how far results depend on settings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from IPython.display import HTML

from workbench import comparison, kept, notebook
from workbench.attendance import in_batch
from workbench.plots import comparison as plots
from workbench.plots import page
from workbench.plots.recipes import recipe_table
from workbench.plots.sweeps import parallel
from workbench.train.folder import RunFolder
from workbench.widgets.panel import Panel
from workbench.widgets.plot import Plot

FIRST_SHOWN = 12
"""runs that the curves show at first: of more, the best"""
_HERE = Path(__file__).with_name("runs")


def _css() -> str:
    text = _HERE.with_suffix(".css").read_text(encoding="utf-8")
    for name in ("INK", "PAPER", "MUTED", "LINE"):
        text = text.replace(f"{{{name}}}", getattr(page, name))
    return text


class RunTable(anywidget.AnyWidget):
    """A table whose heads sort by click or Enter, with a filter and a check box for each run.

    Rows are numbered as they were given, whatever their order on the page.
    """

    _esm = _HERE.with_suffix(".js").read_text(encoding="utf-8")
    _css = _css()

    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    rows = traitlets.List(traitlets.List()).tag(sync=True)
    """one for each run: numbers, text or None; the first is its name"""
    styles = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    """colour and dash of each run's curve"""
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    """which runs the figures show, in rising order"""
    files = traitlets.Dict(traitlets.Unicode()).tag(sync=True)
    """what can be saved: name -> text, of the chosen runs"""

    def __init__(self, rows: Sequence[Mapping[str, comparison.Cell]], chosen: Sequence[int]):
        """
        Args:
            rows: column -> value, the same columns in each.
            chosen: numbers of the rows that are checked at first.
        """
        self.plain = [dict(row) for row in rows]
        super().__init__(
            columns=list(rows[0]) if rows else [],
            rows=[list(row.values()) for row in rows],
            styles=[list(plots.run_style(i)) for i in range(len(rows))],
            chosen=list(chosen),
        )
        self._write()
        self.observe(lambda _: self._write(), "chosen")

    def _write(self) -> None:
        self.files = comparison.files([self.plain[i] for i in self.chosen])


class Comparison(Panel):
    """All runs as a table; of those checked the learning curves, and the sweep on parallel axes.

    Args:
        folders: run -> its folder.
        over: axis of the curves at first: `tokens`, `step` or `elapsed_s`.
        most: fields of the recipes that differ, as columns and as axes.

    Raises:
        ValueError: `over` is none of these.
        RunFolderError: a file of a run is not what it should be.
    """

    def __init__(self, folders: Mapping[str, RunFolder], over: str = "tokens", most: int = 5):
        self.over = over
        recipes = {name: folder.recipe() for name, folder in folders.items()}
        self.records = {name: kept.records(folder) for name, folder in folders.items()}
        self.rows = comparison.table(folders, recipes, most)
        self.best = comparison.validated(folders)
        self.fields = comparison.several(recipes, self.best, most)
        self.names = list(folders)
        ranked = sorted(self.names, key=lambda name: self.best.get(name, float("inf")))
        first = set(self.names if len(self.names) <= FIRST_SHOWN else ranked[:FIRST_SHOWN])
        self.first = [i for i, name in enumerate(self.names) if name in first]
        self.curves(self.first)

    def curves(self, chosen: Sequence[int]) -> go.Figure:
        """Learning curves of some runs, each in the colour that it has among all."""
        some = {self.names[i]: self.records[self.names[i]] for i in chosen}
        return plots.learning_curves(some, self.over, self.names)

    def sweep(self, chosen: Sequence[int]) -> go.Figure | None:
        """Settings and results of some runs; None where none of them was validated."""
        some = {self.names[i] for i in chosen}
        best = {name: bits for name, bits in self.best.items() if name in some}
        if not best or not self.fields:
            return None
        return parallel(self.fields, best, comparison.short(list(self.fields)))

    def stills(self) -> dict[str, go.Figure]:
        found = {"learning_curves": self.curves(self.first)}
        if (sweep := self.sweep(range(len(self.names)))) is not None:
            found["sweep"] = sweep
        return found

    def live(self) -> ipywidgets.Widget:
        table, parts = RunTable(self.rows, self.first), []
        axis = ipywidgets.Dropdown(
            options=[(title, key) for key, title in plots.AXES.items()],
            value=self.over,
            description="over",
        )
        curves = Plot(self.curves(self.first))
        parts = [table, axis, curves]
        sweep = self.sweep(self.first)
        shown = None if sweep is None else Plot(sweep)
        if shown is not None:
            parts.append(shown)

        def update(change: dict[str, Any]) -> None:
            self.over = axis.value
            curves.draw(self.curves(table.chosen), reset=change["owner"] is axis)
            if shown is not None and (fig := self.sweep(table.chosen)) is not None:
                shown.draw(fig)

        table.observe(update, "chosen")
        axis.observe(update, "value")
        return ipywidgets.VBox(parts)

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page; in batch the table comes as HTML.

        Args:
            folder: gets the pictures, and the table as `comparison.csv` and `comparison.tex`.
        """
        if folder is not None:
            comparison.save_table(folder, self.rows)
        if in_batch():
            notebook.display(HTML(recipe_table(self.rows)))
        super().show(folder)
