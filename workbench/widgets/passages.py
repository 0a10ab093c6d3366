"""Passages of a scored text, to be read token by token: what each cost, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from workbench import notebook
from workbench.attendance import in_batch
from workbench.data.corpus import Corpus
from workbench.detail import Detail
from workbench.measurement import Pair
from workbench.metrics import bits_per_token
from workbench.plots import alternatives, difference, evaluation
from workbench.plots.alternatives import Expected
from workbench.plots.passages import Passage
from workbench.plots.style import around
from workbench.train.folder import RunFolder
from workbench.widgets.panel import Panel
from workbench.widgets.plot import Plot
from workbench.widgets.tokens import Tokens

MORE = 4
"""times as many passages to choose from in a browser as stand on a still page"""


class Spot(NamedTuple):
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
        names: of two models whose difference the values are: the bits that the first saves.
    """

    def __init__(
        self,
        name: str,
        corpus: Corpus,
        told: dict[str, Told],
        values: ArrayLike,
        spots: Sequence[Spot],
        still: int,
        top: float,
        names: tuple[str, str] | None = None,
    ):
        self.name, self.corpus, self.told, self.top = name, corpus, told, top
        self.values = np.asarray(values, dtype=np.float64)
        self.spots, self.still, self.names = list(spots), still, names

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

    def hardest(self, spot: Spot) -> int:
        """The token of a passage that stands out most."""
        return spot.start + int(np.abs(self.values[spot.start : spot.stop]).argmax())

    def passages(self) -> list[Passage]:
        """The first passages, as a still page shows them."""
        return [
            Passage(
                spot.title,
                self.symbols(spot.start, spot.stop),
                self.values[spot.start : spot.stop].tolist(),
                self.tips(spot.start, spot.stop),
                self.names,
            )
            for spot in self.spots[: self.still]
        ]

    def stills(self) -> dict[str, go.Figure]:
        if not self.spots:
            return {}
        return {f"{self.name}_expected": self.bars(self.hardest(self.spots[0]))}

    def show(self, folder: RunFolder | None = None) -> None:
        if folder is not None:
            keep = notebook.save_text if in_batch() else notebook.keep_text
            keep(folder, self.name, self.passages())
        super().show(folder)

    def live(self) -> ipywidgets.Widget:
        if not self.spots:
            return ipywidgets.Label("There is no passage of this kind.")
        first, at = self.spots[0], self.hardest(self.spots[0])
        # complete from the start: a page that is busy may lose what is said before it has begun
        text = Tokens(
            self.symbols(first.start, first.stop),
            self.values[first.start : first.stop].tolist(),
            self.tips(first.start, first.stop),
            top=self.top,
            title=first.title,
            selected=at - first.start,
        )
        figure = Plot(self.bars(at))
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

        def colours(spot: Spot) -> list[float]:
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

        text.on_select(lambda i: figure.draw(self.bars(self.spots[picker.value].start + i)))
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
        Spot(f"from token {where[a]:,}: {bits[a:b].mean():.2f} bits per {unit}", a, b)
        for a, b in evaluation.hardest_passages(bits, length, MORE * count)
    ]

    return Passages("hardest", corpus, {"": told}, bits, spots, count, top)


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
    sides: list[list[Spot]] = []
    for name, sign in ((names[1], 1), (names[0], -1)):
        found = evaluation.hardest_passages(sign * saved, length, MORE * count)
        means = [(a, b, float(sign * saved[a:b].mean())) for a, b in found]
        sides.append(
            [
                Spot(f"{name} saves {mean:.2f} bits per {unit} from token {where[a]:,}", a, b)
                for a, b, mean in means
                if mean > 0
            ]
        )
    spots = [spot for both in zip(*sides, strict=False) for spot in both]
    spots += [spot for side in sides for spot in side if spot not in spots]
    told = {
        name: Told.of(detail, text, at)
        for name, detail, at in zip(names, details, pair.at, strict=True)
    }
    # as elsewhere the second is blue
    spots, top = spots[: MORE * count], difference.full_colour(saved)
    both = (names[0], names[1])
    return Passages("differences", corpus, told, -saved, spots, count, top, both)
