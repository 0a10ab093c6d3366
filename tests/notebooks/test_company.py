"""Samples of text, the machine's limit, and training in a process behind the notebook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash.compare import differences
from small_recipes import DELTA, SPAN, write_recipe, write_text
from torch.utils.flop_counter import FlopCounterMode

import workbench
from workbench import background, limits, samples
from workbench.company import Company
from workbench.errors import ConfigError
from workbench.recipe import Recipe, load_recipe
from workbench.samples import SampleSettings
from workbench.train.control import ask
from workbench.train.folder import RunFolder
from workbench.train.lock import holder

SMALL = SampleSettings(every=4, length=20, prompt="def ", seed=3)


def train(recipe: Path, out: Path, settings: SampleSettings | None, **changes: Any) -> RunFolder:
    run = workbench.start(recipe, changes, out=out)
    company = Company(run, settings or SampleSettings(every=0))
    for record in run:
        company.see(record)
    return run.folder


@pytest.mark.parametrize("mixer", [SPAN, DELTA])
def test_samples_are_what_the_model_writes_and_leave_the_run_as_it_was(
    tmp_path: Path, mixer: dict[str, Any]
) -> None:
    asked = write_recipe(tmp_path / "tiny.yaml", write_text(tmp_path / "text.txt"), mixer)
    without = train(asked, tmp_path / "without", None)
    with_samples = train(asked, tmp_path / "with", SMALL)
    assert differences(with_samples, without) == []
    rows = samples.read(with_samples.path)
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20]
    # the last one is what the trained model writes
    again = workbench.generate(with_samples.path, "def ", length=20, temperature=0.8, seed=3)
    nats = [token.nats for token in again]
    assert rows[-1]["text"] == again.text and rows[-1]["tokens"] == len(nats) == 20
    assert rows[-1]["bits"] == pytest.approx(sum(nats) / 20 / 0.6931471805599453, rel=1e-6)
    assert len({row["text"] for row in rows}) > 1
    assert samples.read(without.path) == []


def test_samples_of_updates_that_are_repeated_are_drawn_again(
    tmp_path: Path, span_recipe: Path
) -> None:
    whole = train(span_recipe, tmp_path / "whole", SMALL)
    run = workbench.start(span_recipe, out=tmp_path / "run")
    company = Company(run, SMALL)
    for record in run:
        company.see(record)
        if record.step >= 18:
            # killed here: the last checkpoint is of step 10
            break
    assert [r["step"] for r in samples.read(run.folder.path)] == [4, 8, 12, 16]
    again = workbench.start(span_recipe, out=tmp_path / "run")
    assert again.step == 10
    company = Company(again, SMALL)
    assert [r["step"] for r in samples.read(run.folder.path)] == [4, 8]
    for record in again:
        company.see(record)
    assert samples.read(run.folder.path) == samples.read(whole.path)


def test_samples_of_a_foreign_folder_are_data(tmp_path: Path) -> None:
    good = {"step": 3, "prompt": "", "text": "<script>alert(1)</script>", "bits": 2.0}
    lines = ["[1]", "{", "null", '{"step": "x"}', json.dumps({**good, "text": 3}), "\x00\xff"]
    text = "\n".join([*lines, json.dumps(good), ""])
    (tmp_path / samples.SAMPLES).write_bytes(text.encode("latin-1"))
    assert samples.read(tmp_path) == [good]


def test_settings_that_make_no_sense(tmp_path: Path, span_recipe: Path) -> None:
    for wrong in ({"every": -1}, {"length": 0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match="samples: got"):
            SampleSettings(**wrong).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["span-python-tiny", "delta-python-tiny"])
def test_the_limit_counts_products_as_pytorch_does(name: str) -> None:
    """PyTorch's counter sees products alone, and not those inside our kernels."""
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    model = recipe.model.build(64).train()
    ids_BT = torch.zeros(2, recipe.data.segment_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        losses_BT, _, _ = model.losses(ids_BT, ids_BT, model.initial_carry(2))
        losses_BT.mean().backward()
    ours = limits.flop_per_token(model) * ids_BT.numel()
    head = 6 * model.vocabulary.output.weight.numel() * ids_BT.numel()
    assert ours - head <= counter.get_total_flops() <= 1.3 * ours


def test_the_limit_of_recurrent_weights() -> None:
    recipe = load_recipe("awd-wt2-lstm")
    assert isinstance(recipe, Recipe)
    with torch.device("meta"):
        model = recipe.model.build(100)
    gates = 4 * 1150 * (400 + 1150) + 4 * 1150 * (1150 + 1150) + 4 * 400 * (1150 + 400)
    assert limits.flop_per_token(model) == 6 * (gates + 400 * 100)


def test_the_limit_is_measured_once_and_kept(
    tmp_path: Path, span_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    run = workbench.start(span_recipe, out=tmp_path / "run")
    limit = limits.of_run(run)
    assert limit is not None and limit.flop_per_s > 1e8 and limit.precision == "fp32"
    assert limit.tokens_per_s == limit.flop_per_s / limit.flop_per_token
    monkeypatch.setattr(limits, "_measure", lambda *_: pytest.fail("measured again"))
    assert limits.of_run(run) == limit
    assert limits.read(run.folder.path) is None
    limits.keep(run.folder.path, limit)
    assert limits.read(run.folder.path) == limit
    list(run)
    # nothing surpasses it
    assert max(r["tokens_per_s"] for r in run.folder.records("train")) < limit.tokens_per_s


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokens_per_s": 1}'])
def test_a_limit_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / limits.LIMIT).write_text(text)
    assert limits.read(tmp_path) is None


# --- behind the notebook -------------------------------------------------------------------------


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test has started: none outlives it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def until(said: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_training_behind_the_notebook_is_paused_stopped_and_continued_exactly(
    tmp_path: Path, begun: list[subprocess.Popen[bytes]]
) -> None:
    text = write_text(tmp_path / "text.txt")
    asked = write_recipe(tmp_path / "long.yaml", text, SPAN, steps=600, log_every=5)
    recipe, folder = load_recipe(asked), RunFolder(tmp_path / "run", writes=False)
    begun.append(background.begin(recipe, folder.path, samples=SMALL))
    until(lambda: folder.records("train"))
    assert holder(folder.path) == str(begun[0].pid)
    with pytest.raises(ConfigError, match=f"process {begun[0].pid} is training in"):
        background.begin(recipe, folder.path)
    ask(folder.path, "pause")
    until(lambda: folder.status()["state"] == "paused")
    step = folder.status()["step"]
    time.sleep(0.5)
    assert folder.status()["step"] == step and begun[0].poll() is None
    ask(folder.path, "continue")
    until(lambda: folder.status()["step"] > step)
    ask(folder.path, "stop")
    assert begun[0].wait(60) == 0 and holder(folder.path) is None
    status = folder.status()
    assert (status["state"], status["message"]) == ("stopped", "asked to stop")
    assert limits.read(folder.path) is not None
    # and from there here, to the same end as a run that nobody touched
    shorter = {"train.max_seconds": None}
    list(workbench.start(asked, shorter, out=folder.path))
    undisturbed = workbench.start(asked, out=tmp_path / "undisturbed")
    list(undisturbed)
    assert differences(folder, undisturbed.folder) == []


def test_it_outlives_whoever_started_it(tmp_path: Path, span_recipe: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    asked = write_recipe(tmp_path / "long.yaml", text, SPAN, steps=100_000, eval_every=99_999)
    code = (
        "import sys, pathlib; from workbench import background; from workbench.recipe import *\n"
        "background.begin(load_recipe(sys.argv[1]), pathlib.Path(sys.argv[2])); input()"
    )
    folder = RunFolder(tmp_path / "run", writes=False)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(asked), str(folder.path)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    until(lambda: folder.records("train"))
    # as Jupyter ends a kernel: everything in its session
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    seen = folder.status()["step"]
    until(lambda: folder.status()["step"] > seen)
    ask(folder.path, "stop")
    until(lambda: holder(folder.path) is None)
    assert folder.status()["state"] == "stopped"


def test_why_it_ended_is_told(
    tmp_path: Path, span_recipe: Path, begun: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "text.txt").unlink()
    begun.append(background.begin(load_recipe(span_recipe), tmp_path / "run"))
    assert begun[0].wait(60) == 2
    assert "text.txt" in background.last_words(tmp_path / "run")
    # the folder is free for another try
    write_text(tmp_path / "text.txt")
    begun.append(background.begin(load_recipe(span_recipe), tmp_path / "run"))
    assert begun[1].wait(120) == 0 and background.last_words(tmp_path / "run") == ""
    assert RunFolder(tmp_path / "run").status()["state"] == "done"
    assert background.last_words(tmp_path / "nothing") == ""
