"""A figure on the page that is drawn again and again.

Plotly's own `FigureWidget` carries plotly's whole program, five megabytes, in each figure, and a
page that needs more than two seconds to load one of them hears of no change to it any more. Here
the program comes once to a page, apart from the figures, and a figure that comes before it waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import plotly.graph_objects as go
import traitlets

from workbench.plots.style import CONFIG
from workbench.widgets.library import library


class Plot(anywidget.AnyWidget):
    """A figure that can be drawn anew and clicked; a zoom of the reader stays.

    It is never wider than its place on the page.

    Attributes:
        figure: what is drawn; change it inside `batch_update`, or hand another to `draw`.
    """

    _esm = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")

    library = traitlets.Unicode().tag(sync=True)
    drawn = traitlets.Unicode().tag(sync=True)
    """the figure and how to show it, as JSON"""
    clicked = traitlets.Dict().tag(sync=True)
    """the last point that was clicked: its trace, x and y, and how many clicks there were"""

    def __init__(self, fig: go.Figure) -> None:
        self.figure, self._zoom = fig, 0
        self._callbacks: dict[int, Callable[[Any, Any], Any]] = {}
        super().__init__(library=f"IPY_MODEL_{library().model_id}", drawn=self._text())
        self.observe(self._told, "clicked")

    def _text(self) -> str:
        told = {"config": CONFIG, "zoom": self._zoom}
        # the figure is text already, and large
        return f'{json.dumps(told)[:-1]}, "figure": {self.figure.to_json()}}}'

    @property
    def data(self) -> Any:
        """The traces."""
        return self.figure.data

    @property
    def layout(self) -> Any:
        return self.figure.layout

    def draw(self, fig: go.Figure, *, reset: bool = False) -> None:
        """Show another figure in this place.

        Args:
            fig: any figure; of the same function, usually, from other data.
            reset: forget the reader's zoom, where the axes now mean something else.
        """
        self.figure, self._zoom = fig, self._zoom + reset
        self.drawn = self._text()

    @contextmanager
    def batch_update(self) -> Iterator[go.Figure]:
        """Change `figure` inside; the page hears of it once, at the end."""
        yield self.figure
        self.drawn = self._text()

    def on_click(self, trace: int, callback: Callable[[Any, Any], Any]) -> None:
        """Call with x and y of a point of this trace that was clicked."""
        self._callbacks[trace] = callback

    def _told(self, change: dict[str, Any]) -> None:
        point = change["new"]
        if callback := self._callbacks.get(point.get("trace", -1)):
            callback(point["x"], point["y"])
