"""The walk through a text: every target once, in stream order, resumable to the token."""

from itertools import pairwise

import pytest
import torch

from workbench.data import Segments
from workbench.data.batches import generator
from workbench.data.segments import RandomLengths, check_length
from workbench.errors import DataError

SIZES = [
    (n, batch, segment)
    for n in (7, 12, 25, 64, 101)
    for batch in (1, 2, 3, 5)
    for segment in (1, 2, 3, 5, 8)
    if n >= batch * (segment + 1)
]


def epoch(segments: Segments) -> list:
    return [segments.next() for _ in range(len(segments))]


@pytest.mark.parametrize(("n", "batch", "segment"), SIZES)
def test_every_target_exactly_once_per_epoch_in_stream_order(n, batch, segment):
    tokens = torch.arange(n)
    stream = n // batch
    segments = Segments(tokens, batch, segment)
    for _ in range(2):
        batches = epoch(segments)
        assert [b.fresh for b in batches] == [True] + [False] * (len(batches) - 1)
        assert all(b.tokens_BT.shape == (batch, segment) for b in batches[:-1])
        read_BT = torch.cat([b.tokens_BT for b in batches], dim=1)
        targets_BT = torch.cat([b.targets_BT for b in batches], dim=1)
        streams_BN = tokens[: batch * stream].view(batch, stream)
        assert torch.equal(read_BT, streams_BN[:, :-1])
        assert torch.equal(targets_BT, streams_BN[:, 1:])
    assert segments.state()["epoch"] == 2


@pytest.mark.parametrize(("n", "batch", "segment"), [(64, 3, 5), (50, 1, 7), (41, 2, 4)])
def test_resumes_exactly_from_every_position_over_epochs(n, batch, segment):
    tokens = torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n))
    whole = Segments(tokens, batch, segment)
    steps = 2 * len(whole) + 1
    states, expected = [], []
    for _ in range(steps):
        states.append(whole.state())
        expected.append(whole.next())
    for at, state in enumerate(states):
        resumed = Segments(tokens, batch, segment)
        resumed.restore(state)
        assert resumed.state() == state
        for want in expected[at:]:
            got = resumed.next()
            assert torch.equal(got.tokens_BT, want.tokens_BT)
            assert torch.equal(got.targets_BT, want.targets_BT)
            assert got.fresh == want.fresh


def test_context_is_read_again_and_not_scored_again():
    plain = epoch(Segments(torch.arange(42), 2, 4))
    batches = epoch(Segments(torch.arange(42), 2, 4, ext_len=6))
    lengths = [batch.tokens_BT.shape[1] for batch in batches]
    assert lengths == [4, 8, 10, 10, 10], "there is no text before the streams begin"
    for batch, alone in zip(batches, plain, strict=True):
        T = alone.targets_BT.shape[1]
        assert torch.equal(batch.targets_BT, alone.targets_BT)
        assert torch.equal(batch.tokens_BT[:, -T:], alone.tokens_BT)
        assert (batch.tokens_BT.diff(dim=1) == 1).all(), "one piece of the stream"


@pytest.mark.parametrize("n", [41, 60, 97])
def test_random_lengths_cover_every_target_once_and_resume_exactly(n):
    tokens = torch.arange(3 * n)
    lengths = RandomLengths(std=3.0, min_len=2, extra=4)

    def make():
        return Segments(tokens, 3, 8, lengths=lengths, seed=5)

    whole, states, batches = make(), [], []
    while whole.state()["epoch"] < 3:
        states.append(whole.state())
        batches.append(whole.next())
    starts = [i for i, b in enumerate(batches) if b.fresh] + [len(batches)]
    for begin, end in pairwise(starts):
        read_BT = torch.cat([b.tokens_BT for b in batches[begin:end]], dim=1)
        assert torch.equal(read_BT, tokens.view(3, n)[:, :-1])
    for batch, following in pairwise(batches):
        length = batch.tokens_BT.shape[1]
        assert length <= 12 and (following.fresh or 2 <= length == batch.lr_scale * 8)
    for at, state in enumerate(states):
        resumed = make()
        resumed.restore(state)
        for want in batches[at : at + 3]:
            got = resumed.next()
            assert torch.equal(got.tokens_BT, want.tokens_BT)
            assert (got.fresh, got.lr_scale) == (want.fresh, want.lr_scale)


def test_random_lengths_follow_their_rule():
    def drawn(seed=1, **rule):
        lengths, random = RandomLengths(**rule), generator(seed)
        return [lengths.draw(random, 70) for _ in range(4000)]

    lengths = torch.tensor(drawn(), dtype=torch.float64)
    assert drawn() == drawn() != drawn(seed=2)
    half = lengths < 52
    assert 0.04 < half.double().mean() < 0.06
    # truncation takes half a token off
    assert abs(lengths[~half].mean() - 69.5) < 0.4 and 4.7 < lengths[~half].std() < 5.3
    assert abs(lengths[half].mean() - 34.5) < 1.5
    assert max(drawn(extra=15)) <= 85 < max(drawn(std=9.0))
    assert min(drawn(std=60.0)) == 5
    assert set(drawn(std=0.0, p_half=0.0)) == {70}
    segments = Segments(torch.arange(200), 1, 20, lengths=RandomLengths(scale_lr=False))
    assert {segments.next().lr_scale for _ in range(20)} == {1.0}


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]
)
def test_small_types_become_int64_and_the_text_stays_untouched(dtype):
    tokens = torch.arange(20).to(dtype)
    batch = Segments(tokens, 1, 6).next()
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64
    batch.tokens_BT.zero_()
    batch.targets_BT.zero_()
    assert torch.equal(tokens.to(torch.int64), torch.arange(20))


def test_state_holds_plain_integers_only():
    segments = Segments(torch.arange(20), 2, 3)
    segments.next()
    assert all(type(value) is int for value in segments.state().values())


def test_too_short_is_refused_with_numbers_and_cures():
    with pytest.raises(DataError) as caught:
        Segments(torch.arange(40), 4, 16)
    message = str(caught.value)
    assert "got 40 tokens" in message
    assert "at least 68" in message
    assert "data.batch_size to at most 2" in message
    assert "data.segment_len to at most 9" in message
    Segments(torch.arange(40), 2, 16)
    Segments(torch.arange(40), 4, 9)


def test_cures_that_are_impossible_are_not_offered():
    with pytest.raises(DataError) as caught:
        check_length(3, 4, 16)
    assert str(caught.value).startswith("text: got 3 tokens")
    assert "at most" not in str(caught.value)


@pytest.mark.parametrize(
    ("n", "batch", "field"), [(64, 2, "batch_size"), (65 * 3, 3, "stream_len")]
)
def test_a_foreign_position_is_refused(n, batch, field):
    state = Segments(torch.arange(64), 3, 4).state()
    with pytest.raises(DataError, match=f"{field} .*expected.*[Cc]ontinue"):
        Segments(torch.arange(n), batch, 4).restore(state)


@pytest.mark.parametrize("position", [-1, 20, 10**9])
def test_an_impossible_position_is_refused(position):
    segments = Segments(torch.arange(64), 3, 4)
    with pytest.raises(DataError, match=f"got {position}, expected 0 to 19"):
        segments.restore({**segments.state(), "position": position})
    assert segments.state()["position"] == 0
