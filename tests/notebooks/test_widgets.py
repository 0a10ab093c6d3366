"""What live views are made of: tokens to click, figures that change in place, panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest
from ipywidgets.widgets import widget

from workbench.train.folder import RunFolder
from workbench.widgets import panel
from workbench.widgets.panel import Panel, alive, redraw
from workbench.widgets.tokens import MOST_TOKENS, Tokens


def test_tokens_say_where_lines_break_and_hide_nothing() -> None:
    text = Tokens(["a", "␣", "↵", "<b>", "\x1b", "\\xe2"], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert text.symbols == ["a", " ", "↵", "<b>", "␛", "\\xe2"]
    assert text.breaks == [2] and text.values[-1] == 5.0


def test_a_chosen_token_is_told() -> None:
    seen: list[int] = []
    text = Tokens(["a", "b", "c"])
    text.on_select(seen.append)
    text.selected = 2
    text.put(["a", "b"])  # the chosen one is gone
    text.selected = 1
    assert seen == [2, 1]


def test_tokens_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 values for 2 tokens"):
        Tokens(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="got 3 tips for 2 tokens"):
        Tokens(["a", "b"], tips=["x", "y", "z"])
    with pytest.raises(ValueError, match="show a passage"):
        Tokens(["a"] * (MOST_TOKENS + 1))


def line(values: list[float], title: str, **trace: Any) -> go.Figure:
    fig = go.Figure(go.Scatter(y=np.asarray(values, dtype=np.float32), **trace))
    fig.add_heatmap(z=np.outer(values, values))
    return fig.update_layout(title_text=title)


def as_drawn(fig: go.Figure) -> dict[str, Any]:
    plain = go.Figure(fig).to_plotly_json()
    for trace in plain["data"]:
        trace.pop("uid", None)
    return plain


def test_a_figure_comes_with_its_data_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    real = widget.comm.create_comm

    def told(**message: Any) -> Any:
        sent.append(message["data"]["state"])
        return real(**message)

    monkeypatch.setattr(widget.comm, "create_comm", told)
    figure = alive(line([1, 2, 3], "all of it"))
    states = [state for state in sent if "_widget_data" in state]
    assert len(states) == 1 and len(states[0]["_widget_data"]) == 2
    assert states[0]["_widget_layout"]["title"]["text"] == "all of it"
    assert states[0]["_config"]["showSendToCloud"] is False
    figure.data[0].y = [3, 4]
    assert figure.data[0].y == (3, 4) and len(sent) == len(states)


def test_redrawing_equals_drawing_anew() -> None:
    widget = alive(line([1, 2, 3], "before", name="old", text=["x", "y", "z"]))
    traces = [trace.uid for trace in widget.data]
    new = line([4, 5, 6, 7], "after", name="new")
    new.add_annotation(text="here", x=1, y=1)
    redraw(widget, new)
    np.testing.assert_equal(as_drawn(widget), as_drawn(new))
    assert [trace.uid for trace in widget.data] == traces  # the same, changed
    fewer = go.Figure(go.Bar(y=[1]))
    redraw(widget, fewer)
    assert [trace.type for trace in widget.data] == ["bar"]
    assert not widget.layout.annotations and widget.layout.title.text is None


def test_a_map_with_gaps_reaches_the_browser() -> None:
    z = np.array([[0.123456789, np.nan], [3.0, np.inf]], dtype=np.float32)
    widget = alive(go.Figure(go.Heatmap(z=z)))
    for values in (z, 2 * z):
        redraw(widget, go.Figure(go.Heatmap(z=values)))
        sent = json.dumps(widget.data[0].z.tolist(), allow_nan=False)
        first = 0.12346 if values is z else 0.24691
        assert json.loads(sent) == [[first, None], [values[1, 0], None]]


def test_a_live_figure_has_no_upload_button() -> None:
    assert alive(go.Figure())._config["showSendToCloud"] is False


class Two(Panel):
    def stills(self) -> dict[str, go.Figure]:
        return {"one": line([1], "one"), "two": line([2], "two")}

    def live(self) -> ipywidgets.Widget:
        return ipywidgets.Label("alive")


@pytest.mark.parametrize("batch", [True, False])
def test_a_panel_is_alive_or_still(
    batch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(panel, "in_batch", lambda: batch)
    monkeypatch.setattr(panel, "display", shown.append)
    monkeypatch.setattr(panel.notebook, "show", lambda fig: shown.append(fig.layout.title.text))
    Two().show(RunFolder(tmp_path))
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["one.json", "two.json"]
    if batch:
        assert shown == ["one", "two"]
    else:
        assert [type(x) for x in shown] == [ipywidgets.Label]
