"""The writer: a prompt, buttons; the text as it comes, and what the model then does."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import ipywidgets
import numpy as np
import plotly.graph_objects as go
from IPython.display import display

from workbench import notebook
from workbench.attendance import in_batch
from workbench.errors import WorkbenchError
from workbench.metrics import bits_per_token
from workbench.notebook import View
from workbench.plots import page
from workbench.plots.evaluation import full_colour
from workbench.plots.passages import Passage
from workbench.plots.spans import span_bars
from workbench.plots.style import WIDTH
from workbench.plots.writing import past_in_use, rivals
from workbench.train.folder import RunFolder
from workbench.watching import SPAN, Written, ceilings, promised
from workbench.widgets.panel import Panel
from workbench.widgets.plot import Plot
from workbench.widgets.tokens import MOST_TOKENS, Tokens
from workbench.writing import Ask, Writing, probability

TEXT_EVERY_S, FIGURES_EVERY_S = 0.15, 0.6
FIRST_S = 4.0
"""longest time for the first text, before anything is on the page"""
BESIDE = 480
"""width of the figures beside the text, in pixels"""

Begin = Callable[[Ask], Generator[Written, None, None]]


class Controls:
    """How to write, as inputs: what `ask` says is what a parameters cell would."""

    def __init__(self, ask: Ask) -> None:
        wide = {"layout": {"width": "98%"}, "style": {"description_width": "7em"}}
        slim = {"layout": {"width": "14em"}, "style": {"description_width": "7em"}}
        stop = ask.stop if isinstance(ask.stop, str) else ""
        self.prompt = ipywidgets.Textarea(ask.prompt, description="prompt", rows=3, **wide)
        self.length = ipywidgets.IntText(ask.length, description="length", **slim)
        self.temperature = ipywidgets.FloatText(
            ask.temperature, description="temperature", step=0.1, **slim
        )
        self.top_k = ipywidgets.IntText(
            ask.top_k or 0, description="top k", tooltip="0: all tokens", **slim
        )
        self.top_p = ipywidgets.FloatText(
            1.0 if ask.top_p is None else ask.top_p,
            description="top p",
            step=0.05,
            tooltip="1: all tokens",
            **slim,
        )
        self.seed = ipywidgets.IntText(
            -1 if ask.seed is None else ask.seed,
            description="seed",
            tooltip="-1: another one each time",
            **slim,
        )
        self.stop = ipywidgets.Text(
            stop.replace("\n", "\\n"),
            description="stop at",
            tooltip="the text ends with this; \\n is a line end",
            **slim,
        )

    @property
    def box(self) -> ipywidgets.Widget:
        """All inputs."""
        numbers = [self.length, self.temperature, self.top_k, self.top_p, self.seed, self.stop]
        row = ipywidgets.HBox(numbers, layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([self.prompt, row])

    @property
    def ask(self) -> Ask:
        """What they say now."""
        stop = self.stop.value.replace("\\n", "\n")
        return Ask(
            self.prompt.value,
            self.length.value,
            self.temperature.value,
            self.top_k.value or None,
            None if self.top_p.value == 1 else self.top_p.value,
            stop,
            None if self.seed.value < 0 else self.seed.value,
        )


class Writer(Panel):
    """Type a prompt, watch the text come and what it costs, stop it, go on.

    Args:
        view: a run with its model and text.
        ask: how to write the first text, which is there when the view is shown.
    """

    def __init__(self, view: View, ask: Ask) -> None:
        self.writing, self.unit = Writing(view), view.corpus.unit
        self._first = ask
        self._gauges = promised(view.model)
        # dynamic spans are told token by token
        self._spans = [] if SPAN in self._gauges else notebook.spans(view)
        self._ceilings = ceilings(view.model)
        self._page: Page | None = None
        self._busy, self._stop = threading.Lock(), threading.Event()
        self._text_drawn = self._figures_drawn = float("-inf")
        self._said = ""

    def show(self, folder: RunFolder | None = None) -> None:
        """Put the view on the page with a first text; in batch that text and its pictures.

        Args:
            folder: whose `figures/` keep text and pictures.
        """
        # before anything is on the page: a browser loses changes of figures that it has not drawn
        self._work(self.writing.begin, self._first, None if in_batch() else FIRST_S)
        if not in_batch():
            display(self.live())
        keep = notebook.save_text if in_batch() else notebook.keep_text
        if folder is not None:
            keep(folder, "written", [self.passage])
        for name, fig in self.stills().items():
            if folder is not None:
                notebook.keep_figure(folder, name, fig)
            if in_batch():
                notebook.show(fig)

    def write(self, ask: Ask) -> None:
        """Write anew, and come back when the text ends or `stop` was called."""
        self._work(self.writing.begin, ask)

    def go_on(self, ask: Ask) -> None:
        """Write on from where the text ended, or was stopped."""
        self._work(self.writing.go_on, ask)

    def stop(self) -> None:
        """Let the text that is being written end with its next token."""
        self._stop.set()

    def _work(self, begin: Begin, ask: Ask, longest_s: float | None = None) -> None:
        if not self._busy.acquire(blocking=False):
            return
        self._stop.clear()
        self._say("writing ...", busy=True)
        began, count, said = time.monotonic(), 0, ""
        try:
            with closing(begin(ask)) as tokens:
                for _ in tokens:
                    count += 1
                    self._draw()
                    late = longest_s is not None and time.monotonic() - began > longest_s
                    if late or self._stop.is_set():
                        break
            rate = count / max(time.monotonic() - began, 1e-9)
            said = f"{count:,} tokens, {rate:,.0f} a second; {self.writing.settings}; seed "
            said += f"{self.writing.seed}"
        except WorkbenchError as error:
            said = str(error)
            if self._page is None:
                raise
        finally:
            self._busy.release()
            self._said = said
            self._draw(now=True)
            self._say(said)

    def _in_background(self, begin: Begin) -> None:
        assert self._page is not None, "only buttons come here"
        ask = self._page.controls.ask
        threading.Thread(target=self._work, args=(begin, ask), daemon=True).start()

    # drawing

    def _say(self, text: str, busy: bool = False) -> None:
        if self._page is not None:
            self._page.say(text, busy, self.writing.can_go_on)

    def _draw(self, now: bool = False) -> None:
        if self._page is None:
            return
        clock, n = time.monotonic(), len(self.writing.ids)
        # the whole text is sent each time: a longer one less often
        if now or clock - self._text_drawn > max(TEXT_EVERY_S, n / 5000):
            self._text_drawn = clock
            self._page.put(self.writing, self.title)
        if now or clock - self._figures_drawn > FIGURES_EVERY_S:
            self._figures_drawn = clock
            self._page.past.draw(self.past_figure(BESIDE))
            self._page.rivals.draw(self.rivals_figure(self._page.chosen, BESIDE))

    @property
    def title(self) -> str:
        """What the text costs."""
        written = self.writing.written
        if not written:
            return "nothing is written yet"
        bits = bits_per_token(sum(t.nats for t in written) / len(written))
        return f"{len(written):,} tokens, {bits:.2f} bits per {self.unit} under the model itself"

    @property
    def passage(self) -> Passage:
        """The text with what each token cost."""
        writing, n = self.writing, len(self.writing.ids)
        tips = [writing.tip(i) for i in range(n)]
        return Passage(self.title, writing.symbols, writing.bits, tips)

    def past_figure(self, width: int = WIDTH) -> go.Figure:
        """What the model does with its past, token by token."""
        written = list(self.writing.written)
        gauges = {
            name: {
                layer: np.array([t.gauges.get(name, {}).get(layer, np.nan) for t in written])
                for layer in layers
            }
            for name, layers in self._gauges.items()
        }
        return past_in_use(
            [t.position for t in written],
            gauges,
            [t.carry_bytes for t in written],
            [t.full_bytes for t in written],
            self._ceilings,
            width=width,
        )

    def rivals_figure(self, index: int | None = None, width: int = WIDTH) -> go.Figure:
        """The likeliest tokens in the place of one.

        Args:
            index: in the whole text, from 0; None, or one of the prompt: the newest.
            width: in pixels.
        """
        writing = self.writing
        at = -1 if index is None else index - writing.n_prompt
        if not writing.written:
            return rivals([], [], "", 0.0, 1, width=width)
        token = writing.written[at if 0 <= at < len(writing.written) else -1]
        labels = [writing.label(i) for i, _ in token.alternatives]
        chances = [probability(nats) for _, nats in token.alternatives]
        chosen, chance = writing.label(token.id), probability(token.nats)
        return rivals(labels, chances, chosen, chance, token.rank, width=width)

    def spans_figures(self, width: int = WIDTH) -> list[go.Figure]:
        """The span of each head, where the model has learned spans that are the same everywhere."""
        return [span_bars(self._spans).update_layout(width=width)] if self._spans else []

    def stills(self) -> dict[str, go.Figure]:
        """What the model does with its past, its spans, and the most surprising token."""
        bits = self.writing.bits
        hardest = int(np.argmax(bits)) if bits else None
        named = {"written_past": self.past_figure(), "written_token": self.rivals_figure(hardest)}
        return named | dict(zip(["written_spans"], self.spans_figures(), strict=False))

    def live(self) -> ipywidgets.Widget:
        """Inputs and text on the left, figures on the right, or below where it is narrow."""
        self._page = made = Page(
            self._first,
            self.past_figure(BESIDE),
            self.rivals_figure(None, BESIDE),
            self.spans_figures(BESIDE),
        )
        made.write.on_click(lambda _: self._in_background(self.writing.begin))
        made.on.on_click(lambda _: self._in_background(self.writing.go_on))
        made.stop.on_click(lambda _: self.stop())
        made.text.on_select(lambda _: made.rivals.draw(self.rivals_figure(made.chosen, BESIDE)))
        made.put(self.writing, self.title)
        made.say(self._said, False, self.writing.can_go_on)
        return made.box


class Page:
    """What a writer has on the page."""

    def __init__(
        self, ask: Ask, past: go.Figure, others: go.Figure, more: Sequence[go.Figure]
    ) -> None:
        self.controls = Controls(ask)
        self.write = ipywidgets.Button(description="Write", button_style="primary", icon="pencil")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.on = ipywidgets.Button(description="Go on", icon="forward", disabled=True)
        self.message = ipywidgets.HTML()
        self.text = Tokens([])
        self.first = 0
        """which token of the whole text is the first that is shown"""
        self.past, self.rivals = Plot(past), Plot(others)
        self.more = [Plot(fig) for fig in more]

    @property
    def box(self) -> ipywidgets.Widget:
        """All of it."""
        buttons = ipywidgets.HBox([self.write, self.stop, self.on])
        left = [self.controls.box, buttons, self.message, self.text]
        right = [self.rivals, self.past, *self.more]
        columns = [
            ipywidgets.VBox(left, layout={"flex": "1 1 24em", "min_width": "18em"}),
            ipywidgets.VBox(right, layout={"flex": "0 0 auto"}),
        ]
        layout = {"flex_flow": "row wrap", "align_items": "flex-start"}
        return ipywidgets.HBox(columns, layout=layout).add_class("wb-writer")

    @property
    def chosen(self) -> int | None:
        """Which token the reader has chosen."""
        return self.first + self.text.selected if self.text.selected >= 0 else None

    def say(self, text: str, busy: bool, can_go_on: bool) -> None:
        """Tell how it stands, and let those buttons be pressed that do something now."""
        self.write.disabled, self.stop.disabled = busy, not busy
        self.on.disabled = busy or not can_go_on
        self.message.value = (
            f'<span class="wb-writer-message" role="status" style="color:{page.MUTED}">'
            f"{html.escape(text)}</span>"
        )

    def put(self, writing: Writing, title: str) -> None:
        """Show the text; of one that is too long for a page its end."""
        n = len(writing.ids)
        first = max(0, n - MOST_TOKENS)
        bits, self.first = writing.bits[first:], first
        self.text.top = full_colour(bits)
        self.text.title = title
        self.text.put(writing.symbols[first:], bits, [writing.tip(i) for i in range(first, n)])
