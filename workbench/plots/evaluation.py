"""What the model knows: against baselines, by context, and token by token as coloured text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from workbench.plots import page
from workbench.plots.style import COLOURS, INK, QUIET, finish, float32, label, mark, running

LINE_ENDS = ("\n", "\\n", "↵", "⏎", "<eos>", "<S>")


def comparison_bars(
    models: Mapping[str, float], baselines: Mapping[str, float], unit: str = "character"
) -> go.Figure:
    """Bits per token of models (coloured) and baselines (grey), best on top.

    Args:
        models, baselines: name -> bits per token on the same text.
        unit: what a token is.
    """
    both = sorted({**baselines, **models}.items(), key=lambda pair: -pair[1])
    names, bits = [n for n, _ in both], [b for _, b in both]
    fig = go.Figure(
        go.Bar(
            x=float32(bits),
            y=[label(name) for name in names],
            orientation="h",
            marker_color=[COLOURS[0] if n in models else QUIET for n in names],
            text=[f"{b:.3f}" for b in bits],
            textposition="outside",
            hovertemplate="%{y}: %{x:.4f} bits<extra></extra>",
        )
    )
    name, best = min(models.items(), key=lambda pair: pair[1])
    rival, bound = min(baselines.items(), key=lambda pair: pair[1])
    saved = bound - best
    relation = "below" if saved > 0 else "above"
    finish(
        fig,
        label(f"{name}: {best:.3f} bits per {unit}, {abs(saved):.3f} {relation} {rival}"),
        "Same text for all; lower is better",
        x=f"bits per {unit}",
        height=160 + 36 * len(names),
        caption="Held-out text, every token but the first scored exactly once.",
    )
    fig.update_xaxes(range=[0, max(bits) * 1.12])
    fig.update_yaxes(showgrid=False, ticks="")
    fig.update_layout(bargap=0.35)
    return fig


def loss_by_context(
    contexts: Sequence[int],
    bits: ArrayLike,
    errors: ArrayLike | None = None,
    unit: str = "character",
    saved: Sequence[tuple[float, float, float]] | None = None,
) -> go.Figure:
    """What memory buys: loss when a token is predicted from exactly so many before it.

    Args:
        contexts: tokens before the predicted one, increasing.
        bits: mean bits per token at each.
        errors: standard error of each mean; the same tokens are scored at all contexts, so
            differences are surer than these.
        unit: what a token is.
        saved: at each, bits that the longest context saves on the same tokens, and the ends of its
            interval.
    """
    loss = np.asarray(bits, dtype=np.float64)
    bars = None if errors is None else {"array": float32(errors), "color": QUIET, "thickness": 1}
    fig = go.Figure(
        go.Scatter(
            x=list(contexts),
            y=float32(loss),
            error_y=bars,
            mode="lines+markers",
            line={"color": COLOURS[0], "width": 2},
            marker={"size": 8},
            text=[_more(*told) for told in saved] if saved else None,
            hovertemplate="%{x} tokens of context: %{y:.3f} bits%{text}<extra></extra>",
        )
    )
    enough = int(np.argmax(loss <= loss.min() + 0.01))
    mark(
        fig,
        contexts[enough],
        f"within 0.01 bits of the best from {contexts[enough]}",
        axis="x",
        log=True,
        end="right" if enough > len(loss) // 2 else "left",
    )
    gain = loss[0] - loss.min()
    interval = f" ({saved[0][1]:.3f} to {saved[0][2]:.3f} at the longest)" if saved else ""
    finish(
        fig,
        f"Context beyond {_count(contexts[0])} buys {gain:.3f} bits per {unit}{interval}",
        "Each token predicted from a fresh state that saw exactly this many tokens before it",
        x="context (tokens)",
        y=f"bits per {unit}",
        caption="Where the curve is flat, a longer memory is no use to this model.",
    )
    fig.update_xaxes(type="log", tickvals=list(contexts), ticktext=[str(c) for c in contexts])
    return fig


def _more(saved: float, low: float, high: float) -> str:
    if saved == low == high == 0:
        return ""
    return f"<br>the longest saves {saved:.3f} more, 95% interval {low:.3f} to {high:.3f}"


def _count(tokens: int) -> str:
    return "one token" if tokens == 1 else f"{tokens} tokens"


def loss_by_position(bits: ArrayLike, bins: int = 200, unit: str = "character") -> go.Figure:
    """Loss along the text: mean bits in equal stretches, and the mean over all that came before.

    Args:
        bits: of each scored token, in text order.
        bins: stretches.
        unit: what a token is.
    """
    every = np.asarray(bits, dtype=np.float64)
    edges = np.linspace(0, len(every), min(bins, len(every)) + 1).astype(int)
    sums = np.add.reduceat(every, edges[:-1])
    middle = (edges[:-1] + edges[1:]) / 2
    fig = go.Figure()
    fig.add_scatter(
        x=middle,
        y=float32(sums / np.diff(edges)),
        mode="lines",
        name="here",
        line={"color": COLOURS[5], "width": 1},
    )
    fig.add_scatter(
        x=edges[1:],
        y=float32(sums.cumsum() / edges[1:]),
        mode="lines",
        name="mean so far",
        line={"color": INK, "width": 2},
    )
    hardest = int(middle[np.argmax(sums / np.diff(edges))])
    return finish(
        fig,
        f"{every.mean():.3f} bits per {unit}; hardest near token {hardest:,}",
        f"Means over stretches of {max(1, len(every) // max(1, len(middle))):,} tokens",
        x="position in the text (tokens)",
        y=f"bits per {unit}",
        caption="Loss along the held-out text: which parts are hard, and whether it drifts.",
    )


def hardest_passages(bits: ArrayLike, length: int = 160, count: int = 4) -> list[tuple[int, int]]:
    """Stretches of highest mean loss that do not overlap.

    Args:
        bits: of each scored token, in text order.
        length: tokens of a passage.
        count: how many.

    Returns:
        (start, stop) into `bits`, hardest first.
    """
    loss = np.asarray(bits, dtype=np.float64)
    length = min(length, len(loss))
    if length == 0:
        return []
    total = np.concatenate([[0.0], loss.cumsum()])
    mean: NDArray[np.float64] = (total[length:] - total[:-length]) / length
    found: list[tuple[int, int]] = []
    while len(found) < count and np.isfinite(mean).any():
        start = int(np.nanargmax(mean))
        found.append((start, start + length))
        mean[max(0, start - length + 1) : start + length] = np.nan
    return found


def full_colour(bits: ArrayLike) -> float:
    """Where the colour of a token's loss is full: few tokens of a text lie above.

    8 bits, the cost of a byte drawn at random, or more where tokens cost more, as words do.
    """
    values = np.asarray(bits, dtype=np.float64)
    return max(8.0, 8 * float(np.ceil(np.quantile(values, 0.9) / 8))) if len(values) else 8.0


def _shade(bits: float, top: float) -> str:
    """Background from the page's own (0 bits) to vermilion (`top` bits), in both themes."""
    return f"rgba(224,106,27,{0.8 * min(max(bits / top, 0.0), 1.0):.3f})"


def coloured_text(
    symbols: Sequence[str],
    bits: ArrayLike,
    *,
    top: float | None = None,
    title: str = "",
    tips: Sequence[str] | None = None,
) -> str:
    """Text whose background tells each token's loss, as HTML that loads nothing.

    Args:
        symbols: the tokens as text; a line end (a newline, or a mark for one) starts a new line.
        bits: of each token.
        top: bits at which the colour is full; None: `full_colour` of these bits.
        title: a line above.
        tips: what hovering over each token says; None: its bits and probability.
    """
    losses = [float(loss) for loss in np.asarray(bits, dtype=np.float64)]
    top = full_colour(bits) if top is None else top
    if tips is None:
        pairs = zip(symbols, losses, strict=True)
        tips = [f"{symbol!r}: {loss:.2f} bits, p = {2.0**-loss:.3g}" for symbol, loss in pairs]
    scale = "".join(
        f'<span style="background:{_shade(b, top)};padding:0 .5em">{b:g}</span>'
        for b in np.linspace(0, top, 5)
    )
    head = f"<div>{html.escape(title)} &nbsp; bits: {scale}</div>"
    return text_html(symbols, [_shade(loss, top) for loss in losses], tips, head)


def text_html(symbols: Sequence[str], shades: Sequence[str], tips: Sequence[str], head: str) -> str:
    """Text with a background and a tip for each token.

    Args:
        symbols: the tokens as text; a line end (a newline, or a mark for one) starts a new line.
        shades: CSS colours.
        tips: plain text.
        head: HTML above.
    """
    parts = []
    for symbol, shade, tip in zip(symbols, shades, tips, strict=True):
        ends = symbol in LINE_ENDS or symbol.strip() in LINE_ENDS
        # the mark for a blank serves single symbols; a line of code reads better with the blank
        shown = "↵" if ends else html.escape(running(symbol.replace("␣", " ")))
        parts.append(
            f'<span title="{html.escape(tip)}" style="background:{shade}">{shown}</span>'
            + ("\n" if ends else "")
        )
    body = (
        '<pre style="line-height:1.45;white-space:pre-wrap;word-break:normal;'
        f"overflow-wrap:anywhere;color:{page.INK};background:{page.PAPER};padding:.6em;"
        f'border:1px solid {page.LINE}">{"".join(parts)}</pre>'
    )
    return f'<div class="coloured-text">{head}{body}</div>'
