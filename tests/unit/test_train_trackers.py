"""Trackers show the records, know where a run continues, and never stop it."""

from __future__ import annotations

import importlib.util
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import FAST, recipe, write_text

import workbench
from workbench.errors import ConfigError
from workbench.recipe import load_recipe
from workbench.train import trackers
from workbench.train.records import CheckpointRecord, DoneRecord, EvalRecord, Record, TrainRecord
from workbench.train.trackers import Tracking, job_name, numbers

SMALL = {"d_model": 8, "stack": [{"block": {"mixer": FAST}}]}
WITHOUT_NET = {"WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "NETRC"}


class Listener:
    """A tracker that remembers, and may be told to break."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.told: list[Record] = []
        self.closed = 0
        self.breaks_at = breaks_at

    def log(self, record: Record) -> None:
        if record.step >= self.breaks_at:
            raise OSError("the line is dead")
        self.told.append(record)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def test_a_tracker_gets_every_record_after_the_folder_has_it(text: Path, tmp_path: Path) -> None:
    whole, broken = Listener(), Listener(breaks_at=10)
    run = workbench.start(recipe(text, SMALL), out=tmp_path / "run", trackers=[broken, whole])
    told = []
    for record in run:
        told.append(record)
        assert record in whole.told
        if len(told) == 3:
            break
    assert whole.closed == 1
    told += list(run)
    assert whole.told == told and whole.closed == 2
    assert [(r.kind, r.step) for r in told] == [
        (r["kind"], r["step"]) for r in run.folder.records()
    ]


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Listener(breaks_at=10)
    with caplog.at_level(logging.WARNING):
        run = workbench.start(recipe(text, SMALL), out=tmp_path / "run", trackers=[broken])
        assert list(run)[-1].step == 24
    assert [r.step for r in broken.told if r.kind == "train"] == [5] and broken.closed == 0
    (message,) = [m for m in caplog.messages if "tracker" in m]
    assert "is left out from now on" in message and "OSError: the line is dead" in message


def test_what_cannot_be_had_is_refused_at_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, chosen: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            workbench.start(recipe(text, SMALL), out=tmp_path / "run", trackers=chosen)
        assert not (tmp_path / "run").exists()

    refused("Did you mean 'tensorboard'", ["tensorbord"])
    refused(r"expected a list such as \['tensorboard'\]", "wandb")
    refused(r"expected a name \(tensorboard, wandb\) or an object with log", [print])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(r"pip install 'workbench\[tracking\]', or pip install tensorboard", ["tensorboard"])
    refused(r"pip install 'workbench\[wandb\]', or pip install wandb", ["wandb"])


def test_what_is_drawn_of_a_record() -> None:
    train = TrainRecord(
        step=5, tokens=100, loss_nats=2.5, penalties={"span": 0.1}, lr=0.1, grad_norm=1.0,
        tokens_per_s=50.0, elapsed_s=2.0, memory_bytes=64, backends={"attention": "cpp"},
        readings={"span": [[1.0, 3.0], [], [5.0]]},
    )  # fmt: skip
    drawn = numbers(train)
    assert drawn["train/loss_nats"] == 2.5 and drawn["train/penalties/span"] == 0.1
    assert drawn["train/span/layer_1"] == 2.0 and drawn["train/span/layer_3"] == 5.0
    assert drawn["train/lr"] == 0.1 and drawn["train/tokens_per_s"] == 50.0
    assert not [name for name in drawn if "step" in name or "backend" in name or "compiled" in name]
    held = {"split": "valid", "method": "carried", "context_len": 8, "elapsed_s": 1.0}
    evaluated = numbers(EvalRecord(step=5, loss_nats=1.5, tokens=7, **held))
    assert evaluated == {"valid/loss_nats": 1.5, "valid/tokens": 7, "valid/elapsed_s": 1.0}
    saved = CheckpointRecord(step=5, path="checkpoints/x", bytes=9, best=True, elapsed_s=1.0)
    assert numbers(saved) == {"checkpoint/bytes": 9, "checkpoint/elapsed_s": 1.0}
    assert numbers(DoneRecord(step=5, reason="steps")) == {}


def test_a_job_is_named_by_its_recipe_and_what_differs() -> None:
    changes = {"train.steps": 70, "train.max_seconds": 5.0, "model.stack.0.repeat": 1}
    assert job_name(load_recipe("span-python-tiny")) == "span-python-tiny"
    named = job_name(load_recipe("span-python-tiny", changes))
    assert named.split()[0] == "span-python-tiny"
    assert set(named.split()[1:]) == {"train.steps=70", "model.stack.0.repeat=1"}
    long = load_recipe("span-python-tiny", {"source.notes": "x" * 500})
    assert len(job_name(long)) == 128 and job_name(long).endswith("...")


def test_a_key_is_looked_for_where_wandb_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*WITHOUT_NET, "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not trackers._has_key()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password none\n")
    assert trackers._has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://tracker.example.org")
    assert not trackers._has_key()
    monkeypatch.setenv("WANDB_API_KEY", "none")
    assert trackers._has_key()


PROGRAM = """
import os, sys, workbench
run = workbench.start(sys.argv[1], out=sys.argv[2], trackers=sys.argv[4:])
for record in run:
    if record.step == int(sys.argv[3]):
        if sys.argv[4] == "tensorboard":
            os._exit(0)
        # what wandb has not written yet is lost in a crash
        break
"""


def process(asked: Path, out: Path, leave_at: int, name: str) -> None:
    """Trackers look around the process they are in, so each run has one of its own, which ends
    after step `leave_at` without a checkpoint of it."""
    paths = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {k: v for k, v in os.environ.items() if k not in WITHOUT_NET}
    own = {name: str(out.parent / "home") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")}
    own["NETRC"] = str(out.parent / "no.netrc")
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **own}
    command = [sys.executable, "-c", PROGRAM, str(asked), str(out), str(leave_at), name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "tracker" not in done.stderr, done.stderr


def train_twice(text: Path, tmp_path: Path, name: str) -> Path:
    """A run that ended after step 10 and went on from the checkpoint of step 8."""
    asked = tmp_path / "tiny.yaml"
    asked.write_text(recipe(text, SMALL).to_yaml())
    process(asked, tmp_path / "run", 10, name)
    process(asked, tmp_path / "run", -1, name)
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_step_once(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'workbench[tracking]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = workbench.RunFolder(train_twice(text, tmp_path, "tensorboard"))
    found = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    for kind, tag in (("train", "train/loss_nats"), ("eval", "valid/loss_nats")):
        shown = [(event.step, event.value) for event in found.Scalars(tag)]
        kept = [(row["step"], row["loss_nats"]) for row in folder.records(kind)]
        assert [step for step, _ in shown] == [step for step, _ in kept]
        assert [value for _, value in shown] == pytest.approx([value for _, value in kept])
    assert "train/lr" in found.Tags()["scalars"] and len(found.Tags()["tensors"]) == 1


def log_records(data: bytes) -> Iterator[bytes]:
    """Of a file of wandb's, which is a LevelDB log: blocks of 32 KiB with records in pieces."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        # whole, or the last piece
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_goes_on_offline_under_one_id(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install 'workbench[wandb]'")
    from wandb.proto import wandb_internal_pb2

    folder = workbench.RunFolder(train_twice(text, tmp_path, "wandb"))
    files = sorted(folder.path.glob("wandb/offline-run-*/*.wandb"))
    steps: list[int] = []
    for data in (data for path in files for data in log_records(path.read_bytes())):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            assert record.run.project == "workbench" and record.run.display_name == "tiny"
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
    assert len(files) == 2 and len({path.stem for path in files}) == 1
    assert {row["step"] for row in folder.records()} <= set(steps)


def test_one_tracker_does_not_end_another(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Listener(breaks_at=0), Listener()
    both = Tracking([("first", first), ("second", second)])
    for step in (1, 2):
        both.log(DoneRecord(step=step, reason="steps"))
    both.close()
    assert len(second.told) == 2 and second.closed == 1 and first.closed == 0
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("tracker first failed")
