"""Passages of text as data: what a notebook keeps of a text, and how it is drawn as HTML.

A run folder holds the tokens and their values, never the HTML: that is made by whoever shows them,
so that a folder from somebody else cannot bring anything along that a browser would run.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workbench.plots import difference, evaluation, page
from workbench.plots.style import running

KIND = "passages"
"""what the file says it holds; a figure says nothing"""


@dataclass(frozen=True)
class Passage:
    """A run of text with a line above it."""

    title: str
    symbols: Sequence[str]
    """the tokens as text"""
    values: Sequence[float | None] | None = None
    """bits of each token, which colour it, None where they are not finite; None: plain text"""
    tips: Sequence[str] | None = None
    """what hovering over each token says; None: its bits and probability"""
    models: tuple[str, str] | None = None
    """names of two models: values are then the bits that the first saves against the second, below
    zero those that the second saves"""
    given: int = 0
    """so many tokens at the beginning stand in bold: a prompt, which no model wrote"""


def plain(passages: Sequence[Passage]) -> dict[str, Any]:
    """Passages as plain data for JSON.

    Raises:
        ValueError: a passage has not as many values, or tips, as tokens.
    """
    for p in passages:
        for what, found in (("values", p.values), ("tips", p.tips)):
            if found is not None and len(found) != len(p.symbols):
                raise ValueError(f"{p.title!r}: {len(p.symbols)} tokens, {len(found)} {what}")
    rows = [
        asdict(p)
        | {
            "symbols": list(p.symbols),
            "values": None if p.values is None else _finite(p.values),
            "tips": None if p.tips is None else list(p.tips),
            "models": None if p.models is None else list(p.models),
        }
        for p in passages
    ]
    return {"kind": KIND, "passages": rows}


def _finite(values: Sequence[float | None]) -> list[float | None]:
    floats = np.asarray(values, dtype=np.float64)
    return [float(v) if np.isfinite(v) else None for v in floats]


def render(passages: Sequence[Passage]) -> str:
    """Passages one below the other, as HTML that loads nothing; colours mean the same in all."""
    bits = [b for p in passages for b in (() if p.values is None else p.values) if b is not None]
    tops = difference.full_colour(bits), evaluation.full_colour(bits)
    return "\n".join(
        _plain_text(p) if p.values is None else _coloured(p, tops[p.models is None])
        for p in passages
    )


def _coloured(p: Passage, top: float) -> str:
    bits = np.asarray(p.values, dtype=np.float64)
    if p.models is not None:
        tips = p.tips or [f"{bit:+.2f} bits" for bit in bits]
        return difference.coloured_difference(p.symbols, bits, tips, p.models, top, p.title)
    return evaluation.coloured_text(p.symbols, bits, top=top, title=p.title, tips=p.tips)


def _plain_text(p: Passage) -> str:
    given, rest = "".join(p.symbols[: p.given]), "".join(p.symbols[p.given :])
    bold = f"<b>{html.escape(running(given))}</b>" if given else ""
    return (
        f'<div style="margin-top:.8em;color:{page.MUTED}">{html.escape(p.title)}</div>'
        '<pre tabindex="0" style="white-space:pre-wrap;overflow-wrap:anywhere;padding:.6em;'
        f"margin:.2em 0;max-height:30em;overflow:auto;background:{page.PAPER};color:{page.INK};"
        f'border:1px solid {page.LINE}">{bold}{html.escape(running(rest))}</pre>'
    )
