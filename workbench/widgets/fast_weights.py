"""The fast-weight laboratory: move through a text, click a token, see what its key reads.

Papers: arXiv:2102.11174, arXiv:2006.16236, arXiv:2009.14794.
Layers, heads and tokens are counted from 1 on the page and from 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from workbench import fast_weight_measures as measures
from workbench import fast_weight_probe as probing
from workbench import inspect, probe
from workbench.plots import capacity, feature_maps, laboratory, rules
from workbench.plots.style import visible
from workbench.widgets.panel import Panel
from workbench.widgets.player import player
from workbench.widgets.plot import Plot
from workbench.widgets.tokens import Tokens

VIEWS = {
    "laboratory": "what a key reads",
    "feature_maps": "rules and feature maps",
    "interference": "interference",
    "capacity": "capacity",
    "overwriting": "overwriting",
}
"""name of a picture -> what its button says"""


class Look:
    """One head, with what is computed once and drawn at many moments."""

    def __init__(self, layer: probing.Layer, head: int):
        self.layer, self.head = layer, head
        self.life = probing.head(layer.inputs, head)
        self._answers: dict[int, measures.Answer] = {}

    def answer(self, token: int) -> measures.Answer:
        """What the key of a token reads over time."""
        if token not in self._answers:
            self._answers[token] = measures.ask(self.life, token)
        return self._answers[token]

    @cached_property
    def capacity(self) -> measures.Capacity:
        """How full the memory is."""
        return measures.capacity(self.life)

    @cached_property
    def maps(self) -> dict[str, inspect.FastWeightInputs]:
        """The same keys under other feature maps."""
        return probing.under_maps(self.layer)

    @cached_property
    def rules(self) -> dict[str, probe.RulesView]:
        """Under every feature map and both rules: matrices and what is read back."""
        return {kind: probe.both_rules(each, self.head) for kind, each in self.maps.items()}

    def keys(self) -> dict[str, np.ndarray]:
        """Feature map -> (T, F) keys."""
        return {k: x.k_BTHF[0, :, self.head].cpu().numpy() for k, x in self.maps.items()}


class Laboratory(Panel):
    """One head of a model over a stretch of text: its memory, and questions put to it.

    In a browser: pick layer and head, move or play the time, click a token (of the text, or a stem)
    to ask the memory by its key. In batch: a picture of each view, for the chosen token at the end.
    """

    def __init__(
        self,
        layers: Sequence[probing.Layer],
        symbols: Sequence[str],
        numbers: Sequence[int],
        *,
        layer: int = 0,
        head: int = 0,
        token: int | None = None,
    ):
        """
        Args:
            layers: by `fast_weight_probe.layers`.
            symbols: the T tokens as text.
            numbers: which layers of the model these are, from 0.
            layer, head: that are shown first, from 0; `layer` counts the fast-weight layers.
            token: whose key is asked first, from 0; None: one in the middle.
        """
        self.layers, self.symbols, self.numbers = layers, list(symbols), list(numbers)
        self.layer, self.head = layer, head
        self.t = len(symbols) - 1
        self.token = len(symbols) // 2 if token is None else token
        self.view = "laboratory"
        self._looks: dict[tuple[int, int], Look] = {}
        self._figures: dict[str, Plot] = {}
        self._drawn: dict[str, tuple[int, ...]] = {}

    @property
    def look(self) -> Look:
        """The head that is looked at."""
        at = (self.layer, self.head)
        if at not in self._looks:
            self._looks[at] = Look(self.layers[self.layer], self.head)
        return self._looks[at]

    def stills(self) -> dict[str, go.Figure]:
        return {name: self.figure(name) for name in VIEWS}

    def figure(self, view: str) -> go.Figure:
        """One of `VIEWS`, as it is now."""
        look = self.look
        own = {"own": look.layer.kind, "rule": look.layer.inputs.rule}
        if view == "laboratory":
            line = laboratory.over_time(look.answer(self.token))
            return laboratory.laboratory(self._moment(), line, self.symbols, self.token, self.t)
        if view == "feature_maps":
            now = {k: {r: W[self.t] for r, W in v.W.items()} for k, v in look.rules.items()}
            half = len(self.symbols) // 2
            ages = {
                kind: {rule: rules.by_age(reads, half) for rule, reads in each.reads.items()}
                for kind, each in look.rules.items()
            }
            return feature_maps.side_by_side(now, ages, **own)
        if view == "interference":
            return feature_maps.gram_by_map(look.keys(), self.symbols, **own)
        if view == "capacity":
            where = {"layer": self.numbers[self.layer], "head": self.head}
            shape = look.life.start_FV.shape
            return capacity.use(look.capacity, shape, rule=own["rule"], **where)
        # the sum rule has no strength: the delta rule beside it then replaces all it can
        strength = float(look.life.strength_T[self.token]) if own["rule"] == "delta" else 1.0
        keys = {kind: each[self.token] for kind, each in look.keys().items()}
        shares = {kind: probing.overwrite(key, strength) for kind, key in keys.items()}
        return feature_maps.overwriting(shares, self.symbols[self.token], strength)

    def _moment(self) -> laboratory.Moment:
        look, where = self.look, f"Layer {self.numbers[self.layer] + 1}, head {self.head + 1}"
        answer = look.answer(self.token)
        return laboratory.moment(look.life.W_TFV[self.t], answer, self.symbols, self.t, where)

    # what follows is about the page

    def live(self) -> ipywidgets.Widget:
        self._layer = ipywidgets.Dropdown(
            options=[(str(n + 1), i) for i, n in enumerate(self.numbers)],
            value=self.layer,
            description="layer",
            layout={"width": "150px"},
        )
        self._head = ipywidgets.Dropdown(
            options=self._heads(), value=self.head, description="head", layout={"width": "150px"}
        )
        self._time = ipywidgets.IntSlider(
            value=self.t + 1,
            min=1,
            max=len(self.symbols),
            description="after token",
            layout={"width": "420px"},
        )
        play = player(self._time, "value", 1, len(self.symbols), 200)
        self._views = ipywidgets.ToggleButtons(
            options=[(told, name) for name, told in VIEWS.items()],
            value=self.view,
            style={"button_width": "auto"},
        )
        self._strip = Tokens(
            self.symbols,
            top=1.0,
            selected=self.token,
            title="Click a token to ask the memory by its key; colour: is what the key reads like "
            "the value that each token wrote (orange), or opposed to it (blue)?",
        )
        self._layer.observe(self._on_layer, "value")
        self._head.observe(lambda change: self._set(head=change["new"]), "value")
        self._time.observe(lambda change: self._set(t=change["new"] - 1), "value")
        self._views.observe(lambda change: self._set(view=change["new"]), "value")
        self._strip.on_select(lambda token: self._set(token=token))
        self._place = ipywidgets.VBox()
        self._refresh()
        pick = ipywidgets.HBox([self._layer, self._head], layout={"flex_flow": "row wrap"})
        move = ipywidgets.HBox([play, self._time], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([pick, move, self._strip, self._views, self._place])

    def _heads(self) -> list[tuple[str, int]]:
        count = self.layers[self.layer].inputs.k_BTHF.shape[2]
        return [(str(i + 1), i) for i in range(count)]

    def _on_layer(self, change: dict[str, Any]) -> None:
        self.layer = change["new"]
        self.head = min(self.head, len(self._heads()) - 1)
        with self._head.hold_trait_notifications():
            self._head.options, self._head.value = self._heads(), self.head
        self._refresh()

    def _set(self, **state: Any) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the page up to date: the picture that is in view, then the text."""
        now, before = (self.layer, self.head, self.token, self.t), self._drawn.get(self.view)
        self._drawn[self.view] = now
        widget = self._figures.get(self.view)
        if widget is None:
            widget = self._figures[self.view] = Plot(self.figure(self.view))
            if self.view == "laboratory":
                widget.on_click(1, self._on_stem)
        elif before is None or now[:2] != before[:2]:
            widget.draw(self.figure(self.view))
        elif now != before:
            self._patch(widget, now[2] != before[2])
        if self._place.children != (widget,):
            self._place.children = (widget,)
        self._colour()

    def _patch(self, widget: Plot, other_token: bool) -> None:
        """Change only what time and token change: a slider must answer at once."""
        if self.view == "overwriting" and other_token:
            widget.draw(self.figure(self.view))
        if self.view == "feature_maps":
            found = self.look.rules
            maps = [W[self.t] for each in found.values() for W in each.W.values()]
            heats = [trace for trace in widget.data if trace.type == "heatmap"]
            with widget.batch_update():
                for trace, W_FV in zip(heats, maps, strict=True):
                    trace.z = feature_maps.scaled(W_FV)
        if self.view == "laboratory":
            line = laboratory.over_time(self.look.answer(self.token)) if other_token else None
            with widget.batch_update():
                laboratory.change(widget, self._moment(), line, self.token, self.t)

    def _colour(self) -> None:
        likeness = self.look.answer(self.token).likeness_TT[self.t]
        asked = visible(self.symbols[self.token])
        with self._strip.hold_sync():
            # what is not written yet has no colour
            self._strip.values = [float(v) for v in np.nan_to_num(likeness)]
            self._strip.tips = [
                f"token {s + 1} '{visible(self.symbols[s])}': "
                + (f"cosine {v:.2f} with what '{asked}' reads" if v == v else "not written yet")
                for s, v in enumerate(likeness)
            ]

    def _on_stem(self, x: float, y: float) -> None:
        self._strip.selected = int(x) - 1
