"""Byte-pair encoding: any text and back, whatever the blocks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.data import pieces, vocabulary
from workbench.data.bpe import UNIT, BpeVocabulary, units
from workbench.data.pieces import Piece, mixed
from workbench.data.text import Text
from workbench.errors import ConfigError

pytestmark = pytest.mark.usefixtures("prepared")

pytest.importorskip("tokenizers")
PROSE = "It's the cat, the hat;  and 12 cats' hats:\n\n na\u00efve \u5b57 of hatter \U0001f600\n"


@pytest.fixture(scope="module")
def bpe():
    return BpeVocabulary.learn([PROSE.encode() * 20], max_size=300)


def back(vocabulary, data):
    return vocabulary.raw(torch.from_numpy(vocabulary.ids(data)))


def test_tokens_are_the_bytes_and_frequent_strings(bpe):
    assert bpe.level == "bpe" and bpe.unknown is None and 256 < bpe.size <= 300
    ids = bpe.encode("the hats\n")
    assert [bpe.symbol(i) for i in ids.tolist()] == ["the", "␣hats", "↵"]
    assert ids.dtype == torch.int64 and bpe.decode(ids) == "the hats\n"
    labels = [bpe.symbol(i) for i in range(bpe.size)]
    assert all(label.isprintable() for label in labels) and len(set(labels)) == bpe.size
    assert "\\xff" in labels and "\\x00" in labels and "␣the" in labels


def test_every_text_comes_back(bpe):
    draw = random.Random(7)
    kinds = [
        lambda: draw.randrange(0x110000),
        lambda: draw.randrange(0x80),
        lambda: ord(draw.choice(" \n\r\t\x00\x0b\x1c\x7f\x85\xa0\u2028\u3000\ufeff\u200d")),
        lambda: ord(draw.choice(PROSE)),
    ]
    for _ in range(400):
        text = "".join(chr(draw.choice(kinds)()) for _ in range(draw.randrange(60)))
        data = text.encode("utf-8", "surrogatepass")
        assert back(bpe, text) == data
        if not any(0xD800 <= ord(c) < 0xE000 for c in text):
            assert bpe.decode(bpe.encode(text)) == text


def test_every_sequence_of_bytes_comes_back(bpe):
    draw = random.Random(8)
    assert back(bpe, bytes(range(256))) == bytes(range(256))
    assert back(bpe, b"") == b""
    for _ in range(400):
        parts = [PROSE.encode()[draw.randrange(60) :][: draw.randrange(9)] for _ in range(3)]
        data = draw.randbytes(draw.randrange(6)).join(parts)
        assert back(bpe, data) == data


@pytest.mark.parametrize("special", ["<|endoftext|>", "<unk>", "<s>", "[UNK]", "<eos>", "<0x0A>"])
def test_nothing_in_a_text_is_special(bpe, special):
    ids = bpe.encode(f"the {special} cat")
    assert len(ids) > len(special) and bpe.decode(ids) == f"the {special} cat"


def test_saved_and_restored_it_is_the_same(bpe, tmp_path):
    bpe.save(tmp_path / "vocabulary.json")
    again = vocabulary.restore("bpe", tmp_path / "vocabulary.json")
    assert again.size == bpe.size and again.symbols() == bpe.symbols()
    assert again.encode(PROSE).tolist() == bpe.encode(PROSE).tolist()
    json.loads((tmp_path / "vocabulary.json").read_text("ascii"))


def test_the_same_text_gives_the_same_tokens(bpe):
    again = BpeVocabulary.learn([PROSE.encode() * 10] * 2, max_size=300)
    assert again.symbols() == bpe.symbols()
    rarer = BpeVocabulary.learn([PROSE.encode() * 20], max_size=300, min_count=30)
    assert rarer.size < bpe.size
    assert BpeVocabulary.learn([b""]).size == 256
    with pytest.raises(ConfigError, match="max_size: got 255, expected at least 256"):
        BpeVocabulary.learn([b"abc"], max_size=255)


def test_learning_stops_at_enough_text(monkeypatch):
    read = []

    def blocks():
        for i in range(100):
            read.append(i)
            yield f"word{i} other{i} ".encode() * 10

    monkeypatch.setattr("workbench.data.bpe.DISTINCT_BYTES", 100)
    BpeVocabulary.learn(blocks())
    assert len(read) == 10, "the words of nine blocks are 99 bytes"
    read.clear()
    monkeypatch.setattr("workbench.data.bpe.DISTINCT_BYTES", 10**6)
    monkeypatch.setattr("workbench.data.bpe.LEARN_BYTES", 300)
    BpeVocabulary.learn(blocks())
    assert len(read) == 3


def test_a_text_without_blanks_is_learned_in_short_words():
    draw = random.Random(1)
    text = "".join(draw.choice("ACGT") for _ in range(60_000)).encode()
    learned = BpeVocabulary.learn([text], max_size=600)
    assert learned.size == 600 and back(learned, text) == text


LINES = [b"short\n", b"\n", b"x" * 65_535 + b"\n", b"y " * 90_000 + b"\n", b"z" * 300_000 + b"\n"]
LINES += ["\u5b57".encode() * 60_000, b" end"]


def test_units_are_lines_and_parts_of_long_ones():
    text = b"".join(LINES)
    found = UNIT.findall(text)
    assert b"".join(found) == text and found[:3] == LINES[:3]
    assert max(map(len, found)) <= 128 * 1024 + 3
    # at a blank, or after 128 KiB without one and never inside a character
    assert found[3] == b"y " * 32_768 + b"y" and found[4][:1] == b" "
    assert [len(u) for u in found if u[:1] == b"z"] == [131_072, 131_072, 37_857]
    assert all(unit.decode() for unit in found)


@pytest.mark.parametrize("size", [997, 65_536, 131_075, 10**7])
def test_blocks_change_no_units(size):
    text = b"".join(LINES) + b"\n" + PROSE.encode() * 3
    whole = list(units(text[i : i + size] for i in range(0, len(text), size)))
    assert b"".join(whole) == text
    assert [u for block in whole for u in UNIT.findall(block)] == UNIT.findall(text)


def test_blocks_change_no_ids(bpe):
    text = b"".join(LINES) + b"\n" + PROSE.encode() * 3
    ids = [i for block in units([text[:100_000], text[100_000:]]) for i in bpe.ids(block).tolist()]
    assert ids == bpe.ids(text).tolist()


@pytest.mark.parametrize(("block", "chunk"), [(7, 1), (1, 50), (1 << 20, 333), (64, 1 << 20)])
def test_a_corpus_does_not_depend_on_blocks_and_chunks(tmp_path, monkeypatch, block, chunk):
    path = tmp_path / "t.txt"
    path.write_text((PROSE + "a line that goes on " * 12) * 30, encoding="utf-8")
    expected = Text(path=str(path), level="bpe").open()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "other"))
    monkeypatch.setattr("workbench.data.pieces.BLOCK_BYTES", block)
    monkeypatch.setattr("workbench.data.pieces.CHUNK_BYTES", chunk)
    got = Text(path=str(path), level="bpe").open()
    assert got.folder != expected.folder
    assert got.info["tokens_sha256"] == expected.info["tokens_sha256"]
    assert got.vocabulary.symbols() == expected.vocabulary.symbols()


def test_a_corpus_does_not_depend_on_workers(tmp_path, monkeypatch):
    path = tmp_path / "t.txt"
    path.write_bytes((PROSE.encode() + b"torn \xff\n") * 300)
    expected = Text(path=str(path), level="bpe").open()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "other"))
    monkeypatch.setenv("WORKBENCH_WORKERS", "2")
    monkeypatch.setattr("workbench.data.crew.SMALL_BYTES", 0)
    monkeypatch.setattr("workbench.data.pieces.CHUNK_BYTES", 3000)
    got = Text(path=str(path), level="bpe").open()
    assert got.info["tokens_sha256"] == expected.info["tokens_sha256"]


def test_chunks_of_several_files_end_with_lines(tmp_path, monkeypatch, bpe):
    texts = [b"one\n\ntwo", b"", b"\n", b"three \n four " * 20, b"x" * 300]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_bytes(text)
    ranges = [
        p
        for i, t in enumerate(texts)
        for p in (Piece(tmp_path / f"{i}.txt", 0, len(t)), pieces.NEWLINE)
    ]
    whole = b"".join(text + b"\n" for text in texts)
    for size in (1, 7, 64, 10**6):
        cut = pieces.chunks(ranges, "bpe", size)
        parts = [b"".join(b for *_, b in pieces.raw_blocks(group)) for group in cut]
        assert b"".join(parts) == whole and all(part.endswith(b"\n") for part in parts)
        ids = [i for group in cut for b in pieces.blocks("bpe", group) for i in bpe.ids(b)]
        assert ids == bpe.ids(whole).tolist()


def test_a_corpus_of_any_bytes(tmp_path):
    data = (PROSE.encode() + b"\xff\xfe\x00torn \xe2\x82\n") * 40
    (tmp_path / "t.txt").write_bytes(data)
    corpus = Text(path=str(tmp_path / "t.txt"), level="bpe").open()
    assert b"".join(corpus.text(split) for split in corpus.splits) == data
    assert corpus.unit == "token" and corpus.info["unknown"] == dict.fromkeys(corpus.splits, 0)
    assert sum(corpus.info["bytes"].values()) == len(data)
    assert corpus.splits["train"].dtype == torch.int16
    corpus.check()


def test_held_out_text_teaches_no_token(tmp_path):
    (tmp_path / "t.txt").write_text("abcd " * 900 + "wxyz " * 100)
    corpus = Text(path=str(tmp_path / "t.txt"), level="bpe").open()
    labels = {corpus.vocabulary.symbol(i) for i in range(corpus.vocabulary.size)}
    assert "␣abcd" in labels and not any("wx" in label for label in labels)


def test_mixed_ranges_cover_the_text_and_spread_evenly():
    path = Path("a")
    ranges = mixed([Piece(path, 5, 1605), pieces.NEWLINE, Piece(path, 2000, 2010)], 100)
    assert sorted(ranges)[0] == Piece(path, 5, 105) and len(ranges) == 17
    assert sum(p.stop - p.start for p in ranges) == 1610
    assert [p.start for p in ranges[1:4]] == [2000, 805, 405]


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch, bpe):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    cure = r"pip install 'workbench\[text\]'"
    with pytest.raises(ConfigError, match=cure):
        BpeVocabulary.learn([b"abc"])
    closed = BpeVocabulary(bpe.symbols()["tokenizer"])
    assert closed.size == bpe.size and closed.decode(torch.tensor([0])), "reading needs none"
    with pytest.raises(ConfigError, match=cure):
        closed.encode("abc")


def test_forking_afterwards_is_quiet():
    program = (
        "import os, workbench.data.bpe as b\n"
        "v = b.BpeVocabulary.learn([b'the cat ' * 9000], max_size=300)\n"
        "v.encode('the cat' * 9000)\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(len(v.encode('the')) != 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
