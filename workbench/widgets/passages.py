"""Passages of a scored text, to be read token by token: what each cost, and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import HTML, display
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from workbench import notebook
from workbench.data.corpus import Corpus
from workbench.detail import Detail
from workbench.measurement import Pair
from workbench.metrics import bits_per_token
from workbench.plots import alternatives, difference, evaluation
from workbench.plots.alternatives import Expected
from workbench.plots.live import in_batch
from workbench.plots.style import around
from workbench.train.folder import RunFolder
from workbench.widgets.panel import Panel, alive, redraw
from workbench.widgets.tokens import Tokens

MORE = 4
"""times as many passages to choose from in a browser as stand on a still page"""


class Passage(NamedTuple):
    """A stretch of scored tokens."""

    title: str
    start: int
    stop: int


class Told(NamedTuple):
    """A scored text under one model, a row for each token."""

    text: Tensor
    """(tokens,) the ids that came"""
    nats: NDArray[Any]
    rank: NDArray[Any]
    alternatives: Tensor
    """(tokens, k) ids"""
    probabilities: NDArray[Any]
    """(tokens, k)"""

    @classmethod
    def of(cls, detail: Detail, text: Tensor, at: NDArray[np.intp] | None = None) -> Told:
        """From an evaluation of a text.

        Args:
            detail: of all scored tokens.
            text: ids of the whole text.
            at: which scored tokens, in order; None: all.
        """
        rows = slice(None) if at is None else at
        return cls(
            text[detail.evaluation.positions[rows]],
            detail.evaluation.nll_nats[rows].numpy(),
            detail.rank[rows].numpy(),
            detail.alternatives[rows],
            detail.alternative_log_probs[rows].exp().numpy(),
        )

    def expected(self, corpus: Corpus, i: int) -> Expected:
        """What the model thought before token `i`."""
        symbol = corpus.vocabulary.symbol
        return Expected(
            symbol(int(self.text[i])),
            float(self.nats[i]),
            int(self.rank[i]),
            [symbol(int(a)) for a in self.alternatives[i]],
            [float(p) for p in self.probabilities[i]],
        )


class Passages(Panel):
    """Passages of a text as coloured tokens; a token tells what was expected in its place.

    Args:
        name: of the pictures in the run folder.
        corpus: whose vocabulary has the symbols.
        told: what to call each model ("" for a single one) -> what it said of each token.
        values: (tokens,) what colours a token; of the sign that `Tokens` draws.
        spots: the passages, the first ones on a still page.
        still: how many of them.
        top: value of full colour.
        html: from symbols, values, tips and title to the coloured text of a still page.
    """

    def __init__(
        self,
        name: str,
        corpus: Corpus,
        told: dict[str, Told],
        values: ArrayLike,
        spots: Sequence[Passage],
        still: int,
        top: float,
        html: Callable[[Sequence[str], NDArray[Any], Sequence[str], str], str],
    ):
        self.name, self.corpus, self.told, self.top = name, corpus, told, top
        self.values = np.asarray(values, dtype=np.float64)
        self.spots, self.still, self._html = list(spots), still, html

    def symbols(self, start: int, stop: int) -> list[str]:
        """Tokens as text."""
        first = next(iter(self.told.values()))
        return notebook.symbols(self.corpus, first.text[start:stop])

    def tips(self, start: int, stop: int) -> list[str]:
        """What is said of each token, in lines."""

        def one(i: int) -> str:
            each = {name: told.expected(self.corpus, i) for name, told in self.told.items()}
            lines = (
                f"{n}: {alternatives.tip(e)}" if n else alternatives.tip(e) for n, e in each.items()
            )
            return "\n".join(lines)

        return [one(i) for i in range(start, stop)]

    def bars(self, i: int) -> go.Figure:
        """What each model expected in place of token `i`."""
        start = max(0, i - 24)
        symbols = self.symbols(start, i + 25)
        models = {name: told.expected(self.corpus, i) for name, told in self.told.items()}
        return alternatives.likeliest(models, around(symbols, i - start, 24))

    def hardest(self, spot: Passage) -> int:
        """The token of a passage that stands out most."""
        return spot.start + int(np.abs(self.values[spot.start : spot.stop]).argmax())

    def html(self) -> str:
        """The first passages as text on a page."""
        parts = (
            self._html(
                self.symbols(spot.start, spot.stop),
                self.values[spot.start : spot.stop],
                self.tips(spot.start, spot.stop),
                spot.title,
            )
            for spot in self.spots[: self.still]
        )
        return "\n".join(parts)

    def stills(self) -> dict[str, go.Figure]:
        if not self.spots:
            return {}
        return {f"{self.name}_expected": self.bars(self.hardest(self.spots[0]))}

    def show(self, folder: RunFolder | None = None) -> None:
        page = self.html()
        if folder is not None:
            notebook.keep_html(folder, self.name, page)
        if in_batch():
            display(HTML(page))
        super().show(folder)

    def live(self) -> ipywidgets.Widget:
        if not self.spots:
            return ipywidgets.Label("There is no passage of this kind.")
        first = self.hardest(self.spots[0])
        text, figure = Tokens([], top=self.top), alive(self.bars(first))
        picker = ipywidgets.Dropdown(
            options=[(spot.title, i) for i, spot in enumerate(self.spots)],
            description="passage",
            layout={"width": "min(60em, 98%)"},
        )
        least = ipywidgets.FloatSlider(
            value=0.0,
            max=self.top,
            step=self.top / 40,
            readout_format=".1f",
            description="bits above",
            layout={"width": "min(30em, 98%)"},
        )

        def colours(spot: Passage) -> list[float]:
            values = self.values[spot.start : spot.stop]
            return [float(v) if abs(v) >= least.value else 0.0 for v in values]

        def colour(*_: Any) -> None:
            text.values = colours(self.spots[picker.value])

        def turn(*_: Any) -> None:
            spot = self.spots[picker.value]
            text.title, text.selected = spot.title, -1
            place = spot.start, spot.stop
            text.put(self.symbols(*place), colours(spot), self.tips(*place))
            text.selected = self.hardest(spot) - spot.start

        turn()
        # from here on: before it is on the page there is nothing to redraw
        text.on_select(lambda i: redraw(figure, self.bars(self.spots[picker.value].start + i)))
        picker.observe(turn, "value")
        least.observe(colour, "value")
        return ipywidgets.VBox(
            [ipywidgets.HBox([picker, least], layout={"flex_flow": "wrap"}), text, figure]
        )


def hardest(
    detail: Detail, corpus: Corpus, text: Tensor, length: int = 240, count: int = 4
) -> Passages:
    """The passages that surprise a model most, hardest first.

    Args:
        detail: the evaluation.
        corpus: with the vocabulary.
        text: (n,) ids of the whole text.
        length: tokens of a passage.
        count: passages on a still page; in a browser `MORE` times as many.
    """
    told = Told.of(detail, text)
    bits = bits_per_token(1.0) * told.nats.astype(np.float64)
    where, unit, top = detail.evaluation.positions, corpus.unit, evaluation.full_colour(bits)
    # the first token of a stream is only read, so loss i may belong to token i + 1
    spots = [
        Passage(f"from token {where[a]:,}: {bits[a:b].mean():.2f} bits per {unit}", a, b)
        for a, b in evaluation.hardest_passages(bits, length, MORE * count)
    ]

    def html(symbols: Sequence[str], values: NDArray[Any], tips: Sequence[str], title: str) -> str:
        return evaluation.coloured_text(symbols, values, top=top, title=title, tips=tips)

    return Passages("hardest", corpus, {"": told}, bits, spots, count, top, html)


def differences(
    pair: Pair,
    details: tuple[Detail, Detail],
    names: Sequence[str],
    corpus: Corpus,
    text: Tensor,
    length: int = 240,
    count: int = 4,
) -> Passages:
    """The passages where one model is most ahead of the other, in turns.

    Args:
        pair: both models, compared.
        details: their evaluations.
        names: of both.
        corpus: with the vocabulary of both.
        text: (n,) ids of the whole text.
        length: tokens of a passage.
        count: passages on a still page; in a browser `MORE` times as many.
    """
    saved, where, unit = pair.compared.saved, pair.positions, corpus.unit
    sides: list[list[Passage]] = []
    for name, sign in ((names[1], 1), (names[0], -1)):
        found = evaluation.hardest_passages(sign * saved, length, MORE * count)
        means = [(a, b, float(sign * saved[a:b].mean())) for a, b in found]
        sides.append(
            [
                Passage(f"{name} saves {mean:.2f} bits per {unit} from token {where[a]:,}", a, b)
                for a, b, mean in means
                if mean > 0
            ]
        )
    spots = [spot for both in zip(*sides, strict=False) for spot in both]
    spots += [spot for side in sides for spot in side if spot not in spots]
    top = max(1.0, float(np.ceil(np.quantile(np.abs(saved), 0.99))))

    def html(symbols: Sequence[str], values: NDArray[Any], tips: Sequence[str], title: str) -> str:
        return difference.coloured_difference(symbols, -values, tips, names, top=top, title=title)

    told = {
        name: Told.of(detail, text, at)
        for name, detail, at in zip(names, details, pair.at, strict=True)
    }
    return Passages("differences", corpus, told, -saved, spots[: MORE * count], count, top, html)
