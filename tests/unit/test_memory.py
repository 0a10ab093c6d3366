"""Memory: what names the cure when it runs out, what saves it, what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import FAST, XL, recipe, write_text

import workbench
from workbench.config import ConfigError
from workbench.errors import OutOfMemory, WorkbenchError
from workbench.models import draws
from workbench.models.language_model import LanguageModel, ModelConfig, build_model
from workbench.train import memory
from workbench.train.deterministic import check_deterministic, deterministic
from workbench.train.records import from_json


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


FAULTS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 9000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lack_of_memory_names_the_cure_and_the_run_continues_with_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    asked = recipe(text)
    run = workbench.start(asked, out=tmp_path / "run")
    run_blocks = LanguageModel.run_blocks

    def hungry(model: LanguageModel, tokens_BT: torch.Tensor, *rest: Any) -> Any:
        if model.training and run.step >= 13 and len(tokens_BT) > 1:
            raise fault
        return run_blocks(model, tokens_BT, *rest)

    monkeypatch.setattr(LanguageModel, "run_blocks", hungry)
    with pytest.raises(OutOfMemory) as error:
        list(run)
    said = str(error.value)
    assert "train.micro_batches: 3 (now 1) or train.recompute: true" in said
    assert "data.batch_size (now 3)" in said and "train.precision: bf16" in said
    assert "\nmore" not in said
    status = run.folder.status()
    assert status["state"] == "failed" and "train.micro_batches: 3" in status["message"]
    for go_on in (run.save, lambda: list(run), lambda: run.until(20)):
        with pytest.raises(WorkbenchError, match=r"failed(.|\n)*workbench.start"):
            go_on()
    run = workbench.start(
        asked, {"train.micro_batches": 3, "train.recompute": True}, out=tmp_path / "run"
    )
    assert run.step == 12
    assert list(run)[-1].reason == "steps"


def test_pytorchs_own_words_are_known() -> None:
    with pytest.raises(OutOfMemory, match="allocate"), memory.naming(lambda: "less"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_the_cure_is_what_is_left_to_do(text: Path) -> None:
    told = memory.smaller_update(recipe(text, micro_batches=3, precision="bf16"), 1)
    assert "micro_batches" not in told and "precision" not in told and "recompute" in told
    told = memory.smaller_update(recipe(text, micro_batches=3, recompute=True), 1)
    assert "same run folder" not in told and "As a new run" in told.replace("Otherwise, as", "As")


def test_a_lack_of_memory_in_a_validation_names_the_validation(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")

    def hungry(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(LanguageModel, "nll", hungry)
    with pytest.raises(OutOfMemory, match=r"in a validation.*eval.batch_size \(now 2\)"):
        list(run)


def test_other_errors_are_not_taken_for_it(text: Path, tmp_path: Path) -> None:
    fault = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"), memory.naming(lambda: "never asked"):
        raise fault


def test_what_was_computed_is_let_go() -> None:
    gone = []

    class Big:
        def __del__(self) -> None:
            gone.append(True)

    def compute() -> None:
        big = Big()
        raise MemoryError(f"no room beside {type(big).__name__}")

    with pytest.raises(OutOfMemory), memory.naming(lambda: "less"):
        compute()
    assert gone == [True]


DROPS = {
    "d_model": 8, "p_symbol": 0.2, "p_embedding": 0.1, "p_output": 0.1, "dropout": "locked",
    "stack": [
        {"block": {"mixer": {"kind": "lstm", "d_hidden": 8, "p_weight": 0.3}, "p_drop": 0.2}},
        {"block": {"mixer": {**FAST, "feature_map": {"kind": "favor", "n_projections": 4}},
                   "p_drop": 0.2}},
        {"block": {"mixer": {"kind": "qrnn", "d_hidden": 8, "p_weight": 0.3, "p_zoneout": 0.1},
                   "p_drop": 0.2}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("model", [None, DROPS], ids=["memory", "drops"])
def test_recomputed_blocks_give_the_same_bits(
    text: Path, tmp_path: Path, model: dict[str, Any] | None, pieces: int
) -> None:
    """With dropout of every kind, of rows and of weights, and random features."""
    # random features that change have no carry
    runs, carry = [], "reset" if model else "keep"
    for recompute in (False, True):
        asked = recipe(
            text, model, micro_batches=pieces, recompute=recompute, steps=12, carry=carry
        )
        run = workbench.start(asked, out=tmp_path / str(recompute))
        runs.append([(r.loss_nats, r.grad_norm) for r in run if r.kind == "train"])
        assert run.model.recompute == recompute
        runs.append([p.detach().clone() for p in run.model.parameters()])
    assert runs[0] == runs[2]
    assert all(torch.equal(a, b) for a, b in zip(runs[1], runs[3], strict=True))


def test_recomputing_keeps_less() -> None:
    block = {"mixer": XL, "channel": {"kind": "feed_forward", "d_ffn": 64}}
    config = ModelConfig.model_validate({"d_model": 16, "stack": [{"block": block, "repeat": 6}]})
    tokens = torch.randint(8, (4, 33), generator=torch.Generator().manual_seed(3))
    kept = {}
    for recompute in (False, True):
        model = build_model(config, vocab_size=8, seed=0).train()
        model.recompute = recompute
        seen: dict[int, torch.UntypedStorage] = {}

        def keep(x: torch.Tensor, seen: dict[int, Any] = seen) -> torch.Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model.nll(tokens[:, 1:], tokens[:, :-1], model.initial_carry(4))
        kept[recompute] = sum(storage.nbytes() for storage in seen.values())
    assert kept[True] < kept[False] / 3


def test_draws_of_the_second_time_are_those_of_the_first() -> None:
    def draw() -> float:
        return float(draws.of_weights(torch.device("cpu"), lambda: torch.rand(())))

    with draws.shared(5):
        before = draw()
        first, second = draws.twice()
        with first:
            once = [draw(), draw()]
        between = draw()
        with second:
            again = [draw(), draw()]
        after = draw()
    assert again == once and len({before, *once, between, after}) == 5
    # the backward pass may run where nothing is shared any more
    with second:
        assert draws._sharing
    assert not draws._sharing


def test_retrieval_has_no_blocks_to_recompute() -> None:
    fields = {"train.recompute": True}
    with pytest.raises(ConfigError, match=r"train\.recompute is about stacks of blocks"):
        workbench.load_recipe("retrieval-capacity-64-elu", fields)


def test_records_say_how_much_memory_and_how_large_the_weights(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, steps=10), out=tmp_path / "run")
    told = [r for r in run if r.kind == "train"][-1]
    assert 10e6 < told.peak_bytes < 1e12
    norm = torch.stack([p.detach().square().sum() for p in run.model.parameters()]).sum().sqrt()
    assert told.param_norm == pytest.approx(float(norm), rel=1e-5)
    row = run.folder.records("train")[-1]
    assert {"param_norm", "peak_bytes", "loss_scale", "skipped"} <= row.keys()
    old = (
        '{"kind": "train", "step": 1, "tokens": 2, "loss_nats": 1.0, "lr": 0.1, "grad_norm": 1.0, '
        '"tokens_per_s": 1.0, "elapsed_s": 1.0, "memory_bytes": 0}'
    )
    assert from_json(old).peak_bytes is None


def test_deterministic_is_so_inside_alone(text: Path, tmp_path: Path) -> None:
    seen = []
    run = workbench.start(recipe(text, deterministic=True, steps=9), out=tmp_path / "run")

    def look(*args: Any) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), run.model.training))

    run.model.register_forward_hook(look)
    run.model.layers[0].register_forward_hook(look)
    for _ in run:
        assert not torch.are_deterministic_algorithms_enabled()
    assert set(seen) == {(True, True), (True, False)}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_needs_a_setting_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    check_deterministic(torch.device("cpu"))
    with pytest.raises(ConfigError, match="export CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        check_deterministic(torch.device("cuda"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    check_deterministic(torch.device("cuda"))


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gpu_recomputes_the_same_with_less_memory(
    text: Path, tmp_path: Path, precision: str
) -> None:
    block = {"mixer": {**XL, "d_head": 32}, "channel": {"kind": "feed_forward", "d_ffn": 512}}
    model = {"d_model": 64, "stack": [{"block": {**block, "p_drop": 0.1}, "repeat": 8}]}
    losses, peaks = [], []
    for recompute in (False, True):
        asked = recipe(text, model, device="cuda", recompute=recompute, precision=precision)
        fields = {"data.segment_len": 200, "train.steps": 12, "train.eval_every": 50}
        run = workbench.start(asked, fields, out=tmp_path / str(recompute))
        records = [r for r in run if r.kind == "train"]
        losses.append([r.loss_nats for r in records])
        peaks.append(records[1].peak_bytes)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert peaks[1] < peaks[0]


@pytest.mark.gpu
@GPU
def test_a_gpu_says_what_to_change_when_it_is_full(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, device="cuda"), out=tmp_path / "run")
    run.model.layers[0].register_forward_pre_hook(lambda *_: torch.empty(1 << 50, device="cuda"))
    with pytest.raises(OutOfMemory, match=r"micro_batches: 3(.|\n)*CUDA out of memory"):
        list(run)
