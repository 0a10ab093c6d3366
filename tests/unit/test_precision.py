"""Half precision, compiled steps, waits for the device: what makes a step fast, what it keeps."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import FAST, recipe, write_text
from torch.utils._python_dispatch import TorchDispatchMode

import workbench
from workbench.carry import map_tensors
from workbench.config import ConfigError, load
from workbench.data.batches import Reader
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.mixers.base import MixerConfig
from workbench.train import compiling
from workbench.train.compiling import Compiled
from workbench.train.config import EvalConfig, TrainConfig
from workbench.train.precision import HALF, LossScale, check_precision, computing
from workbench.train.trainer import Trainer

CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def language_model(config: MixerConfig, **more: Any) -> Any:
    block = {"mixer": config, "channel": {"kind": "feed_forward", "d_ffn": 32}}
    told = {"d_model": 16, "stack": [{"block": block}], **more}
    return build_model(ModelConfig.model_validate(told), vocab_size=8, seed=0)


def outputs_and_gradients(
    mixer: Any, x_BTD: torch.Tensor, weight_BTD: torch.Tensor, precision: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of two segments and the last state; the gradients of a random functional of them."""
    x_BTD = x_BTD.clone().requires_grad_()
    state, parts = mixer.initial_state(len(x_BTD)), []
    with computing(precision, CPU):
        for part_BTD in x_BTD.split([11, 13], dim=1):
            y_BTD, state = mixer(part_BTD, state)
            parts.append(y_BTD)
        y_BTD = torch.cat(parts, dim=1)
    leaves = [x for x in state if isinstance(x, torch.Tensor)]
    assert all(x.dtype == x_BTD.dtype for x in leaves), "states accumulate"
    # a scale, without which float16 has no digits for small gradients; exact in all types
    scale = 1024.0 if precision == "fp16" else 1.0
    loss = (y_BTD.to(x_BTD.dtype) * weight_BTD).sum() * scale
    gradients = torch.autograd.grad(loss, [x_BTD, *mixer.parameters()], materialize_grads=True)
    return [y_BTD, *leaves], [g / scale for g in gradients]


def distance(got: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Of all numbers of several tensors together, relative to the exact ones."""
    one, other = (torch.cat([x.detach().double().flatten() for x in many]) for many in (got, exact))
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("config", CASES)
def test_every_precision_is_that_far_from_float64(config: MixerConfig, precision: str) -> None:
    """In epsilons of the type that matrix products are in. A product rounds its factors and its
    result once each and sums in float32; a mixer has two or three in a row, whose errors are
    independent and add up in squares: 3 epsilons, where 2 are measured at most. A gradient goes
    through as many again: 6, for 4.4. DPFP's features are 0 in most places, and where keys are
    divided by the sum of theirs it may be close to 0, which the gradient is divided by twice: 16,
    for 10.
    """
    torch.manual_seed(0)
    mixer = config.build(8)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    mixer.eval()
    generator = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(3, 24, 8, generator=generator)
    weight_BTD = torch.randn(3, 24, mixer.d_out, generator=generator)
    torch.manual_seed(5)
    got = outputs_and_gradients(mixer, x_BTD, weight_BTD, precision)
    torch.manual_seed(5)
    doubles = (copy.deepcopy(mixer).double(), x_BTD.double(), weight_BTD.double())
    exact = outputs_and_gradients(*doubles, "fp32")
    epsilon = torch.finfo(HALF.get(precision, torch.float32)).eps
    for one, other in zip(got[0], exact[0], strict=True):
        assert not other.numel() or distance([one], [other]) < 3 * epsilon
    fragile = getattr(getattr(config, "feature_map", None), "kind", "") == "dpfp"
    assert distance(got[1], exact[1]) < (16 if fragile else 6) * epsilon


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("config", CASES)
def test_every_mixer_trains_in_half_precision(config: MixerConfig, precision: str) -> None:
    """Close to float32, and nothing that is kept or summed in less than that."""
    scale = LossScale(precision, 128.0, CPU)
    model = language_model(config)
    tokens = torch.randint(8, (4, 25), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    with torch.no_grad():
        exact = model.eval().nll(tokens[:, :-1], tokens[:, 1:], model.initial_carry(4))[0].mean()
    carry = model.initial_carry(4)
    for step in range(12):
        with computing(precision, CPU):
            nll, penalties, carry = model.losses(tokens[:, :-1], tokens[:, 1:], carry)
        assert nll.dtype == torch.float32
        assert all(x.dtype == torch.float32 for x in penalties.values())
        leaves = [x for state in carry for x in state if isinstance(x, torch.Tensor)]
        assert all(x.dtype == torch.float32 for x in leaves), "states accumulate"
        if step == 0:
            torch.testing.assert_close(nll.mean(), exact, rtol=0.02, atol=0.0)
            model.train()
        loss = nll.mean() + sum(penalties.values())
        optimizer.zero_grad()
        scale.scaled(loss).backward()
        scale.unscale(optimizer)
        assert all(
            p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all())
            for p in model.parameters()
        )
        scale.step(optimizer)
        model.after_step()
        carry = map_tensors(torch.Tensor.detach, carry)
        losses.append(float(nll.detach().mean()))
    assert losses[-1] < losses[0]


VOCABULARIES = [
    {"kind": "plain"},
    {"kind": "plain", "tie_weights": False, "d_embed": 8},
    {"kind": "plain", "sampled": {"n_samples": 20}},
    {"kind": "adaptive", "cutoffs": [50, 200], "div_val": 2},
    {"kind": "split", "splits": [50, 200]},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: "-".join(map(str, v)))
def test_losses_are_summed_in_float32_over_many_classes(
    vocabulary: dict[str, Any], precision: str
) -> None:
    """A whole model: losses within 1 epsilon, gradients within 8, where 4.3 are measured."""
    block = {"mixer": {"kind": "attention", "n_heads": 2, "d_head": 8, "memory_len": 8}}
    told = {"d_model": 16, "vocabulary": vocabulary, "stack": [{"block": block}]}
    model = build_model(ModelConfig.model_validate(told), vocab_size=600, seed=0)
    tokens = torch.randint(600, (4, 17), generator=torch.Generator().manual_seed(1))
    found, scale = [], 128.0 if precision == "fp16" else 1.0
    for it, how in ((model, precision), (copy.deepcopy(model).double(), "fp32")):
        torch.manual_seed(3)
        with computing(how, CPU):
            nll, _, _ = it.losses(tokens[:, :-1], tokens[:, 1:], it.initial_carry(4))
        assert nll.dtype == next(it.parameters()).dtype
        loss = nll.mean() * (scale if how == precision else 1.0)
        gradients = torch.autograd.grad(loss, list(it.parameters()))
        found.append((nll, [g / (scale if how == precision else 1.0) for g in gradients]))
    epsilon = torch.finfo(HALF.get(precision, torch.float32)).eps
    assert distance([found[0][0]], [found[1][0]]) < epsilon
    assert distance(found[0][1], found[1][1]) < 8 * epsilon


def test_matrix_products_are_in_half_precision_only_where_asked() -> None:
    seen: Counter[tuple[str, torch.dtype]] = Counter()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = func.overloadpacket.__name__
            if name in ("mm", "addmm"):
                seen[name, args[-1].dtype] += 1
            return func(*args, **(kwargs or {}))

    model = language_model(next(iter(CASES)).values[0])
    tokens = torch.zeros(2, 9, dtype=torch.long)
    for precision, expected in (("fp32", torch.float32), *HALF.items()):
        seen.clear()
        with Products(), computing(precision, CPU):
            model.nll(tokens[:, 1:], tokens[:, :-1], model.initial_carry(2))
        assert seen and {dtype for _, dtype in seen} == {expected}


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_run_says_its_precision_and_measures_as_asked(
    text: Path, tmp_path: Path, half: str
) -> None:
    plain = {"d_model": 32, "stack": [{"block": {"mixer": FAST}}]}
    rows = {}
    for precision in ("fp32", half):
        valid = {"segment_len": 32, "batch_size": 2, "precision": precision}
        asked = recipe(text, plain, precision=precision, valid=valid, steps=24)
        run = workbench.start(asked, out=tmp_path / precision)
        rows[precision] = [r for r in run if r.kind in ("train", "eval")]
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
    for one, other in zip(rows["fp32"], rows[half], strict=True):
        assert one.loss_nats != other.loss_nats
        assert one.loss_nats == pytest.approx(other.loss_nats, rel=0.02)
    trained = [r for r in rows[half] if r.kind == "train"]
    assert {(r.precision, r.compiled) for r in trained} == {(half, False)}
    scales = {r.loss_scale for r in trained}
    assert scales == ({65536.0} if half == "fp16" else {None}) and {r.skipped for r in trained} == {
        0
    }
    settings = {p: next(r.settings for r in rows[p] if r.kind == "eval") for p in rows}
    assert settings[half] == settings["fp32"] + f", precision {half}"


def test_precisions_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="precision"):
        load(EvalConfig, {"precision": "fp8"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    with pytest.raises(ConfigError, match="an old GPU cannot"):
        check_precision("bf16", torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"eval\.precision is bf16"):
        check_precision("bf16", torch.device("cuda"), "eval.precision")
    check_precision("fp32", torch.device("cuda"))
    check_precision("bf16", CPU)
    check_precision("fp16", torch.device("cuda"))


def test_what_cannot_be_compiled_runs_uncompiled_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refused(Exception):
        pass

    def refuses(*args: Any) -> Any:
        raise Refused("no such backend\nand more")

    monkeypatch.setattr(torch, "compile", lambda function: refuses)
    monkeypatch.setattr(compiling, "_failures", lambda: (Refused,))
    twice = Compiled(lambda x: 2 * x)
    with pytest.warns(RuntimeWarning, match=r"could not compile.*Refused: no such backend\)"):
        assert twice(3) == 6
    assert not twice.active and twice(4) == 8  # a second warning would be an error here


def test_faults_of_the_model_are_not_taken_for_the_compilers() -> None:
    real = compiling._failures()
    assert not issubclass(ConfigError, real) and not issubclass(ValueError, real)
    assert issubclass(torch._dynamo.exc.BackendCompilerFailed, real)


class Waits(TorchDispatchMode):
    """Counts what makes a GPU's host wait: numbers that are read, sizes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique2")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def trainer(text: Path, optimizer: dict[str, Any], device: str = "cpu", **more: Any) -> Trainer:
    from workbench.train.tasks import open_task

    asked = recipe(text)
    task = open_task(asked)
    config = load(
        TrainConfig,
        {"steps": 50, "optimizer": optimizer, "clip_norm": 0.5, "carry": "keep", **more},
    )
    model = build_model(asked.model, task.vocab_size, seed=1).to(device)
    return Trainer(model, task.batches(Reader(device)), config, "tiny")


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "lr": 0.1},
        {"kind": "asgd", "lr": 0.1},
        {"kind": "adagrad", "lr": 0.1, "clip": "per_tensor"},
    ],
    ids=lambda x: x["kind"],
)
def test_no_step_waits_for_the_device(
    text: Path, optimizer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam counts its steps on the host, which reads a number there without any wait."""
    it = trainer(text, optimizer)
    it.update()
    with Waits() as waits:
        for name in ("tolist", "numpy", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, lambda x, name=name: waits.seen.update([name]))
        for _ in range(3):
            it.update()
        assert waits.seen == {}
        monkeypatch.undo()
        it.record(0.0)
        assert waits.seen["_local_scalar_dense"] == 1, "the mode does see what waits"


@pytest.mark.parametrize(
    ("optimizer", "more", "waits"),
    [
        ({"kind": "adam", "lr": 1e-3}, {"precision": "fp16"}, 0),
        ({"kind": "asgd", "lr": 0.1}, {"precision": "fp16"}, 1),
        ({"kind": "asgd", "lr": 0.1}, {"on_nonfinite": "skip"}, 1),
    ],
)
def test_what_waits_does_so_once_a_step(
    text: Path, optimizer: dict[str, Any], more: dict[str, Any], waits: int
) -> None:
    """Fused optimizers look at the overflow on the device."""
    it = trainer(text, optimizer, **more)
    it.update()
    with Waits() as seen:
        for _ in range(3):
            it.update()
    assert seen.seen.total() == 3 * waits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_no_step_waits_for_a_gpu(text: Path) -> None:
    it = trainer(text, {"kind": "adam", "lr": 1e-3}, "cuda")
    for _ in range(3):
        it.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            it.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert it.record(0.0).loss_nats > 0
