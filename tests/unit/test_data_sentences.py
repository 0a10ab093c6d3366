"""Streams of shuffled sentences: the order of the Transformer-XL code, positions, processes."""

# ruff: noqa: NPY002  the code draws from NumPy's global generator, and so does what is expected

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench.config import load
from workbench.data import Corpus, DataConfig, Sentences
from workbench.data.batches import Reader
from workbench.data.sentences import CHUNK, SentenceBatches, bounds
from workbench.data.vocabulary import PreparedVocabulary
from workbench.errors import ConfigError, DataError

MARK = 7


def written(shards: Sequence[Sequence[Sequence[int]]]) -> tuple[list[int], list[int]]:
    """Shards of sentences as a corpus stores them: ids with one mark between, and edges."""
    ids, edges = [MARK], [0]
    for sentences in shards:
        for words in sentences:
            ids += [*words, MARK]
        edges.append(len(ids) - 1)
    return ids, edges


def shards(sizes: Sequence[int], longest: int = 9, seed: int = 0) -> list[list[list[int]]]:
    """Sentences of every length from none on, every word of the text another id."""
    draw = np.random.RandomState(seed)
    word = iter(range(100, 10**6))
    return [[[next(word) for _ in range(draw.randint(longest))] for _ in range(n)] for n in sizes]


def code_order(
    text: Sequence[Sequence[Sequence[int]]], seed: int, n_streams: int, length: int, context: int
) -> Iterator[tuple[list[list[int]], list[list[int]], bool]]:
    """Inputs, targets and begin of an epoch, from lists, as section 1.16 of its description."""
    np.random.seed(seed)
    paths = list(range(len(text)))
    while True:
        np.random.shuffle(paths)
        fresh = True
        for path in paths:
            sentences = [[MARK, *words, MARK] for words in text[path]]
            np.random.shuffle(sentences)
            rows: list[list[tuple[int, int]]] = [[] for _ in range(n_streams)]
            before: list[list[int]] = [[] for _ in range(n_streams)]
            while True:
                for row in rows:
                    while len(row) < length and sentences:
                        s = sentences.pop(0)
                        row += list(pairwise(s))
                if min(len(row) for row in rows) < length:
                    break
                inputs = [[x for x, _ in row[:length]] for row in rows]
                targets = [[y for _, y in row[:length]] for row in rows]
                read = [[*b, *x] for b, x in zip(before, inputs, strict=True)]
                yield read, targets, fresh
                before = [x[max(0, len(x) - context) :] for x in read]
                rows, fresh = [row[length:] for row in rows], False


@pytest.fixture
def global_random() -> Iterator[None]:
    before = np.random.get_state()
    yield
    np.random.set_state(before)


def batches_of(text: Any, n_streams: int = 3, length: int = 4, **options: Any) -> SentenceBatches:
    ids, edges = written(text)
    return SentenceBatches(torch.tensor(ids), edges, MARK, n_streams, length, **options)


TEXTS = [shards([40, 31, 55]), shards([60], seed=1), shards([9, 14, 3, 20, 30], 14, seed=2)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", [0, 1111])
@pytest.mark.parametrize(
    ("n_streams", "length", "context"), [(1, 1, 0), (3, 4, 0), (2, 7, 3), (2, 3, 8)]
)
def test_batches_are_those_of_the_code(global_random, text, seed, n_streams, length, context):
    batches = batches_of(text, n_streams, length, ext_len=context, seed=seed)
    expected = code_order(text, seed, n_streams, length, context)
    while batches.state()["epoch"] < 2:
        tokens, targets, fresh = next(expected)
        batch = batches.next()
        assert batch.tokens_BT.tolist() == tokens
        assert batch.targets_BT.tolist() == targets
        assert (batch.fresh, batch.lr_scale) == (fresh, 1.0)


def test_targets_never_cross_a_sentence_and_an_epoch_has_each_once():
    text = shards([50, 50])
    batches = batches_of(text, 2, 5)
    follows = {}
    for words in (words for shard in text for words in shard):
        follows |= dict(pairwise([*words, MARK]))
    seen = []
    while batches.state()["epoch"] == 0:
        batch = batches.next()
        read, targets = (x.flatten().tolist() for x in (batch.tokens_BT, batch.targets_BT))
        assert all(x == MARK or follows[x] == y for x, y in zip(read, targets, strict=True))
        seen += read
    words = [x for x in seen if x != MARK]
    # the first batch of the next epoch is among them
    assert len(words) - len(set(words)) <= 10
    assert len(set(words)) > 0.9 * len(follows)


@pytest.mark.parametrize("options", [{}, {"ext_len": 6}])
@pytest.mark.parametrize("text", TEXTS)
def test_every_position_is_exact_in_any_number_of_processes(text, options):
    whole = batches_of(text, 4, 3, seed=5, **options)
    states, expected = [], []
    while whole.state()["epoch"] < 3:
        states.append(whole.state())
        expected.append(whole.next())
    used = batches_of(text, 4, 3, seed=5, **options)
    pair = [batches_of(text, 4, 3, seed=5, reader=Reader("cpu", r, 2), **options) for r in range(2)]
    for at in range(0, len(states) - 3, 5):
        for each in (used, *pair):
            each.restore(states[at])
            assert str(each.state()) == str(states[at])
        for want in expected[at : at + 3]:
            got, parts = used.next(), [each.next() for each in pair]
            assert torch.equal(got.tokens_BT, want.tokens_BT)
            assert torch.equal(torch.cat([p.tokens_BT for p in parts]), want.tokens_BT)
            assert torch.equal(torch.cat([p.targets_BT for p in parts]), want.targets_BT)
            assert got.fresh == parts[0].fresh == parts[1].fresh == want.fresh


def test_a_state_stays_what_it_was_when_it_was_taken():
    batches = batches_of(TEXTS[0], ext_len=2)
    batches.next()
    state = batches.state()
    said = str(state)
    for _ in range(200):
        batches.next()
    assert str(state) == said


class Recorder:
    """Ids that remember where they were read one by one."""

    def __init__(self, ids: Any) -> None:
        self.ids, self.taken = ids, []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice) -> Any:
        return self.ids[where]

    def take(self, index: Any) -> Any:
        self.taken += index.flatten().tolist()
        return self.ids.take(index)


def test_a_process_reads_its_rows_alone():
    recorders, alone = [], batches_of(TEXTS[0], 6, 4)
    ranks = [batches_of(TEXTS[0], 6, 4, reader=Reader("cpu", r, 3)) for r in range(3)]
    for each in (alone, *ranks):
        each._ids = Recorder(each._ids)
        recorders.append(each._ids)
    for _ in range(20):
        for each in (alone, *ranks):
            each.next()
    whole, *parts = (recorder.taken for recorder in recorders)
    assert [len(part) for part in parts] == [len(whole) // 3] * 3
    assert sorted(whole) == sorted([*parts[0], *parts[1], *parts[2]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_small_types_become_int64(dtype):
    ids, edges = written([[[1, 2, 3], [4], [5, 6]] * 5])
    batch = SentenceBatches(torch.tensor(ids).to(dtype), edges, MARK, 2, 3).next()
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64


@pytest.mark.parametrize("sizes", [[2, 3], [4]])
def test_shards_too_short_for_a_batch_are_refused(sizes):
    # by their length at once, or when no shard has filled all rows
    with pytest.raises(DataError, match="too few for a batch of 9 streams x 5"):
        batches_of(shards(sizes), 9, 5)
    text = [[[1, 2, 3, 4, 5, 6, 7, 8], [1]], [[1, 2, 3, 4, 5, 6, 9, 8], [1]]]
    text = [[[w + 100 for w in words] for words in shard] for shard in text]
    batches = batches_of(text, 2, 5)
    for _ in range(2):
        with pytest.raises(DataError, match="too few for a batch of 2 streams x 5"):
            batches.next()


def test_a_short_shard_is_passed_over():
    text = [[[100, 101]], shards([50])[0]]
    batches = batches_of(text, 3, 4)
    read = {x for _ in range(60) for x in batches.next().tokens_BT.flatten().tolist()}
    assert len(read) > 100 and batches.state()["epoch"] > 2


def test_a_text_without_its_marks_is_refused():
    ids, edges = written(TEXTS[0])
    for wrong in ([e + 1 for e in edges], [0, edges[1] - 1, edges[-1]]):
        with pytest.raises(DataError, match=r"without the mark 7 at .* Delete the prepared corpus"):
            for _ in range(100):
                SentenceBatches(torch.tensor(ids), wrong, MARK, 2, 3).next()


def test_bounds_are_found_in_pieces(monkeypatch):
    ids, edges = written(TEXTS[0])
    whole = bounds(np.array(ids), MARK, 0, edges[-1])
    assert whole.tolist() == [i for i, x in enumerate(ids) if x == MARK] and len(ids) < CHUNK
    for chunk in (1, 7, edges[-1], edges[-1] + 1):
        monkeypatch.setattr("workbench.data.sentences.CHUNK", chunk)
        assert bounds(np.array(ids), MARK, 0, edges[-1]).tolist() == whole.tolist()


@pytest.mark.parametrize(("field", "change"), [("batch_size", 4), ("tokens", 3)])
def test_a_foreign_position_is_refused(field, change):
    batches = batches_of(TEXTS[0])
    with pytest.raises(DataError, match=f"{field} {change}, expected .*[Cc]ontinue"):
        batches.restore({**batches.state(), field: change})


SIZES = {"corpus": {"kind": "python-source"}, "segment_len": 4, "batch_size": 3}


def corpus(info: dict[str, Any]) -> Corpus:
    ids, edges = written(TEXTS[0])
    about = {"name": "notes", "level": "word", "unit": "word", **info}
    sentences = {"symbol": "<S>", "id": MARK, "shards": {"train": edges}}
    about |= {"sentences": sentences} if "sentences" in info else {}
    return Corpus(
        Path(), about, lambda: PreparedVocabulary("word", []), {"train": torch.tensor(ids)}
    )


def test_a_recipe_asks_for_sentences_and_says_no_more():
    data = load(DataConfig, {**SIZES, "order": {"kind": "sentences"}})
    assert data.order == Sentences()
    batches = data.order.batches(corpus({"sentences": {}}), data, 5, Reader("cpu", 1, 3))
    expected = batches_of(TEXTS[0], seed=5).next().tokens_BT
    assert torch.equal(batches.next().tokens_BT, expected[1:2])
    with pytest.raises(DataError, match=r"text of notes is not made of marked sentences.*Write"):
        data.order.batches(corpus({}), data, 5)
    with pytest.raises(ConfigError, match="random_lengths: null"):
        load(DataConfig, {**SIZES, "order": {"kind": "sentences"}, "random_lengths": {}})
    with pytest.raises(ConfigError, match=r"no kind 'sentence'\. Did you mean 'sentences'"):
        load(DataConfig, {**SIZES, "order": {"kind": "sentence"}})
