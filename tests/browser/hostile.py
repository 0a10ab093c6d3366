"""Texts and folders of somebody who wishes us ill.

Whatever of them a browser takes for HTML shows itself: a dialog opens, or another machine is asked
for something, and `watch.Watch` notices both.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import yaml

from workbench import start

ELSEWHERE = "http://elsewhere.example"
SCRIPT = "<script>alert('script')</script>"
CLOSING = "</script><script>alert('closed')</script>"
IMAGE = "<img/src=x/onerror=alert('image')>"
QUOTES = "\"'><img/src=x/onerror=alert('quotes')>"
FETCH = f"<img/src='{ELSEWHERE}/word.png'>"
LINK = "<a/href=javascript:alert('link')>link</a>"
TEMPLATE = "{{alert('template')}}"
CONTROL = "bell\x07\u202eright-to-left"
WORDS = (SCRIPT, CLOSING, IMAGE, QUOTES, FETCH, LINK, TEMPLATE, CONTROL)
"""words of a corpus: no blanks, all else that HTML minds"""
NAME = "<img src=x onerror=alert(1)>\"'&amp;"
"""of a recipe and of a folder: no slash"""
ABOUT = f"about {SCRIPT} {CLOSING} {IMAGE} {FETCH} & 'quoted' \"twice\""

MIXERS: dict[str, dict[str, Any]] = {
    "span": {
        "kind": "attention",
        "n_heads": 2,
        "d_head": 8,
        "memory_len": 32,
        "memory_start": "zeros",
        "attend_self": False,
        "positions": {"kind": "relative_learned", "max_distance": 32},
        "span": {"limit": 32, "ramp": 4, "initial": 0.3},
    },
    "delta": {"kind": "fast_weight", "n_heads": 2, "d_head": 8},
}


def text(path: Path) -> Path:
    """A text in which every tenth word is hostile."""
    draw = random.Random(0)
    words = [
        draw.choice(WORDS if draw.random() < 0.1 else ("the", "model", "reads", "a", "text"))
        for _ in range(6_000)
    ]
    lines = (" ".join(words[i : i + 12]) for i in range(0, len(words), 12))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe(folder: Path, kind: str) -> Path:
    """A recipe with a hostile name and description, on a hostile text; trains in a second."""
    block = {
        "residual": "post_norm",
        "mixer": MIXERS[kind],
        "channel": {"kind": "feed_forward", "d_ffn": 32},
    }
    plain = {
        "name": f"{NAME} {kind}",
        "about": ABOUT,
        "source": {"paper": f"arXiv:{SCRIPT}", "code": IMAGE, "notes": QUOTES},
        "data": {
            "corpus": {
                "kind": "text",
                "path": str(text(folder / f"{NAME}.txt")),
                "level": "word",
                "split": [0.6, 0.2, 0.2],
            },
            "segment_len": 16,
            "batch_size": 4,
        },
        "model": {"d_model": 16, "stack": [{"repeat": 2, "block": block}]},
        "train": {
            "steps": 8,
            "optimizer": {"kind": "adam", "lr": 2.0e-3},
            "log_every": 2,
            "eval_every": 4,
            "eval_tokens": 200,
            "checkpoint_every": 4,
        },
        "eval": {
            "method": "carried",
            "context_len": 32 if kind == "span" else None,
            "segment_len": 128,
            "batch_size": 2,
        },
    }
    path = folder / f"hostile-{kind}.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def train(folder: Path) -> None:
    """Leave the run folders `<NAME> span` and `<NAME> delta` in a folder."""
    for kind in MIXERS:
        for _ in start(str(recipe(folder, kind)), out=folder / f"{NAME} {kind}"):
            pass


def figure() -> dict[str, Any]:
    """A figure that tries whatever plotly may fetch, run or link to."""
    link = f"<a href=\"javascript:alert('plotly')\">{IMAGE}</a>"
    fig = go.Figure(
        go.Scatter(x=[1, 2], y=[1, 2], text=[SCRIPT, link], name=CLOSING, hovertext=[link, IMAGE])
    )
    fig.add_bar(
        x=[1, 2], y=[1, 2], customdata=[SCRIPT, IMAGE], hovertemplate=f"%{{customdata}}{link}"
    )
    fig.update_layout(
        title={"text": f"title {link}", "subtitle": {"text": SCRIPT}},
        meta={"caption": f"caption {SCRIPT}{IMAGE}"},
        annotations=[{"text": f"{link}{IMAGE}", "x": 1, "y": 1}],
        images=[{"source": f"{ELSEWHERE}/layout.png", "x": 0, "y": 1, "sizex": 1, "sizey": 1}],
        xaxis={"title": {"text": QUOTES}},
    )
    plain: dict[str, Any] = json.loads(fig.to_json())
    plain["config"] = {"plotlyServerURL": ELSEWHERE, "showSendToCloud": True}
    # a map fetches its coast lines, an image trace its picture
    plain["data"].append({"type": "scattergeo", "lon": [0], "lat": [0]})
    plain["data"].append({"type": "image", "source": f"{ELSEWHERE}/trace.png"})
    return plain


MARKUP = (
    f"{SCRIPT}{IMAGE}{FETCH}{LINK}<svg onload=alert('svg')></svg>"
    f"<iframe src='{ELSEWHERE}/frame'></iframe><iframe srcdoc='{SCRIPT}'></iframe>"
    f"<link rel=stylesheet href='{ELSEWHERE}/style.css'>"
    f"<style>@import url('{ELSEWHERE}/import.css'); body {{ background: url('{ELSEWHERE}/b.png') }}"
    f"</style><meta http-equiv=refresh content='0;url={ELSEWHERE}/away'>"
    f"<base href='{ELSEWHERE}/'><form action='{ELSEWHERE}/form'><input autofocus "
    f"onfocus=alert('focus')></form><object data='{ELSEWHERE}/o'></object>"
    f"<video src='{ELSEWHERE}/v' autoplay></video><details open ontoggle=alert('toggle')></details>"
)


def plant(run: Path) -> None:
    """Put files into a run folder that no notebook of ours would have left there."""
    figures = run / "figures"
    figures.mkdir(exist_ok=True)
    for name in ("training", "span_bars", "zz-stranger", NAME):
        (figures / f"{name}.json").write_text(json.dumps(figure()), encoding="utf-8")
    (figures / "hardest.html").write_text(MARKUP, encoding="utf-8")
    (figures / f"{NAME}.html").write_text(MARKUP, encoding="utf-8")
    (figures / "torn.json").write_text('{"data": [{"x": [1,', encoding="utf-8")
    (figures / "odd.json").write_text('{"data": 7, "layout": "x"}', encoding="utf-8")
