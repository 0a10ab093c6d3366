"""Checkpoints that their authors published: fetched once, imported, measured with their recipe."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from span_checkpoint import saved, span_state

from workbench.config import dump
from workbench.data import registry
from workbench.errors import ConfigError, DataError, DataMissing
from workbench.exchange import import_checkpoint, import_published
from workbench.models.language_model import LanguageModel
from workbench.originals.checkpoint import find
from workbench.originals.published import CHECKPOINTS, fetch
from workbench.originals.reader import read
from workbench.recipe import Recipe, recipe_names
from workbench.train.evaluate import evaluate


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with `text8.pt`, on this machine."""
    (tmp_path / "www").mkdir()
    saved(span_state(), tmp_path / "www" / "text8.pt")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"), **named)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_published_checkpoints_are_fetched_once(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    path = fetch("adaptive-span-text8", server)
    assert path.read_bytes() == (tmp_path / "www" / "text8.pt").read_bytes()
    assert find(read(path)).vocab_size == 28
    # from now on without an address, and as long as it is this file
    assert fetch("adaptive-span-text8") == path
    saved(span_state(29), path)
    with pytest.raises(DataError, match="as at its first use"):
        fetch("adaptive-span-text8")
    path.unlink()
    saved(span_state(29), tmp_path / "www" / "text8.pt")
    with pytest.raises(DataMissing, match="got sha256"):
        fetch("adaptive-span-text8", server)


def test_without_a_network_the_message_says_what_to_put_where(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    place = tmp_path / "data" / "checkpoints" / "adaptive-span" / "enwik8.pt"
    with pytest.raises(DataMissing, match="404") as caught:
        fetch("adaptive-span-enwik8", server)
    assert f"{server}enwik8.pt" in str(caught.value) and f"{place.parent}" in str(caught.value)
    assert "workbench data get adaptive-span-enwik8" in str(caught.value)
    assert "https://dl.fbaipublicfiles.com/adaptive-span/enwik8.pt" in str(caught.value)
    with pytest.raises(ConfigError, match="Did you mean 'adaptive-span-enwik8'"):
        fetch("adaptive-span-enwick8")
    place.parent.mkdir(parents=True, exist_ok=True)
    saved(span_state(), place)
    assert fetch("adaptive-span-enwik8") == place


def test_a_published_checkpoint_is_imported_and_measured_with_its_recipe(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    path = saved(span_state(), tmp_path / "a.pt")
    folder = import_checkpoint(path, tmp_path / "a", asked={"ramp": 7, "block_size": 5}).folder
    recipe = str(folder.path / "recipe.yaml")
    monkeypatch.setitem(CHECKPOINTS, "adaptive-span-text8", recipe)
    imported = import_published("adaptive-span-text8", tmp_path / "run", url=server)
    assert "taken for block_size, ramp" in str(imported)
    run = imported.folder.recipe()
    assert isinstance(run, Recipe)
    assert dump(run.model) == dump(folder.recipe())["model"]
    model = imported.folder.load_model()
    assert isinstance(model, LanguageModel)
    measured = evaluate(model, torch.randint(28, (200,)), run.eval)
    assert measured.settings == "streams, batch_size 10, segment_len 5, average of_blocks"
    assert 0 < measured.mean_nats < 100


def test_every_published_checkpoint_has_its_recipe_and_its_place() -> None:
    assert set(CHECKPOINTS.values()) <= set(recipe_names())
    entries = {name: e for name, e in registry.entries().items() if e.kind == "checkpoint"}
    assert entries.keys() == CHECKPOINTS.keys()
    files = [file for entry in entries.values() for file in entry.contents]
    assert sorted(files) == ["enwik8.pt", "enwik8_large.pt", "text8.pt", "text8_large.pt"]
