"""A sweep over the number of pairs, as it grows: curves, the training at work, and two buttons."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import ipywidgets
import plotly.graph_objects as go

from workbench import notebook
from workbench.attendance import in_batch
from workbench.errors import WorkbenchError
from workbench.plots import page
from workbench.plots.live import LiveFigure
from workbench.plots.retrieval import training
from workbench.recipe import RetrievalRecipe
from workbench.retrieval import LEFT, Point, Sweep, place_of
from workbench.train.folder import RunFolder
from workbench.train.records import Record
from workbench.widgets.panel import Panel
from workbench.widgets.plot import Plot

EVERY_S = 1.0
"""least time between two drawings of the training at work"""


class SweepPanel(Panel):
    """Curves of a sweep beside the published ones, and the training that is at work.

    Points of an earlier session are there at once. What was stopped goes on where it was.

    Args:
        sweep: what to train.
        name: what to call the picture in the folder's `figures/`.
        scale: of the loss: linear or log.
    """

    def __init__(self, sweep: Sweep, name: str, scale: Literal["linear", "log"] = "linear") -> None:
        self.sweep, self.name, self.scale = sweep, name, scale
        self.said: list[str] = []
        self._words = {recipe: word for word, recipe in sweep.names.items()}
        self._at_work: tuple[RetrievalRecipe, list[Mapping[str, Any]]] | None = None
        self._page: Page | None = None
        self._still: LiveFigure | None = None
        self._busy, self._stop = threading.Lock(), threading.Event()
        self._drawn = float("-inf")
        sweep.find()

    @property
    def curves(self) -> go.Figure:
        """The curves so far."""
        return self.sweep.figure(self.scale)

    @property
    def training(self) -> go.Figure:
        """The training at work, or the last one."""
        at_work = self._at_work or self._last()
        if at_work is None:
            return training([], "", 0)
        recipe, records = at_work
        known = self.sweep.published[recipe.name].get(recipe.data.n_pairs)
        stop = recipe.train.stop
        goal = None if stop is None else stop.loss_nats
        name = self._words.get(recipe.name, recipe.name)
        return training(records, name, recipe.data.n_pairs, published=known, goal=goal)

    def _last(self) -> tuple[RetrievalRecipe, list[Mapping[str, Any]]] | None:
        """The last of the points that an earlier session has trained."""
        done = {(point.recipe, point.n_pairs) for point in self.sweep.points}
        found = [r for r in self.sweep.recipes if (r.name, r.data.n_pairs) in done]
        if not found:
            return None
        return found[-1], list(place_of(found[-1], self.sweep.out).records())

    def stills(self) -> dict[str, go.Figure]:
        """The curves."""
        return {self.name: self.curves}

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page; in batch one picture, which grows. `run` keeps it."""
        if in_batch():
            self._still = LiveFigure(self.curves).show()
        else:
            super().show(folder)

    async def run(self, folder: RunFolder | None = None) -> None:
        """Train what is missing, and keep the picture.

        Ends when all points are done, or when training was stopped: by the button, or by a signal.
        A cell that awaits it leaves its buttons alive.

        Args:
            folder: whose `figures/` keep the picture.
        """
        if in_batch():
            self.train()  # here, where signals arrive
        else:
            try:
                await asyncio.to_thread(self.train)
            except asyncio.CancelledError:  # the Jupyter kernel was interrupted
                self.stop()
                raise
        if folder is not None:
            notebook.keep_figure(folder, self.name, self.curves)

    def train(self) -> list[Point]:
        """Train what is missing, until all is done or `stop` is called.

        Returns:
            the points that are known then.
        """
        if not self._busy.acquire(blocking=False):
            return self.sweep.points
        self._stop.clear()
        self.said, done = [], False
        self._say("begins ...", busy=True)
        try:
            last = None
            for last in self.sweep.run(self._see):
                self.said.append(self.sweep.describe(last))
                self._draw_curves()
            done = last is None or last.reason not in LEFT
            told = "all points are done" if done else "stopped; Continue goes on from there"
        except WorkbenchError as error:
            told = str(error)
            if self._page is None:
                raise
        except BaseException:
            told = "ended by an error; its last checkpoint is kept"
            raise
        finally:
            self._busy.release()
            self._draw_curves()
            self._say(told, busy=False, done=done)
        return self.sweep.points

    def stop(self) -> None:
        """Let training end with the next record of the point at work, which is kept."""
        self._stop.set()
        self._say("stopping with the next record ...", busy=True)

    def _see(self, recipe: RetrievalRecipe, record: Record) -> bool:
        if self._at_work is None or self._at_work[0] is not recipe:
            before = place_of(recipe, self.sweep.out).records()
            self._at_work = recipe, [row for row in before if row["step"] < record.step]
        self._at_work[1].append({"kind": record.kind, **dataclasses.asdict(record)})
        if time.monotonic() - self._drawn > EVERY_S:
            self._drawn = time.monotonic()
            if self._page is not None:
                self._page.training.draw(self.training)
                done = len(self.sweep.points)
                self._say(
                    f"point {done + 1} of {len(self.sweep)}: {recipe.name} at "
                    f"{recipe.data.n_pairs} pairs, update {record.step:,}",
                    busy=True,
                )
        return not self._stop.is_set()

    # drawing

    def _draw_curves(self) -> None:
        if self._still is not None:
            self._still.update(lambda: self.curves, force=True)
        if self._page is not None:
            self._page.curves.draw(self.curves)
            self._page.training.draw(self.training)

    def _say(self, text: str, busy: bool, done: bool = False) -> None:
        if self._page is not None:
            self._page.say(text, busy, done, self._stop.is_set())

    def live(self) -> ipywidgets.Widget:
        """Buttons, the curves, and the training at work."""
        self._page = made = Page(self.curves, self.training)
        made.go.on_click(lambda _: threading.Thread(target=self.train, daemon=True).start())
        made.stop.on_click(lambda _: self.stop())
        points = len(self.sweep.points)
        made.say(f"{points} of {len(self.sweep)} points are known", False, False, False)
        return made.box


class Page:
    """What a sweep has on the page."""

    def __init__(self, curves: go.Figure, at_work: go.Figure) -> None:
        self.go = ipywidgets.Button(description="Continue", icon="play", button_style="primary")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.message = ipywidgets.HTML()
        self.curves, self.training = Plot(curves), Plot(at_work)

    @property
    def box(self) -> ipywidgets.Widget:
        """All of it."""
        buttons = ipywidgets.HBox(
            [self.go, self.stop, self.message], layout={"flex_flow": "row wrap"}
        )
        return ipywidgets.VBox([buttons, self.curves, self.training]).add_class("wb-sweep")

    def say(self, text: str, busy: bool, done: bool, stopping: bool) -> None:
        """Tell how it stands, and let those buttons be pressed that do something now."""
        self.go.disabled, self.stop.disabled = busy or done, stopping or not busy
        self.message.value = (
            f'<span class="wb-sweep-message" role="status" style="color:{page.MUTED}">'
            f"{html.escape(text)}</span>"
        )
