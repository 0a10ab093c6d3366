"""The orders of the papers' codes to the token, and the rows of each process of a job."""

# ruff: noqa: NPY002  the codes draw from NumPy's global generator, and so does what is expected

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.config import load
from workbench.data import DataConfig, Segments
from workbench.data.batches import Reader, generator, generator_state, set_generator
from workbench.data.segments import RandomLengths
from workbench.errors import ConfigError, DataError

CORPUS = {"kind": "python-source"}


@pytest.fixture
def global_random() -> Iterator[None]:
    before = np.random.get_state()
    yield
    np.random.set_state(before)


def awd_epoch(n: int, bptt: int, cap: int | None = None) -> list[tuple[int, int, int]]:
    """Begin, drawn and read length of each segment: the loop of section 3.4 of its description."""
    segments, i = [], 0
    while i < n - 2:
        base = bptt if np.random.random() < 0.95 else bptt / 2.0
        drawn = max(5, int(np.random.normal(base, 5)))
        drawn = drawn if cap is None else min(drawn, bptt + cap)
        segments.append((i, drawn, min(drawn, n - 1 - i)))
        i += drawn
    return segments


@pytest.mark.parametrize("n", [30, 400, 411, 1002])
@pytest.mark.parametrize("seed", [1111, 141, 0])
@pytest.mark.parametrize("cap", [None, 10])
def test_lengths_and_epochs_are_those_of_awd_lstm(global_random, n, seed, cap):
    lengths = RandomLengths(drop_single=True, extra=cap)
    segments = Segments(torch.arange(2 * n), 2, 21, lengths=lengths, seed=seed)
    np.random.seed(seed)
    for _ in range(8):
        for i, drawn, length in awd_epoch(n, 21, cap):
            batch = segments.next()
            assert batch.tokens_BT[1].tolist() == list(range(n + i, n + i + length))
            assert torch.equal(batch.targets_BT, batch.tokens_BT + 1)
            assert batch.fresh == (i == 0)
            assert batch.lr_scale == drawn / 21


def test_recorded_lengths():
    """The first of `np.random.seed(1111)`, whatever draws them."""
    draws = generator(1111)
    assert [RandomLengths().draw(draws, 70) for _ in range(12)] == RECORDED


RECORDED = [68, 72, 66, 66, 68, 71, 68, 62, 72, 74, 76, 77]


def test_a_single_target_that_is_left_is_read_unless_the_recipe_says_otherwise():
    # std 0: lengths of 5 over 11 targets
    lengths = {"p_half": 0.0, "std": 0.0}
    tokens = torch.arange(12)
    for drop, sizes in ((False, [5, 5, 1, 5]), (True, [5, 5, 5])):
        segments = Segments(tokens, 1, 5, lengths=RandomLengths(drop_single=drop, **lengths))
        batches = [segments.next() for _ in sizes]
        assert [b.targets_BT.shape[1] for b in batches] == sizes
        assert [b.fresh for b in batches] == [True, *[False] * (len(sizes) - 2), True]


def test_lengths_may_have_a_seed_of_their_own():
    def drawn(seed, own):
        segments = Segments(torch.arange(500), 1, 20, lengths=RandomLengths(seed=own), seed=seed)
        return [segments.next().lr_scale for _ in range(20)]

    assert drawn(1, 331) == drawn(2, 331) == drawn(331, None) != drawn(1, None)


@pytest.mark.parametrize("seed", [5, 2**32 - 1, 2**32, 2**63 - 1])
def test_a_generator_goes_on_where_its_state_was_taken(seed):
    ours, theirs = generator(seed), generator(0)
    for drawn in range(5):
        ours.normal(size=1 + 2 * drawn)
        set_generator(theirs, generator_state(ours))
        assert np.array_equal(theirs.get_state()[1], ours.get_state()[1])
        assert theirs.normal(size=5).tolist() == ours.normal(size=5).tolist()
        ours.random_sample(drawn)


# adaptive-span's order


@pytest.mark.parametrize(("n", "block"), [(40, 8), (41, 8), (47, 8), (48, 8), (16, 8), (9, 1)])
def test_epochs_are_those_of_adaptive_span(n, block):
    segments = Segments(torch.arange(3 * n), 3, block, restart="random_offset", seed=11)
    offsets, position, fresh = random.Random(11), 0, True
    seen = set()
    for _ in range(60):
        batch = segments.next()
        expected = torch.arange(3)[:, None] * n + torch.arange(position, position + block)
        assert torch.equal(batch.tokens_BT, expected)
        assert torch.equal(batch.targets_BT, expected + 1)
        assert batch.fresh == fresh
        seen.add(position)
        # section 2.7 of its description
        position, fresh = position + block, False
        if position >= n - block:
            position, fresh = offsets.randrange(block), True
    assert len(seen) > 5


def test_nothing_before_an_offset_is_context():
    segments = Segments(torch.arange(60), 1, 8, restart="random_offset", ext_len=6, seed=11)
    for _ in range(20):
        batch = segments.next()
        assert batch.tokens_BT.shape[1] == (8 if batch.fresh else 14)
        assert batch.targets_BT.shape[1] == 8


def test_a_text_too_short_for_the_last_offset_is_refused():
    Segments(torch.arange(32), 2, 8, restart="random_offset")
    with pytest.raises(DataError, match="at least 32"):
        Segments(torch.arange(31), 2, 8, restart="random_offset")


def test_random_lengths_belong_to_contiguous_streams_that_begin_again():
    sizes = {"corpus": CORPUS, "segment_len": 8, "batch_size": 2}
    asked = {**sizes, "order": {"kind": "contiguous", "restart": "random_offset"}}
    assert load(DataConfig, asked).order.restart == "random_offset"
    with pytest.raises(ConfigError, match=r"random_lengths: null, or order: \{kind: contiguous\}"):
        load(DataConfig, {**asked, "random_lengths": {}})


# positions and processes, whatever the order

OPTIONS = [
    {},
    {"ext_len": 5},
    {"lengths": RandomLengths(std=3.0, min_len=2), "ext_len": 3},
    {"lengths": RandomLengths(std=3.0, min_len=2, drop_single=True)},
    {"restart": "random_offset"},
]


def same(a, b) -> bool:
    equal = torch.equal(a.tokens_BT, b.tokens_BT) and torch.equal(a.targets_BT, b.targets_BT)
    return equal and a.fresh == b.fresh and a.lr_scale == b.lr_scale


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_rows_of_all_ranks_are_the_batch_of_one_process(options, world_size):
    def make(*which):
        return Segments(torch.arange(6 * 37), 6, 7, seed=3, **options, reader=Reader(*which))

    alone = make()
    ranks = [make("cpu", rank, world_size) for rank in range(world_size)]
    for _ in range(25):
        whole, parts = alone.next(), [each.next() for each in ranks]
        assert {len(part.tokens_BT) for part in parts} == {6 // world_size}
        assert torch.equal(torch.cat([part.tokens_BT for part in parts]), whole.tokens_BT)
        assert torch.equal(torch.cat([part.targets_BT for part in parts]), whole.targets_BT)
        assert {(p.fresh, p.lr_scale) for p in parts} == {(whole.fresh, whole.lr_scale)}
        assert all(str(each.state()) == str(alone.state()) for each in ranks)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_position_restores_in_another_number_of_processes(options):
    def make(rank=0, world_size=1):
        tokens = torch.arange(6 * 37)
        return Segments(tokens, 6, 7, seed=3, reader=Reader("cpu", rank, world_size), **options)

    source = make(1, 2)
    for _ in range(40):
        source.next()
        alone = make()
        alone.restore(source.state())
        thirds = [make(r, 3) for r in range(3)]
        for each in thirds:
            each.restore(source.state())
        for _ in range(3):
            parts = [each.next() for each in thirds]
            assert torch.equal(torch.cat([p.tokens_BT for p in parts]), alone.next().tokens_BT)
    assert source.state()["epoch"] > 3


@pytest.mark.parametrize("options", OPTIONS)
def test_every_position_is_exact(options):
    def make():
        return Segments(torch.arange(2 * 37), 2, 7, seed=3, **options)

    whole = make()
    states, batches = [], []
    for _ in range(60):
        states.append(whole.state())
        batches.append(whole.next())
    # after other batches, too: what was drawn meanwhile is forgotten
    used = make()
    for at, state in enumerate(states[:-4]):
        used.restore(state)
        assert str(used.state()) == str(state)
        assert all(same(used.next(), want) for want in batches[at : at + 4])


class Reads(TorchDispatchMode):
    """Which elements of a tensor's storage are read by other than a view of it."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.pointer, self.read = tensor.untyped_storage().data_ptr(), set()
        self.index = torch.arange(len(tensor))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in args:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() == self.pointer:
                out = result.untyped_storage().data_ptr()
                if out != self.pointer:
                    index = self.index.as_strided(x.shape, x.stride(), x.storage_offset())
                    self.read.update(index.flatten().tolist())
        return result


@pytest.mark.parametrize("options", OPTIONS)
def test_a_process_reads_its_rows_alone(options):
    tokens = torch.arange(6 * 37)
    for rank in range(3):
        segments = Segments(tokens, 6, 7, seed=3, reader=Reader("cpu", rank, 3), **options)
        with Reads(tokens) as reads:
            given = {i for _ in range(25) for i in segments.next().tokens_BT.flatten().tolist()}
        own = range(rank * 2 * 37, (rank + 1) * 2 * 37)
        assert given <= reads.read <= set(own)


def test_rows_that_cannot_be_shared_are_refused_with_a_cure():
    assert Reader("cpu", 2, 3).rows(6) == slice(4, 6)
    with pytest.raises(ConfigError, match=r"batch_size is 6, which 4 .* to 4 or 8"):
        Segments(torch.arange(60), 6, 4, reader=Reader("cpu", 0, 4))
    with pytest.raises(ConfigError, match=r"which 8 processes .* to 8, or"):
        Reader("cpu", 0, 8).rows(6)
    for rank in (-1, 3):
        with pytest.raises(ConfigError, match=f"rank {rank} of 3 processes, expected 0 to 2"):
            Reader("cpu", rank, 3).rows(6)
