"""Losses and gradients that are not finite, and overflows of fp16: what is left out, and found."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_run import recipe, write_text
from torch import Tensor

import workbench
from workbench.config import ConfigError, load
from workbench.errors import NonFiniteLoss
from workbench.models.blocks import Block
from workbench.models.vocabulary import Plain
from workbench.recipe import Recipe
from workbench.train import guard, nonfinite, precision
from workbench.train.config import TrainConfig
from workbench.train.trainer import Trainer

NAN = float("nan")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


class Poison:
    """Makes NaN of what one block gives, whenever certain tokens are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[Tensor] = []
        self.seen: list[tuple[Any, ...]] = []
        """what the block was given then, and its weights"""
        self._now = False
        embed, forward = Plain.embed, Block.forward

        def noticing(vocabulary: Plain, tokens_BT: Tensor) -> Tensor:
            self._now = any(torch.equal(tokens_BT, x) for x in self.tokens)
            return embed(vocabulary, tokens_BT)

        def poisoned(block: Block, x: Tensor, state: Any, n_last: int | None = None) -> Any:
            y, new = forward(block, x, state, n_last)
            # the third layer is the one with fast weights
            if not self._now or block.mixer.config.kind != "fast_weight":
                return y, new
            weights = [p.detach().clone() for p in block.parameters()]
            self.seen.append((x.detach().clone(), *state, *weights))
            return y * NAN, new

        monkeypatch.setattr(Plain, "embed", noticing)
        monkeypatch.setattr(Block, "forward", poisoned)

    def add(self, asked: Recipe, tmp_path: Path, *steps: int) -> None:
        """The batches of these updates."""
        segments = workbench.start(asked, out=tmp_path / "unused")._trainer.segments
        batches = [segments.next() for _ in range(max(steps))]
        self.tokens += [batches[step - 1].tokens_BT for step in steps]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    return Poison(monkeypatch)


def test_a_broken_batch_is_saved_and_replayed_exactly(
    text: Path, tmp_path: Path, poison: Poison
) -> None:
    asked = recipe(text, max_seconds=3600)
    poison.add(asked, tmp_path, 9)
    run = workbench.start(asked, out=tmp_path / "run")
    with pytest.raises(NonFiniteLoss, match=r"update 9 of(.|\n)*import replay; .*run'\)"):
        list(run)
    saved = safetensors.torch.load_file(run.folder.path / "nonfinite/step-0000009.safetensors")
    assert torch.equal(saved["tokens_BT"], poison.tokens[0])
    assert saved["targets_BT"].shape == (3, 7)
    before = {p: p.read_bytes() for p in run.folder.path.rglob("*") if p.is_file()}
    it = nonfinite.replay(run.folder.path)
    assert {p: p.read_bytes() for p in run.folder.path.rglob("*") if p.is_file()} == before
    assert (it.step, it.weight, it.carried, it.same_batch) == (9, None, None, True)
    assert it.module == "blocks.2 (Block)"
    assert it.parameter is not None and "first output that is not finite is that of blo" in str(it)
    # from the checkpoint of update 8, with its validation: the same weights, carry and dropout
    first, second = poison.seen
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(ConfigError, match="no batch of update 3 in nonfinite/; saved are: 9"):
        nonfinite.replay(run.folder.path, 3)


def test_a_gradient_alone_is_found_by_its_parameter(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    forward = Block.forward

    def bad_gradient(block: Block, x: Tensor, state: Any, n_last: int | None = None) -> Any:
        y, new = forward(block, x, state, n_last)
        if y.requires_grad and block.mixer.config.kind == "fast_weight":
            y.register_hook(lambda g: g * NAN)
        return y, new

    monkeypatch.setattr(Block, "forward", bad_gradient)
    with pytest.raises(NonFiniteLoss, match="update 1 "):
        list(run)
    it = nonfinite.replay(run.folder.path, 1)
    assert it.module is None and 0 < it.loss_nats < 20
    # the block that the gradient meets first on its way back
    assert it.parameter is not None and it.parameter.startswith("blocks.2.")


def test_weights_that_were_broken_before_are_said_to_be(text: Path, tmp_path: Path) -> None:
    run = workbench.start(
        recipe(text, optimizer={"kind": "sgd", "lr": 1e39}, clip_norm=None), out=tmp_path / "run"
    )
    with pytest.raises(NonFiniteLoss):
        list(run)
    it = nonfinite.replay(run.folder.path)
    assert it.step == 2 and it.weight is not None
    assert f"before it the weight {it.weight} was not finite" in str(it)


OPTIMIZERS = [
    {"kind": "adam", "lr": 3e-3},
    {"kind": "adamw", "lr": 3e-3},
    {"kind": "sgd", "lr": 0.1, "momentum": 0.5},
    {"kind": "adagrad", "lr": 0.01},
    {"kind": "adagrad", "lr": 0.01, "clip": "per_tensor"},
    {"kind": "asgd", "lr": 0.1},
]


def everything(trainer: Trainer) -> list[Tensor]:
    """Weights and all that the optimizer keeps, averages among it."""
    kept = trainer.optimizer.state_dict()["state"].values()
    tensors = [x for one in kept for x in one.values() if isinstance(x, Tensor)]
    return [x.detach().clone() for x in [*trainer.model.parameters(), *tensors]]


@pytest.mark.parametrize("how", ["skip", "back_off", "fp16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: x["kind"] + x.get("clip", ""))
def test_an_update_that_is_left_out_touches_nothing(
    text: Path, tmp_path: Path, poison: Poison, optimizer: dict[str, Any], how: str
) -> None:
    told = {"precision": "fp16"} if how == "fp16" else {"on_nonfinite": how}
    asked = recipe(text, optimizer=optimizer, **told)
    if how != "fp16":
        poison.add(asked, tmp_path, 3)
    trainer = workbench.start(asked, out=tmp_path / "run")._trainer
    for _ in range(2):
        trainer.update()
    before, settings = everything(trainer), copy.deepcopy(trainer.optimizer.param_groups)
    carry, norm = trainer.carry, trainer.grad_norm
    if how == "fp16":
        bias = trainer.model.vocabulary.output.bias
        hook = bias.register_hook(lambda g: g * float("inf"))
    trainer.update()
    assert trainer.step == 3
    assert all(torch.equal(a, b) for a, b in zip(everything(trainer), before, strict=True))
    keys = [k for k in settings[0] if k not in ("params", "lr")]
    assert all(trainer.optimizer.param_groups[0][k] == settings[0][k] for k in keys)
    assert torch.equal(trainer.grad_norm, norm)
    assert int(trainer.meters.skipped) == 1
    if how == "fp16":
        hook.remove()
        assert trainer.scale.value() == 32768
        assert trainer.carry is not carry, "the loss was finite, and so is what it leaves behind"
    else:
        assert trainer.carry is carry
    trainer.update()
    assert any(not torch.equal(a, b) for a, b in zip(everything(trainer), before, strict=True))
    record = trainer.record(0.0)
    assert record.skipped == 1 and record.loss_nats > 0 and record.grad_norm > 0


def test_skipped_updates_are_told_and_saved_with_their_carry(
    text: Path, tmp_path: Path, poison: Poison, caplog: pytest.LogCaptureFixture
) -> None:
    asked = recipe(text, on_nonfinite="skip")
    poison.add(asked, tmp_path, 7, 9)
    run = workbench.start(asked, out=tmp_path / "run")
    records = [r for r in run if r.kind == "train"]
    assert [(r.step, r.skipped) for r in records] == [(5, 0), (10, 2), (15, 0), (20, 0), (24, 0)]
    assert all(0 < r.loss_nats < 20 for r in records)
    assert run.folder.status()["state"] == "done"
    assert "update 7 is left out" in caplog.text
    saved = sorted((run.folder.path / "nonfinite").iterdir())
    assert [p.name for p in saved] == ["step-0000007.safetensors", "step-0000009.safetensors"]
    carry = {n for n in safetensors.torch.load_file(saved[0]) if n.startswith("carry.")}
    assert carry == {"carry.0.0", "carry.1.0", "carry.2.0", "carry.2.1", "carry.3.0"}
    assert nonfinite.replay(run.folder.path, 9).module == "blocks.2 (Block)"


def test_too_many_in_a_row_end_the_run(text: Path, tmp_path: Path, poison: Poison) -> None:
    asked = recipe(text, on_nonfinite="skip", eval_every=50, checkpoint_every=4)
    poison.add(asked, tmp_path, *range(6, 24))
    run = workbench.start(asked, out=tmp_path / "run")
    told = []
    with pytest.raises(NonFiniteLoss, match="11 updates in a row were left out, the last one 16"):
        told += list(run)
    assert run.folder.status()["state"] == "failed"
    # at 10 and 15 there is no loss to tell
    assert [row["step"] for row in run.folder.records("train")] == [5]
    files = sorted(p.name for p in (run.folder.path / "nonfinite").iterdir())
    assert len(files) == guard.SAVED and files[-1] == "step-0000016.safetensors"


def story(run: workbench.Run) -> list[dict[str, Any]]:
    clock = ("elapsed_s", "tokens_per_s", "bytes", "peak_bytes")
    rows = [r for r in run.folder.records() if r.get("reason") != "interrupted"]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def test_backing_off_halves_the_rate_for_a_while_and_continues_exactly(
    text: Path, tmp_path: Path, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RECOVERS_AFTER", 4)
    asked = recipe(
        text, on_nonfinite="back_off", schedule={"kind": "constant"}, log_every=1, eval_every=50
    )
    poison.add(asked, tmp_path, 5, 6)
    run = workbench.start(asked, out=tmp_path / "whole")
    rates = {r.step: r.lr for r in run if r.kind == "train"}
    assert 5 not in rates and 6 not in rates
    for steps, share in ((range(1, 5), 1), (range(7, 11), 0.25), (range(11, 15), 0.5), ([20], 1)):
        assert [rates[step] for step in steps] == pytest.approx([3e-3 * share] * len(steps))
    parts = workbench.start(asked, out=tmp_path / "parts")
    for record in parts:
        if record.kind == "checkpoint" and record.step == 12:
            break
    parts = workbench.start(asked, out=tmp_path / "parts")
    assert parts.step == 12
    list(parts)
    assert story(parts) == story(run)
    for a, b in zip(parts.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("averages", [False, True])
def test_fp16_finds_its_scale_and_continues_exactly(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averages: bool
) -> None:
    # much too large: the first updates overflow
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**24)
    optimizer = {"kind": "asgd", "lr": 0.1} if averages else {"kind": "adam", "lr": 3e-3}
    asked = recipe(text, precision="fp16", log_every=2, optimizer=optimizer)
    run = workbench.start(asked, out=tmp_path / "whole")
    records = [r for r in run if r.kind == "train"]
    assert records[0].skipped and records[0].loss_scale is not None
    assert records[-1].loss_scale == 2.0 ** (24 - sum(r.skipped or 0 for r in records))
    assert all(r.grad_norm >= 0 and 0 < r.loss_nats < 20 for r in records)
    parts = workbench.start(asked, out=tmp_path / "parts")
    for record in parts:
        if record.kind == "checkpoint" and record.step == 18:
            break
    parts = workbench.start(asked, out=tmp_path / "parts")
    state = parts._trainer.state()
    assert state["loss_scale"]["_growth_tracker"] > 0
    list(parts)
    assert story(parts) == story(run)
    for a, b in zip(parts.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_scale_of_ones_own_stays_as_it_is(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, precision="fp16", loss_scale=128), out=tmp_path / "run")
    records = [r for r in run if r.kind == "train"]
    assert {(r.loss_scale, r.skipped) for r in records} == {(128.0, 0)}


def test_a_scale_that_is_too_large_for_ever_ends_the_run(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, precision="fp16", loss_scale=1e30), out=tmp_path / "run")
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NonFiniteLoss, match="update 11 "):
        list(run)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), before, strict=True))


def test_what_no_scale_can_mend_is_no_overflow(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, precision="fp16"), out=tmp_path / "run")
    run.model.vocabulary.output.bias.register_hook(lambda g: g * float("inf"))
    # 65536 halved 16 times is 1
    with pytest.raises(NonFiniteLoss, match="update 17 "):
        list(run)


def test_micro_batches_have_one_scale_and_one_overflow(text: Path, tmp_path: Path) -> None:
    plain = {"d_model": 8, "stack": [{"block": {"mixer": {"kind": "lstm", "d_hidden": 8}}}]}
    runs = []
    for pieces in (1, 3):
        asked = recipe(text, plain, precision="fp16", micro_batches=pieces)
        run = workbench.start(asked, out=tmp_path / str(pieces))
        list(run)
        runs.append(run)
    for a, b in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)
    trainer = workbench.start(asked, out=tmp_path / "bad")._trainer
    trainer.update()
    before, calls = everything(trainer), []

    def once(g: Tensor) -> Tensor:
        calls.append(1)
        return g * float("inf") if len(calls) == 2 else g

    trainer.model.vocabulary.output.bias.register_hook(once)
    trainer.update()
    assert len(calls) == 3 and int(trainer.meters.skipped) == 1
    assert all(torch.equal(a, b) for a, b in zip(everything(trainer), before, strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss_scale": 128}, "train: loss_scale is 128, which says nothing under precision fp32"),
        ({"precision": "fp16", "loss_scale": 0}, "train.loss_scale: got 0, expected dynamic or a"),
        ({"precision": "fp16", "loss_scale": "static"}, "train.loss_scale: got 'static'"),
        ({"on_nonfinite": "go_on"}, "train.on_nonfinite: "),
        ({"recompute": True, "compile": True}, "train: recompute and compile are both true"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    base = {"steps": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}
    with pytest.raises(ConfigError) as error:
        load(TrainConfig, {**base, **fields}, "train")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


HERE = Path(__file__).parent


def in_two_processes(text: Path, tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(HERE / "one_of_two.py"), str(text), str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_recomputed_blocks_give_the_same_bits_in_two_processes(text: Path, tmp_path: Path) -> None:
    in_two_processes(text, tmp_path, "recompute")


@pytest.mark.parametrize("how", ["fp16", "skip"])
def test_all_processes_leave_out_the_same_updates(text: Path, tmp_path: Path, how: str) -> None:
    """One of two processes meets what is not finite; both must agree on every update."""
    in_two_processes(text, tmp_path, how)
    first, second = (safetensors.torch.load_file(tmp_path / f"{rank}.safetensors") for rank in "01")
    assert int(first["skipped"]) == int(second["skipped"]) == 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    if how == "skip":
        saved = safetensors.torch.load_file(tmp_path / "run/nonfinite/step-0000002.safetensors")
        assert saved["tokens_BT"].shape == (4, 7)
        it = nonfinite.replay(tmp_path / "run", 2)
        assert it.same_batch and (it.module, it.parameter) == (None, None), "it has no such hook"
