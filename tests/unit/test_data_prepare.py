"""The pipeline: the same corpus whatever the chunks and the crew; workers that come to grief."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.data import crew, jobs, pieces, prepare, store, symbols, tables
from workbench.data.pieces import NEWLINE, Piece, chunks, forward
from workbench.data.prepare import Counted
from workbench.data.symbols import Symbols
from workbench.data.tables import Keep, Table
from workbench.data.text import Text
from workbench.data.vocabulary import BYTES, WordVocabulary
from workbench.errors import DataError

HERE = Path(__file__).parents[2]
ALPHABET = [
    *" \n\t\r\x1c\x85\u00a0\u3000",
    "\r\n",
    *"abcdé字\U0001f600_\0",
    "the",
    "<unk>",
    "<eos>",
]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "t.txt"
    path.write_bytes("".join(draw.choices(ALPHABET, k=4000)).encode())
    return path


@pytest.fixture
def many_chunks(monkeypatch):
    """A few hundred bytes are a large text."""
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 900)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 70)
    monkeypatch.setattr(symbols, "PART_WORDS", 60)
    monkeypatch.setattr(tables, "GROUP_SYMBOLS", 100)


@pytest.fixture
def workers(monkeypatch, many_chunks):
    monkeypatch.setattr(crew, "SMALL_BYTES", 0)
    monkeypatch.setenv("WORKBENCH_WORKERS", "2")


def contents(folder):
    """Every file of a prepared corpus."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("level", ["byte", "char", "word"])
def test_chunks_and_workers_change_nothing(text, root, tmp_path, monkeypatch, request, level):
    at_once = Text(path=str(text), level=level).open()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "other"))
    request.getfixturevalue("workers")
    by_workers = Text(path=str(text), level=level).open()
    assert by_workers.folder != at_once.folder
    assert contents(by_workers.folder) == contents(at_once.folder)
    by_workers.check()


def test_a_prepared_folder_holds_no_spool(text, many_chunks, root):
    folder = Text(path=str(text), level="word").open().folder
    splits = [f"{split}.bin" for split in pieces.SPLITS]
    assert set(contents(folder)) == {*splits, "files.jsonl", "info.json", "vocabulary.json"}


@pytest.mark.parametrize("seed", range(20))
def test_chunks_tear_no_word_and_no_character(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(pieces, "_AHEAD", draw.randint(6, 40))
    data = "".join(draw.choices(ALPHABET, k=300))
    path = tmp_path / "t"
    path.write_bytes(data.encode())
    piece = Piece(path, 0, path.stat().st_size)
    for level in ("char", "word"):
        cut = chunks([piece, NEWLINE], level, draw.randint(5, 60))
        parts = [path.read_bytes()[p.start : p.stop].decode() for c in cut for p in c if p.path]
        assert "".join(parts) == data
        assert cut[-1][-1] == NEWLINE and len(cut) > 1
        if level == "word":
            assert [w for part in parts for w in part.split()] == data.split()
            lines = [part.replace("\r\n", "\n").replace("\r", "\n") for part in parts]
            assert "".join(lines) == data.replace("\r\n", "\n").replace("\r", "\n")


def test_a_cut_is_no_further_than_the_next_blank(tmp_path):
    path = tmp_path / "t"
    path.write_text("ab cd\nef")
    assert [forward(path, at, 8, "word") for at in range(1, 8)] == [2, 2, 3, 5, 5, 6, 8]


def test_an_endless_word_is_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "WORD_BYTES", 4000)
    monkeypatch.setattr(pieces, "_AHEAD", 100)
    monkeypatch.setattr(symbols, "WORD_CHARACTERS", 1000)
    path = tmp_path / "t.txt"
    for text in ("a b\n" * 20 + "x" * 1001 + "\n" + "a b\n" * 900, "a " + "x" * 50_000):
        path.write_text(text)
        with pytest.raises(
            DataError, match=r"got a word of more than .* expected .* Use `level: byte`"
        ):
            Text(path=str(path), level="word").open()
    assert len(Text(path=str(path)).open().splits["train"]) == int(0.9 * 50_002)


def test_counts_are_in_order_of_first_appearance_in_each_split(tmp_path, many_chunks):
    words = {"train": "b a b <eos>\n" * 90, "valid": "c b a\n", "test": "a a d\n"}
    given = {}
    for split, text in words.items():
        (tmp_path / split).write_text(text)
        given[split] = [Piece(tmp_path / split, 0, len(text))]
    seen = {}

    def learn(counts):
        seen.update({split: list(counts[split].items()) for split in counts})
        return WordVocabulary.learn(counts["train"])

    folder = tmp_path / "out"
    folder.mkdir()
    store.write(folder, given, Counted(Symbols("word"), learn), [], {}, {"name": "t"}, edges=True)
    assert seen == {
        "train": [("b", 180), ("a", 90), ("<eos>", 180)],
        "valid": [("c", 1), ("b", 1), ("a", 1), ("<eos>", 1)],
        "test": [("a", 2), ("d", 1), ("<eos>", 1)],
    }
    info = json.loads((folder / "info.json").read_text())
    assert info["edges"] == {"train": [0, 450], "valid": [0, 4], "test": [0, 4]}
    assert info["unknown"] == {"train": 0, "valid": 1, "test": 1}


def test_edges_are_where_files_begin_even_if_a_file_is_cut(tmp_path, many_chunks):
    sizes = (10, 500, 3)
    for n in sizes:
        (tmp_path / f"{n}").write_text("a b c\n" * n)
    files = [Piece(tmp_path / f"{n}", 0, 6 * n) for n in sizes]
    folder = tmp_path / "out"
    folder.mkdir()
    rule = Counted(Symbols("word"), lambda counts: WordVocabulary.learn(counts["train"]))
    splits = {"train": [NEWLINE, *files], "valid": files[:1], "test": [NEWLINE, *files[1:]]}
    store.write(folder, splits, rule, [], {}, {"name": "t"}, edges=True)
    edges = json.loads((folder / "info.json").read_text())["edges"]
    assert edges == {"train": [1, 41, 2041, 2053], "valid": [0, 40], "test": [1, 2001, 2013]}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(min_count=2), ["a", "b", "d"]),
        (Keep(max_size=2), ["a", "d"]),
        (Keep(("train", "valid"), max_size=2), ["b", "d"]),
        (Keep(("train", "valid"), min_count=3), ["a", "b", "d"]),
        (None, ["a", "b", "c", "d", "e"]),
    ],
)
def test_only_symbols_that_are_kept_are_merged(tmp_path, monkeypatch, keep, expected):
    monkeypatch.setattr(tables, "GROUP_SYMBOLS", 1)
    counts = {"train": {"a": 3, "b": 2, "c": 1, "d": 5}, "valid": {"b": 9, "e": 1}, "test": {}}
    stems = {split: [str(tmp_path / split)] for split in counts}
    for split, of in counts.items():
        places = tables.np.arange(len(of))
        table = Table(list(of), places, places, tables.np.array([*of.values()], int))
        tables.save(str(tmp_path / split), table)
    merged = tables.merge(stems, keep)
    assert merged["train"] == {s: n for s, n in counts["train"].items() if s in expected}
    assert list(merged["train"]) == [s for s in counts["train"] if s in expected]
    assert sorted({*merged["train"], *merged["valid"]}) == expected


def test_a_newline_can_be_a_symbol(tmp_path):
    places = tables.np.arange(3)
    tables.save(str(tmp_path / "t"), Table(["a", "\n", " "], places, places, places + 1))
    table = tables.load(str(tmp_path / "t"))
    assert dict(zip(table.symbols, table.counts.tolist(), strict=True)) == {
        "a": 1,
        "\n": 2,
        " ": 3,
    }


def test_a_fault_in_a_worker_is_told_as_in_the_process_itself(tmp_path, workers, root):
    path = tmp_path / "t.txt"
    path.write_bytes(b"good " * 500 + b"bad \xff here\n" + b"x y\n" * 400)
    with pytest.raises(DataError, match=r"t\.txt: got byte 0xff at byte offset 2504"):
        Text(path=str(path), level="word").open()
    assert [*(root / "prepared").iterdir()] == []


def test_a_full_disk_in_a_worker_is_told_and_leaves_nothing(text, workers, root, monkeypatch):
    full = [sys.executable, "-c", "import json,sys\nfor line in sys.stdin: print(json.dumps("]
    full[-1] += "{'os_error': [28, 'No space left on device', 'x']}), flush=True)"
    real = subprocess.Popen
    monkeypatch.setattr(crew.subprocess, "Popen", lambda command, **k: real(full, **k))
    with pytest.raises(DataError, match=r"got 'No space left on device', expected .* Make room"):
        Text(path=str(text), level="word").open()
    assert [*(root / "prepared").iterdir()] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_is_told_and_leaves_nothing(text, workers, root, monkeypatch, how):
    real = crew.Workers.__init__

    def struck(self, n):
        real(self, n)
        os.kill(self.pids[0], how)

    monkeypatch.setattr(crew.Workers, "__init__", struck)
    with pytest.raises(DataError, match=rf"ended by signal {how.name}.* WORKBENCH_WORKERS=1"):
        Text(path=str(text), level="word").open()
    assert [*(root / "prepared").iterdir()] == []


@pytest.mark.parametrize("n", ["0", "2"])
@pytest.mark.parametrize("level", ["byte", "word"])
def test_what_the_system_refuses_to_write_is_told(tmp_path, workers, root, monkeypatch, level, n):
    """A limit on the size of files is met as a full disk is: in the middle of a write."""
    monkeypatch.setenv("WORKBENCH_WORKERS", n)
    path = tmp_path / "t.txt"
    path.write_text("to be or not to be\n" * 2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(DataError, match=r"got 'File too large', expected .* Make room"):
            Text(path=str(path), level=level).open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*(root / "prepared").iterdir()] == []
    Text(path=str(path), level=level).open().check()


def test_a_worker_that_cannot_start_says_why(workers, text, monkeypatch):
    monkeypatch.setattr(crew.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="ended by exit status 1"):
        Text(path=str(text)).open()


def test_the_number_of_workers_is_checked(monkeypatch):
    monkeypatch.setenv("WORKBENCH_WORKERS", "many")
    with pytest.raises(DataError, match="got 'many', expected a number of processes"):
        crew.n_workers()
    monkeypatch.delenv("WORKBENCH_WORKERS")
    assert crew.n_workers() >= 1


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_job(tmp_path):
    fifo = tmp_path / "never"
    os.mkfifo(fifo)
    said = (tmp_path / "said").open("wb")
    worker = crew._start(said)
    worker.stdin.write(json.dumps({"do": "hash", "paths": [str(fifo)]}) + "\n")
    worker.stdin.flush()
    time.sleep(0.3)
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=20) == 0
    worker.stdout.close()
    said.close()


def test_a_worker_needs_neither_torch_nor_pydantic():
    code = "import sys, workbench.data.worker; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_nothing_is_said_where_nobody_watches(text, workers, capfd):
    Text(path=str(text), level="word").open()
    assert capfd.readouterr() == ("", "")


def test_a_worker_holds_no_vocabulary(text, many_chunks, monkeypatch):
    """There may be many workers, and a vocabulary of millions of words."""
    asked = []
    real = jobs.perform
    monkeypatch.setattr(jobs, "perform", lambda job: asked.append(job) or real(job))
    Text(path=str(text), level="word").open()
    assert {job["do"] for job in asked} == {"hash", "count", "place"}
    assert "vocabulary" not in json.dumps(asked, default=str)


def test_bytes_are_never_counted(text, many_chunks, monkeypatch):
    asked = []
    real = jobs.perform
    monkeypatch.setattr(jobs, "perform", lambda job: asked.append(job["do"]) or real(job))
    Text(path=str(text)).open()
    assert set(asked) == {"hash", "place"}
    assert isinstance(BYTES, prepare.Rule)
