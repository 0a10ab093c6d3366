"""What the live views share: alive in a browser, pictures everywhere else.

Whatever a panel draws comes from functions of `workbench.plots`, so that the pictures of an
unattended run, of a static page and of a saved notebook are those of the browser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import display
from numpy.typing import NDArray

from workbench import notebook
from workbench.plots.live import figure_widget, in_batch
from workbench.train.folder import RunFolder


class Panel(ABC):
    """A view of some data, to play with in a browser and to look at elsewhere."""

    @abstractmethod
    def stills(self) -> dict[str, go.Figure]:
        """The view as pictures: what to call each in the run folder -> the figure."""

    @abstractmethod
    def live(self) -> ipywidgets.Widget:
        """The view as a widget; called once, when it is shown."""

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page: alive in a browser, as pictures in batch.

        Args:
            folder: whose `figures/` keep the pictures, which the report shows; None keeps none.
        """
        if not in_batch():
            display(self.live())
        for name, fig in self.stills().items():
            if folder is not None:
                notebook.keep_figure(folder, name, fig)
            if in_batch():
                notebook.show(fig)


def alive(fig: go.Figure) -> go.FigureWidget:
    """A figure whose data can be replaced and whose points can be clicked; no upload button."""
    return figure_widget(_sendable(fig))


def redraw(widget: go.FigureWidget, fig: go.Figure) -> None:
    """Make a figure on the page look like another, in one message; a zoom of the reader stays.

    Args:
        widget: made by `alive`.
        fig: with traces of the same kinds in the same order, as the same function draws them from
            other data; with other ones the traces are all replaced.
    """
    same = [t.type for t in widget.data] == [t.type for t in fig.data]
    with widget.batch_update():
        if same:
            for old, new in zip(widget.data, fig.data, strict=True):
                old.update(_changes(old, new))
        else:
            widget.data = ()
            widget.add_traces(_sendable(fig).data)
        for part in ("title", "annotations", "shapes"):
            if widget.layout[part] != fig.layout[part]:
                widget.layout[part] = fig.layout[part]


def _sendable(fig: go.Figure) -> go.Figure:
    """The figure with maps as JSON can hold them: NaN becomes null, numbers keep six digits.

    Plotly sends the numbers of lines to the browser as they are in memory, and those of maps as
    text: 18 characters each, and a NaN, which is no JSON, would lose the message.
    """
    fig = go.Figure(fig)
    for trace in fig.data:
        for name, value in trace.to_plotly_json().items():
            if _is_map(value):
                trace[name] = _short(value)
    return fig


def _is_map(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 1 and value.dtype.kind == "f"


def _short(values: NDArray[Any]) -> NDArray[Any]:
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max(initial=0.0))
    digits = 5 - int(np.floor(np.log10(largest))) if largest else 0
    short = np.round(values.astype(np.float64), digits)
    if finite.all():
        return short
    with_gaps = short.astype(object)
    with_gaps[~finite] = None
    return with_gaps


def _changes(old: Any, new: Any) -> dict[str, Any]:
    """What a trace says otherwise than before; what it no longer says is unset."""
    # as they are: copies of large maps take longer than all else
    before, after = old._props, new._props
    # a trace's identity stays, or the browser would forget what the reader did to it
    gone = {name: None for name in before if name not in after and name != "uid"}
    changed = {
        name: _short(value) if _is_map(value) else value
        for name, value in after.items()
        if name not in ("uid", "type") and not _same(before.get(name), value)
    }
    return {**gone, **changed}


def _same(a: Any, b: Any) -> bool:
    # arrays have no truth value; they are what changes anyhow
    return isinstance(a, str | int | float | bool) and type(a) is type(b) and a == b
