"""Optimizers and schedules: against PyTorch's own, and against the rates the originals used."""

import copy
import math
from pathlib import Path

import pytest
import tiny_run
import torch
from torch import nn

import workbench
from workbench.config import ConfigError, load
from workbench.train import optim
from workbench.train.config import EvalConfig, StopConfig, TrainConfig
from workbench.train.optim import SGD, Adagrad, Adam, AdamW, OptimizerConfig, take_over
from workbench.train.schedule import (
    Constant,
    Cosine,
    InverseSqrt,
    Plateau,
    ScheduleConfig,
    StepDecay,
)

# rates of out/step*/lr in the stored runs of the authors' codes
TXL_STEPS = [0.01, 0.0033333334, 0.006666667, 0.009455033, 0.009045085, 0.008535534]
SPAN_SGD = [0.1, 0.2, 0.2, 0.2, 0.2]
SPAN_ADAGRAD = [0.05 / 3, 0.05 * 2 / 3, 0.05, 0.05, 0.05]


def rates(schedule: ScheduleConfig, base: float, n: int, total: int = 20) -> list[float]:
    return [schedule.lr(step, base, total) for step in range(n)]


def test_rates_of_the_transformer_xl_code() -> None:
    schedule = Cosine(warmup_steps=3, convention="txl")
    assert rates(schedule, 0.01, 6) == pytest.approx(TXL_STEPS, rel=1e-6)


def test_rates_of_the_adaptive_span_code_are_the_standard_ones() -> None:
    assert rates(Constant(warmup_steps=2), 0.2, 5) == pytest.approx(SPAN_SGD, rel=1e-6)
    assert rates(Constant(warmup_steps=3), 0.05, 5) == pytest.approx(SPAN_ADAGRAD, rel=1e-6)


@pytest.mark.parametrize(("patience", "min_lr"), [(0, 0.0), (2, 0.02)])
def test_a_plateau_is_pytorchs_stepped_after_each_validation(patience: int, min_lr: float) -> None:
    schedule = Plateau(patience=patience, min_lr=min_lr)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, min_lr=min_lr
    )
    losses = (3 + torch.randn(30, generator=torch.Generator().manual_seed(0))).tolist()
    losses[6] = losses[5]
    for n, loss in enumerate(losses, start=1):
        theirs.step(loss)
        rate = schedule.lowered(schedule.lr(n, 0.3, 100), losses[:n])
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=2e-8)
    assert rate < 0.1, "it has been lowered"


def test_txl_inverse_sqrt_is_pytorchs_lambda_stepped_after_each_update() -> None:
    for warmup in (0, 4):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)

        def multiplier(step: int, warmup: int = warmup) -> float:
            if step == 0 and warmup == 0:
                return 1.0
            return step**-0.5 if step > warmup else step / warmup**1.5

        theirs = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        ours = InverseSqrt(warmup_steps=warmup, convention="txl")
        for step in range(9):
            assert ours.lr(step, 0.3, 9) == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()


def test_txl_constant_stays_where_the_warm_up_left_it() -> None:
    schedule = Constant(warmup_steps=4, convention="txl")
    assert rates(schedule, 1.0, 7) == pytest.approx([1, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75])
    assert rates(Constant(warmup_steps=1, convention="txl"), 1.0, 3) == [1, 1, 1]


@pytest.mark.parametrize("kind", [Constant, Cosine, InverseSqrt])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_standard_warm_up_reaches_the_full_rate_and_never_passes_it(
    kind: type[ScheduleConfig], warmup: int
) -> None:
    got = rates(kind(warmup_steps=warmup), 0.5, 20)
    assert got[:warmup] == pytest.approx([0.5 * (i + 1) / warmup for i in range(warmup)])
    assert max(got) == pytest.approx(0.5)
    assert min(got) > 0
    after = got[max(0, warmup - 1) :]
    assert after == sorted(after, reverse=True)


def test_standard_cosine_is_half_a_wave_from_the_end_of_the_warm_up() -> None:
    schedule = Cosine(warmup_steps=4, min_lr=0.1)
    assert schedule.lr(4, 1.0, 20) == pytest.approx(1.0)
    assert schedule.lr(12, 1.0, 20) == pytest.approx(0.55)
    assert schedule.lr(20, 1.0, 20) == pytest.approx(0.1)
    assert schedule.lr(8, 1.0, 20) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_standard_inverse_sqrt_falls_to_half_at_four_times_the_warm_up() -> None:
    assert InverseSqrt(warmup_steps=10).lr(39, 0.8, 100) == pytest.approx(0.4)


def two_tensors() -> tuple[nn.Module, list[list[torch.Tensor]]]:
    torch.manual_seed(3)
    model = nn.Linear(4, 3).double()
    grads = [[torch.randn_like(p) * 3.0**k for p in model.parameters()] for k in (-2, 1, 0, -1)]
    return model, grads


def walk(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list) -> list[torch.Tensor]:
    for step in grads:
        for p, g in zip(model.parameters(), step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_per_tensor_adagrad_follows_its_equations() -> None:
    model, grads = two_tensors()
    start = [p.detach().clone() for p in model.parameters()]
    got = walk(model, Adagrad(lr=0.1, clip="per_tensor").build(model, 0.5), grads)
    for i, p in enumerate(start):
        total = torch.zeros_like(p)
        for step in grads:
            g = step[i]
            total += g * g  # unclipped
            norm = g.pow(2).sum().sqrt().item()
            lr = 0.1 * 0.5 / (norm + 1e-10) if norm > 0.5 else 0.1
            p = p - lr * g / (total.sqrt() + 1e-10)
        torch.testing.assert_close(got[i], p, rtol=1e-12, atol=1e-12)


def test_per_tensor_adagrad_without_clipping_is_pytorchs() -> None:
    model, grads = two_tensors()
    twin = copy.deepcopy(model)
    ours = walk(model, Adagrad(lr=0.1, clip="per_tensor").build(model, None), grads)
    theirs = walk(twin, Adagrad(lr=0.1).build(twin, None), grads)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_clipping_the_step_is_not_clipping_the_gradient() -> None:
    model, grads = two_tensors()
    twin = copy.deepcopy(model)
    ours = walk(model, Adagrad(lr=0.1, clip="per_tensor").build(model, 0.1), grads)
    clipped = [[g * min(1, 0.1 / g.norm().item()) for g in step] for step in grads]
    theirs = walk(twin, Adagrad(lr=0.1).build(twin, None), clipped)
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (Adam(lr=0.1, eps=1e-6), lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-6)),
        (
            AdamW(lr=0.1, weight_decay=0.3, decay="all"),
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
        ),
        (
            Adam(lr=0.1, weight_decay=0.2),
            lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2),
        ),
        (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (SGD(lr=0.1, weight_decay=0.2), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2)),
        (Adagrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    ],
)
def test_the_common_ones_are_pytorchs(config: OptimizerConfig, theirs) -> None:
    model, grads = two_tensors()
    twin = copy.deepcopy(model)
    optimizer = config.build(model, 1.0)
    assert all(group["fused"] for group in optimizer.param_groups)
    ours = walk(model, optimizer, grads)
    want = walk(twin, theirs(twin.parameters()), grads)
    torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-13)


EVERY = [
    Adam(lr=0.1, weight_decay=0.2),
    AdamW(lr=0.1),
    SGD(lr=0.1, momentum=0.9),
    Adagrad(lr=0.1),
    Adagrad(lr=0.1, clip="per_tensor"),
]
ids = [f"{c.kind}-{getattr(c, 'clip', '')}" for c in EVERY]


@pytest.mark.parametrize("config", EVERY[:4], ids=ids[:4])
def test_fused_where_pytorch_can(config: OptimizerConfig) -> None:
    """Its pass on a CPU reads wrong numbers, in silence, where weight and gradient lie apart."""
    transposed = nn.ParameterList([torch.randn(3, 4).t(), torch.randn(3)])
    for model, able in (
        (nn.Linear(4, 3), True),
        (nn.Linear(4, 3).bfloat16(), True),
        (nn.Linear(4, 3, device="meta"), None),
        (transposed, None),
    ):
        groups = config.build(model, None).param_groups
        assert [group["fused"] for group in groups] == [able] * len(groups)


@pytest.mark.parametrize("config", EVERY, ids=ids)
@pytest.mark.parametrize("before", [None, True])
def test_a_state_goes_on_with_fused_and_without(
    config: OptimizerConfig, before: bool | None
) -> None:
    model, grads = two_tensors()
    twin = copy.deepcopy(model)
    whole = walk(twin, config.build(twin, 1.0), grads)
    first, second = config.build(model, 1.0), config.build(model, 1.0)
    for optimizer, how in ((first, before), (second, True if before is None else None)):
        for group in optimizer.param_groups if "fused" in first.defaults else ():
            group["fused"] = how
    walk(model, first, grads[:2])
    saved = copy.deepcopy(first.state_dict())
    # as statistics are that were transposed on their way from another code
    for entry in saved["state"].values():
        entry.update({k: x.t().contiguous().t() for k, x in entry.items() if x.ndim == 2})
    hows = [group.get("fused") for group in second.param_groups]
    take_over(second, saved)
    assert [group.get("fused") for group in second.param_groups] == hows
    after = walk(model, second, grads[2:])
    torch.testing.assert_close(after, whole, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("before", [None, True])
def test_a_checkpoint_goes_on_with_fused_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool | None
) -> None:
    # gradients that are 0 but for rounding would make whole steps with a smaller eps
    adam = {"kind": "adam", "lr": 3e-3, "eps": 1e-5}
    asked = tiny_run.recipe(tiny_run.write_text(tmp_path / "text.txt"), optimizer=adam)

    def go(out: str, how: bool | None, last: int = 24) -> workbench.Run:
        monkeypatch.setattr(optim, "fused", lambda parameters, devices=(): how)
        run = workbench.start(asked, out=tmp_path / out)
        for record in run:
            if record.kind == "checkpoint" and record.step == last < 24:
                break
        assert [g["fused"] for g in run._trainer.optimizer.param_groups] == [how]
        return run

    assert go("parts", before, last=12).step == 12
    after = go("parts", True if before is None else None)
    assert after.step == 24
    whole = go("whole", None)
    for got, want in zip(after.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_loss_scaling_skips_a_broken_update_and_takes_its_factor_out(
    config: OptimizerConfig,
) -> None:
    model, grads = two_tensors()
    model, grads = model.float(), [[g.float() for g in step] for step in grads]
    twin = copy.deepcopy(model)
    # one of 2 to the power of 4 leaves all digits as they are
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1000)
    ours, theirs = config.build(model, 1.0), config.build(twin, 1.0)
    for k, step in enumerate([grads[0], [g * math.inf for g in grads[1]], *grads[2:]]):
        before = [p.detach().clone() for p in model.parameters()]
        # the fused pass takes the factor out itself, unless that was done for clipping
        scale, broken = scaler.get_scale(), k == 1
        scaler.scale(torch.zeros(()))
        for p, g in zip(model.parameters(), step, strict=True):
            p.grad = g * scale
        if k == 2:
            scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        if broken:
            assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
            assert scaler.get_scale() == scale / 2
        else:
            want = walk(twin, theirs, [step])
            torch.testing.assert_close([p.detach() for p in model.parameters()], want)


def test_adamw_spares_biases_unless_told() -> None:
    model, grads = two_tensors()
    still = [[torch.zeros_like(g) for g in grads[0]]]
    before = [p.detach().clone() for p in model.parameters()]
    weight, bias = walk(model, AdamW(lr=0.1, weight_decay=0.5).build(model, None), still)
    torch.testing.assert_close(weight, before[0] * 0.95)
    torch.testing.assert_close(bias, before[1], rtol=0, atol=0)


PLAIN = {"steps": 100, "optimizer": {"kind": "adam", "lr": 1e-3}}


def test_config_reads_slots_and_fills_defaults() -> None:
    config = load(TrainConfig, {**PLAIN, "schedule": {"kind": "cosine", "warmup_steps": 10}})
    assert config.optimizer == Adam(lr=1e-3)
    assert config.schedule == Cosine(warmup_steps=10)
    assert config.carry == "keep" and config.clip_norm is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "train.steps: "),
        ({"log_every": -1}, "train.log_every: "),
        ({"clip_norm": 0.0}, "train.clip_norm: "),
        ({"max_seconds": 0.0}, "train.max_seconds: "),
        ({"eval_tokens": 1}, "train.eval_tokens: "),
        ({"clip_nrom": 1.0}, "Did you mean 'clip_norm'?"),
        ({"schedule": {"kind": "cosin"}}, "Did you mean 'cosine'?"),
        ({"schedule": {"kind": "cosine", "warmup_steps": 101}}, "at most 100"),
        ({"schedule": {"kind": "cosine", "min_lr": 0.5}}, "above optimizer.lr"),
        ({"optimizer": {"kind": "adam", "lr": 0.0}}, "train.optimizer.lr: "),
        ({"optimizer": {"kind": "adam", "lr": "1e-3"}}, "write 1.0e-03"),
        ({"optimizer": {"kind": "adagrad", "lr": 0.1, "clip": "per_tensor"}}, "clip_norm is null"),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 1.0}}, "momentum"),
    ],
)
def test_config_refuses_with_path_and_cure(change: dict, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(TrainConfig, {**PLAIN, **change}, "train")
    assert said in str(error.value)


@pytest.mark.parametrize("change", [{"context_len": 0}, {"max_tokens": 1}, {"method": "sliding"}])
def test_eval_config_refuses(change: dict) -> None:
    with pytest.raises(ConfigError, match=f"eval.{next(iter(change))}: "):
        load(EvalConfig, {"context_len": 8, **change}, "eval")


def test_step_decay_divides_after_the_given_updates() -> None:
    schedule = StepDecay(after=(3, 5), warmup_steps=2)
    rates = [schedule.lr(step, 8.0, 10) for step in range(7)]
    assert rates == [4.0, 8.0, 8.0, 0.8, 0.8, 0.08, 0.08]
    for after in ((5, 3), (3, 3), (0, 4)):
        plan = {**PLAIN, "schedule": {"kind": "step_decay", "after": after}}
        with pytest.raises(ConfigError, match="ascend from above"):
            load(TrainConfig, plan, "train")


def test_when_to_stop() -> None:
    assert StopConfig(patience=2).reason([]) is None
    assert StopConfig(loss_nats=1.5).reason([2.0, 1.6]) is None
    assert StopConfig(loss_nats=1.5).reason([2.0, 1.5]) == "loss"
    patient = StopConfig(patience=2)
    assert patient.reason([1.0, 2.0, 1.0]) is None  # as good is no better
    assert patient.reason([1.0, 2.0, 1.0, 1.5]) == "patience"
    assert patient.reason([1.0, 2.0, 0.9, 1.5, 1.5]) is None
    restless = StopConfig(nonmono=2)
    assert restless.reason([3.0, 2.0, 2.5]) is None
    assert restless.reason([3.0, 2.0, 1.0, 3.5]) == "nonmono"
    with pytest.raises(ConfigError, match="neither loss_nats nor patience nor nonmono"):
        load(StopConfig, {}, "train.stop")
