"""Checkpoints and run folders: whole or not there, and never taken for another's."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny_run import recipe, write_text

import workbench
from workbench.config import Config, essence, load
from workbench.errors import CannotWrite, CheckpointError, ConfigError
from workbench.recipe import Recipe
from workbench.train import checkpoint, storage
from workbench.train.folder import RunFolder, recipe_sha256
from workbench.train.records import DoneRecord


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    text = write_text(tmp_path_factory.mktemp("text") / "text.txt")
    return recipe(text, steps=12, checkpoint_every=4, eval_every=100, schedule={"kind": "constant"})


@pytest.fixture(scope="module")
def trained(asked: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = workbench.start(asked, out=tmp_path_factory.mktemp("trained") / "run")
    list(run)
    return run.folder.path


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> RunFolder:
    """Checkpoints of steps 8 and 12, the last one validated."""
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def newest_folder(folder: RunFolder) -> Path:
    return folder.checkpoints / "step-0000012"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def as_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def as_folders(path: Path, name: str) -> None:
    (path / name).unlink()
    (path / name).mkdir()


DAMAGE = {
    "weights missing": lambda p: (p / "weights.safetensors").unlink(),
    "weights empty": lambda p: (p / "weights.safetensors").write_bytes(b""),
    "weights too long": lambda p: storage.append(p / "weights.safetensors", b"x"),
    "state a folder": lambda p: as_folders(p, "state.pt"),
    "manifest a folder": lambda p: as_folders(p, "manifest.json"),
    "manifest empty": lambda p: (p / "manifest.json").write_bytes(b""),
    "manifest a list": lambda p: (p / "manifest.json").write_text("[]"),
    "manifest no text": lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"),
    "a file": as_a_file,
    "an empty folder": lambda p: [shutil.rmtree(p), p.mkdir()],
    "weights cut off": lambda p: (p / "weights.safetensors").write_bytes(
        (p / "weights.safetensors").read_bytes()[:-7]
    ),
    "weights flipped": lambda p: flip(p / "weights.safetensors", -9),
    "state flipped": lambda p: flip(p / "state.pt", 700),
    "state empty": lambda p: (p / "state.pt").write_bytes(b""),
    "state missing": lambda p: (p / "state.pt").unlink(),
    "manifest torn": lambda p: (p / "manifest.json").write_text('{"format": 1, "st'),
    "manifest flipped": lambda p: (p / "manifest.json").write_text(
        (p / "manifest.json").read_text().replace('"step": 12', '"step": 13')
    ),
    "manifest missing": lambda p: (p / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_aloud(
    copy: RunFolder, asked: Recipe, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[damage](newest_folder(copy))
    with pytest.raises(CheckpointError, match="step-0000012"):
        checkpoint.verify(newest_folder(copy))
    with caplog.at_level(logging.WARNING, "workbench"):
        found = checkpoint.newest(copy.checkpoints)
    assert found is not None and found.step == 8
    assert "step-0000012" in caplog.text and "the one before" in caplog.text


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut off", "zeroed"])
def test_damage_is_found_wherever_it_is(copy: RunFolder, name: str, how: str) -> None:
    path = newest_folder(copy) / name
    whole = path.read_bytes()
    for share in (0, 0.02, 0.1, 0.3, 0.5, 0.77, 0.99):
        at = int(share * len(whole))
        damaged = {
            "flipped": whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :],
            "cut off": whole[:at],
            # as a disk does that had promised to have written it
            "zeroed": whole[:at] + bytes(len(whole) - at),
        }[how]
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            checkpoint.verify(path.parent)
        found = checkpoint.newest(copy.checkpoints)
        assert found is not None and found.step == 8, (share, damaged[:40])
    path.write_bytes(whole)
    assert checkpoint.verify(path.parent).step == 12


def test_one_that_cannot_be_read_is_passed_over(
    copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = Path.open, newest_folder(copy) / "state.pt"

    def failing(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == broken:
            raise OSError(5, "Input/output error")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read .*Input/output error"):
        checkpoint.verify(newest_folder(copy))
    found = checkpoint.newest(copy.checkpoints)
    assert found is not None and found.step == 8


def test_training_goes_on_from_the_one_before(
    copy: RunFolder, asked: Recipe, trained: Path
) -> None:
    flip(newest_folder(copy) / "weights.safetensors", -1)
    run = workbench.start(asked, out=copy.path)
    assert run.step == 8
    assert max(row["step"] for row in copy.records()) == 8
    list(run)
    ours, theirs = copy.load_model(), RunFolder(trained).load_model()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert [r["step"] for r in copy.records("train")] == [5, 10, 12]


def test_all_damaged_is_an_error_and_not_a_new_start(copy: RunFolder, asked: Recipe) -> None:
    for path in checkpoint.folders(copy.checkpoints):
        (path / "manifest.json").write_text("{}")
    records = copy.records()
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged") as error:
        workbench.start(asked, out=copy.path)
    assert "step-0000008" in str(error.value) and "step-0000012" in str(error.value)
    assert copy.records() == records


def test_a_foreign_checkpoint_is_refused(copy: RunFolder, asked: Recipe, tmp_path: Path) -> None:
    other = asked.model_copy(update={"name": "other"})
    list(workbench.start(other, out=tmp_path / "other"))
    theirs = tmp_path / "other" / "checkpoints" / "step-0000012"
    shutil.rmtree(newest_folder(copy))
    shutil.copytree(theirs, newest_folder(copy))
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        workbench.start(asked, out=copy.path)


def test_weights_of_another_model_are_named(trained: Path, asked: Recipe) -> None:
    found = checkpoint.newest(trained / "checkpoints")
    assert found is not None
    model = asked.model.model_copy(update={"d_model": 12}).build(256)
    with pytest.raises(CheckpointError, match=r"another model: '.*' has shape .*8.*12"):
        checkpoint.load_weights(found, model)


class Trap:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_in_disguise_is_never_executed(
    copy: RunFolder, asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = newest_folder(copy)
    torch.save({"step": 12, "optimizer": Trap()}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"]["state.pt"] = checkpoint._fingerprint(path / "state.pt")
    manifest["sha256"] = checkpoint.digest(json.dumps(manifest, sort_keys=True))
    (path / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.verify(path)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        workbench.start(asked, out=copy.path)
    assert not (tmp_path / "trapped").exists()


def test_shared_tensors_are_stored_once_and_stay_shared(trained: Path) -> None:
    found = checkpoint.newest(trained / "checkpoints")
    assert found is not None
    assert found.manifest["aliases"]["vocabulary.output.weight"] == "vocabulary.embedding.weight"
    model = RunFolder(trained).load_model()
    assert model.vocabulary.output.weight is model.vocabulary.embedding.weight
    first, last = model.blocks[0].mixer.positions, model.blocks[3].mixer.positions
    assert all(getattr(first, name) is getattr(last, name) for name in first.shared)
    assert first.shared
    assert not model.training


def test_only_the_newest_and_the_best_are_kept(asked: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = asked.model.build(7)
    folder = tmp_path / "checkpoints"
    for step, nats in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 2.5)]:
        checkpoint.save(folder, step, model, {}, recipe_sha256="x", valid_nats=nats)
        checkpoint.prune(folder, keep=2)
    assert [p.name[-1] for p in checkpoint.folders(folder)] == ["5", "4", "2"]
    best = checkpoint.best(folder)
    assert best is not None and best.step == 2


def test_every_nth_is_kept_for_good(asked: Recipe, tmp_path: Path) -> None:
    run = workbench.start(
        asked, {"train.steps": 24, "train.keep_every": 8, "train.keep_checkpoints": 1},
        out=tmp_path / "run",
    )  # fmt: skip
    list(run)
    kept = [p.name[-2:] for p in checkpoint.folders(run.folder.checkpoints)]
    assert kept == ["24", "16", "08"]
    with pytest.raises(
        ConfigError, match=r"keep_every is 7, but .* every 4 updates .* multiple: 8"
    ):
        workbench.start(asked, {"train.keep_every": 7}, out=tmp_path / "none")
    # neither changes what is learnt: a run may be continued with others
    fewer = {"train.steps": 24, "train.keep_checkpoints": 2}
    assert list(workbench.start(asked, fewer, out=run.folder.path)) == []


def test_the_manifest_holds_the_recipe_and_the_versions(
    copy: RunFolder, asked: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    found = checkpoint.newest(copy.checkpoints)
    assert found is not None
    assert found.manifest["versions"]["torch"] == torch.__version__
    assert found.manifest["versions"].keys() == {"torch", "workbench", "python"}
    assert load(Recipe, found.manifest["recipe"]) == asked
    with caplog.at_level(logging.WARNING, "workbench"):
        workbench.start(asked, out=copy.path)
        assert caplog.text == ""
        rewrite_manifest(found.path, versions={"torch": "2.0.1"})
        workbench.start(asked, out=copy.path)
        assert "was written with torch 2.0.1" in caplog.text and "not promised" in caplog.text
        caplog.clear()
        # as versions before this one wrote it
        rewrite_manifest(found.path, versions=None, recipe=None)
        assert workbench.start(asked, out=copy.path).step == 12
        assert caplog.text == ""


def rewrite_manifest(path: Path, **change: Any) -> None:
    """With its own checksum mended; None takes an entry out."""
    manifest = json.loads((path / "manifest.json").read_text()) | change
    manifest = {k: v for k, v in manifest.items() if k != "sha256" and (v or k not in change)}
    manifest["sha256"] = checkpoint.digest(json.dumps(manifest, sort_keys=True))
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_replacing_the_only_checkpoint_never_loses_it(
    asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two renames: one checkpoint is there by another name."""
    model = asked.model.build(7)
    checkpoint.save(tmp_path, 1, model, {"a": 1}, recipe_sha256="x")
    real = os.replace

    def dies(source: Path, target: Path) -> None:
        if ".partial" in str(source):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dies)
        checkpoint.save(tmp_path, 1, model, {"a": 2}, recipe_sha256="x", valid_nats=1.0)
    found = checkpoint.newest(tmp_path)
    assert found is not None and checkpoint.load_state(found) == {"a": 1}
    # with the new one in place, the old one counts no more
    shutil.copytree(found.path, tmp_path / "step-0000001")
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.path.name == "step-0000001"
    checkpoint.save(tmp_path, 2, model, {"a": 3}, recipe_sha256="x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000001", "step-0000002"]


def test_a_save_that_dies_leaves_what_was_there(
    asked: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked.model.build(7)
    checkpoint.save(tmp_path, 1, model, {"a": 1}, recipe_sha256="x")
    for step in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(CannotWrite, match="disk full"):
            patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            checkpoint.save(tmp_path, step, model, {"a": 2}, recipe_sha256="x")
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert checkpoint.load_state(found) == {"a": 1}
    checkpoint.save(tmp_path, 1, model, {"a": 3}, recipe_sha256="x")
    checkpoint.prune(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]
    assert checkpoint.load_state(found) == {"a": 3}


def test_recipe_hash_ignores_only_what_a_continued_run_may_change(asked: Recipe) -> None:
    train = asked.train.model_copy(update={"max_seconds": 9.0, "device": "auto"})
    assert recipe_sha256(asked.model_copy(update={"train": train})) == recipe_sha256(asked)
    train = asked.train.model_copy(update={"seed": 9})
    assert recipe_sha256(asked.model_copy(update={"train": train})) != recipe_sha256(asked)


def test_recipe_hash_stays_where_fields_with_defaults_are_added() -> None:
    class Before(Config):
        kind: Literal["a"] = "a"
        width: int = 3

    class After(Before):
        depth: int = 1

    assert essence(After(width=4)) == essence(Before(width=4)) == {"kind": "a", "width": 4}
    assert essence([After(depth=2)]) == [{"kind": "a", "depth": 2}]


def test_a_run_folder_for_readers(trained: Path, tmp_path: Path) -> None:
    folder = RunFolder(trained)
    assert folder.recipe().name == "tiny"
    assert [row["step"] for row in folder.records("checkpoint")] == [4, 8, 12]
    assert folder.load_model("best").n_parameters == folder.load_model().n_parameters
    assert folder.artefact("figures/span.json") == trained / "figures" / "span.json"
    assert (trained / "figures").is_dir()
    with pytest.raises(ConfigError, match="leads out"):
        folder.artefact("../span.json")
    with pytest.raises(ConfigError, match="choose last or best"):
        folder.load_model("first")
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder(tmp_path).load_model()
    assert RunFolder(tmp_path / "no").records() == [] and RunFolder(tmp_path / "no").status() == {}


def test_a_run_without_checkpoint_says_so(asked: Recipe, tmp_path: Path) -> None:
    run = workbench.start(asked, out=tmp_path / "run")
    for which in ("last", "best"):
        with pytest.raises(CheckpointError, match=f"no {which} checkpoint yet"):
            run.folder.load_model(which)


def test_torn_lines_are_not_records(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.append(DoneRecord(step=step, reason="interrupted"))
    whole = (tmp_path / "records.jsonl").read_bytes()
    (tmp_path / "records.jsonl").write_bytes(whole + whole[:10])
    assert [r["step"] for r in folder.records()] == [1, 2]
    folder.rewind(1)
    assert (tmp_path / "records.jsonl").read_bytes() == whole[: len(whole) // 2]
