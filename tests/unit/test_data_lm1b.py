"""One Billion Word: sentences between `<S>`, shards, and a vocabulary that is given."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import naive
import pytest
import replicas
import torch

from workbench.config import load
from workbench.data import lm1b, pieces, registry
from workbench.data.corpus import Corpus
from workbench.data.published import Published
from workbench.data.segments import DataConfig
from workbench.errors import DataError, DataMissing

VOCABULARY = "<S> 9\n</S> 9\n<UNK> 0\nthe 5\ncat 3\nthe 2\n\nsat 1 extra\n"
WORDS = ["<S>", "</S>", "<UNK>", "the", "cat", "sat"]


TRAIN = "training-monolingual.tokenized.shuffled/news.en-{:05}-of-00100"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, and a registry that wants as many shards as `put` has put there."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(registry, "entry", lambda _: ENTRY.model_copy(update={"contents": WANTED}))
    WANTED.clear()
    return tmp_path


ENTRY = registry.entry("lm1b")
WANTED: dict[str, registry.Known] = {}


def put(base: Path, shards: list[bytes], held: bytes) -> None:
    known = next(iter(ENTRY.contents.values()))
    texts = {TRAIN.format(i + 1): data for i, data in enumerate(shards)}
    for name, data in {lm1b.HELD_OUT: held, **texts}.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
        WANTED[name] = known
    WANTED[lm1b.WORDS] = known


def shards(corpus: Corpus, split: str) -> list[list[int]]:
    edges = corpus.info["sentences"]["shards"][split]
    ids = corpus.splits[split]
    pairs = itertools.pairwise(edges)
    return [ids[start : stop + 1].tolist() for start, stop in pairs]


def sentences(ids: list[int], mark: int) -> list[list[int]]:
    """Cut at the marks, which close one and open the next."""
    at = [i for i, token in enumerate(ids) if token == mark]
    assert at[0] == 0 and at[-1] == len(ids) - 1
    return [ids[a : b + 1] for a, b in itertools.pairwise(at)]


def test_shards_of_sentences_by_a_given_vocabulary(root: Path) -> None:
    put(root / "lm1b", [b"the cat sat\nThe cat\n", b"\nsat  sat"], b" the \r\ncat\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = Published(name="lm1b", rule="transformer-xl").open()
    assert corpus.vocabulary.symbols() == {"sentences": WORDS}
    assert corpus.splits["train"].tolist() == [0, 3, 4, 5, 0, 2, 4, 0, 0, 5, 5, 0]
    assert corpus.info["sentences"] == {
        "symbol": "<S>",
        "id": 0,
        "shards": {"train": [0, 7, 11], "valid": [0, 4], "test": [0, 4]},
    }
    assert corpus.splits["valid"].tolist() == corpus.splits["test"].tolist() == [0, 3, 0, 4, 0]
    assert corpus.info["unknown"] == {"train": 1, "valid": 0, "test": 0}
    assert (corpus.level, corpus.unit, corpus.vocabulary.unknown) == ("word", "word", 2)
    corpus.check()
    again = Published(name="lm1b", rule="transformer-xl").open()
    assert again.folder == corpus.folder and again.info["sentences"] == corpus.info["sentences"]
    files = {f["path"]: f["split"] for f in corpus.files()}
    assert set(files.values()) == {"train", "valid", ""} and len(files) == 4


def test_text_as_people_write_it(root: Path) -> None:
    put(root / "lm1b", [b"the cat sat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    vocabulary = Published(name="lm1b", rule="transformer-xl").open().vocabulary
    assert vocabulary.encode("the dog\nsat").tolist() == [3, 2, 0, 5]
    assert vocabulary.decode(torch.tensor([0, 3, 2, 0, 5, 0])) == "\nthe <UNK>\nsat\n"
    assert vocabulary.symbol(0) == "<S>"


def test_plain_learns_the_words_that_train_has_three_times(root: Path) -> None:
    put(root / "lm1b", [b"b a a\nc a\n", b"b b c c d d\n"], b"e e e b\n")
    corpus = Published(name="lm1b").open()
    # <S> 4, b, a, c 3 each
    assert corpus.vocabulary.symbols() == {"sentences": ["<S>", "b", "a", "c", "<UNK>"]}
    assert corpus.splits["train"].tolist() == [0, 1, 2, 2, 0, 3, 2, 0, 1, 1, 3, 3, 4, 4, 0]
    assert corpus.splits["valid"].tolist() == [0, 4, 4, 4, 1, 0]
    assert corpus.info["sentences"]["shards"]["train"] == [0, 7, 14]


def test_the_folder_of_the_archive_will_do(root: Path) -> None:
    put(root / "lm1b" / lm1b.ARCHIVE, [b"the cat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = Published(name="lm1b", rule="transformer-xl").open()
    assert corpus.splits["train"].tolist() == [0, 3, 4, 0]


def test_a_mark_inside_a_line_ends_a_sentence_there(root: Path) -> None:
    put(root / "lm1b", [b"the <S> cat\n", b"sat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = Published(name="lm1b", rule="transformer-xl").open()
    assert shards(corpus, "train") == [[0, 3, 0, 4, 0], [0, 5, 0]]


@pytest.mark.parametrize("chunk", [7, 50, 32 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_sentences_are_those_of_plain_python(
    root: Path, monkeypatch: pytest.MonkeyPatch, seed: int, chunk: int
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", chunk)
    rng = random.Random(seed)
    words = [*WORDS[1:], "dog", "é", "<eos>", "<unk>"]
    texts = [replicas.odd_text(rng, words) + b"the\n" for _ in range(5)]
    put(root / "lm1b", texts[:4], texts[4])
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = Published(name="lm1b", rule="transformer-xl").open()
    expected = [naive.sentences(text, WORDS) for text in texts]
    found = [sentences(ids, 0) for ids in shards(corpus, "train")]
    assert found == expected[:4]
    for split in ("valid", "test"):
        assert [sentences(ids, 0) for ids in shards(corpus, split)] == expected[4:]


@pytest.mark.parametrize("lost", [TRAIN.format(2), lm1b.HELD_OUT, lm1b.WORDS])
@pytest.mark.parametrize("empty", [False, True])
def test_what_is_missing_is_told(root: Path, lost: str, empty: bool) -> None:
    put(root / "lm1b", [b"the cat\n", b"sat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    path = root / "lm1b" / lost
    path.write_bytes(b"") if empty else path.unlink()
    with pytest.raises(DataMissing, match=rf"got 1 of 4 files missing or empty, such as .*{lost}"):
        Published(name="lm1b", rule="transformer-xl").open()


def test_training_reads_its_sentences(root: Path) -> None:
    put(root / "lm1b", [b"the cat sat\n\ncat the the\n", b"sat sat\nthe the cat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY)
    corpus = Published(name="lm1b", rule="transformer-xl").open()
    ids = corpus.splits["train"].tolist()
    pairs = sorted(itertools.pairwise(ids))
    data = load(
        DataConfig,
        {
            "corpus": {"kind": "published", "name": "lm1b", "rule": "transformer-xl"},
            "order": {"kind": "sentences"},
            "segment_len": 1,
            "batch_size": 1,
        },
    )
    batches = data.order.batches(corpus, data, seed=1)
    for _ in range(3):
        # an epoch has every token but the last, each with the one that follows it
        epoch = [batches.next() for _ in pairs]
        assert sorted((b.tokens_BT.item(), b.targets_BT.item()) for b in epoch) == pairs
        assert [b.fresh for b in epoch] == [True] + [False] * (len(pairs) - 1)


@pytest.mark.parametrize("lost", ["<S>", "<UNK>"])
def test_a_vocabulary_without_its_marks_is_refused(root: Path, lost: str) -> None:
    put(root / "lm1b", [b"the cat\n"], b"the\n")
    (root / "lm1b" / lm1b.WORDS).write_text(VOCABULARY.replace(lost, "x"))
    with pytest.raises(DataError, match=rf"without {lost}, expected the vocabulary"):
        Published(name="lm1b", rule="transformer-xl").open()
    (root / "lm1b" / lm1b.WORDS).write_bytes(b"the \xff\n")
    with pytest.raises(DataError, match=r"0xff at 4 .* expected UTF-8"):
        Published(name="lm1b", rule="transformer-xl").open()
