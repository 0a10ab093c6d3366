"""A text as tokens that can be pointed at, clicked and walked through by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.plots import page
from workbench.plots.style import visible

MOST_TOKENS = 5_000
"""that a browser draws without a wait; show a longer text in passages"""

_HERE = Path(__file__)
_COLOURS = {"INK": page.INK, "PAPER": page.PAPER, "MUTED": page.MUTED, "LINE": page.LINE}


def _css() -> str:
    text = _HERE.with_suffix(".css").read_text(encoding="utf-8")
    for name, value in _COLOURS.items():
        text = text.replace(f"{{{name}}}", value)
    return text


class Tokens(anywidget.AnyWidget):
    """Tokens in a row, each with a value as its background and a tip.

    Click a token, or walk with the arrow keys, Home and End: `selected` follows. The tip of the
    token under the mouse, else of the selected one, is shown; all of it is text, never HTML.
    """

    _esm = _HERE.with_suffix(".js").read_text(encoding="utf-8")
    _css = _css()

    symbols = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """as they are shown"""
    breaks = traitlets.List(traitlets.Int()).tag(sync=True)
    """after which tokens a new line begins"""
    values = traitlets.List(traitlets.Float()).tag(sync=True)
    """one for each token, or none at all"""
    tips = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """one for each token, or none at all; may have several lines"""
    top = traitlets.Float(1.0).tag(sync=True)
    """value of full colour; -top has the full other colour"""
    selected = traitlets.Int(-1).tag(sync=True)
    """which token, from 0; -1: none"""
    title = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        symbols: Sequence[str],
        values: Sequence[float] = (),
        tips: Sequence[str] = (),
        *,
        top: float = 1.0,
        title: str = "",
        selected: int = -1,
    ):
        """
        Args:
            symbols: (n,) the tokens, as text or as a vocabulary's labels.
            values: (n,) from 0 (no colour) to `top`, or down to `-top` in another colour; or empty.
            tips: (n,) what is said of each; or empty.
            top: value of full colour.
            title: a line above, and what a screen reader calls the whole.
            selected: which token is chosen at first.

        Raises:
            ValueError: lengths differ, or more than `MOST_TOKENS`.
        """
        super().__init__(top=top, title=title, selected=selected)
        self.put(symbols, values, tips)

    def put(
        self, symbols: Sequence[str], values: Sequence[float] = (), tips: Sequence[str] = ()
    ) -> None:
        """Replace the text; one that goes on as the old one began is only added to.

        Raises:
            ValueError: lengths differ, or more than `MOST_TOKENS`.
        """
        n = len(symbols)
        if n > MOST_TOKENS:
            raise ValueError(f"got {n:,} tokens, expected at most {MOST_TOKENS:,}; show a passage")
        for name, given in (("values", values), ("tips", tips)):
            if len(given) not in (0, n):
                raise ValueError(f"got {len(given)} {name} for {n} tokens")
        with self.hold_sync():
            self.symbols = [_glyph(s) for s in symbols]
            self.breaks = [i for i, s in enumerate(symbols) if s.strip(" ") in ("\n", "↵", "<eos>")]
            self.values = [float(v) for v in values]
            self.tips = [str(tip) for tip in tips]
            if self.selected >= n:
                self.selected = -1

    def on_select(self, callback: Callable[[int], Any]) -> None:
        """Call with the number of the token that was chosen, from 0."""
        self.observe(lambda change: change["new"] >= 0 and callback(change["new"]), "selected")


def _glyph(symbol: str) -> str:
    """A label's mark for a blank stands for a blank in running text."""
    return " " if symbol in (" ", "␣") else visible(symbol.replace("␣", " "))
