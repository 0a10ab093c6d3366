"""A run: committed before each record, exact to continue, polite to stop, hard to spoil."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import FAST, XL, recipe, write_text

import workbench
from workbench.errors import ConfigError, DataError, DataMissing, NonFiniteLoss
from workbench.train.folder import RunFolder
from workbench.train.records import from_json
from workbench.train.signals import StopSignals

HERE = Path(__file__).parent
CLOCK = {"elapsed_s", "tokens_per_s", "bytes", "peak_bytes"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nobody disturbed."""
    run = workbench.start(recipe(text), out=tmp_path_factory.mktemp("whole") / "run")
    for _ in run:
        pass
    return run.folder


def story(folder: RunFolder) -> list[dict]:
    """The records without clock times, sizes of files and interruptions."""
    return [
        {k: v for k, v in row.items() if k not in CLOCK}
        for row in folder.records()
        if row.get("reason") != "interrupted"
    ]


def weights(folder: RunFolder, step: int = 24) -> dict[str, torch.Tensor]:
    path = folder.checkpoints / f"step-{step:07d}" / "weights.safetensors"
    return safetensors.torch.load_file(path)


def assert_same_run(got: RunFolder, expected: RunFolder) -> None:
    """Bit for bit the same records and weights."""
    assert story(got) == story(expected)
    ours, theirs = weights(got), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def process(text: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "tiny_run.py"), str(text), str(out), *words]
    paths = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_the_story_of_a_run(whole: RunFolder) -> None:
    kinds = [(row["kind"], row["step"]) for row in whole.records()]
    trained = [step for kind, step in kinds if kind == "train"]
    assert trained == [5, 10, 15, 20, 24]
    assert [step for kind, step in kinds if kind == "eval"] == [8, 16, 24]
    assert set(range(6, 25, 6)) <= {step for kind, step in kinds if kind == "checkpoint"}
    assert kinds[-1] == ("done", 24)
    first = whole.records("train")[0]
    assert first["tokens"] == 5 * 3 * 7
    assert 0.5 < first["loss_nats"] < 10
    assert first["penalties"]["span"] > 0 and len(first["readings"]["span"][0]) == 2
    assert first["memory_bytes"] > 0 and first["tokens_per_s"] > 0 and first["grad_norm"] > 0
    assert first["backends"].keys() == {
        "attention",
        "delta_rule",
        "dropout",
        "linear_cross_entropy",
    }
    assert whole.status()["state"] == "done" and whole.status()["pid"] == os.getpid()
    assert whole.recipe() == recipe(Path(whole.recipe().data.corpus.path))
    assert whole.environment()["packages"]["torch"] == torch.__version__
    for line in (whole.path / "records.jsonl").read_text("utf-8").splitlines():
        from_json(line)


def test_it_learns(text: Path, tmp_path: Path) -> None:
    run = workbench.start(
        recipe(text), {"train.steps": 60, "train.optimizer.lr": 0.02}, out=tmp_path / "run"
    )
    losses = [r.loss_nats for r in run if r.kind == "train"]
    assert losses[-1] < losses[0] - 1


def test_train_loss_is_the_mean_over_all_tokens_since_the_last_record(
    text: Path, tmp_path: Path
) -> None:
    single = workbench.start(recipe(text, log_every=1, steps=10), out=tmp_path / "a")
    one = [r for r in single if r.kind == "train"]
    several = workbench.start(recipe(text, log_every=4, steps=10), out=tmp_path / "b")
    some = [r for r in several if r.kind == "train"]
    assert [r.step for r in some] == [4, 8, 10]
    for group, record in zip((one[:4], one[4:8], one[8:]), some, strict=True):
        mean = sum(r.loss_nats for r in group) / len(group)
        assert record.loss_nats == pytest.approx(mean, rel=1e-9)
        spans = sum(r.penalties["span"] for r in group) / len(group)
        assert record.penalties["span"] == pytest.approx(spans, rel=1e-9)
        assert record.lr == group[-1].lr and record.grad_norm == group[-1].grad_norm


def test_everything_is_on_disk_before_it_is_yielded(text: Path, tmp_path: Path) -> None:
    seen = 0
    for record in workbench.start(recipe(text), out=tmp_path / "run"):
        seen += 1
        rows = RunFolder(tmp_path / "run").records()
        assert len(rows) >= seen
        assert json.loads(json.dumps(rows[seen - 1]))["step"] == record.step
        if record.kind == "checkpoint":
            assert (tmp_path / "run" / record.path / "manifest.json").is_file()
    assert seen == len(rows)


def test_break_and_iterate_again_is_one_run(text: Path, tmp_path: Path, whole: RunFolder) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    told = list(itertools.islice(run, 1))
    assert run.folder.status()["state"] == "stopped"
    for record in run:
        told.append(record)
        torch.rand(3)  # nor do other people's random numbers matter
        if record.kind in ("eval", "checkpoint"):
            break
    told += list(run)
    assert [(r.kind, r.step) for r in told] == [(r["kind"], r["step"]) for r in whole.records()]
    assert_same_run(run.folder, whole)
    assert list(run) == []


def test_training_leaves_the_global_random_numbers_alone(text: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    list(itertools.islice(workbench.start(recipe(text), out=tmp_path / "run"), 2))
    assert torch.equal(torch.rand(2), expected)


def test_a_killed_process_continues_bit_for_bit(
    text: Path, tmp_path: Path, whole: RunFolder
) -> None:
    killed = process(text, tmp_path / "run", "18")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = RunFolder(tmp_path / "run")
    assert folder.records()[-1]["step"] == 18
    # as if it had been killed a little later, in the middle of a line
    with (folder.path / "records.jsonl").open("a") as file:
        row = {**folder.records("train")[0], "step": 23}
        file.write(json.dumps(row) + "\n" + json.dumps(row)[:40])
    assert folder.records()[-1]["step"] == 23
    again = workbench.start(recipe(text), out=folder.path)
    assert again.step == 18
    list(again)
    assert_same_run(folder, whole)
    assert folder.status()["state"] == "done"


def test_sigterm_ends_a_process_politely(text: Path, tmp_path: Path, whole: RunFolder) -> None:
    stopped = process(text, tmp_path / "run", "8", "SIGTERM")
    assert stopped.returncode == 0, stopped.stderr
    folder = RunFolder(tmp_path / "run")
    assert folder.status()["state"] == "stopped" and folder.status()["message"] == "SIGTERM"
    assert folder.records()[-1]["reason"] == "interrupted"
    list(workbench.start(recipe(text), out=folder.path))
    assert_same_run(folder, whole)


def test_interrupt_in_the_middle_of_an_update(
    text: Path, tmp_path: Path, whole: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update is finished, a checkpoint is written off the beat, handlers are put back."""
    run = workbench.start(recipe(text), out=tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    forward = run.model.run_blocks

    def interrupted(*args: object) -> object:
        if run.step == 12:
            signal.raise_signal(signal.SIGINT)
        return forward(*args)

    run.model.run_blocks = interrupted
    last = list(run)[-2:]
    assert [(r.kind, r.step) for r in last] == [("checkpoint", 13), ("done", 13)]
    assert last[1].reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    run.model.run_blocks = forward
    resumed = workbench.start(recipe(text), out=tmp_path / "run")
    assert resumed.step == 13
    assert [r.step for r in resumed if r.kind == "train"] == [15, 20, 24]
    without = [r for r in story(run.folder) if (r["kind"], r["step"]) != ("checkpoint", 13)]
    assert without == story(whole)


def test_a_second_signal_acts_at_once() -> None:
    # jobs in the background of a shell are started with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.caught == "SIGINT"
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_left_alone_outside_the_main_thread(text: Path, tmp_path: Path) -> None:
    told = []

    def work() -> None:
        told.extend(workbench.start(recipe(text, steps=5), out=tmp_path / "run"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told[-1].reason == "steps"


def test_max_seconds_ends_a_run_and_more_time_continues_it(text: Path, tmp_path: Path) -> None:
    asked = recipe(text, steps=10**6, eval_every=10**6, checkpoint_every=10**6, max_seconds=0.4)
    run = workbench.start(asked, out=tmp_path / "run")
    last = list(run)[-3:]
    assert [r.kind for r in last] == ["eval", "checkpoint", "done"]
    assert last[-1].reason == "time" and 0.4 <= last[-1].elapsed_s < 20
    assert run.folder.status()["state"] == "done"
    assert list(workbench.start(asked, out=tmp_path / "run")) == []
    longer = workbench.start(asked, {"train.max_seconds": 60.0}, out=tmp_path / "run")
    assert longer.step == run.step
    assert next(iter(longer)).step > run.step


def test_a_broken_loss_stops_before_anything_is_overwritten(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    told = []
    with pytest.raises(NonFiniteLoss) as error:
        for record in run:
            told.append(record)
            if record.kind == "train" and record.step == 15:
                run.model.vocabulary.output.bias.data.fill_(float("nan"))
    assert "update 16 of recipe 'tiny'" in str(error.value)
    assert '"step": 15' in str(error.value)
    assert run.folder.status()["state"] == "failed"
    assert max(r.step for r in told) == 15
    resumed = workbench.start(recipe(text), out=tmp_path / "run")
    assert resumed.step == 12
    assert all(p.isfinite().all() for p in resumed.model.parameters())
    assert list(resumed)[-1].reason == "steps"


def test_a_broken_gradient_is_noticed_too(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text, clip_norm=None), out=tmp_path / "run")
    next(iter(run))
    run.model.vocabulary.output.bias.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NonFiniteLoss, match="update 6 "):
        list(run)
    assert not any(run.folder.checkpoints.glob("step-*"))


def test_another_recipe_is_refused_by_its_fields(text: Path, whole: RunFolder) -> None:
    before = {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError) as error:
        workbench.start(recipe(text, steps=30, clip_norm=None), out=whole.path)
    assert "train.clip_norm: None here, 0.5 there" in str(error.value)
    assert "train.steps: 30 here, 24 there" in str(error.value)
    assert {p: p.read_bytes() for p in whole.path.rglob("*") if p.is_file()} == before


def test_a_folder_of_something_else_is_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds no run"):
        workbench.start(recipe(text), out=tmp_path)
    with pytest.raises(ConfigError, match="holds no run"):
        workbench.start(recipe(text), out=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_faults_leave_no_folder_behind(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DataMissing):
        workbench.start(recipe(tmp_path / "nothing.txt"), out=out)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        workbench.start(recipe(text), {"train.step": 3}, out=out)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no NVIDIA GPU"):
            workbench.start(recipe(text, device="cuda"), out=out)
    assert not out.exists()


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    list(itertools.islice(workbench.start(recipe(text), out=tmp_path / "run"), 2))
    text.write_text(text.read_text()[::-1], encoding="ascii")
    with pytest.raises(ConfigError, match="begun on another text"):
        workbench.start(recipe(text), out=tmp_path / "run")


def test_one_process_at_a_time(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(iter(run))
    other = process(text, tmp_path / "run")
    assert other.returncode == 1
    assert f"process {os.getpid()} is training in" in other.stderr
    # but the same cell, executed again, is welcome; only the newest run may go on
    again = workbench.start(recipe(text), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="opened again since"):
        next(iter(run))
    assert next(iter(again)).step == 5


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    text: Path, tmp_path: Path, whole: RunFolder
) -> None:
    list(itertools.islice(workbench.start(recipe(text), out=tmp_path / "run"), 1))
    again = workbench.start(recipe(text), out=tmp_path / "run")
    assert again.step == 0 and again.folder.records() == []
    list(again)
    assert_same_run(again.folder, whole)


def test_reset_starts_each_segment_afresh(text: Path, tmp_path: Path) -> None:
    fast = {"d_model": 8, "stack": [{"block": {"mixer": FAST}}]}
    losses = {}
    for carry in ("keep", "reset"):
        asked = recipe(text, fast, steps=4, log_every=1, carry=carry)
        run = workbench.start(asked, out=tmp_path / carry)
        losses[carry] = [r.loss_nats for r in run if r.kind == "train"]
    assert losses["keep"][0] == losses["reset"][0]
    assert losses["keep"][1] != losses["reset"][1]


def test_lr_scale_of_a_batch_scales_the_rate(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workbench.start(recipe(text, log_every=1), out=tmp_path / "run")
    segments = run._trainer.segments
    following = segments.next
    monkeypatch.setattr(segments, "next", lambda: following()._replace(lr_scale=0.5))
    assert next(iter(run)).lr == pytest.approx(0.5 * 3e-3 / 4)


def test_save_after_break(text: Path, tmp_path: Path) -> None:
    run = workbench.start(recipe(text), out=tmp_path / "run")
    next(iter(run))
    run.save()
    run.save()
    assert [r["step"] for r in run.folder.records("checkpoint")] == [5]
    assert workbench.start(recipe(text), out=tmp_path / "run").step == 5


def test_importing_workbench_is_light() -> None:
    code = "import sys, workbench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="it offers"):
        workbench.strat  # noqa: B018


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_training_is_the_same_training(text: Path, tmp_path: Path) -> None:
    steady = {"d_model": 8, "stack": [{"block": {"mixer": {**XL, "p_attention": 0.0}}}]}
    losses = {}
    for compiled in (False, True):
        asked = recipe(text, steady, steps=5, log_every=1, compile=compiled)
        run = workbench.start(asked, out=tmp_path / str(compiled))
        losses[compiled] = [r.loss_nats for r in run if r.kind == "train"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_validation_has_settings_of_its_own(text: Path, tmp_path: Path) -> None:
    valid = {"method": "streams", "batch_size": 2, "segment_len": 7, "memory_len": 3}
    run = workbench.start(recipe(text, steps=8, valid=valid), out=tmp_path / "run")
    (record,) = [r for r in run if r.kind == "eval"]
    assert record.settings == "streams, batch_size 2, segment_len 7, memory_len 3"
    assert (record.method, record.context_len, record.tokens) == ("streams", 3, 2 * 29)
    tokens = run.corpus.splits["valid"][:60]
    assert run.recipe.train.valid is not None
    got = workbench.evaluate(run.model, tokens, run.recipe.train.valid)
    assert got.mean_nats == pytest.approx(record.loss_nats, abs=1e-6)
    with pytest.raises(ConfigError, match=r"eval_tokens is 60, but .* needs at least 100"):
        recipe(text, valid={**valid, "batch_size": 50})
    short = recipe(text, valid={**valid, "batch_size": 100}, eval_tokens=200)
    with pytest.raises(DataError, match="for 100 streams"):
        workbench.start(short, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
