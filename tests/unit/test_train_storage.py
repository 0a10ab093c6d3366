"""A disk that is full or read-only: said plainly, nothing lost, and the same command goes on."""

import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import recipe, write_text

import workbench
from workbench.errors import CannotWrite, ConfigError
from workbench.train import checkpoint, storage
from workbench.train.folder import RunFolder
from workbench.train.records import DoneRecord


@contextmanager
def files_up_to(nbytes: int) -> Iterator[None]:
    """Inside, this process can write no file that is longer: the write fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = workbench.start(recipe(text), out=tmp_path_factory.mktemp("whole") / "run")
    list(run)
    return run.folder


def assert_same_weights(got: RunFolder, expected: RunFolder) -> None:
    ours, theirs = (f.load_model().state_dict() for f in (got, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    told = [[(r["kind"], r["step"]) for r in f.records()] for f in (got, expected)]
    assert told[0] == told[1]


@pytest.mark.parametrize("nbytes", [2000, 9000, 20000])
def test_disk_full_within_a_checkpoint(
    text: Path, tmp_path: Path, whole: RunFolder, nbytes: int
) -> None:
    """The weights, or the state; what was written before stays."""
    run = workbench.start(recipe(text), out=tmp_path / "run")
    # records grow beyond the smallest of these limits: they are not written at step 6
    told = next(r for r in run if r.kind == "train")
    before = RunFolder(tmp_path / "run").records()
    assert told.step == 5
    with files_up_to(nbytes), pytest.raises(CannotWrite) as error:
        list(run)
    said = str(error.value)
    assert "cannot write the checkpoint of step 6" in said and "File too large" in said
    assert str(tmp_path / "run" / "checkpoints") in said
    assert "needs" in said and "are free" in said and "Free space there" in said
    assert "the same command continues" in said
    assert list(run.folder.checkpoints.iterdir()) == []
    assert run.folder.status()["state"] == "failed"
    assert run.folder.records() == before
    with pytest.raises(CannotWrite, match=r"call workbench\.start again"):
        list(run)
    list(workbench.start(recipe(text), out=tmp_path / "run"))
    assert_same_weights(run.folder, whole)


def test_the_checkpoint_before_is_untouched(text: Path, tmp_path: Path, whole: RunFolder) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(r for r in run if r.kind == "checkpoint")
    with files_up_to(20000), pytest.raises(CannotWrite, match="of step 8"):
        list(run)
    assert [p.name for p in run.folder.checkpoints.iterdir()] == ["step-0000006"]
    again = workbench.start(recipe(text), out=tmp_path / "run")
    assert again.step == 6
    list(again)
    assert_same_weights(run.folder, whole)


def test_disk_full_within_a_record(text: Path, tmp_path: Path, whole: RunFolder) -> None:
    """No torn line is left: whatever follows one would not be read."""
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(r for r in run if r.kind == "checkpoint")
    path = run.folder.path / "records.jsonl"
    before = path.read_bytes()
    with (
        files_up_to(len(before) + 20),
        pytest.raises(CannotWrite, match="cannot write the eval record"),
    ):
        list(run)
    assert path.read_bytes() == before
    list(workbench.start(recipe(text), out=tmp_path / "run"))
    assert_same_weights(run.folder, whole)


def test_a_status_that_cannot_be_written_hides_no_reason(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(iter(run))
    status = run.folder.status()
    with files_up_to(5), pytest.raises(CannotWrite, match=r"cannot write status\.json"):
        list(run)
    assert run.folder.status()["state"] == status["state"] == "stopped"
    assert not list(run.folder.path.glob(".*.partial"))
    run = workbench.start(recipe(text), out=tmp_path / "other")
    run.model.run_blocks = lambda *_: exec("raise ZeroDivisionError")
    training = iter(run)
    with caplog.at_level(logging.WARNING, "workbench"), pytest.raises(ZeroDivisionError):
        real = storage.replace
        with pytest.MonkeyPatch.context() as patch:
            calls: list[Path] = []

            def full(path: Path, data: bytes, durable: bool = True) -> None:
                calls.append(path)
                if len(calls) > 1:
                    raise OSError(28, "No space left on device")
                real(path, data, durable)

            patch.setattr(storage, "replace", full)
            next(training)
    assert "could not be written" in caplog.text and "No space left" in caplog.text


def test_space_is_looked_at_before_a_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    monkeypatch.setattr(storage, "SPARE_BYTES", 90_000)
    with pytest.raises(CannotWrite, match=r"needs 1\d\d,\d{3} bytes; 100,000 bytes are free"):
        list(run)
    assert not any(run.folder.checkpoints.glob("*"))
    monkeypatch.undo()
    list(workbench.start(recipe(text), out=tmp_path / "run"))
    assert run.folder.status()["state"] == "done"


def test_an_append_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.append(path, b"first\n")
    with files_up_to(9), pytest.raises(OSError, match="File too large"):
        storage.append(path, b"second\n")
    assert path.read_bytes() == b"first\n"
    storage.append(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_read_only_place_is_refused_before_anything_is_done(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the system itself says so is tested on a read-only disk, in tests/crash."""
    real, closed = os.access, {tmp_path}
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) not in closed and real(p, mode))
    with pytest.raises(CannotWrite) as error:
        workbench.start(recipe(tmp_path / "no-text.txt"), out=tmp_path / "deep" / "run")
    assert str(error.value).startswith(f"out: got {tmp_path / 'deep' / 'run'}, but {tmp_path} ")
    assert "expected a folder" in str(error.value) and "give another folder" in str(error.value)
    closed.clear()
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(iter(run))
    closed.add(tmp_path / "run" / "records.jsonl")
    with pytest.raises(CannotWrite, match=r"records\.jsonl cannot be written to"):
        workbench.start(recipe(text), out=tmp_path / "run")


def test_what_a_process_killed_at_its_beginning_leaves_is_no_obstacle(
    text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".lock", "environment.json", ".recipe.yaml.partial", ".environment.json.partial"):
        (out / name).write_text('{"corpus": {"tokens_sha256": "of another text"}}')
    assert next(iter(workbench.start(recipe(text), out=out))).step == 5
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "environment.json").write_text("{}")
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        workbench.start(recipe(text), out=tmp_path / "other")


def test_a_run_killed_between_its_last_record_and_its_status_is_done(
    text: Path, tmp_path: Path, whole: RunFolder
) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.set_status("running", 24, 24)
    assert list(workbench.start(recipe(text), out=folder.path)) == []
    assert folder.status()["state"] == "done"


def test_a_torn_status_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "status.json").write_text('{"state": "run')
    with caplog.at_level(logging.WARNING, "workbench"):
        assert RunFolder(tmp_path).status() == {}
    assert "status.json is torn" in caplog.text


def test_records_remember_what_ran_in_earlier_sessions(text: Path, tmp_path: Path) -> None:
    """`sum_rule` runs in validations alone here: dropout makes training take another way."""
    fast = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "sum", "key_norm": "none"}
    mixer = {**fast, "read_norm": "output", "p_attention": 0.1}
    asked = recipe(text, {"d_model": 8, "stack": [{"block": {"mixer": mixer}}]}, steps=11)
    run = workbench.start(asked, out=tmp_path / "run")
    next(r for r in run if r.kind == "checkpoint" and r.step == 8)
    rest = list(workbench.start(asked, out=tmp_path / "run"))
    train: Any = next(r for r in rest if r.kind == "train")
    assert train.step == 10 and "sum_rule" in train.backends


def test_one_of_two_errors_of_the_disk_is_ours(tmp_path: Path) -> None:
    """Other errors pass as they are."""
    with pytest.raises(RuntimeError, match="mine"), storage.writing("x", tmp_path):
        raise RuntimeError("mine")
    said = "Read-only file system: /elsewhere"
    with pytest.raises(CannotWrite, match=said), storage.writing("x", tmp_path):
        raise OSError(30, "Read-only file system", "/elsewhere")
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(CannotWrite, match="No such file or directory"):
        folder.append(DoneRecord(step=1, reason="steps"))
    (tmp_path / "file").write_text("")
    model = recipe(tmp_path / "x").model.build(7)
    with pytest.raises(CannotWrite, match=r"exists|Not a directory"):
        checkpoint.save(tmp_path / "file", 1, model, {}, recipe_sha256="x")
