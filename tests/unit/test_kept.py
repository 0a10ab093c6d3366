"""A run folder from somebody else: read as data, never run; what is strange is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from tiny_run import recipe, write_text

import workbench
from workbench import comparison, export, kept, report
from workbench.errors import RunFolderError
from workbench.plots.passages import Passage, plain, render
from workbench.train.folder import RunFolder

BAD = "<script>alert(1)</script>"
LINE = {"type": "scatter", "x": [1, 2], "y": [3, 4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("foreign")
    run = workbench.start(recipe(write_text(path / "t.txt"), steps=4), out=path / "run")
    list(run)
    return RunFolder(path / "run")


def cleaned(**figure: Any) -> tuple[dict[str, Any], list[str]]:
    fig, left_out = kept.clean({"data": [LINE], **figure}, "here")
    return json.loads(fig.to_json()), left_out


FETCHING: list[dict[str, Any]] = [
    {"layout": {"images": [{"source": "http://evil.example/x.png"}]}},
    {"data": [LINE, {"type": "image", "source": "http://evil.example/x.png"}]},
    {"data": [LINE, {"type": "choropleth", "geojson": "http://evil.example/x.json"}]},
    {"data": [LINE, {"type": "scattermap", "lon": [1], "lat": [2]}]},
    {"layout": {"map": {"style": "http://evil.example/style.json"}}},
    {"layout": {"mapbox2": {"style": "http://evil.example/style.json"}}},
    {"layout": {"template": {"layout": {"images": [{"source": "http://evil.example/x"}]}}}},
    {"layout": {"template": {"data": {"scattergeo": [{"geojson": "http://evil.example"}]}}}},
    {"frames": [{"data": [{"type": "scattergeo", "geojson": "http://evil.example"}]}]},
    {"frames": [{"layout": {"images": [{"source": "http://evil.example"}]}}]},
    *(
        {"layout": {"sliders": [{"steps": [{"method": method, "args": args}]}]}}
        for method, args in [
            ("relayout", ["images[0].source", "http://evil.example"]),
            ("relayout", [{"images[0].source": "http://evil.example"}]),
            ("restyle", ["type", "scattergeo"]),
            ("animate", [{"data": [{"type": "choropleth", "geojson": "http://evil.example"}]}]),
        ]
    ),
]


@pytest.mark.parametrize("figure", FETCHING, ids=lambda f: json.dumps(f)[:60])
def test_nothing_of_a_figure_fetches(figure: dict[str, Any]) -> None:
    found, left_out = cleaned(**figure)
    told = json.dumps(found)
    assert "evil.example" not in told and "scattergeo" not in told.replace('"scattergeo": [', "")
    assert found["data"] == [LINE]
    assert left_out or "template" in figure.get("layout", {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b>bold</b><br>word <sup>2</sup>", "a <b>bold</b><br>word <sup>2</sup>"),
        ("<a href='javascript:alert(1)'>x</a>", "&lt;a href='javascript:alert(1)'>x&lt;/a>"),
        ('<span style="cursor:url(http://e.example)">x', None),
        ('<span style="color:#0072B2">x</span>', '<span style="color:#0072B2">x</span>'),
        ("<b onclick=alert(1)>x</b>", "&lt;b onclick=alert(1)>x</b>"),
        (BAD, "&lt;script>alert(1)&lt;/script>"),
        ("1 < 2 and 3 > 2", "1 &lt; 2 and 3 > 2"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_text_of_a_figure_is_text(text: str, shown: str | None) -> None:
    found, _ = cleaned(layout={"title": {"text": text}})
    told = found["layout"]["title"]["text"]
    assert told == shown if shown else "<span" not in told


def test_a_figure_of_ours_stays_as_it_is() -> None:
    fig = go.Figure(go.Heatmap(z=np.arange(6, dtype=np.float32).reshape(2, 3)))
    fig.add_scatter(x=np.arange(3.0), y=[1.0, None, 2.0], name="a &lt;b&gt;")
    steps = [{"method": "update", "args": [{"visible": [True, False]}, {"title.text": "t"}]}]
    fig.update_layout(
        sliders=[{"steps": steps}], title={"text": "what <b>it</b> shows"}, height=300
    )
    sent = json.loads(fig.to_json())
    found, left_out = kept.clean(sent, "here")
    again = json.loads(found.to_json())
    assert again["data"] == sent["data"] and left_out == []
    assert again["layout"]["sliders"] == sent["layout"]["sliders"]
    assert again["layout"]["title"] == sent["layout"]["title"]


NO_FIGURES: dict[str, Any] = {
    "a list": [],
    "no data": {"layout": {}},
    "a trace that is none": {"data": [3]},
    "an unknown property": {"data": [{**LINE, "onclick": "alert(1)"}]},
    "a colour that loads": {"data": [{**LINE, "marker": {"color": "url(http://e.example)"}}]},
    "no base64": {"data": [{"y": {"dtype": "f4", "bdata": "!!"}}]},
    "half a number": {"data": [{"y": {"dtype": "f8", "bdata": "AAAA"}}]},
    "another shape": {"data": [{"z": {"dtype": "u1", "bdata": "AAAA", "shape": "2,2"}}]},
    "an array of code": {"data": [{"y": {"dtype": "object", "bdata": "AAAA"}}]},
    "frames that are none": {"data": [], "frames": [3]},
}


@pytest.mark.parametrize("name", NO_FIGURES)
def test_what_is_no_figure_is_refused(name: str) -> None:
    with pytest.raises(RunFolderError, match="here: "):
        kept.clean(NO_FIGURES[name], "here")


def test_what_cannot_be_read_tells_why(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "old.html").write_text(BAD)
    (figures / "torn.json").write_text('{"data": [')
    (figures / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    (figures / "large.json").write_text(" " * (kept.LIMIT_BYTES + 1))
    (figures / "folder.json").mkdir()
    (figures / "high.json").write_text(json.dumps({"data": [], "layout": {"height": 10**9}}))
    uneven = {"kind": "passages", "passages": [{"title": "t", "symbols": ["a"], "values": [1, 2]}]}
    (figures / "uneven.json").write_text(json.dumps(uneven))
    (figures / "other.json").write_text(json.dumps({"kind": "passages", "passages": {"a": 1}}))
    found = {k.name: k for k in kept.kept(RunFolder(tmp_path))}
    assert found.pop("high").figure.layout.height == kept.MAX_HEIGHT
    assert all(k.figure is None and not k.passages and k.note for k in found.values())
    expected = {
        "old": "could run anything",
        "torn": "is no JSON",
        "deep": "is no JSON",
        "large": "8,000,001 bytes",
        "folder": "is no file",
        "uneven": "not as many values",
        "other": "passages",
    }
    assert found.keys() == expected.keys()
    for name, told in expected.items():
        assert told in found[name].note or name == "other"


def test_passages_are_kept_as_data_and_drawn_as_text(tmp_path: Path) -> None:
    passages = [
        Passage(f"from {BAD}", [BAD, "&", "b"], np.array([1.0, np.inf, 9.0]), ["<i>", "2", "3"]),
        Passage("drawn", ["def ", BAD], given=1),
    ]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "t.json").write_text(json.dumps(plain(passages), allow_nan=False))
    (found,) = kept.kept(RunFolder(tmp_path))
    assert [list(p.symbols) for p in found.passages] == [list(p.symbols) for p in passages]
    assert found.passages[0].values == [1.0, None, 9.0] and found.passages[1].values is None
    page = render(found.passages)
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'title="&lt;i&gt;"' in page and "<b>def </b>&lt;script" in page
    with pytest.raises(ValueError, match="1 tokens, 2 values"):
        plain([Passage("t", ["a"], [1.0, 2.0])])


STRANGE = {
    "records.jsonl": [
        '{"kind": "train", "step": "<b>"}\n',
        '{"kind": "train", "step": 1, "loss_nats": "1.0"}\n',
        '{"kind": "train", "step": 1, "tokens_per_s": [1]}\n',
        '{"kind": "train", "step": 1, "readings": {"span": 3}}\n',
        '{"kind": "train", "step": 1, "backends": {"attention": {}}}\n',
        '{"step": 1}\n',
        "[1]\n",
        "[" * 100_000 + "]" * 100_000 + "\n",
    ],
    "evaluation.json": ["[]", '{"splits": {}}', "{", '{"recipe": 1}'],
    "status.json": ['{"step": "many"}', "[1]"],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [(n, t) for n, texts in STRANGE.items() for t in texts],
    ids=lambda x: x[:50].strip(),
)
def test_strange_values_are_an_error_that_names_the_file(
    folder: RunFolder, tmp_path: Path, name: str, text: str
) -> None:
    file = folder.path / name
    before = file.read_text() if file.exists() else None
    file.write_text(text)
    try:
        with pytest.raises(RunFolderError, match=name.replace(".", r"\.")):
            report.build(tmp_path / "report.html", [folder])
        if name != "status.json":
            with pytest.raises(RunFolderError):
                export.run(folder, tmp_path, ["csv"])
        with pytest.raises(RunFolderError):
            comparison.row("a", folder)
    finally:
        file.unlink() if before is None else file.write_text(before)
    report.build(tmp_path / "report.html", [folder])


def test_a_report_of_a_strangers_run_brings_nothing_along(
    tmp_path: Path, folder: RunFolder
) -> None:
    figures = folder.path / "figures"
    figures.mkdir(exist_ok=True)
    name = "<img src=x onerror=alert(1)>"
    hostile = {"data": [{**LINE, "name": BAD}], "layout": {"title": {"text": f"{BAD}</script>"}}}
    hostile["layout"]["meta"] = {"caption": f"</script>{BAD}"}
    hostile["layout"]["images"] = [{"source": "http://evil.example/x.png"}]
    (figures / f"{name}.json").write_text(json.dumps(hostile))
    (figures / "old.html").write_text(BAD)
    page = report.build(tmp_path / "report.html", [folder]).read_text("utf-8")
    # plotly's script and ours, and data that no browser runs
    assert page.count("<script>") == 2 == page.count("script-src 'sha256-") + 1
    assert page.count("<script type='application/json'") == page.count("</script>") - 2
    assert "<img" not in page.split("</style>")[1].split("<body>")[1]
    assert "evil.example" not in page and "old.html is not shown" in page
    assert "Left out, for it could fetch from a network: images." in page
