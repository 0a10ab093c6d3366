"""Fine-tuning: a run that begins with another run's weights."""

from pathlib import Path

import pytest
import torch
from tiny_run import recipe, write_text

import workbench
from workbench.errors import CheckpointError, ConfigError
from workbench.recipe import Recipe
from workbench.train import checkpoint, config
from workbench.train.folder import RunFolder

FINE = {"steps": 4, "optimizer": {"kind": "sgd", "lr": 1e-3}, "schedule": {"kind": "constant"}}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Its newest checkpoint is not its best."""
    run = workbench.start(recipe(text, steps=6), out=tmp_path_factory.mktemp("trained") / "run")
    list(run)
    run.model.get_parameter("vocabulary.output.bias").data.add_(1)
    checkpoint.save(run.folder.checkpoints, 7, run.model, {}, recipe_sha256="x", valid_nats=99.0)
    return run.folder


def fine(text: Path, trained: RunFolder, **train: object) -> Recipe:
    return recipe(text, **{**FINE, "start_from": str(trained.path), **train})


def test_it_begins_with_the_best_weights(text: Path, trained: RunFolder, tmp_path: Path) -> None:
    best = checkpoint.best(trained.checkpoints)
    newest = checkpoint.newest(trained.checkpoints)
    assert best is not None and newest is not None and best.step < newest.step
    run = workbench.start(fine(text, trained), out=tmp_path / "run")
    for name, value in trained.load_model("best").state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value)
    list(run)
    # the origin is needed only once
    gone = tmp_path / "elsewhere"
    (tmp_path / "run" / "status.json").unlink()
    trained.path.rename(gone)
    try:
        assert workbench.start(fine(text, trained), out=tmp_path / "run").step == 4
    finally:
        gone.rename(trained.path)


def test_faults_are_found_before_anything_is_written(
    text: Path, trained: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"train\.start_from: .*nowhere is not a run folder"):
        workbench.start(fine(text, trained, start_from=str(tmp_path / "nowhere")), out=out)
    empty = workbench.start(recipe(text), out=tmp_path / "empty").folder
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        workbench.start(fine(text, empty), out=out)
    model = {"d_model": 12, "stack": [{"block": {"mixer": {"kind": "fast_weight", "n_heads": 1,
             "d_head": 4}}}]}  # fmt: skip
    other = recipe(text, model, **FINE, start_from=str(trained.path))
    with pytest.raises(CheckpointError, match="weights of another model"):
        workbench.start(other, out=out)
    assert not out.exists()


def test_fine_tuning_averages_from_the_first_update_and_stops_at_the_sign(
    text: Path, trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "non_monotone", lambda before, now, n: len(before) == n)
    asked = fine(
        text, trained, optimizer={"kind": "asgd", "lr": 0.3}, stop={"nonmono": 2}, steps=50,
        eval_every=4, checkpoint_every=4, log_every=4,
    )  # fmt: skip
    run = workbench.start(asked, out=tmp_path / "run")
    told = list(run)
    assert [(r.step, r.averaged_from) for r in told if r.kind == "eval"] == [
        (4, 0),
        (8, 0),
        (12, 0),
    ]
    assert told[-1].reason == "nonmono" and told[-1].step == 12
    assert run.folder.status()["state"] == "done"
    assert list(workbench.start(asked, out=tmp_path / "run")) == []
    assert run.folder.load_model("best").n_parameters == run.model.n_parameters


def test_the_optimizer_can_be_continued(text: Path, tmp_path: Path) -> None:
    """Adagrad's sums go on from where they were; the rate is the new one."""
    slow = {"kind": "adagrad", "lr": 1e-3}
    first = workbench.start(
        recipe(text, steps=6, optimizer={**slow, "lr": 0.1}), out=tmp_path / "first"
    )
    list(first)
    origin = {"start_from": str(first.folder.path), "optimizer": slow}
    saved = checkpoint.load_state(checkpoint.best(first.folder.checkpoints))["optimizer"]["state"]
    for how in ("fresh", "continued"):
        run = workbench.start(
            recipe(text, **{**FINE, **origin, "start_optimizer": how}), out=tmp_path / how
        )
        sums = [entry["sum"] for entry in run._trainer.optimizer.state.values()]
        expected = [entry["sum"] for entry in saved.values()]
        same = [torch.equal(a, b) for a, b in zip(sums, expected, strict=True)]
        assert all(same) == (how == "continued")
        list(run)
        assert run.folder.records("train")[-1]["lr"] == 1e-3
    other = {"start_from": str(first.folder.path), "start_optimizer": "continued"}
    with pytest.raises(ConfigError, match="was trained with adagrad"):
        workbench.start(recipe(text, **{**FINE, **other}), out=tmp_path / "other")
    with pytest.raises(ConfigError, match="start_from is null"):
        recipe(text, start_optimizer="continued")
