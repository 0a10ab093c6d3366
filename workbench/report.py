"""One self-contained HTML page of runs: a table, and every figure their notebooks kept.

Everything is inside the file, plotly's JavaScript once, so it works offline and by mail.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.kept import Kept, evaluation, kept, records, status, whole
from workbench.metrics import bits_per_token
from workbench.plots import standalone
from workbench.plots.passages import render
from workbench.train.folder import RunFolder

ORDER = (
    "comparison",
    "learning_curves",
    "sweep",
    "training",
    "training_samples",
    "span_bars",
    "span_heatmap",
    "span_over_training",
    "soft_mask",
    "head_mask",
    "attention_map",
    "context_used",
    "attention_by_distance",
    "token_spans",
    "span_costs",
    "laboratory",
    "feature_maps",
    "interference",
    "capacity",
    "overwriting",
    "film_strip",
    "matrix_over_time",
    "writes",
    "read_back",
    "delta_against_sum",
    "effective_rank",
    "loss_by_context",
    "calibration",
    "loss_by_position",
    "hardest",
    "hardest_expected",
    "difference_spread",
    "difference_along",
    "differences",
    "differences_expected",
    "retrieval_capacity",
    "retrieval_update",
    "samples",
    "temperatures",
    "scored",
    "cache_grid",
    "cache_gain",
)
"""In which order figures appear; others follow by name."""


def summary(folder: RunFolder) -> dict[str, str]:
    """One row of the closing table, from what the run and its notebooks left in the folder."""
    state, train = status(folder), records(folder, "train")
    result = evaluation(folder)
    splits = result.get("splits", {})
    unit = "char" if result.get("unit", "character") == "character" else result["unit"]
    row = {
        "model": folder.recipe().name,
        "text": folder.recipe().data.dataset,
        "parameters": f"{result['n_parameters']:,}" if result else "-",
        "steps": _steps(state.get("step", 0), folder.recipe().train.steps),
    }
    for name in ("valid", "test"):
        score = splits.get(name)
        row[f"{name} bits/{unit}"] = f"{bits_per_token(score['loss_nats']):.3f}" if score else "-"
    score = splits.get("test")
    if score and unit == "token":
        bits = bits_per_token(score["loss_nats"]) / score["bytes_per_token"]
        row["test bits/byte"] = f"{bits:.3f}"
    row["method"] = _method(score) if score else "-"
    row["scored"] = f"{score['tokens']:,}" if score else "-"
    spans = [r["readings"]["span"] for r in train[-1:] if r.get("readings", {}).get("span")]
    flat = [s for layer in spans[-1] for s in layer if s is not None] if spans else []
    row["mean span"] = f"{statistics.mean(flat):.1f}" if flat else "-"
    row["max span"] = f"{max(flat):.1f}" if flat else "-"
    speeds = [x for r in train if (x := r.get("tokens_per_s")) is not None]
    row["tokens/s"] = f"{statistics.median(speeds):,.0f}" if speeds else "-"
    ran = {f"{op}: {name}" for r in train for op, name in r.get("backends", {}).items()}
    row["backends"] = ", ".join(sorted(ran)) or "torch"
    return row


def _method(score: Mapping[str, Any]) -> str:
    """How a split was scored: the tokens each layer looks back over, or all where a recurrent
    state has seen the whole text."""
    if score["method"] == "carried" and score.get("reach") is None:
        return "carried, all"
    return f"{score['method']} {score['context_len'] or ''}".strip()


def _steps(done: int, planned: int) -> str:
    return f"{done:,}" if done == planned else f"{done:,} of {planned:,}"


def against_baselines(folder: RunFolder) -> str:
    """Bits of the model and of the baselines on the same held-out text, in a line."""
    result = evaluation(folder)
    if not result:
        return f"{folder.recipe().name} is not evaluated yet"
    # of valid where the text has no test split
    last = list(result["splits"].values())[-1]
    own = bits_per_token(last["loss_nats"])
    others = ", ".join(f"{name} {bits:.3f}" for name, bits in result["baselines_bits"].items())
    return f"{result['recipe']} {own:.3f} bits per {result['unit']}; {others}"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as text in columns, for a terminal."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([row.get(name, "-") for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    text = ["  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines]
    return "\n".join([text[0], "  ".join("-" * w for w in widths), *text[1:]])


def build(path: Path, folders: Sequence[RunFolder]) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; replaced if it is there.
        folders: the runs, in the order of the page.

    Raises:
        RunFolderError: records, state or evaluation of a run are not what they should be.
    """
    rows = [summary(folder) for folder in folders]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "-") for name in names] for row in rows]
    sections = [_section(i, folder) for i, folder in enumerate(folders, 1)]
    about = (
        "Bits per token of held-out text, every token but the first scored exactly once; lower is "
        "better. Spans and contexts are in tokens. Figures can be zoomed; hover for numbers."
    )
    body = [
        f"<p class='about'>{about}</p>",
        f"<nav aria-label='Contents'><ul>{''.join(link for link, _ in sections)}</ul></nav>",
        f"<div id='content'>{standalone.grid(names, cells, 'All runs')}",
        *(piece for _, pieces in sections for piece in pieces),
        "</div>",
    ]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(standalone.page("What the models learnt", body), encoding="utf-8")
    partial.replace(path)
    return path


def _section(number: int, folder: RunFolder) -> tuple[str, list[str]]:
    """A run's entry in the list of contents, and its pieces of the page."""
    recipe, place = folder.recipe(), f"run{number}"
    source = f" ({recipe.source.paper})" if recipe.source.paper else ""
    pieces = [
        f"<h2 id='{place}'>{html.escape(whole(recipe.name))}</h2>",
        f"<p class='about'>{html.escape(whole(recipe.about + source))}</p>",
    ]
    if told := evaluation(folder).get("comparable"):
        pieces.append(f"<p class='about'>Comparable: {html.escape(told)}.</p>")
    links = []
    for n, found in enumerate(figures(folder), 1):
        at, heading = f"{place}-figure{n}", heading_of(found.name)
        links.append(f"<li><a href='#{at}'>{html.escape(heading)}</a></li>")
        if found.figure is not None:
            pieces.append(standalone.figure(found.figure, at, heading, found.note))
        elif found.passages:
            pieces.append(standalone.text(render(found.passages), at, heading, found.note))
        else:
            pieces.append(standalone.text("", at, heading, found.note))
    inside = f"<ul>{''.join(links)}</ul>" if links else ""
    link = f"<li><a href='#{place}'>{html.escape(whole(recipe.name))}</a>{inside}</li>"
    return link, pieces


def heading_of(name: str) -> str:
    """What stands above a figure: its file's name as words."""
    return whole(name).replace("_", " ").capitalize()


def figures(folder: RunFolder) -> list[Kept]:
    """What notebooks kept in a run folder, in reading order."""
    rank = {name: i for i, name in enumerate(ORDER)}
    return sorted(kept(folder), key=lambda k: (rank.get(k.name, len(ORDER)), k.name))
