"""Batches prepared by a thread: the same ones, the same positions, and no thread left over."""

import gc
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch
from test_data_lm1b import VOCABULARY, put

import workbench
from workbench.config import dump, load, override
from workbench.data import Segments, lm1b
from workbench.data.ahead import Ahead, ahead
from workbench.data.batches import Batch, Reader
from workbench.data.segments import RandomLengths
from workbench.data.sentences import SentenceBatches
from workbench.models.language_model import build_model
from workbench.recipe import Recipe, load_recipe
from workbench.train.trainer import Trainer

CPU = torch.device("cpu")


def segments() -> Segments:
    lengths = RandomLengths(std=3.0, min_len=2)
    return Segments(torch.arange(200), 4, 7, lengths=lengths, ext_len=2, seed=3)


def sentences() -> SentenceBatches:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(9, (601,), generator=draw)
    tokens[::150] = 0
    return SentenceBatches(tokens, range(0, 601, 150), 0, 3, 5, seed=3, ext_len=2)


MAKERS = [segments, sentences]


def same(a: Batch, b: Batch) -> bool:
    equal = torch.equal(a.tokens_BT, b.tokens_BT) and torch.equal(a.targets_BT, b.targets_BT)
    return equal and a[2:] == b[2:]


def prepared(source: Ahead) -> None:
    """Wait until the thread has done all that it may."""
    for future in source._pending:
        future.result()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_and_positions_are_those_of_the_source(make, depth):
    plain, source = make(), Ahead(make(), CPU, depth)
    assert source.ext_len == plain.ext_len and str(source.state()) == str(plain.state())
    for _ in range(80):
        assert same(source.next(), plain.next())
        prepared(source)
        assert len(source._pending) == depth
        assert str(source.state()) == str(plain.state())


@pytest.mark.parametrize("make", MAKERS)
def test_a_position_restores_into_either_kind(make):
    source = Ahead(make(), CPU, 3)
    for _ in range(30):
        source.next()
    state, expected = source.state(), [source.next() for _ in range(5)]
    plain, other = make(), Ahead(make(), CPU)
    other.next()
    for each in (plain, other, source):
        each.restore(state)
        assert str(each.state()) == str(state)
        assert all(same(each.next(), want) for want in expected)


class Faulty(Segments):
    """Fails once, at the batch number `at`."""

    at = 3

    def next(self) -> Batch:
        self.at -= 1
        if self.at == 0:
            raise OSError("the disk is gone")
        return super().next()


def test_a_fault_of_the_thread_arrives_with_its_batch_and_nothing_is_lost():
    source, plain = Ahead(Faulty(torch.arange(90), 2, 5), CPU, 4), Segments(torch.arange(90), 2, 5)
    for _ in range(2):
        assert same(source.next(), plain.next())
    with pytest.raises(OSError, match="the disk is gone"):
        source.next()
    assert source.state() == plain.state()
    for _ in range(20):
        assert same(source.next(), plain.next())


@pytest.mark.parametrize("make", MAKERS)
def test_no_batch_is_lost_when_waiting_for_it_is_broken_off(make):
    def broken_off() -> None:
        raise KeyboardInterrupt

    source, plain = Ahead(make(), CPU), make()
    for _ in range(8):
        assert same(source.next(), plain.next())
        prepared(source)
        source._pending[0] = SimpleNamespace(result=broken_off)
        with pytest.raises(KeyboardInterrupt):
            source.next()
        assert str(source.state()) == str(plain.state())


class Slow(Segments):
    """Takes a while."""

    def next(self) -> Batch:
        time.sleep(0.02)
        return super().next()


def test_preparation_and_step_take_place_at_once():
    source = Ahead(Slow(torch.arange(90), 2, 5), CPU)
    source.next()
    prepared(source)
    waited = 0.0
    for _ in range(10):
        time.sleep(0.04)  # the step
        begin = time.perf_counter()
        source.next()
        waited += time.perf_counter() - begin
    assert waited < 0.1, "ten batches one after another take 0.2 s"


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("workbench-batches")}


def test_the_thread_ends_with_its_owner():
    before = threads()
    source = Ahead(segments(), CPU)
    source.next()
    (mine,) = threads() - before
    del source
    gc.collect()
    mine.join(timeout=5)
    assert not mine.is_alive()


def test_the_interpreter_ends_while_batches_are_prepared():
    program = (
        "import torch; from workbench.data.ahead import Ahead; from workbench.data import Segments;"
        "a = Ahead(Segments(torch.arange(90), 2, 5), torch.device('cpu')); a.next(); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"done"], b"")


def test_only_a_gpu_is_prepared_for():
    plain = segments()
    assert ahead(plain, CPU) is plain


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls in their order, on stand-ins; the numbers are checked where there is a GPU."""
    told: list[tuple[str, str]] = []
    inside = threading.local()

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = str(name)

        def record_event(self) -> str:
            told.append((self.name, "copied"))
            return "copied"

        def wait_event(self, event: str) -> None:
            told.append((self.name, f"waits for {event}"))

    @contextmanager
    def stream(given: Stream) -> Any:
        inside.stream = given
        yield
        inside.stream = None

    class Watched(Segments):
        def next(self) -> Batch:
            told.append((inside.stream.name, "copies"))
            return super().next()

    cuda = SimpleNamespace(
        Stream=Stream, stream=stream, current_stream=lambda device: Stream("compute")
    )
    monkeypatch.setattr("workbench.data.ahead.torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, s: told.append((s.name, "uses memory"))
    )
    source = ahead(Watched(torch.arange(90), 2, 5), torch.device("cuda"))
    assert isinstance(source, Ahead)
    source.next()
    prepared(source)
    assert told[:2] == [("cuda", "copies"), ("cuda", "copied")]
    mine = [what for name, what in told if name == "compute"]
    assert mine == ["waits for copied", "uses memory", "uses memory"]


# a whole run


@pytest.fixture
def sentence_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A tiny run on files that are laid out as those of One Billion Word."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    draw, words = random.Random(4), ["the", "cat", "sat", "dog"]
    lines = [" ".join(draw.choices(words, k=draw.randrange(9))) + "\n" for _ in range(4000)]
    held, *shards = ["".join(lines[i : i + 40]).encode() for i in range(0, 4000, 40)]
    put(tmp_path / "data" / "lm1b", shards, held)
    (tmp_path / "data" / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = {"kind": "published", "name": "lm1b", "rule": "transformer-xl"}
    changes = {
        "data.corpus": corpus,
        "data.order": {"kind": "sentences"},
        "eval": {"method": "streams", "order": "sentences", "batch_size": 2, "segment_len": 5},
    }
    return load(Recipe, override(dump(tiny_run.recipe(tmp_path / "none.txt")), changes))


def test_a_run_on_sentences_continues_bit_for_bit_with_and_without_a_thread(
    sentence_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stop = sentence_recipe, 12
    whole = workbench.start(recipe, out=tmp_path / "whole")
    rows = [r for r in whole if r.kind == "train"]
    monkeypatch.setattr("workbench.train.start.ahead", lambda batches, device: Ahead(batches, CPU))
    for record in workbench.start(recipe, out=tmp_path / "run"):
        if record.kind == "checkpoint" and record.step == stop:
            break
    again = workbench.start(recipe, out=tmp_path / "run")
    assert again.step == stop
    ours = [r for r in again if r.kind == "train"]
    assert [r.loss_nats for r in ours] == [r.loss_nats for r in rows][-len(ours) :]
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", ["segments", "sentences"])
def test_batches_are_not_what_training_waits_for(make: str) -> None:
    """Beside steps far shorter than those of any recipe: of the fastest tiny one, on 256 tokens."""
    recipe = load_recipe("all-attention-python-tiny")
    tokens = torch.randint(1, 200, (1_000_001,), dtype=torch.uint8)
    tokens[::50] = 0
    if make == "segments":
        batches: Any = Segments(tokens, 8, 32)
    else:
        batches = SentenceBatches(tokens, [0, 500_000, 1_000_000], 0, 8, 32)
    model = build_model(recipe.model, 256, seed=1)
    trainer = Trainer(model, batches, recipe.train, recipe.name)
    steps, waits, draw = [], [], batches.next

    def timed() -> Batch:
        begin = time.perf_counter()
        batch = draw()
        waits.append(time.perf_counter() - begin)
        return batch

    batches.next = timed
    for _ in range(40):
        begin = time.perf_counter()
        trainer.update()
        steps.append(time.perf_counter() - begin)
    # the best of each: whatever else the machine does disturbs a fraction of a millisecond most
    assert min(waits) < 0.02 * min(steps)


@pytest.mark.gpu
@pytest.mark.parametrize("make", ["segments", "sentences"])
def test_batches_on_a_gpu_are_right_and_arrive_while_it_computes(make):
    device = torch.device("cuda")
    tokens = torch.randint(1, 200, (2_000_001,), dtype=torch.uint8)
    tokens[::50] = 0

    def build(where):
        if make == "segments":
            return Segments(tokens, 64, 512, reader=Reader(where))
        return SentenceBatches(tokens, [0, 1_000_000, 2_000_000], 0, 64, 512, reader=Reader(where))

    plain, source = build("cpu"), Ahead(build(device), device, depth=2)
    assert same(Batch(*(x.cpu() if torch.is_tensor(x) else x for x in source.next())), plain.next())
    for i in range(20):
        # a tenth of a second of work, behind which the next batches must not queue
        torch.cuda._sleep(200_000_000)
        busy = torch.cuda.current_stream().record_event()
        for future in list(source._pending):
            future.result().copied.synchronize()
        # the first batches allocate memory, for which the whole device may be waited
        assert i < 8 or not busy.query(), "the copies waited for the computation"
        got, want = source.next(), plain.next()
        assert torch.equal(got.tokens_BT.cpu(), want.tokens_BT)
        assert torch.equal(got.targets_BT.cpu(), want.targets_BT)
        del got  # its memory may be used again while the copy above is read
