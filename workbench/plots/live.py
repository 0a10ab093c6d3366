"""Figures that follow a run while it trains, and texts while they come, in JupyterLab and in batch.

- In JupyterLab: a `Plot`, whose zoom survives an update.
- In batch (nobody watches): one output that is replaced, so that the executed notebook holds the
  last state once, and no widgets.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol
from uuid import uuid4

import plotly.graph_objects as go
from IPython.display import display
from tqdm.auto import tqdm as notebook_bar
from tqdm.std import tqdm as text_bar

from workbench.attendance import in_batch
from workbench.following import span_layers
from workbench.metrics import bits_per_token
from workbench.plots import curves
from workbench.plots.style import CONFIG, WIDTH
from workbench.widgets.plot import Plot

PLOTLY_MIME = "application/vnd.plotly.v1+json"


def progress_bar(*, batch: bool | None = None, **settings: Any) -> Any:
    """A bar of tqdm with the time that remains: a widget, or in batch (None asks `in_batch`) a line
    of text."""
    if in_batch() if batch is None else batch:
        # not standard error, which notebooks show as if something had failed
        return text_bar(file=sys.stdout, **settings)
    return notebook_bar(**settings)


def show_text(pieces: Iterable[str], begin: str = "") -> None:
    """Show a text while it comes, as one output that is replaced.

    Printed piece by piece, each would stand on a line of its own in an executed notebook.

    Args:
        pieces: of the text, in order.
        begin: what stands before the first.
    """
    text, key, shown = begin, uuid4().hex, time.monotonic()
    display({"text/plain": text}, raw=True, display_id=key)
    for piece in pieces:
        text += piece
        if time.monotonic() - shown > 0.2:
            display({"text/plain": text}, raw=True, display_id=key, update=True)
            shown = time.monotonic()
    display({"text/plain": text}, raw=True, display_id=key, update=True)


def bundle(fig: go.Figure) -> dict[str, Any]:
    """A figure as the data that Jupyter stores and draws.

    Handing the figure itself to `display` would add an output at every update: plotly shows
    itself and ignores the display id.

    The width stands in the layout itself, not only in its template: JupyterLab fits a figure
    without one to the page and forgets its height, so that it vanishes when a slider is moved.
    """
    title = fig.layout.title.text or "figure"
    plain = json.loads(fig.to_json())
    plain["layout"].setdefault("width", WIDTH)
    return {
        PLOTLY_MIME: {**plain, "config": CONFIG},
        "text/plain": f"plotly figure: {title}",
    }


def _growing(fig: go.Figure) -> go.Figure:
    """A figure whose axes follow the data in the browser, up to where the reader zooms."""
    return fig.update_xaxes(range=None).update_yaxes(range=None)


class LiveFigure:
    """One figure on the page that is redrawn in place, at most every so many seconds."""

    def __init__(self, fig: go.Figure, *, every_s: float = 1.0, batch: bool | None = None):
        """
        Args:
            fig: the first state.
            every_s: least time between two drawings.
            batch: None asks `in_batch`.
        """
        self.batch = in_batch() if batch is None else batch
        self.every_s, self._last = every_s, float("-inf")
        self.figure = fig if self.batch else Plot(_growing(fig))
        self._handle: Any = None

    def show(self) -> LiveFigure:
        """Put the figure on the page."""
        if self.batch:
            self._handle = display(bundle(self.figure), raw=True, display_id=True)
        else:
            display(self.figure)
        return self

    def update(self, redraw: Callable[[], go.Figure], *, force: bool = False) -> bool:
        """Draw what `redraw()` returns, if it is time.

        Args:
            redraw: makes the figure anew.
            force: now, whatever the time.

        Returns:
            whether it was drawn.
        """
        now = time.monotonic()
        if not force and now - self._last < self.every_s:
            return False
        self._last = now
        new = redraw()
        if self.batch:
            self.figure = new
            if self._handle is not None:
                self._handle.update(bundle(new), raw=True)
            return True
        self.figure.draw(_growing(new))
        return True


class RunLike(Protocol):
    """What `LiveTraining` needs of what `workbench.start` returns."""

    folder: Any
    recipe: Any

    @property
    def corpus(self) -> Any: ...
    @property
    def step(self) -> int: ...


class LiveTraining:
    """Learning curves and a progress bar with the time that remains, fed record by record.

    Use:
        with LiveTraining(run) as view:
            for record in run:
                view.update(record)
    """

    def __init__(
        self,
        run: RunLike,
        *,
        every_s: float | None = None,
        batch: bool | None = None,
        limit: float | None = None,
    ):
        """
        Args:
            run: a run, new or resumed; what its folder already tells is drawn at once.
            every_s: least time between two drawings; None for 1 s in JupyterLab, 5 s in batch.
            batch: one output that is replaced instead of widgets; None asks `in_batch`.
            limit: tokens a second that the machine allows at best; None draws none.
        """
        self.unit, self.limit = run.corpus.unit, limit
        self.span_layers = span_layers(run.recipe)
        self.records: list[dict[str, Any]] = list(run.folder.records())
        self._said: dict[str, str] = {}
        batch = in_batch() if batch is None else batch
        pause = (5.0 if batch else 1.0) if every_s is None else every_s
        self.live = LiveFigure(self._draw(), every_s=pause, batch=batch)
        self.bar = progress_bar(
            batch=batch,
            total=run.recipe.train.steps,
            unit="step",
            desc=run.recipe.name,
            mininterval=pause,
            initial=run.step,
        )

    def _draw(self) -> go.Figure:
        return curves.training(
            self.records, self.unit, limit=self.limit, span_layers=self.span_layers
        )

    def __enter__(self) -> LiveTraining:
        self.live.show()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the page, also when training ended with an error."""
        self.live.update(self._draw, force=True)
        self.bar.close()

    def update(self, record: Any) -> None:
        """Take in one record: redraw if it is time, move the bar."""
        row = {"kind": record.kind, **dataclasses.asdict(record)}
        # processes that died begin again at a checkpoint: what they repeat replaces what was lost
        while self.records and self.records[-1]["step"] > row["step"]:
            self.records.pop()
        # after a `break` the folder may have told it before the run does
        if row not in self.records[-4:]:
            self.records.append(row)
        self.bar.update(row["step"] - self.bar.n)
        if "loss_nats" in row:
            name = "train" if row["kind"] == "train" else row["split"]
            self._tell(name, bits_per_token(row["loss_nats"]))
        self.live.update(self._draw)

    def _tell(self, name: str, bits: float) -> None:
        self._said[name] = f"{bits:.3f}"
        self.bar.set_postfix(self._said, refresh=False)
