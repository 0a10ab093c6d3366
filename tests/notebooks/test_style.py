"""One look in two themes: contrast, what belongs to the theme, and text with nothing hidden."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.errors import ConfigError
from workbench.plots import curves, style
from workbench.plots.style import PAGES, running, shown, visible


@pytest.fixture(autouse=True)
def own_theme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(style, "_chosen", "auto")
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path))
    for name in ("WORKBENCH_THEME", "WORKBENCH_BATCH"):
        monkeypatch.delenv(name, raising=False)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a `#rrggbb`, as WCAG 2 and IEC 61966 define it."""
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (a, b))
    return high / low


@pytest.mark.parametrize("colour", [*style.COLOURS, style.INK, style.QUIET, style.ACCENT])
@pytest.mark.parametrize("theme", PAGES)
def test_what_traces_draw_stands_out_on_both_pages(colour: str, theme: style.Theme) -> None:
    assert contrast(colour, PAGES[theme].paper) >= 3


@pytest.mark.parametrize("theme", PAGES)
def test_words_are_legible(theme: style.Theme) -> None:
    page = PAGES[theme]
    assert contrast(page.ink, page.paper) >= 7 and contrast(page.muted, page.paper) >= 4.5


# Vienot, Brettel and Mollon (1999): what a protanope and a deuteranope see, in linear RGB
PROTAN = [[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.0040, -0.0040, 1.0]]
DEUTAN = [[0.2927, 0.7073, 0.0], [0.2927, 0.7073, 0.0], [-0.0223, 0.0223, 1.0]]


@pytest.mark.parametrize("eye", [np.eye(3), np.array(PROTAN), np.array(DEUTAN)])
def test_the_first_colours_differ_for_all_kinds_of_eyes(eye: np.ndarray) -> None:
    seen = [np.clip(eye @ linear(c), 0, 1) ** (1 / 2.2) for c in style.COLOURS[:6]]
    assert min(float(np.abs(a - b).max()) for a, b in itertools.combinations(seen, 2)) > 0.12


def test_a_figure_changes_its_theme_by_its_template_alone() -> None:
    style.use_theme("light")
    records = [
        {"kind": "train", "step": i, "loss_nats": 1.0, "lr": 1e-3, "grad_norm": 1.0}
        | {"tokens_per_s": 1.0, "readings": {}}
        for i in range(1, 4)
    ]
    light = curves.training(records, "character")
    style.use_theme("dark")
    dark = curves.training(records, "character")
    assert light.to_json() != dark.to_json()
    assert style.dress(light, "dark").to_json() == dark.to_json()
    assert dark.layout.template.layout.paper_bgcolor == PAGES["dark"].paper


def lab_setting(folder: Path, text: str) -> None:
    file = folder / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")


def test_auto_follows_the_settings_of_jupyterlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert style.theme() == "light"
    lab_setting(tmp_path, '{\n  // "theme": "JupyterLab Light"\n  "theme": "JupyterLab Dark"\n}')
    assert style.theme() == "dark"
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    assert style.theme() == "light"  # whoever looks at it later has settings of their own
    monkeypatch.setenv("WORKBENCH_THEME", "dark")
    assert style.theme() == "dark"


def test_a_light_lab_and_a_broken_setting_are_light(tmp_path: Path) -> None:
    lab_setting(tmp_path, '{"theme": "JupyterLab Light", "adaptive-theme": true}')
    assert style.theme() == "light"


def test_an_unknown_theme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'blue', expected auto, light or dark"):
        style.use_theme("blue")
    monkeypatch.setenv("WORKBENCH_THEME", "Dark")
    with pytest.raises(ConfigError, match="WORKBENCH_THEME: got 'Dark'"):
        style.theme()


def test_nothing_hides_in_a_token() -> None:
    assert visible(" ") == "␣" and visible("a b") == "a b"
    assert visible("\n\t\x00\x1b\x7f") == "↵⇥␀␛␡"
    assert visible("\x85") == "\\x85"
    assert visible(b"\xe2\x82".decode("utf-8", "surrogateescape")) == "\\xe2\\x82"
    # right-to-left override, zero width, a line separator, half of a pair
    assert visible("\u202e\u200b\u2028\ud800") == "\\u202e\\u200b\\u2028\\ud800"
    assert visible("é€汉😀") == "é€汉😀"
    assert shown("<b>\x07") == "&lt;b&gt;␇"
    assert running("a b\n\tc\x00") == "a b\n\tc␀"


def test_the_same_rule_and_map_have_the_same_colour() -> None:
    assert style.feature_colour("dpfp-3") == style.feature_colour("DPFP") != style.QUIET
    assert style.feature_colour("unheard") == style.QUIET
    assert style.layer_colour(0) == style.layer_colour(len(style.COLOURS))
    assert len(set(style.RULE_COLOURS.values()) | set(style.FEATURE_COLOURS.values())) == 6


def test_marks_take_their_colours_from_the_theme() -> None:
    fig = go.Figure(go.Scatter(x=[1, 2], y=[1, 2]))
    style.mark(fig, 1.5, "here")
    words = fig.layout.annotations[0].to_plotly_json()
    assert "bgcolor" not in words and "color" not in words["font"]
