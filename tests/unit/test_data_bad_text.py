"""Odd and bad texts: each has a behaviour that `workbench.data.text` states."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from workbench.data import pieces, store
from workbench.data.text import Text
from workbench.errors import DataError

pytestmark = pytest.mark.usefixtures("prepared")

LEVELS = ["byte", "char", "word"]
SPLIT = (0.6, 0.2, 0.2)
BLANKS = "\t\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


def text(content, level, **fields):
    Path("t.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return Text(path="t.txt", level=level, **fields).open()


def symbols(corpus):
    return [corpus.vocabulary.symbol(i) for s in corpus.splits for i in corpus.splits[s].tolist()]


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("level", ["char", "word"])
def test_invalid_utf8_is_replaced_if_the_recipe_says_so(monkeypatch, caplog, level, block):
    monkeypatch.setattr("workbench.data.pieces.BLOCK_BYTES", block)
    # a stray byte, a torn sequence, a surrogate (three errors), one that was U+FFFD already
    bad = b"x \xff \xe5\xad y \xed\xa0\x80 \xef\xbf\xbd\n"
    corpus = text(bad * 20, level, split=(0.8, 0.1, 0.1), invalid="replace")
    expected = (bad * 20).decode("utf-8", "replace")
    shown = "".join(corpus.vocabulary.decode(ids) for ids in corpus.splits.values())
    assert shown.split() == expected.split()
    assert corpus.info["replaced"] == {"train": 80, "valid": 10, "test": 10}
    assert "100 places were no UTF-8 and are U+FFFD now" in caplog.text
    with pytest.raises(DataError, match=r"0xff at byte offset 2 .*`invalid: replace`"):
        text(bad * 20, level)


@pytest.mark.parametrize("cut", [1, 3, 5, 8, 13])
def test_replacing_does_not_depend_on_chunks(monkeypatch, cut):
    bad = bytes([0x61, 0xC3, 0xA9, 0x80, 0x80, 0xE5, 0xAD, 0x62, 0xF0, 0x9F, 0x98, 0x20, 0xFF]) * 6
    whole = text(bad, "char", split=SPLIT, invalid="replace")
    monkeypatch.setattr("workbench.data.pieces.CHUNK_BYTES", cut)
    os.utime("t.txt", ns=(1, 1))
    cut_up = Text(path="t.txt", level="char", split=SPLIT, invalid="replace").open()
    assert cut_up.info["tokens_sha256"] == whole.info["tokens_sha256"]
    assert cut_up.info["replaced"] == whole.info["replaced"]


@pytest.mark.parametrize("level", LEVELS)
def test_nul_bytes_are_symbols_like_others(level):
    corpus = text("a\0b c\0\n" * 50, level)
    assert corpus.text("train") == b"a\0b c\0\n" * 45
    if level == "word":
        assert set(symbols(corpus)) == {"a\\x00b", "c\\x00", "<eos>"}


def test_a_byte_order_mark_is_no_text_above_byte_level():
    content = b"\xef\xbb\xbf" + b"a b\n" * 50
    assert text(content, "byte").splits["train"][:3].tolist() == [0xEF, 0xBB, 0xBF]
    for level in ("char", "word"):
        corpus = text(content, level)
        assert symbols(corpus)[0] == "a"
        assert corpus.text("train").startswith(b"a b\n")
    # inside a text it is a character
    assert "\\ufeff" in symbols(text("a\ufeffb\n" * 50, "char"))
    for level in ("char", "word"):
        with pytest.raises(DataError, match=r"0xff at byte offset 0.*UTF-16"):
            text(b"\xff\xfe" + ("text in UTF-16\n" * 30).encode("utf-16-le"), level)


def test_carriage_returns_are_characters_and_blanks_between_words():
    assert text("a b\r\n" * 50, "byte").text("train") == b"a b\r\n" * 45
    assert set(symbols(text("a b\r\n" * 50, "char"))) == {"a", "␣", "b", "\\r", "↵"}
    windows = symbols(text("a b\r\nc\r\n" * 50, "word"))
    assert windows == ["a", "b", "<eos>", "c", "<eos>"] * 50
    # a lone one ends no line
    assert symbols(text("a b\rc\r" * 50, "word")) == ["a", "b", "c"] * 50 + ["<eos>"]


def test_words_are_parted_by_all_blanks_of_unicode_and_lines_by_newlines_alone():
    content = "".join(f"w{blank}v" for blank in BLANKS) + "\n"
    corpus = text(content * 30, "word", split=(0.8, 0.1, 0.1))
    assert symbols(corpus) == content.replace("\n", " <eos> ").split() * 30
    # a joiner of no width is none
    assert "a\\u200bb" in symbols(text("a\u200bb c\n" * 30, "word"))


@pytest.mark.parametrize("level", ["char", "word"])
def test_words_that_look_like_specials(level):
    corpus = text("a <unk> b <eos>\n" * 50, level)
    if level == "word":
        assert symbols(corpus)[:5] == ["a", "<unk>", "b", "<eos>", "<eos>"]
        assert corpus.info["unknown"]["train"] == 45
    else:
        assert corpus.text("train") == b"a <unk> b <eos>\n" * 45


@pytest.mark.parametrize("level", ["byte", "char"])
def test_one_word_without_end_is_text_at_the_other_levels(level):
    assert sum(map(len, text(b"x" * 10_000_000, level).splits.values())) == 10_000_000


def test_one_word_without_end_is_refused_at_word_level(prepared):
    with pytest.raises(DataError, match=r"train 12000000, valid 0.* at least 2 in each split"):
        text(b"x" * 12_000_000, "word")
    inside = b"a b\n" * 100_000 + b"x" * 1_100_000 + b"\n" + b"a b\n" * 400_000
    with pytest.raises(DataError, match=r"got a word of more than 1,048,576 char.* byte offset"):
        text(inside, "word", split=(0.9, 0.05, 0.05))
    assert list(prepared.iterdir()) == []


def write_line(n_bytes, level):
    """One line of about so many bytes, of which `level` makes how many tokens."""
    piece = (b"word " if level == "word" else "aé字 ".encode()) * 20_000
    with open("line.txt", "wb") as file:
        for _ in range(n_bytes // len(piece)):
            file.write(piece)
    symbols_of = {"byte": len(piece), "char": 80_000, "word": 20_000}[level]
    return n_bytes // len(piece) * symbols_of + (level == "word")


@pytest.mark.parametrize("level", LEVELS)
def test_one_line_is_never_held(monkeypatch, level):
    for name in ("pieces.CHUNK_BYTES", "pieces.BLOCK_BYTES"):
        monkeypatch.setattr(f"workbench.data.{name}", 1 << 16)
    # the 20 MB of words met lately are there whatever the text
    monkeypatch.setattr("workbench.data.words.SLOT_BITS", 8)
    expected = write_line(3_000_000, level)
    tracemalloc.start()
    corpus = Text(path="line.txt", level=level).open()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, corpus.splits.values())) == expected
    # held at once: 2.7, 42 and 45 MB; characters have tables of all code points
    assert peak < {"byte": 1_500_000, "char": 30_000_000, "word": 15_000_000}[level]


MEASURE = """
import resource, sys
from workbench.data.text import Text
if __name__ == "__main__":
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corpus = Text(path="line.txt", level=sys.argv[1]).open()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(sum(map(len, corpus.splits.values())), own, workers)
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_one_line_of_1_gb_needs_little_memory(level):
    expected = write_line(1_000_000_000, level)
    command = [sys.executable, "-c", MEASURE, level]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens, own_kb, worker_kb = map(int, done.stdout.split())
    assert tokens == expected
    assert own_kb < 500_000 and worker_kb < 500_000


@pytest.mark.parametrize("change", ["grows", "shrinks", "vanishes", "is replaced"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_text_that_does_not_rest_is_refused(prepared, monkeypatch, level, change):
    real = store.write_tokens

    def meanwhile(*args, **kwargs):
        if change == "vanishes":
            os.unlink("t.txt")
        elif change == "grows":
            with open("t.txt", "a") as file:
                file.write("more\n")
        elif change == "shrinks":
            os.truncate("t.txt", 50)
        else:
            Path("other").write_bytes(b"c d\n" * 100)
            os.replace("other", "t.txt")
        return real(*args, **kwargs)

    monkeypatch.setattr(store, "write_tokens", meanwhile)
    with pytest.raises(DataError, match=r"t\.txt: got .* expected"):
        text("a b\n" * 100, level)
    assert list(prepared.iterdir()) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_text_that_vanishes_after_it_was_read_is_refused(prepared, monkeypatch, level):
    real = store._record_files

    def meanwhile(*args):
        os.unlink("t.txt")
        return real(*args)

    monkeypatch.setattr(store, "_record_files", meanwhile)
    with pytest.raises(DataError, match=r"t\.txt: got 'No such file"):
        text("a b\n" * 100, level)
    assert list(prepared.iterdir()) == []


def test_a_cut_never_tears_a_line_end_of_two():
    # the newline stays with its carriage return, wherever the cut falls
    for n in range(20, 40):
        parts = pieces.split_by_position(
            [pieces.Piece(Path(written(b"ab\r\n" * n)), 0, 4 * n)], (0.8, 0.1, 0.1), "word"
        )
        for split in parts.values():
            for _, _, block in pieces.raw_blocks(split):
                assert not block.startswith(b"\n")


def written(content):
    Path("cut.txt").write_bytes(content)
    return "cut.txt"
