"""Published corpora: ids written out by hand from the rule of each code base."""

import json
import logging
from collections import Counter

import pytest
import torch

from workbench.config import load
from workbench.data import registry
from workbench.data.corpus import CorpusConfig
from workbench.data.pieces import NEWLINE, Piece, raw_blocks
from workbench.data.published import Published, one_line
from workbench.data.segments import DataConfig
from workbench.errors import ConfigError, DataError, DataMissing

WORDS = {"train": " b a \n\n c a <unk>\n", "valid": "d b b\nb", "test": " c <unk> d\n"}
# a newline inside and none at the end; valid has a symbol that train has not
BYTES = {"train": b"ba\nbc", "valid": b"bb\n", "test": b"cd"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    return tmp_path


def put(root, name, files, form="{}.txt"):
    folder = root / name
    folder.mkdir()
    for split, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / form.format(split)).write_bytes(data)


def as_prepared(data):
    """The authors' script: decimal numbers, a newline stays one."""
    return " ".join("\n" if value == 10 else str(value) for value in data)


def ids(corpus):
    return {split: tokens.tolist() for split, tokens in corpus.splits.items()}


@pytest.mark.parametrize("name", ["wikitext-2", "ptb"])
def test_transformer_xl_counts_words_of_all_splits(root, name):
    put(root, name, WORDS)
    corpus = Published(name=name, rule="transformer-xl").open()
    # b 4, then twice each in order of first appearance: a, c, <unk>, d
    assert corpus.vocabulary.symbols() == {"symbols": ["<eos>", "b", "a", "c", "<unk>", "d"]}
    assert ids(corpus) == {
        "train": [1, 2, 0, 0, 3, 2, 4, 0],
        "valid": [5, 1, 1, 0, 1, 0],
        "test": [3, 4, 5, 0],
    }
    assert (corpus.level, corpus.unit, corpus.vocabulary.unknown) == ("word", "word", 4)


def test_transformer_xl_counts_wikitext_103_in_train_alone(root):
    put(root, "wikitext-103", WORDS, form="wiki.{}.tokens")
    corpus = Published(name="wikitext-103", rule="transformer-xl").open()
    # a 2, then once each in order; d of valid is unknown
    assert corpus.vocabulary.symbols() == {"symbols": ["<eos>", "a", "b", "c", "<unk>"]}
    assert ids(corpus)["valid"] == [4, 2, 2, 0, 2, 0]
    assert corpus.info["unknown"] == {"train": 1, "valid": 1, "test": 2}


def test_plain_counts_words_of_train_and_line_ends_with_them(root):
    put(root, "ptb", WORDS)
    corpus = Published(name="ptb").open()
    # <eos> 3, a 2, then once each in order; d of valid and test is unknown
    assert corpus.vocabulary.symbols() == {"symbols": ["<eos>", "a", "b", "c", "<unk>"]}
    assert ids(corpus) == {
        "train": [2, 1, 0, 0, 3, 1, 4, 0],
        "valid": [4, 2, 2, 0, 2, 0],
        "test": [3, 4, 4, 0],
    }
    assert corpus.info["rule"] == "plain"


def test_plain_adds_unk_to_words_that_lack_it(root):
    put(root, "ptb", {"train": "a b b\n", "valid": "a c\n", "test": "b\n"})
    corpus = Published(name="ptb").open()
    assert corpus.vocabulary.symbols() == {"symbols": ["b", "a", "<eos>", "<unk>"]}
    assert ids(corpus)["valid"] == [1, 3, 2]


def test_plain_takes_every_byte_and_no_other(root):
    data = b"line \xc3\xa9 one\r\n\nline\ttwo " * 10
    put(root, "enwik8", {"enwik8": data}, form="{}")
    corpus = Published(name="enwik8").open()
    a, b = int(len(data) * 0.9), int(len(data) * 0.95)
    assert corpus.text("train") == data[:a]
    assert corpus.text("valid") == data[a:b] and corpus.text("test") == data[b:]
    counts = Counter(data[:a]).most_common()
    symbols = ["<eos>" if value == 10 else str(value) for value, _ in counts]
    assert corpus.vocabulary.symbols() == {"symbols": symbols}


def test_plain_takes_every_character_and_unk_only_where_one_is_new(root):
    text = " ab" * 120 + "   bab a b   b aba ab "
    put(root, "text8", {"text8": text}, form="{}")
    corpus = Published(name="text8").open()
    assert corpus.text("train").decode() == text[:343]
    assert corpus.text("test").decode() == text[362:]
    assert corpus.vocabulary.symbols() == {"symbols": ["_", "a", "b"]}
    (root / "text8" / "text8").write_text(text[:-1] + "z")
    corpus = Published(name="text8").open()
    assert corpus.vocabulary.symbols() == {"symbols": ["_", "a", "b", "<unk>"]}
    assert int(corpus.splits["test"][-1]) == 3


def test_awd_lstm_numbers_words_as_they_appear(root):
    put(root, "wikitext-103", WORDS)
    corpus = Published(name="wikitext-103", rule="awd-lstm").open()
    assert corpus.vocabulary.symbols() == {"symbols": ["b", "a", "<eos>", "c", "<unk>", "d"]}
    assert ids(corpus) == {
        "train": [0, 1, 2, 2, 3, 1, 4, 2],
        "valid": [5, 0, 0, 2, 0, 2],
        "test": [3, 4, 5, 2],
    }


def test_adaptive_span_sorts_wikitext_103_with_reversed_ties(root):
    put(root, "wikitext-103", WORDS)
    corpus = Published(name="wikitext-103", rule="adaptive-span").open()
    # <eos> 3, a 2, then once each, last seen first: <unk>, c, b; train lacks d
    assert corpus.vocabulary.symbols() == {"symbols": ["<eos>", "a", "<unk>", "c", "b", "d"]}
    assert ids(corpus)["train"] == [4, 1, 0, 0, 3, 1, 2, 0]


# b 4, c 2, then once each: a, d
ENWIK8 = {
    "transformer-xl": {"symbols": ["98", "99", "97", "100"], "train": [0, 2, 0, 1], "test": [1, 3]},
    "awd-lstm": {
        "symbols": ["98", "97", "<eos>", "99", "100"],
        "train": [0, 1, 2, 0, 3, 2],
        "test": [3, 4, 2],
    },
}


@pytest.mark.parametrize("rule", ENWIK8)
def test_enwik8_prepared_as_decimal_bytes(root, rule):
    put(root, "enwik8", {split: as_prepared(data) for split, data in BYTES.items()})
    corpus = Published(name="enwik8", rule=rule).open()
    expected = ENWIK8[rule]
    assert corpus.vocabulary.symbols() == {"symbols": expected["symbols"]}
    assert ids(corpus)["train"] == expected["train"] and ids(corpus)["test"] == expected["test"]
    assert (corpus.level, corpus.unit) == ("byte", "character")
    newline = b"" if rule == "transformer-xl" else b"\n"
    assert corpus.text("train") == b"ba" + newline + b"bc" + newline
    assert corpus.files()[0]["split"] == "train"


def test_adaptive_span_numbers_train_first(root):
    """Their code stops at a symbol that train lacks; here it gets the next id."""
    put(root, "enwik8", {split: as_prepared(data) for split, data in BYTES.items()})
    (root / "enwik8" / "valid.txt").write_text("100 100 98")
    corpus = Published(name="enwik8", rule="adaptive-span").open()
    assert corpus.vocabulary.symbols() == {"symbols": ["98", "97", "<eos>", "99", "100"]}
    assert ids(corpus) == {"train": [0, 1, 2, 0, 3, 2], "valid": [4, 4, 0, 2], "test": [3, 4, 2]}


@pytest.mark.parametrize("rule", ["transformer-xl", "adaptive-span", "awd-lstm"])
def test_raw_enwik8_gives_what_its_prepared_files_give(root, rule):
    data = b"line \xc3\xa9 one\n\nline\ttwo " * 10
    put(root, "enwik8", {"enwik8": data}, form="{}")
    raw = Published(name="enwik8", rule=rule).open()
    assert raw.info["split_rule"] == "by position in bytes" and raw.info["files"] == 1
    a, b = int(len(data) * 0.9), int(len(data) * 0.95)
    parts = {"train": data[:a], "valid": data[a:b], "test": data[b:]}
    for split, part in parts.items():
        (root / "enwik8" / f"{split}.txt").write_text(as_prepared(part))
    prepared = Published(name="enwik8", rule=rule).open()
    assert ids(prepared) == ids(raw)
    assert prepared.vocabulary.symbols() == raw.vocabulary.symbols()
    if rule != "transformer-xl":
        assert raw.text("train").rstrip(b"\n") == data[:a].rstrip(b"\n")


@pytest.mark.parametrize(("rule", "ends"), [("transformer-xl", 0), ("adaptive-span", 1)])
def test_text8_is_one_line_without_blanks_at_its_edges(root, rule, ends):
    text = " ab" * 120 + "   bab a b   b aba ab "
    put(root, "text8", {"text8": text}, form="{}")
    corpus = Published(name="text8", rule=rule).open()
    assert (int(0.9 * len(text)), int(0.95 * len(text))) == (343, 362)
    train = text[:343].strip()
    assert corpus.text("train").decode() == train + "\n" * ends
    assert corpus.text("test").decode() == text[362:].strip() + "\n" * ends
    # without the blanks at the edges: b 126, then a and blank 125 each, a first
    symbols = {"transformer-xl": ["b", "a", "_"], "adaptive-span": ["a", "b", "_", "<eos>"]}
    assert corpus.vocabulary.symbols()["symbols"] == symbols[rule]


@pytest.mark.parametrize("ahead", [1, 2, 3, 100])
def test_blanks_inside_the_line_stay_and_those_at_its_edges_go(tmp_path, monkeypatch, ahead):
    monkeypatch.setattr("workbench.data.pieces._AHEAD", ahead)
    text = b"  ab  c d \n  "
    for start in range(6):
        (tmp_path / "t").write_bytes(text)
        pieces = one_line([Piece(tmp_path / "t", start, len(text))])
        assert b"".join(block for _, _, block in raw_blocks(pieces)) == text[start:].strip() + b"\n"
    (tmp_path / "t").write_bytes(b" \n" * 5)
    assert one_line([Piece(tmp_path / "t", 0, 10)]) == [NEWLINE]


def test_ptb_char(root):
    files = {"train": " a _ b\n b\n", "valid": "a c\n", "test": "_\n"}
    put(root, "ptb-char", files, form="ptb.char.{}.txt")
    corpus = Published(name="ptb-char", rule="awd-lstm").open()
    assert corpus.vocabulary.symbols() == {"symbols": ["a", "_", "b", "<eos>", "c"]}
    assert ids(corpus)["train"] == [0, 1, 2, 3, 2, 3]
    assert corpus.text("train") == b"a b\nb\n"
    assert [corpus.vocabulary.symbol(i) for i in range(5)] == ["a", "␣", "b", "↵", "c"]


def test_text_as_people_write_it(root):
    put(root, "enwik8", {split: as_prepared(data) for split, data in BYTES.items()})
    vocabulary = Published(name="enwik8", rule="awd-lstm").open().vocabulary
    assert vocabulary.encode("ab\nd").tolist() == [1, 0, 2, 4]
    assert vocabulary.decode(torch.tensor([1, 0, 2, 4])) == "ab\nd"
    with pytest.raises(DataError, match="got the symbol '122'"):
        vocabulary.encode("z")


def test_words_as_people_write_them(root):
    put(root, "ptb", WORDS)
    vocabulary = Published(name="ptb", rule="awd-lstm").open().vocabulary
    assert vocabulary.encode("a b\nnever").tolist() == [1, 0, 2, 4]
    assert vocabulary.decode(torch.tensor([1, 0, 2, 4])) == "a b\n<unk>"


def test_it_is_prepared_once_and_anew_where_the_rule_differs(root):
    put(root, "ptb", WORDS)
    first = Published(name="ptb", rule="awd-lstm").open()
    assert Published(name="ptb", rule="awd-lstm").open().folder == first.folder
    assert Published(name="ptb", rule="transformer-xl").open().folder != first.folder
    first.check()
    assert json.loads((first.folder / "info.json").read_text())["rule"] == "awd-lstm"


def test_other_files_than_the_published_ones_are_told(root, caplog):
    put(root, "ptb", WORDS)
    with caplog.at_level(logging.WARNING, "workbench"):
        corpus = Published(name="ptb", rule="awd-lstm").open()
    says = "got symbols 6, train 8, valid 6, test 4, expected symbols 10,000, train 929,589, valid"
    assert says in caplog.text
    assert corpus.comparable.startswith(
        f"only with runs on the same sha256 {corpus.info['sha256']}"
    )


def test_with_what_the_published_files_are_comparable(root, caplog, monkeypatch):
    put(root, "ptb", WORDS)
    facts = {"symbols": 6, "tokens": {"train": 8, "valid": 6, "test": 4}, "comparable": "with A"}
    it = registry.entry("ptb")
    rules = {"awd-lstm": load(registry.RuleFacts, facts)}
    monkeypatch.setattr(registry, "entry", lambda _: it.model_copy(update={"rules": rules}))
    with caplog.at_level(logging.WARNING, "workbench"):
        corpus = Published(name="ptb", rule="awd-lstm").open()
    assert corpus.comparable == "with A" and not caplog.text


def test_a_part_of_enwik8_is_told_though_it_has_all_symbols(root, caplog):
    (root / "enwik8").mkdir(parents=True)
    # 205 values, newline among them
    values = bytes(i for i in range(256) if i not in range(11, 62))
    (root / "enwik8" / "enwik8").write_bytes(20 * values)
    with caplog.at_level(logging.WARNING, "workbench"):
        corpus = Published(name="enwik8", rule="awd-lstm").open()
    assert corpus.info["vocabulary_size"] == 205
    assert (
        "got 4,100 bytes of enwik8, expected 100,000,000 as the published text has" in caplog.text
    )
    assert corpus.comparable.startswith("only with runs on the same sha256")


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_a_natural_text_under_the_prepared_name_is_refused(root, name):
    put(root, name, {"train": "the cat\n", "valid": "sat\n", "test": "there\n"})
    with pytest.raises(DataError, match=r"got the symbol 'the', expected .* use the raw file"):
        Published(name=name, rule="transformer-xl").open()


@pytest.mark.parametrize("name", ["enwik8", "wikitext-2", "lm1b"])
def test_what_is_missing_is_named(root, name):
    put(root, name, {"train": "a\n", "valid": "a\n"})
    says = rf"{root / name}.* expected the published files[^$]*data get {name}"
    with pytest.raises(DataMissing, match=says):
        Published(name=name, rule="transformer-xl").open()


def test_a_rule_that_was_never_used():
    with pytest.raises(ConfigError, match=r"text8 was not used by awd-lstm; choose from: plain"):
        data = {"segment_len": 1, "batch_size": 1}
        corpus = {"kind": "published", "name": "text8", "rule": "awd-lstm"}
        load(DataConfig, {**data, "corpus": corpus})


def test_symbols_are_known_without_the_text():
    for (name, rule), n_symbols in registry.symbols().items():
        config = Published(name=name, rule=rule)
        assert isinstance(config, CorpusConfig) and config.n_symbols == n_symbols
