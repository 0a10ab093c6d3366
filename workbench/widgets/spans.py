"""The span explorer: heads as a map over the training, one of them with its mask and attention.

Paper: arXiv:1905.07799 (learned spans, soft masks).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets
import plotly.graph_objects as go

from workbench import notebook, probe
from workbench.metrics import bits_per_token
from workbench.models.mixers.span import LearnedSpan
from workbench.plots import head_mask, span_history
from workbench.plots import spans as plots
from workbench.span_use import attention_mixers
from workbench.widgets.panel import Panel
from workbench.widgets.player import player
from workbench.widgets.plot import Plot

MOST_STEPS = 200
"""places of the step slider, evenly chosen among the records"""
REST_S = 0.25
"""how long a slider of the mask must have rested before the loss is computed again"""


class SpanExplorer(Panel):
    """Spans of all heads at any step; the mask and the attention map of the head that is chosen.

    In a browser a head is chosen by a click on the map of spans or by the two pickers; sliders try
    out another span z and another ramp R, and the stretch is scored with them when they rest.
    """

    def __init__(
        self,
        view: notebook.View,
        text: probe.Stretch,
        seen: probe.AttentionView,
        *,
        layer: int | None = None,
        head: int | None = None,
        scale: plots.Scale = "log",
    ) -> None:
        """
        Args:
            view: the run.
            text: the stretch that was looked at.
            seen: its attention.
            layer, head: chosen first, from 1; None: those of the longest span.
            scale: of the map of spans.

        Raises:
            ConfigError: no such layer or head.
        """
        self.view, self.text, self.seen, self.scale = view, text, seen, scale
        self.layers = notebook.attention_layers(view.recipe)
        self.mixers = attention_mixers(view.model)
        self.with_span = [i for i, mixer in enumerate(self.mixers) if mixer.config.span]
        # what was learned, before anything is tried out
        self.spans = notebook.spans(view)
        self.chosen = notebook.pick_head(view, layer, head)[:2]
        self.past: span_history.History | None = None
        if self.spans:
            self.past = span_history.history(view.folder.records(), MOST_STEPS)
        self.at: int | None = None
        """which of the recorded steps is shown; None: the checkpoint"""
        self.tried: tuple[float, int] | None = None
        self._quiet = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def span_layers(self) -> list[int]:
        """Which layers of the stack learn spans, from 0."""
        return [self.layers[i] for i in self.with_span]

    @property
    def cell(self) -> tuple[int, int] | None:
        """Row and column of the chosen head in the map of spans, from 0; None where it has none."""
        at, head = self.chosen
        return (self.with_span.index(at), head) if at in self.with_span else None

    # what is drawn

    def mask(self) -> tuple[float, int] | None:
        """Learned span z (its mean where it is dynamic) and ramp R of the chosen head."""
        at, head = self.chosen
        span = self.mixers[at].config.span
        return (self.spans[self.with_span.index(at)][head], span.ramp) if span else None

    @property
    def mask_limit(self) -> int:
        """The longest span that the chosen head might learn, in tokens."""
        limit = self.mixers[self.chosen[0]].config.limit
        assert limit is not None
        return limit

    def heads_figure(self) -> go.Figure:
        """All heads at the chosen step."""
        assert self.past is not None
        top = max(float(layer.max()) for layer in self.past.spans)
        shown = self.spans if self.at is None else self.past.at(self.at)
        return plots.span_heatmap(
            shown,
            self.scale,
            chosen=self.cell,
            top=max(top, *(max(heads) for heads in self.spans)),
            step=None if self.at is None else int(self.past.steps[self.at]),
        )

    def mask_figure(self) -> go.Figure:
        """The mask of the chosen head, the one that is tried out, and the attention beneath."""
        (at, head), learned = self.chosen, self.mask()
        assert learned is not None
        return head_mask.head_mask(
            self.seen.probs_LHTS[at][head],
            layer=self.layers[at],
            head=head,
            learned=learned,
            limit=self.mask_limit,
            tried=self.tried,
        )

    def map_figure(self) -> go.Figure:
        """The attention map of the chosen head."""
        (at, head), mask = self.chosen, self.mask()
        probs_TS = self.seen.probs_LHTS[at][head]
        ids = [*self.text.before, *self.text.tokens][-probs_TS.shape[1] :]
        known = len(ids) == probs_TS.shape[1]
        return plots.attention_map(
            probs_TS,
            layer=self.layers[at],
            head=head,
            symbols=notebook.symbols(self.view.corpus, ids) if known else None,
            span=mask[0] if mask else None,
            ramp=mask[1] if mask else 0,
        )

    def stills(self) -> dict[str, go.Figure]:
        figures = {"span_heatmap": self.heads_figure()} if self.past else {}
        if self.mask():
            figures["head_mask"] = self.mask_figure()
        return {**figures, "attention_map": self.map_figure()}

    # what is alive

    def live(self) -> ipywidgets.Widget:
        common = {"style": {"description_width": "initial"}, "layout": {"width": "9em"}}
        self.layer_picker = ipywidgets.Dropdown(
            options=[(str(layer + 1), i) for i, layer in enumerate(self.layers)],
            description="layer",
            **common,
        )
        self.head_picker = ipywidgets.Dropdown(description="head", **common)
        pickers = [self.layer_picker, self.head_picker]
        self._set_pickers()
        for picker in pickers:
            picker.observe(self._picked, "value")
        rows: list[ipywidgets.Widget] = []
        if self.past:
            self.heads = Plot(self.heads_figure())
            self.heads.on_click(0, self._click)
            rows += [self._step_row(), self.heads]
        rows.insert(0, ipywidgets.HBox(pickers))
        if self.with_span:
            rows += self._mask_rows()
        self.map = Plot(self.map_figure())
        return ipywidgets.VBox([*rows, self.map])

    def _step_row(self) -> ipywidgets.Widget:
        assert self.past is not None
        last = len(self.past.steps) - 1
        self.step_slider = ipywidgets.SelectionSlider(
            options=[(f"{step:,}", i) for i, step in enumerate(self.past.steps)],
            value=last,
            description="step",
            layout={"width": "26em"},
        )
        self.play = player(self.step_slider, "index", 0, last, 150)
        self.step_slider.observe(lambda change: self.go_to(change["new"]), "value")
        return ipywidgets.HBox([self.play, self.step_slider])

    def _mask_rows(self) -> list[ipywidgets.Widget]:
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "22em"}}
        self.z_slider = ipywidgets.FloatSlider(description="span z", min=0, step=0.5, **wide)
        self.r_slider = ipywidgets.IntSlider(description="ramp R", min=1, **wide)
        self.loss = ipywidgets.HTML()
        for slider in (self.z_slider, self.r_slider):
            slider.observe(self._slid, "value")
        self._set_sliders()
        self.mask_widget = Plot(self.mask_figure()) if self.mask() else ipywidgets.VBox()
        sliders = ipywidgets.HBox(
            [self.z_slider, self.r_slider, self.loss], layout={"flex_flow": "row wrap"}
        )
        return [sliders, self.mask_widget]

    def _set_pickers(self) -> None:
        """Let the pickers say which head is chosen."""
        at, head = self.chosen
        self._quiet = True
        self.layer_picker.value = at
        count = self.mixers[at].config.n_heads
        if len(self.head_picker.options) != count:
            self.head_picker.options = [(str(i + 1), i) for i in range(count)]
        self.head_picker.value = head
        self._quiet = False

    def _picked(self, _: Any) -> None:
        if not self._quiet:
            at, head = self.layer_picker.value, self.head_picker.value
            self.choose(at, min(head, self.mixers[at].config.n_heads - 1))

    def _click(self, x: float, y: float) -> None:
        self.choose(self.with_span[int(y) - 1], int(x) - 1)

    def choose(self, at: int, head: int) -> None:
        """Show another head.

        Args:
            at: which of the attention layers, from 0.
            head: of that layer, from 0; one that it does not have is ignored.
        """
        if (at, head) == self.chosen or not head < self.mixers[at].config.n_heads:
            return
        self.chosen, self.tried = (at, head), None
        self._set_pickers()
        if self.past:
            frames = [plots.chosen_frame(*self.cell)] if self.cell else []
            with self.heads.batch_update() as fig:
                fig.layout.shapes = frames
        if self.mask():
            self._set_sliders()
            self.mask_widget.draw(self.mask_figure(), reset=True)
        self.map.draw(self.map_figure(), reset=True)

    def go_to(self, i: int) -> None:
        """Show the spans at the i-th of the recorded steps."""
        assert self.past is not None
        self.at = i
        with self.heads.batch_update() as fig:
            plots.change_spans(fig, self.past.at(i), self.scale, int(self.past.steps[i]))

    # trying out another mask

    def _set_sliders(self) -> None:
        """Put the sliders where the chosen head's mask is, without trying anything out."""
        mask, mixer = self.mask(), self.mixers[self.chosen[0]]
        constant = isinstance(mixer.span, LearnedSpan)
        for slider in (self.z_slider, self.r_slider):
            slider.disabled = not constant
        if mask is None or mixer.config.span is None:
            return
        limit = mixer.config.span.limit
        self._quiet = True
        self.z_slider.max, self.r_slider.max = limit, max(4 * mask[1], limit // 4)
        # a browser moves a slider to the next of its places, and would try that one out
        self.z_slider.value, self.r_slider.value = round(2 * mask[0]) / 2, mask[1]
        self._quiet = False
        self.loss.value = (
            "Move z or R: the stretch is scored with that mask."
            if constant
            else "A dynamic span is another one at each token; drawn is the mask of its mean."
        )

    def _slid(self, _: Any) -> None:
        if not self._quiet:
            self.try_mask(self.z_slider.value, self.r_slider.value)

    def try_mask(self, span: float, ramp: int) -> None:
        """Draw another mask over the learned one; when the sliders rest, score the stretch."""
        self.tried = (span, ramp)
        with self.mask_widget.batch_update() as fig:
            head_mask.try_mask(fig, self.tried, self.mask_limit)
        self.loss.value = "…"
        self._when_rested(self._score)

    def _when_rested(self, act: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no page whose messages could follow
            act()
        else:
            self._timer = loop.call_later(REST_S, act)

    def _score(self) -> None:
        at, head = self.chosen
        learned = self.mask()
        if self.tried is None or learned is None:
            return
        nats = [
            probe.loss_with_span(self.view.model, self.text, self.layers[at], head, *mask)
            for mask in (learned, self.tried)
        ]
        before, after = (bits_per_token(x) for x in nats)
        unit = self.view.corpus.unit
        self.loss.value = (
            f"With z = {self.tried[0]:.1f} of this head and R = {self.tried[1]} of its layer: "
            f"<b>{after:.4f}</b> bits per {unit}, {after - before:+.4f} against what was learned"
        )
