"""The user's own text: levels, splits, vocabulary from train only, and every kind of bad input."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from own_texts import refused, write

from workbench.config import ConfigError, load
from workbench.data import DataConfig
from workbench.data.text import Text
from workbench.errors import DataError, DataMissing

pytestmark = pytest.mark.usefixtures("prepared")

POEM = "Ein Wort, ein Glanz,\n\n ein Flug, ein Feuer — é ß 字\n"


def joined(corpus):
    return torch.cat([ids.to(torch.int64) for ids in corpus.splits.values()])


def test_byte_level_round_trip_of_any_bytes_at_the_exact_positions(tmp_path):
    data = bytes(range(256)) * 4 + b"\x00\xff\n"
    corpus = Text(path=write(tmp_path / "blob.bin", data)).open()
    n = len(data)
    assert bytes(joined(corpus).tolist()) == data
    assert corpus.text("train") == data[: int(n * 0.9)]
    assert corpus.text("valid") == data[int(n * 0.9) : int(n * 0.95)]
    assert corpus.text("test") == data[int(n * 0.95) :]
    assert corpus.unit == "character"
    assert corpus.vocabulary.size == 256
    assert corpus.splits["train"].dtype == torch.uint8


def test_positions_are_those_of_enwik8_for_round_numbers(tmp_path):
    corpus = Text(path=write(tmp_path / "a", b"x" * 1000)).open()
    assert [len(ids) for ids in corpus.splits.values()] == [900, 50, 50]


@pytest.mark.parametrize("n", range(100, 112))
def test_char_cuts_never_tear_a_character(tmp_path, n):
    text = "字é" * n
    corpus = Text(path=write(tmp_path / "t.txt", text), level="char").open()
    assert "".join(corpus.vocabulary.decode(ids) for ids in corpus.splits.values()) == text
    assert corpus.info["bytes"]["train"] - int(0.9 * 5 * n) in (0, 1, 2)


def test_char_vocabulary_is_of_train_only_and_the_rest_is_unknown(tmp_path):
    text = "abba" * 225 + "c" * 50 + "d" * 50
    corpus = Text(path=write(tmp_path / "t.txt", text), level="char").open()
    vocabulary = corpus.vocabulary
    assert vocabulary.size == 3
    assert [vocabulary.symbol(i) for i in range(3)] == ["<unk>", "a", "b"]
    assert set(corpus.splits["valid"].tolist()) == {0}
    assert corpus.info["unknown"] == {"train": 0, "valid": 50, "test": 50}
    assert vocabulary.encode("baz").tolist() == [2, 1, 0]
    assert vocabulary.encode("ba").dtype == torch.int64
    assert vocabulary.decode(torch.tensor([2, 1, 0])) == "ba\ufffd"


def test_word_level_is_line_split_with_eos_and_words_by_count(tmp_path):
    text = "b a  a\n\n" * 90 + "a new word\n" * 8 + "b tail"
    corpus = Text(path=write(tmp_path / "t.txt", text), level="word").open()
    expected = [w for line in text.split("\n") for w in [*line.split(), "<eos>"]]
    symbols = [corpus.vocabulary.symbol(i) for i in joined(corpus).tolist()]
    known = set(expected[: len(corpus.splits["train"])])
    assert symbols == [w if w in known else "<unk>" for w in expected]
    assert [corpus.vocabulary.symbol(i) for i in range(4)] == ["<eos>", "<unk>", "a", "b"]
    assert corpus.unit == "word"
    assert corpus.info["unknown"]["train"] == 0
    assert corpus.vocabulary.decode(corpus.vocabulary.encode("b a\nb\n")) == "b a\nb\n"


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("level", ["byte", "char", "word"])
def test_reading_in_blocks_changes_nothing(tmp_path, monkeypatch, level, block):
    path = write(tmp_path / "t.txt", POEM * 12)
    at_once = Text(path=path, level=level).open()
    ids, symbols = joined(at_once), at_once.vocabulary.symbols()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "other"))
    monkeypatch.setattr("workbench.data.pieces.BLOCK_BYTES", block)
    in_blocks = Text(path=path, level=level).open()
    assert in_blocks.folder != at_once.folder
    assert torch.equal(joined(in_blocks), ids)
    assert in_blocks.vocabulary.symbols() == symbols
    assert in_blocks.info["sha256"] == at_once.info["sha256"]


def test_storage_type_follows_the_vocabulary(tmp_path):
    few = Text(path=write(tmp_path / "few.txt", "a b\n" * 50), level="word").open()
    many = " ".join(f"w{i}" for i in range(400)) + "\n"
    more = Text(path=write(tmp_path / "more.txt", many * 2), level="word").open()
    assert few.splits["train"].dtype == torch.uint8
    assert more.splits["train"].dtype == torch.int16
    assert more.vocabulary.size > 256
    assert int(more.splits["train"][:400].max()) == 401
    most = " ".join(f"w{i}" for i in range(40_000)) + "\n"
    most = Text(path=write(tmp_path / "most.txt", most * 3), level="word").open()
    assert most.splits["train"].dtype == torch.uint16
    assert most.splits["train"][:40_000].tolist() == [*range(2, 40_002)]


def test_twenty_files_are_split_whole(tmp_path):
    for i in range(40):
        write(tmp_path / "texts" / f"{i % 3}" / f"{i:02}.txt", f"file {i:02} " * 20)
    corpus = Text(path=str(tmp_path / "texts")).open()
    for i in range(40):
        holders = [s for s in corpus.splits if f"file {i:02} ".encode() in corpus.text(s)]
        assert len(holders) == 1
    split_of = {f["path"]: f["split"] for f in corpus.files()}
    assert set(split_of.values()) == {"train", "valid", "test"}
    assert b"file 00 \nfile 03 " in corpus.text("train")


@pytest.mark.parametrize("n", [20, 21, 37, 200])
def test_equal_files_reach_every_split_in_its_share(tmp_path, n):
    for i in range(n):
        write(tmp_path / "texts" / f"{i:03}.txt", f"{i:03}" * 333)
    corpus = Text(path=str(tmp_path / "texts")).open()
    assert corpus.info["split_rule"] == "by whole files"
    for split in ("valid", "test"):
        assert abs(len(corpus.splits[split]) / 1000 - 0.05 * n) <= 1


def test_a_folder_of_one_giant_and_many_crumbs_is_split_by_position(tmp_path):
    write(tmp_path / "texts" / "giant.txt", "x" * 10**5)
    for i in range(30):
        write(tmp_path / "texts" / f"{i}.txt", "y" * (i % 2))
    corpus = Text(path=str(tmp_path / "texts")).open()
    assert corpus.info["split_rule"] == "by position in bytes"
    assert len(corpus.splits["valid"]) == pytest.approx(5000, rel=0.01)


def test_fewer_files_are_joined_in_sorted_order_and_cut_by_position(tmp_path):
    write(tmp_path / "texts" / "b.txt", "b" * 99)
    write(tmp_path / "texts" / "a" / "z.txt", "a" * 99)
    write(tmp_path / "texts" / "c.md", "never read")
    corpus = Text(path=str(tmp_path / "texts")).open()
    assert bytes(joined(corpus).tolist()) == b"a" * 99 + b"\n" + b"b" * 99 + b"\n"
    assert [len(ids) for ids in corpus.splits.values()] == [180, 10, 10]


def test_plot_symbols_are_printable(tmp_path):
    vocabulary = Text(path=write(tmp_path / "t", b"text" * 40)).open().vocabulary
    assert [vocabulary.symbol(i) for i in b"a \n\t"] == ["a", "␣", "↵", "\\t"]
    assert all(vocabulary.symbol(i).isprintable() for i in range(256))
    assert len({vocabulary.symbol(i) for i in range(256)}) == 256


def test_a_missing_path_is_named_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(DataMissing, "'no/such.txt'", str(tmp_path), "Correct the path", path="no/such.txt")


def test_a_folder_without_matching_files_is_refused(tmp_path):
    write(tmp_path / "texts" / "a.md", "text")
    refused(DataMissing, "**/*.txt", "corpus.glob", path=str(tmp_path / "texts"))


def test_an_empty_text_is_refused(tmp_path):
    refused(DataError, "empty text", path=write(tmp_path / "t.txt", ""))


@pytest.mark.parametrize(("level", "text"), [("byte", "abcdefgh"), ("word", "a b c d e\n")])
def test_a_text_too_short_to_split_is_refused(tmp_path, prepared, level, text):
    path = write(tmp_path / "t.txt", text)
    refused(DataError, "at least 2 in each split", "longer text", path=path, level=level)
    assert list(prepared.iterdir()) == []


def test_the_cure_of_a_short_split_is_one_that_there_is(tmp_path):
    long, short = write(tmp_path / "l.txt", "a" * 90), write(tmp_path / "s.txt", "b")
    refused(DataError, "split_by: position", path=[long, short], split_by="file")
    refused(DataError, "longer files", split={"train": long, "valid": short})
    with pytest.raises(ConfigError, match="expected a path"):
        load(Text, {"path": "a\0b"})


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_invalid_utf8_names_the_byte_and_the_cure(tmp_path, prepared, monkeypatch, level, block):
    monkeypatch.setattr("workbench.data.pieces.BLOCK_BYTES", block)
    path = write(tmp_path / "t.txt", b"gut \xc3\xa9 " * 20 + b"bad \xff here\n" + b"x y\n" * 40)
    refused(DataError, "0xff", "byte offset 144", "`level: byte`", path=path, level=level)
    assert list(prepared.iterdir()) == []
    assert Text(path=path).open().vocabulary.size == 256


@pytest.mark.parametrize(
    "split",
    [
        (0.9, 0.0, 0.1),
        (0.5, 0.4, 0.2),
        (1.2, -0.1, -0.1),
        (0.9, 0.1),
        ("a", 0.5, 0.5),
        "x",
        (float("nan"), 0.5, 0.5),
        (True, False, False),
    ],
)
def test_impossible_shares_are_refused(split):
    with pytest.raises(ConfigError, match=r"split: got .* expected three shares"):
        load(Text, {"path": "x", "split": list(split) if isinstance(split, tuple) else split})


def test_recipes_name_the_corpus_by_kind_and_typos_are_caught():
    data = {"segment_len": 8, "batch_size": 2}
    config = load(DataConfig, {**data, "corpus": {"kind": "text", "path": "x", "level": "word"}})
    assert isinstance(config.corpus, Text)
    assert config.corpus.level == "word"
    assert load(DataConfig, {**data, "corpus": {"kind": "python-source"}}).corpus.kind
    with pytest.raises(ConfigError, match="Did you mean 'python-source'"):
        load(DataConfig, {**data, "corpus": {"kind": "python-sources"}})
    with pytest.raises(ConfigError, match="'byte', 'char', 'word' or 'bpe'"):
        load(DataConfig, {**data, "corpus": {"kind": "text", "path": "x", "level": "chars"}})
    with pytest.raises(ConfigError, match="batch_size"):
        load(DataConfig, {**data, "batch_size": 0, "corpus": {"kind": "python-source"}})
    with pytest.raises(ConfigError, match="glob"):
        load(Text, {"path": "x", "glob": "/etc/*"})


@pytest.mark.parametrize("document", ["README.md", "data/README.md"])
def test_the_examples_of_the_documents_are_corpora(document):
    page = (Path(__file__).parents[2] / document).read_text("utf-8")
    examples = re.findall(r"```yaml\n(corpus:\n.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        data = {"segment_len": 8, "batch_size": 2, **yaml.safe_load(example)}
        assert isinstance(load(DataConfig, data).corpus, Text)
