"""A figure that is drawn again and again, on a page that may be slow to hear of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from workbench.widgets.panel import alive, redraw

DEAF_S = 5.0
"""how long a figure may leave its first change unanswered before another takes its place"""
MOST_TRIES = 3
"""figures in one place: where messages are not heard while a cell works, none will answer"""


class Picture(ipywidgets.VBox):
    """A place for a figure; `draw` shows another state of it.

    A browser that needs more than two seconds to load a figure's program hears of no change to that
    figure ever again (anywidget gives up). Such a figure is replaced by a new one, whose first
    message tells all.

    Attributes:
        figure: what is on the page now.
        hears: whether the browser has answered a change of it.
    """

    def __init__(self, fig: go.Figure) -> None:
        self._tries, self._asked_s, self._latest = 0, float("inf"), fig
        self._place(fig)
        super().__init__([self.figure])

    def _place(self, fig: go.Figure) -> None:
        self.figure, self.hears = alive(fig), False
        self._tries, self._asked_s = self._tries + 1, float("inf")
        self.figure.observe(self._answered, "_js2py_traceDeltas")

    def _answered(self, change: dict[str, Any]) -> None:
        # 0 answers the first drawing, which is there whether or not changes are heard
        if change["new"] and change["new"]["trace_edit_id"] > 0:
            self.hears = True

    def draw(self, fig: go.Figure) -> None:
        """Show this state, drawn by the same function as the one before."""
        self._latest = fig
        if self.is_deaf:
            self._replace()
            return
        redraw(self.figure, fig)
        if not self.hears and self._asked_s == float("inf"):
            self._asked_s = time.monotonic()
            # what is drawn last must be seen, too, though nothing follows it
            later = threading.Timer(DEAF_S + 0.5, self.look_after)
            later.daemon = True
            later.start()

    @property
    def is_deaf(self) -> bool:
        """Whether a change was left unanswered for too long."""
        waited_s = time.monotonic() - self._asked_s
        return not self.hears and waited_s > DEAF_S and self._tries < MOST_TRIES

    def look_after(self) -> None:
        """Put another figure in the place of a deaf one."""
        if self.is_deaf:
            self._replace()

    def _replace(self) -> None:
        before = self.figure
        self._place(self._latest)
        self.children = [self.figure]
        before.close()
