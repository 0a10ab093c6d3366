"""A run as it goes on: how it stands, what remains, its curves, and the text that it writes."""

from __future__ import annotations

import html
import math
import threading
from pathlib import Path
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from workbench.books import told
from workbench.errors import ConfigError
from workbench.following import RunWatch, State, duration, remaining_s, span_layers
from workbench.metrics import bits_per_token
from workbench.plots import curves, page
from workbench.plots.passages import render
from workbench.plots.samples import passage
from workbench.plots.style import visible
from workbench.recipe import AnyRecipe
from workbench.train.folder import RunFolder
from workbench.widgets.plot import Plot

WORDS: dict[State, str] = {
    "new": "not begun",
    "starting": "starting: reads its text",
    "running": "training",
    "paused": "paused: waits in memory, with a checkpoint on disk",
    "stopped": "stopped, with a checkpoint",
    "done": "done",
    "failed": "failed",
    "lost": "interrupted",
}
WHOLE = "calc(100% - 4px)"
"""of the page: a widget's margins are no part of its width"""
STYLES = {"failed": "danger", "lost": "warning", "paused": "warning", "done": "success"}


def unit_of(folder: RunFolder) -> str:
    """What a token of a run is, as its folder tells."""
    corpus = folder.environment().get("corpus")
    unit = corpus.get("unit") if isinstance(corpus, dict) else None
    return str(unit or "character")


def _recipe(folder: RunFolder) -> AnyRecipe | None:
    """What was asked for; None where that cannot be read."""
    try:
        return folder.recipe()
    except ConfigError:
        return None


def picture(watch: RunWatch, layers: int | None = None, no_limit: float | None = None) -> go.Figure:
    """The curves of a run as they are now.

    Args:
        watch: which has looked at its folder.
        layers: with learned spans; None: as many as the records tell.
        no_limit: stands for the machine's limit where none is known, see `curves.training`.
    """
    return curves.training(
        watch.records,
        unit_of(watch.folder),
        limit=watch.limit.tokens_per_s if watch.limit else no_limit,
        span_layers=layers,
    )


class RunView:
    """Draws what a `RunWatch` sees. It reads the run folder alone, whoever trains there.

    Args:
        watch: of the run to show; another one later by `attach`.
        recipe: what it trains, where the folder does not tell yet.
    """

    def __init__(self, watch: RunWatch, recipe: AnyRecipe | None = None) -> None:
        self._lock = threading.RLock()
        self.head = ipywidgets.HTML()
        self.bar = ipywidgets.FloatProgress(
            min=0, max=1, description="progress", layout={"width": WHOLE}
        )
        self.box = ipywidgets.VBox(layout={"width": WHOLE})
        self.slider = ipywidgets.IntSlider(
            min=0, max=0, description="sample", readout=False, layout={"width": WHOLE}
        )
        self.text = ipywidgets.HTML()
        self.slider.observe(self._show_sample, "value")
        self.attach(watch, recipe)

    def widget(self) -> ipywidgets.Widget:
        """State, progress, curves, samples."""
        return ipywidgets.VBox([self.head, self.bar, self.box, self.slider, self.text])

    def attach(self, watch: RunWatch, recipe: AnyRecipe | None = None) -> None:
        """Show another run.

        Args:
            watch: of its folder.
            recipe: what it trains, where the folder does not tell yet.
        """
        with self._lock:
            self.watch = watch
            self.layers = span_layers(_recipe(watch.folder) or recipe)
            self.unit = unit_of(watch.folder)
            self.slider.max = self.slider.value = 0
            watch.poll()
            # made here, before there is anything to see, and not by the thread that looks later
            self.figure = Plot(self._growing())
            self.box.children = ()
            self.refresh(force=True)

    def refresh(self, force: bool = False) -> None:
        """Look at the folder, and draw what is new.

        Args:
            force: draw anew, also if nothing is.
        """
        with self._lock:
            changed = self.watch.poll()
            if changed or force:
                self._draw()
            self._tell()

    def _draw(self) -> None:
        self.unit = unit_of(self.watch.folder)
        if self.watch.state != "new" and not self.box.children:
            self.box.children = (self.figure,)
        self.figure.draw(self._growing())
        self._offer_samples()

    def _growing(self) -> go.Figure:
        """The curves, whose axes the browser sets to what comes, unless the reader has zoomed."""
        # the same traces from the beginning: a browser may lose those that replace others
        fig = picture(self.watch, self.layers, no_limit=math.nan)
        return fig.update_xaxes(range=None).update_yaxes(range=None)

    def _offer_samples(self) -> None:
        rows = self.watch.samples
        at_the_end = self.slider.value >= self.slider.max
        self.slider.max = max(0, len(rows) - 1)
        self.slider.layout.display = None if len(rows) > 1 else "none"
        # follows the newest until the reader goes back
        if at_the_end:
            self.slider.value = self.slider.max
        self._show_sample()

    def _show_sample(self, _: Any = None) -> None:
        rows = self.watch.samples
        chosen = rows[min(self.slider.value, len(rows) - 1)] if rows else None
        self.text.value = render([passage(chosen, self.unit)]) if chosen else ""

    def _tell(self) -> None:
        watch = self.watch
        self.head.value = headline(watch)
        self.bar.value = watch.step / watch.steps if watch.steps else 0.0
        self.bar.bar_style = STYLES.get(watch.state, "info")


def headline(watch: RunWatch) -> str:
    """How a run stands, as HTML: state, step, losses, remaining time, and what it says of itself.

    What the folder says is text.
    """
    parts = [f"<b>{WORDS[watch.state]}</b>"]
    if watch.steps:
        parts.append(f"step {watch.step:,} of {watch.steps:,}")
    for kind, name in (("train", "training"), ("eval", "validation")):
        rows = curves.rows(watch.records, kind)
        if rows and rows[-1]["loss_nats"] is not None:
            parts.append(f"{name} {bits_per_token(rows[-1]['loss_nats']):.3f} bits")
    if watch.state in ("running", "paused"):
        left = remaining_s(watch.records, watch.steps, _max_seconds(watch.folder))
        if left is not None:
            parts.append(f"{duration(left)} left")
    name = html.escape(visible(told(watch.folder.path)))
    said = html.escape(visible(watch.message[:2000])).replace("↵", "<br>")
    wrong = "workbench-wrong' role='alert" if watch.state in ("failed", "lost") else ""
    message = f"<div class='{wrong}'>{said}</div>" if said else ""
    return (
        f"<div role='status' style='color:{page.INK}'>{' · '.join(parts)}"
        f"<div style='color:{page.MUTED}'>{name}</div>{message}</div>"
    )


def _max_seconds(folder: RunFolder) -> float | None:
    recipe = _recipe(folder)
    return recipe.train.max_seconds if recipe is not None else None


def choices(paths: list[Path]) -> list[tuple[str, str]]:
    """Run folders as a list to choose from: name and state, and the path."""
    found = []
    for path in paths:
        watch = RunWatch(path)
        watch.poll()
        stands = f"{path.name}: {watch.state}, step {watch.step:,} of {watch.steps:,}"
        found.append((visible(stands), str(path)))
    return found
