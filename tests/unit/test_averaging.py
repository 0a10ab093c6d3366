"""Averaged SGD: PyTorch's arithmetic, the trigger, and runs that are stopped in the middle."""

from pathlib import Path

import pytest
import torch
from tiny_run import recipe, write_text
from torch import nn

import workbench
from workbench.config import dump, load, override
from workbench.recipe import Recipe
from workbench.train import checkpoint, trainer
from workbench.train.averaging import AveragedSGD, AveragedSGDConfig, non_monotone
from workbench.train.folder import RunFolder

SCALES = (1.2, 0.4, 1.0, 0.7, 1.5)


def gradients(n_parameters: int = 2) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(3, 2), (4,)][:n_parameters]
    return [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for _ in SCALES
    ]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(g.clone()) for g in gradients()[0]]


def play(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> list[list[torch.Tensor]]:
    """Five scripted steps at lr 2, scaled as segments of random lengths do; weights after each."""
    after = []
    for scale, grads in zip(SCALES, gradients(), strict=True):
        for p, grad in zip(weights, grads, strict=True):
            p.grad = grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = 2.0 * scale
        optimizer.step()
        after.append([p.detach().clone() for p in weights])
    return after


def test_awd_convention_is_pytorchs_asgd() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AveragedSGD([{"params": ours}], lr=2.0, weight_decay=0.01, lags=True)
    asgd = torch.optim.ASGD(theirs, lr=2.0, lambd=0.0, t0=0, weight_decay=0.01)
    for got, want in zip(play(optimizer, ours), play(asgd, theirs), strict=True):
        for x, y in zip(got, want, strict=True):
            # it keeps the rate in float32
            torch.testing.assert_close(x, y, rtol=3e-7, atol=3e-7)
    for p, q in zip(ours, theirs, strict=True):
        average = optimizer.state[p]["average"]
        torch.testing.assert_close(average, asgd.state[q]["ax"], rtol=3e-7, atol=3e-7)
    # the last update ran at the scale of the one before
    assert optimizer.rate == 2.0 * SCALES[-2]


def test_by_default_rates_act_at_once_and_all_updates_count() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AveragedSGD([{"params": ours}], lr=2.0, weight_decay=0.01)
    after = play(optimizer, ours)
    plain = play(torch.optim.SGD(theirs, lr=2.0, weight_decay=0.01), theirs)
    for i, p in enumerate(ours):
        torch.testing.assert_close(after[-1][i], plain[-1][i], rtol=1e-13, atol=1e-13)
        mean = torch.stack([weights[i] for weights in after]).mean(0)
        torch.testing.assert_close(optimizer.state[p]["average"], mean, rtol=1e-13, atol=1e-13)
        optimizer.swap()
        assert torch.equal(p, optimizer.state[p]["average"]) is False and optimizer.swapped
        torch.testing.assert_close(p.detach(), mean, rtol=1e-13, atol=1e-13)
        optimizer.swap()
        assert torch.equal(p.detach(), after[-1][i]) and not optimizer.swapped


def test_before_the_trigger_it_is_plain_sgd() -> None:
    ours, theirs = parameters(), parameters()
    waiting = AveragedSGD([{"params": ours}], lr=2.0, lags=True, n_averaged=None)
    for got, want in zip(
        play(waiting, ours), play(torch.optim.SGD(theirs, lr=2.0), theirs), strict=True
    ):
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert not waiting.averaging and not waiting.state[ours[0]]
    waiting.begin()
    # the first averaged update is the first that could lag: it has no rate of before
    ours[0].grad = torch.ones_like(ours[0])
    for group in waiting.param_groups:
        group["lr"] = 7.0
    waiting.step()
    assert waiting.rate == 7.0


class Cut(nn.Module):
    """Named as a split softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = nn.Module()
        self.vocabulary.clusters = nn.Linear(2, 2)
        self.vocabulary.output = nn.Linear(2, 2)


@pytest.mark.parametrize(("convention", "stays"), [("awd", True), ("standard", False)])
def test_only_the_awd_convention_stops_training_the_tails(convention: str, stays: bool) -> None:
    model = Cut()
    config = AveragedSGDConfig(lr=1.0, nonmono=3, convention=convention)
    optimizer = config.build(model, None)
    tail, row = model.vocabulary.clusters.weight, model.vocabulary.output.weight

    def moves() -> list[bool]:
        before = [tail.detach().clone(), row.detach().clone()]
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return [not torch.equal(b, a) for b, a in zip(before, (tail, row), strict=True)]

    assert moves() == [True, True]
    optimizer.begin()
    assert moves() == [not stays, True]
    optimizer.swap()  # what has no average keeps its weights
    assert (
        torch.equal(optimizer.state[row]["average"], row)
        and ("average" in optimizer.state[tail]) is not stays
    )


def test_the_trigger() -> None:
    assert not non_monotone([], 9.0, 1)
    assert not non_monotone([3.0], 9.0, 1)
    assert non_monotone([3.0, 4.0], 3.5, 1)
    assert not non_monotone([3.0, 4.0], 3.0, 1)  # equal is not worse
    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert not non_monotone(falling, 3.5, 3)  # better than all that is older than three
    assert non_monotone(falling, 4.5, 3)
    # an improvement within the window does not stop the trigger: only older losses count
    assert non_monotone([2.0, 1.9, 1.8, 1.7], 2.1, 3)


ASGD = {"kind": "asgd", "lr": 0.5, "nonmono": 1, "weight_decay": 1e-3}
RUN = {
    "optimizer": ASGD, "schedule": {"kind": "constant"}, "steps": 17, "log_every": 1,
    "eval_every": 4, "keep_checkpoints": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second validation triggers, whatever it says."""
    monkeypatch.setattr(trainer, "non_monotone", lambda before, now, n: len(before) == n)


def test_a_run_averages_from_the_trigger_on(text: Path, tmp_path: Path, early: None) -> None:
    run = workbench.start(recipe(text, **RUN), out=tmp_path / "run")
    weights, evals = {}, []
    for record in run:
        if record.kind == "train":
            weights[record.step] = run.model.blocks[0].mixer.query.weight.detach().clone()
        if record.kind == "eval":
            evals.append((record.step, record.averaged_from))
    assert evals == [(4, None), (8, None), (12, 8), (16, 8), (17, 8)]
    name = "blocks.0.mixer.query.weight"
    for step, first in ((8, 8), (12, 9), (16, 9)):
        mean = torch.stack([weights[s] for s in range(first, step + 1)]).mean(0)
        found = checkpoint.verify(run.folder.checkpoints / f"step-{step:07d}")
        model = run.recipe.model.build(found.manifest["vocab_size"])
        checkpoint.load_weights(found, model)
        torch.testing.assert_close(model.get_parameter(name).detach(), mean)
    assert not torch.equal(weights[16], mean)
    # the model in hand ends with averages
    model = run.folder.load_model()
    assert torch.equal(run.model.get_parameter(name), model.get_parameter(name))
    again = workbench.start(recipe(text, **RUN), out=tmp_path / "run")
    assert list(again) == []
    assert torch.equal(again.model.get_parameter(name), model.get_parameter(name))


def test_validations_of_a_run_pull_the_trigger(text: Path, tmp_path: Path) -> None:
    run = workbench.start(
        recipe(text, **{**RUN, "optimizer": {**ASGD, "nonmono": 2}}), out=tmp_path / "run"
    )
    for nats in (3.0, 2.0, 2.5, 1.0, 1.9):
        run._trainer.validated(nats)
        assert run._trainer.averaged_from is None and not run._trainer.optimizer.averaging
    run._trainer.validated(2.1)
    assert run._trainer.averaged_from == 0 and run._trainer.optimizer.averaging
    run._trainer.validated(9.0)
    assert run._trainer.validations[-3:] == [1.9, 2.1, 9.0]


@pytest.mark.parametrize(
    ("convention", "stop"), [("standard", 8), ("awd", 7), ("awd", 8), ("awd", 9), ("awd", 14)]
)
def test_a_run_stopped_around_the_trigger_continues_bit_for_bit(
    text: Path, tmp_path: Path, early: None, stop: int, convention: str
) -> None:
    change = {"optimizer": {**ASGD, "convention": convention}, "checkpoint_every": stop}
    asked = recipe(text, **{**RUN, **change})
    lengths = {"data.random_lengths": {"std": 2.0, "min_len": 2}}
    asked = load(Recipe, override(dump(asked), lengths))
    whole = workbench.start(asked, out=tmp_path / "whole")
    list(whole)
    run = workbench.start(asked, out=tmp_path / "run")
    for record in run:
        if record.kind == "checkpoint" and record.step == stop:
            break
    again = workbench.start(asked, out=tmp_path / "run")
    assert again.step == stop
    list(again)
    clock = {"elapsed_s", "tokens_per_s", "bytes", "peak_bytes"}
    rows, expected = (
        [{k: v for k, v in row.items() if k not in clock} for row in folder.records()]
        for folder in (RunFolder(tmp_path / "run"), whole.folder)
    )
    assert rows == expected
    assert len({row["lr"] for row in rows if row["kind"] == "train"}) > 3
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
