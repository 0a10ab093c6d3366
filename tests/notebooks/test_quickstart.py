"""The quickstart: an own text, an own recipe, an own mixer; and what it claims of them."""

from __future__ import annotations

import json
import pydoc_data.topics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import torch
import yaml
from executed import figures, outputs
from papermill.engines import papermill_engines
from safetensors.torch import load_file
from small_recipes import write_text

from workbench import books, quickstart
from workbench.engine import WorkbenchEngine
from workbench.errors import DataMissing
from workbench.metrics import bits_per_token
from workbench.models.mixers.base import MixerConfig
from workbench.notebook_page import Page
from workbench.train.folder import RunFolder

BOOK = books.find("quickstart")
SMALL = {
    **{"model.d_model": 16, "data.batch_size": 2, "data.segment_len": 16},
    **{"train.log_every": 2, "train.eval_tokens": 500, "train.schedule": {"kind": "constant"}},
    **{"eval.segment_len": 128, "eval.batch_size": 1},
}


@pytest.fixture
def mixer() -> Iterator[dict[str, Any]]:
    """The cells that define the notebook's mixer, run here."""
    known, space = dict(MixerConfig.registry), dict[str, Any](__name__="quickstart")
    for source in own_cells():
        # as a cell runs, without this file's own __future__ import
        exec(compile(source, "cell", "exec", dont_inherit=True), space)
    yield space
    MixerConfig.registry.clear()
    MixerConfig.registry.update(known)


def own_cells() -> list[str]:
    """The cell of the mixer and, before it, that of its imports."""
    cells = [c for c in nbformat.read(BOOK, 4).cells if c.cell_type == "code"]
    (at,) = [i for i, c in enumerate(cells) if "own" in c.metadata.get("tags", [])]
    return [c.source for c in cells[at - 1 : at + 1]]


def test_it_is_25_lines_with_their_imports() -> None:
    lines = [line for source in own_cells() for line in source.splitlines() if line.strip()]
    assert 15 < len(lines) <= 25


def test_the_mixer_is_the_minimal_gru(mixer: dict[str, Any]) -> None:
    torch.manual_seed(2)
    gru = mixer["MinGRUConfig"]().build(6).double()
    x_BTD, h_BD = torch.randn(2, 5, 6).double(), torch.randn(2, 6).double()
    got_BTD, state = gru(x_BTD, mixer["MinGRUState"](h_BD))
    weight, bias = gru.gates.weight, gru.gates.bias
    for t in range(5):  # arXiv:2410.01201, section 3.1
        z_BD = torch.sigmoid(x_BTD[:, t] @ weight[:6].T + bias[:6])
        h_BD = (1 - z_BD) * h_BD + z_BD * (x_BTD[:, t] @ weight[6:].T + bias[6:])
        torch.testing.assert_close(got_BTD[:, t], h_BD)
    torch.testing.assert_close(state.h_BD, h_BD)


def test_the_text_that_comes_with_python(tmp_path: Path) -> None:
    path = Path(quickstart.own_text(None, tmp_path / "new"))
    text = path.read_text("utf-8")
    assert pydoc_data.topics.topics["while"] in text and len(text) > 300_000
    path.write_text("kept", "utf-8")
    assert quickstart.own_text(None, tmp_path / "new") == str(path)
    assert path.read_text("utf-8") == "kept", "what is there is not written again"


def test_a_text_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a", "utf-8")
    assert quickstart.own_text(str(tmp_path / "a.txt"), tmp_path) == str(tmp_path / "a.txt")
    assert quickstart.own_text(f"{tmp_path}/*.txt", tmp_path) == f"{tmp_path}/*.txt"
    with pytest.raises(DataMissing, match=r"parameter text: there is no .*b\.txt"):
        quickstart.own_text(str(tmp_path / "b.txt"), tmp_path)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataMissing, match="set the parameter `text`"):
        quickstart.own_text(None, tmp_path / "without")


@pytest.mark.executes("quickstart")
def test_from_a_text_to_three_models(tmp_path: Path) -> None:
    papermill_engines.register("workbench", WorkbenchEngine)
    text, run = write_text(tmp_path / "my <b>.txt"), tmp_path / "run"
    out = tmp_path / "executed.ipynb"
    values = {"text": str(text), "steps": 6, "out": str(run), "overrides": SMALL, "prompt": "def "}
    papermill.execute_notebook(BOOK, out, values, engine_name="workbench", progress_bar=False)

    folders = {name: RunFolder(run / name) for name in ("first", "delta", "min_gru", "span")}
    for name, folder in folders.items():
        assert folder.status()["state"] == "done" and folder.status()["step"] == 6
        assert folder.environment()["corpus"]["name"] == (
            "my <b>" if name != "first" else "python-source"
        )
    written = yaml.safe_load((run / "mine.yaml").read_text("utf-8"))
    assert written["data"]["corpus"] == {"kind": "text", "path": str(text), "level": "char"}
    told = "".join(o.get("text", "") for o in outputs(out))
    assert "there is no field 'warmup_stepz' here. Did you mean 'warmup_steps'?" in told
    shown = "".join(o.get("data", {}).get("text/plain", "") for o in outputs(out))
    assert "min_gru: 10 of 10 laws hold" in shown and "BAD" not in shown
    for folder in folders.values():
        if folder.path.name != "first":
            bits = bits_per_token(folder.records("eval")[-1]["loss_nats"])
            assert f"{bits:.3f} bits per character" in told

    # four trainings live, the spans, and the three curves
    assert len(figures(out)) == 6
    assert Page().from_filename(str(out))[0].count('data-figure="') == 6
    kept = json.loads((run / "figures" / "learning_curves.json").read_text("utf-8"))
    names = [trace["name"] for trace in kept["data"] if trace.get("showlegend") is not False]
    assert names == ["delta rule", "your minGRU", "learned spans"]
    weights = load_file(max(folders["min_gru"].checkpoints.glob("*/weights.safetensors")))
    assert [w.shape for n, w in weights.items() if n.endswith("gates.weight")] == [(32, 16)] * 4
