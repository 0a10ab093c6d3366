"""One self-contained HTML page of runs: a table, and every figure their notebooks kept.

Everything is inside the file, plotly's JavaScript once, so it works offline and by mail.
"""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from workbench.metrics import bits_per_token
from workbench.plots.style import CONFIG
from workbench.train.folder import RunFolder

EVALUATION = "evaluation.json"
"""what `notebooks/evaluate.ipynb` leaves in the run folder"""

ORDER = (
    "comparison",
    "training",
    "span_bars",
    "span_heatmap",
    "span_over_training",
    "soft_mask",
    "attention_map",
    "attention_by_distance",
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

STYLE = """
body { font: 15px/1.55 Inter, Helvetica, Arial, sans-serif; color: #1F2933; background: #F5F7FA;
  margin: 0; }
main { max-width: 940px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.6rem 0 .2rem; }
p { margin: .3rem 0 .8rem; } p.about, figcaption { color: #52606D; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid #E4E7EB; }
th { color: #52606D; font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; border: 1px solid #E4E7EB; border-radius: 6px; }
figure { background: #fff; border: 1px solid #E4E7EB; border-radius: 6px; margin: 1rem 0;
  padding: .8rem; overflow-x: auto; }
figcaption { font-size: 13px; padding: .2rem .4rem 0; }
nav a { margin-right: 1rem; color: #2A73AE; }
pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
"""


def summary(folder: RunFolder) -> dict[str, str]:
    """One row of the closing table, from what the run and its notebooks left in the folder."""
    status, train = folder.status(), folder.records("train")
    result = evaluation(folder)
    splits = result.get("splits", {})
    unit = "char" if result.get("unit", "character") == "character" else result["unit"]
    row = {
        "model": folder.recipe().name,
        "text": folder.recipe().data.dataset,
        "parameters": f"{result['n_parameters']:,}" if result else "-",
        "steps": _steps(status.get("step", 0), folder.recipe().train.steps),
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
    spans = [r["readings"]["span"] for r in train[-1:] if r["readings"].get("span")]
    flat = [s for layer in spans[-1] for s in layer] if spans else []
    row["mean span"] = f"{statistics.mean(flat):.1f}" if flat else "-"
    row["max span"] = f"{max(flat):.1f}" if flat else "-"
    speeds = [r["tokens_per_s"] for r in train]
    row["tokens/s"] = f"{statistics.median(speeds):,.0f}" if speeds else "-"
    ran = {f"{op}: {name}" for r in train for op, name in r["backends"].items()}
    row["backends"] = ", ".join(sorted(ran)) or "torch"
    return row


def evaluation(folder: RunFolder) -> dict[str, Any]:
    """What `notebooks/evaluate.ipynb` measured; empty before it has run."""
    found = folder.path / EVALUATION
    return json.loads(found.read_text("utf-8")) if found.is_file() else {}


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
    """
    rows = [summary(folder) for folder in folders]
    links = "".join(
        f'<a href="#{_id(i)}">{html.escape(r["model"])}</a>' for i, r in enumerate(rows)
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Runs</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
        "<main><h1>What the models learnt</h1>",
        "<p class='about'>Bits per token of held-out text, every token but the first scored "
        "exactly once; lower is better. Spans and contexts are in tokens. Figures can be "
        "zoomed; hover for numbers.</p>",
        f"<nav>{links}</nav>{_html_table(rows)}",
    ]
    for i, folder in enumerate(folders):
        recipe = folder.recipe()
        source = f" ({recipe.source.paper})" if recipe.source.paper else ""
        parts.append(f"<h2 id='{_id(i)}'>{html.escape(recipe.name)}</h2>")
        parts.append(f"<p class='about'>{html.escape(recipe.about + source)}</p>")
        if told := evaluation(folder).get("comparable"):
            parts.append(f"<p class='about'>Comparable: {html.escape(told)}.</p>")
        parts += [_figure(file, f"{_id(i)}-{file.stem}") for file in figures(folder)]
    parts.append("</main></body></html>")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(parts), encoding="utf-8")
    partial.replace(path)
    return path


def figures(folder: RunFolder) -> list[Path]:
    """The figures that notebooks kept in a run folder, in reading order."""
    kept = [p for p in (folder.path / "figures").glob("*") if p.suffix in (".json", ".html")]
    rank = {name: i for i, name in enumerate(ORDER)}
    return sorted(kept, key=lambda p: (rank.get(p.stem, len(ORDER)), p.stem))


def _id(i: int) -> str:
    return f"run{i + 1}"


def _html_table(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row.get(n, '-'))}</td>" for n in names) + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _figure(file: Path, name: str) -> str:
    if file.suffix == ".html":
        return f"<figure>{file.read_text('utf-8')}</figure>"
    fig = json.loads(file.read_text("utf-8"))
    caption = (fig["layout"].get("meta") or {}).get("caption", "")
    # the page's own width rules; and text of a corpus must not end the script
    fig["layout"].pop("width", None)
    fig["layout"]["autosize"] = True
    fig["layout"].get("template", {}).get("layout", {}).pop("width", None)
    drawn = json.dumps([fig["data"], fig["layout"], CONFIG]).replace("</", "<\\/")
    return (
        f"<figure><div id='{name}'></div><figcaption>{html.escape(caption)}</figcaption></figure>"
        f"<script>Plotly.newPlot('{name}', ...{drawn});</script>"
    )
