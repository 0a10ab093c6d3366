"""Vocabularies of a text: whose symbols, how many, from a file; unknown ones are counted."""

import json
from pathlib import Path

import pytest
import torch

from workbench.config import ConfigError, dump, load
from workbench.data.learning import Learning
from workbench.data.text import Text
from workbench.errors import DataError, DataMissing

pytestmark = pytest.mark.usefixtures("prepared")

# 90 lines train, 5 valid, 5 test
WORDS = "a b a\n" * 60 + "c a b\n" * 29 + "d a b\n" + "b e a\n" * 5 + "E f a\n" * 5


def text(content, **fields):
    path = Path("t.txt")
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
    return load(Text, {"path": "t.txt", **fields}).open()


def words(learning, content=WORDS):
    corpus = text(content, level="word", vocabulary=learning)
    vocabulary = corpus.vocabulary
    return corpus, [vocabulary.symbol(i) for i in range(vocabulary.size)]


def test_train_alone_is_counted_unless_all_is_said(caplog):
    corpus, symbols = words({})
    assert symbols == ["<eos>", "<unk>", "a", "b", "c", "d"]
    assert corpus.info["unknown"] == {"train": 0, "valid": 5, "test": 10}
    assert "t, valid: 5 of 20 tokens (25 %) are <unk>, none of the 6 symbols" in caplog.text
    assert "t, test: 10 of 20" in caplog.text
    caplog.clear()
    words({})
    assert not caplog.records
    corpus, symbols = words({"counted": "all"})
    assert symbols == ["<eos>", "<unk>", "a", "b", "c", "e", "E", "f", "d"]
    assert corpus.info["unknown"] == {"train": 0, "valid": 0, "test": 0}
    assert not caplog.records


@pytest.mark.parametrize("block", [1 << 20, 7])
@pytest.mark.parametrize(
    ("learning", "expected", "unknown"),
    [
        ({"min_count": 2}, ["<eos>", "<unk>", "a", "b", "c"], 1),
        ({"max_size": 4}, ["<eos>", "<unk>", "a", "b"], 30),
        ({"max_size": 4, "end_of_line": False}, ["<unk>", "a", "b", "c"], 1),
        ({"counted": "all", "min_count": 5, "max_size": 6}, [*"ab", "c", "e"], 1),
        ({"end_of_line": False}, ["<unk>", "a", "b", "c", "d"], 0),
        ({"counted": "all", "lower_case": True, "min_count": 6}, [*"ab", "c", "e"], 1),
    ],
)
def test_rare_symbols_are_left_out(monkeypatch, block, learning, expected, unknown):
    monkeypatch.setattr("workbench.data.pieces.BLOCK_BYTES", block)
    monkeypatch.setattr("workbench.data.pieces.CHUNK_BYTES", 16 * block)
    corpus, symbols = words(learning)
    if expected[0] == "a":
        expected = ["<eos>", "<unk>", *expected]
    assert symbols == expected
    assert corpus.info["unknown"]["train"] == unknown
    assert int((corpus.splits["train"] == corpus.vocabulary.unknown).sum()) == unknown
    assert len(corpus.splits["train"]) == 90 * (3 + ("<eos>" in symbols))


def test_lower_case_and_lines_hold_for_texts_that_are_encoded_later(prepared):
    corpus, _ = words({"lower_case": True, "counted": "all"})
    for vocabulary in (corpus.vocabulary, Text(**corpus_fields(corpus)).open().vocabulary):
        assert vocabulary.decode(vocabulary.encode("A E\nb")) == "a e\nb"
    corpus, _ = words({"end_of_line": False, "counted": "all"})
    vocabulary = corpus.vocabulary
    assert vocabulary.decode(vocabulary.encode("a e\nb zzz\n")) == "a e b <unk>"


def corpus_fields(corpus):
    return {
        "path": "t.txt",
        "level": "word",
        "vocabulary": Learning(lower_case=True, counted="all"),
    }


def test_characters_are_left_out_too():
    content = "aaabbc" * 150 + "\nxyz" * 25
    corpus = text(content, level="char", vocabulary={"max_size": 3})
    assert [corpus.vocabulary.symbol(i) for i in range(3)] == ["<unk>", "a", "b"]
    assert corpus.info["unknown"]["train"] == 150
    corpus = text(content, level="char", vocabulary={"counted": "all", "min_count": 26})
    assert corpus.vocabulary.size == 4


def test_pairs_are_learned_within_the_same_options():
    pytest.importorskip("tokenizers")
    corpus = text(WORDS * 5, level="bpe", vocabulary={"max_size": 260})
    assert corpus.vocabulary.size == 260
    none = text(WORDS * 5, level="bpe", vocabulary={"min_count": 100_000})
    assert none.vocabulary.size == 256
    with open("tokenizer.json", "w") as file:
        json.dump(corpus.vocabulary.symbols()["tokenizer"], file)
    again = text(WORDS * 5, level="bpe", vocabulary={"file": "tokenizer.json"})
    assert again.info["tokens_sha256"] == corpus.info["tokens_sha256"]
    with pytest.raises(ConfigError, match=r"max_size 100, expected at least the 256 bytes"):
        text(WORDS, level="bpe", vocabulary={"max_size": 100})


@pytest.mark.parametrize(
    ("content", "learning", "expected"),
    [
        ("b 17\na 3\n", {}, ["<eos>", "<unk>", "b", "a"]),
        ("b\n<unk>\n<eos>\na", {}, ["b", "<unk>", "<eos>", "a"]),
        ("\ufeffb\r\na\r\n", {"end_of_line": False}, ["<unk>", "b", "a"]),
        ("e\na\n", {"lower_case": True}, ["<eos>", "<unk>", "e", "a"]),
    ],
)
def test_a_given_vocabulary_keeps_its_order(content, learning, expected):
    with open("words.txt", "w", encoding="utf-8", newline="") as file:
        file.write(content)
    corpus, symbols = words({"file": "words.txt", **learning})
    assert symbols == expected
    shown = [symbols[i] for i in corpus.splits["train"][:4].tolist()]
    assert shown == (["a", "b" if "b" in symbols else "<unk>", "a", "<eos>"]
                     if "<eos>" in symbols else ["a", "b", "a", "a"])  # fmt: skip
    # another file under the same name is another corpus
    with open("words.txt", "a", encoding="utf-8") as file:
        file.write("new\n" if content.endswith("\n") else "\nnew")
    assert words({"file": "words.txt", **learning})[0].folder != corpus.folder


def test_given_characters():
    lines = ["\\n", " ", "\\\\", "b", "é", "\\u3000", "<unk>"]
    Path("letters.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = text("b é\\\n" * 50, level="char", vocabulary={"file": "letters.txt"})
    assert corpus.vocabulary.symbols() == ["\n", " ", "\\", "b", "é", "\u3000"]
    assert sum(corpus.info["unknown"].values()) == 0


@pytest.mark.parametrize(
    ("content", "level", "said"),
    [
        (b"a\nb\na\n", "word", "'a' twice"),
        (b"a\n\nb\n", "word", "line 2 empty"),
        (b"ok\n\xff\n", "word", "0xff at byte offset 3"),
        (b"a\nbc\n", "char", "'bc' in line 2"),
        (b"a\n\\q1\n", "char", "in line 2"),
        (b"a\n\\ud800\n", "char", "in line 2"),
        (b"", "word", "an empty file"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(prepared, content, level, said):
    with open("bad.txt", "wb") as file:
        file.write(content)
    with pytest.raises(DataError, match=said) as caught:
        text(WORDS, level=level, vocabulary={"file": "bad.txt"})
    assert "expected" in str(caught.value)
    assert list(prepared.iterdir()) == []


@pytest.mark.parametrize("name", ["no.txt", ".", "*.txt", "~nobody-at-all/x"])
def test_a_vocabulary_that_is_not_there_is_named(name):
    with pytest.raises(DataMissing, match=r"corpus.vocabulary.file: got '.*', which is no file"):
        text(WORDS, level="word", vocabulary={"file": name})


@pytest.mark.parametrize("level", ["char", "word"])
def test_a_count_that_no_symbol_reaches_is_refused(prepared, level):
    with pytest.raises(DataError, match=r"min_count: got 1000000, expected no more than"):
        text(WORDS, level=level, vocabulary={"min_count": 1_000_000})
    assert list(prepared.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vocabulary": {"max_size": 9}}, "got max_size at byte level"),
        ({"level": "char", "vocabulary": {"lower_case": True}}, "lower_case at char level"),
        ({"level": "word", "vocabulary": {"file": "x", "min_count": 2}}, "min_count beside file"),
        ({"level": "word", "vocabulary": {"min_cuont": 2}}, "Did you mean 'min_count'"),
        ({"level": "word", "vocabulary": {"max_size": 2}}, "greater than or equal to 3"),
        ({"level": "bpe", "vocabulary": {"max_size": 10**30}}, "less than 2147483648"),
        ({"level": "bpe", "vocabulary": {"max_size": 10**9}}, "at most 1,048,576"),
        ({"level": "bpe", "vocabulary": {"min_count": 10**30}}, "less than 2147483648"),
        ({"invalid": "replace"}, "byte level takes any bytes"),
    ],
)
def test_what_says_nothing_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        load(Text, {"path": "x", **fields})


def test_options_are_plain_data():
    fields = {"path": "x", "level": "word", "vocabulary": {"counted": "all", "max_size": 9}}
    config = load(Text, fields)
    assert load(Text, dump(config)) == config
    assert torch.is_tensor(words({})[0].splits["train"])
