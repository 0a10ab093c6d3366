"""Preparation: once, whole or not at all, safe between processes, mended when damaged."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.data import jobs, places, store
from workbench.data.text import Text
from workbench.errors import DataError

pytestmark = pytest.mark.usefixtures("prepared")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("to be or not to be\n" * 100)
    return str(file)


def test_prepared_once_then_only_opened(path, monkeypatch):
    first = Text(path=path, level="word").open()

    def never(*args: object) -> None:
        raise AssertionError("prepared twice")

    monkeypatch.setattr(store, "write", never)
    again = Text(path=path, level="word").open()
    assert again.folder == first.folder
    assert again.info == first.info
    assert all(torch.equal(again.splits[s], first.splits[s]) for s in first.splits)
    assert again.vocabulary.symbols() == first.vocabulary.symbols()


def test_options_and_changed_text_get_their_own_folders(path):
    folders = {Text(path=path, level=level).open().folder for level in ("byte", "char", "word")}
    folders.add(Text(path=path, split=(0.8, 0.1, 0.1)).open().folder)
    before = Text(path=path).open()
    time.sleep(0.01)
    Path(path).write_text("to be or not to bE\n" * 100)
    after = Text(path=path).open()
    assert len(folders | {after.folder}) == 5
    assert b"bE" in after.text("train")
    assert after.info["sha256"] != before.info["sha256"]


def test_recorded_sha256_is_that_of_the_source(path):
    corpus = Text(path=path).open()
    told = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert corpus.info["sha256"] == told
    (file,) = corpus.files()
    assert file == {"sha256": told, "bytes": 1900, "split": "", "path": "t.txt"}


def without(path, name):
    info = json.loads(path.read_text())
    del info[name]
    path.write_text(json.dumps(info))


DAMAGES = {
    "cut tokens": lambda f: os.truncate(f / "train.bin", 100),
    "longer tokens": lambda f: (f / "test.bin").write_bytes(b"x" * 5000),
    "lost tokens": lambda f: (f / "valid.bin").unlink(),
    "broken record": lambda f: (f / "info.json").write_text('{"format": 1, "na'),
    "foreign record": lambda f: (f / "info.json").write_text("[]"),
    "endless record": lambda f: (f / "info.json").write_text("[" * 100_000),
    "record without sums": lambda f: without(f / "info.json", "tokens_sha256"),
    "lost record": lambda f: (f / "info.json").unlink(),
    "lost list": lambda f: (f / "files.jsonl").unlink(),
    "broken vocabulary": lambda f: (f / "vocabulary.json").write_text('["a"]'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_again_with_a_warning(path, prepared, caplog, damage):
    whole = Text(path=path, level="word").open()
    tokens = {s: ids.clone() for s, ids in whole.splits.items()}
    DAMAGES[damage](whole.folder)
    with caplog.at_level(logging.WARNING, logger="workbench"):
        mended = Text(path=path, level="word").open()
    assert "damaged" in caplog.text
    assert str(whole.folder) in caplog.text
    assert all(torch.equal(mended.splits[s], tokens[s]) for s in tokens)
    assert [f.name for f in prepared.iterdir()] == [whole.folder.name]
    caplog.clear()
    Text(path=path, level="word").open()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["train.bin", "vocabulary.json", "files.jsonl"])
def test_check_finds_an_altered_byte(path, name):
    corpus = Text(path=path, level="word").open()
    corpus.check()
    data = bytearray((corpus.folder / name).read_bytes())
    data[-30] ^= 1
    (corpus.folder / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: got sha256 .* expected .* Delete the folder"):
        corpus.check()


@pytest.mark.parametrize("instead", [b"\xff", b"0", b"["])
def test_a_vocabulary_that_is_none_is_told_with_its_cure(path, instead):
    file = Text(path=path, level="word").open().folder / "vocabulary.json"
    file.write_bytes(instead * file.stat().st_size)
    with pytest.raises(DataError, match=r"vocabulary\.json: got .* Delete the folder"):
        _ = Text(path=path, level="word").open().vocabulary.size


def test_writing_to_a_split_never_reaches_the_file(path):
    corpus = Text(path=path).open()
    corpus.splits["train"].zero_()
    assert Text(path=path).open().text("train").startswith(b"to be")


STOPS = {
    "ctrl-c": (KeyboardInterrupt(), KeyboardInterrupt, ""),
    "full": (OSError(28, "No space left on device"), DataError, "got 'No space left .* Make room"),
}


@pytest.mark.parametrize("how", STOPS)
def test_interrupted_preparation_leaves_nothing(path, prepared, monkeypatch, how):
    stop, error, says = STOPS[how]
    calls = []
    real = jobs.perform

    def torn(job):
        calls.append(job["do"])
        if calls.count("place") == 2:
            raise stop
        return real(job)

    monkeypatch.setattr(jobs, "perform", torn)
    with pytest.raises(error, match=says or None):
        Text(path=path).open()
    assert list(prepared.iterdir()) == []
    monkeypatch.setattr(jobs, "perform", real)
    assert len(Text(path=path).open().splits["train"]) == 1710


def test_what_a_killed_process_left_is_swept_and_a_living_one_is_spared(path, prepared):
    host = socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = prepared / f"{places.ASIDE}{host}-{ended.pid}-abc"
    alive = prepared / f"{places.ASIDE}{host}-{os.getppid()}-abc"
    for folder in (dead, alive):
        (folder / "fresh").mkdir(parents=True)
    Text(path=path).open()
    assert not dead.exists()
    assert alive.exists()


def test_text_that_changes_while_it_is_read_is_refused(path, prepared, monkeypatch):
    real = jobs.perform

    def meanwhile(job):
        with Path(path).open("a") as file:
            file.write("more\n")
        return real(job)

    monkeypatch.setattr(jobs, "perform", meanwhile)
    with pytest.raises(DataError, match=r"t\.txt: got another size .* expected .* Run again"):
        Text(path=path).open()
    assert list(prepared.iterdir()) == []


# imports once; of two processes that ask at the same moment, the second waits for the first
RACES = """
import os, sys, time
from pathlib import Path
from workbench.data import store
from workbench.data.text import Text

def slow(*args, **options):
    info = real(*args, **options)
    print("wrote", flush=True)
    time.sleep(0.3)
    return info

def both():
    children = []
    for _ in range(2):
        if pid := os.fork():
            children.append(pid)
        else:
            corpus = Text(path=sys.argv[1], level="word").open()
            assert corpus.splits["train"].numel() == 630, corpus
            corpus.check()
            os._exit(0)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]

real, store.write = store.write, slow
both()
(folder,) = Path(sys.argv[2]).iterdir()
(folder / "info.json").write_text("{")
both()
"""


def test_two_processes_at_once_both_get_a_whole_corpus(path, prepared):
    command = [sys.executable, "-c", RACES, path, str(prepared)]
    here = Path(__file__).parents[2]
    raced = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (raced.returncode, raced.stdout) == (0, "wrote\n" * 2), raced.stderr
    assert len(list(prepared.iterdir())) == 1
    store.open_prepared(next(prepared.iterdir())).check()


def test_a_place_that_cannot_be_written_names_the_variable(path, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("WORKBENCH_DATA", str(blocked))
    with pytest.raises(DataError, match=r"got .* expected .* WORKBENCH_DATA"):
        Text(path=path).open()


def test_root_is_the_variable_then_the_checkout_then_the_users_cache(tmp_path, monkeypatch):
    assert store.root() == tmp_path / "cache"
    monkeypatch.setenv("WORKBENCH_DATA", "~nobody-at-all/data")
    assert store.root().name == "data"
    monkeypatch.delenv("WORKBENCH_DATA")
    assert store.root() == Path(__file__).parents[2] / "data"
    monkeypatch.setattr(store, "__file__", str(tmp_path / "site" / "workbench" / "data" / "x.py"))
    assert "workbench" in store.root().name
    assert store.root() != Path(__file__).parents[2] / "data"


def test_opening_takes_milliseconds(path):
    Text(path=path).open()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        Text(path=path).open()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_tokens_on_disk_are_little_endian_of_the_recorded_type(path):
    corpus = Text(path=path, level="word").open()
    raw = np.fromfile(corpus.folder / "test.bin", dtype=corpus.info["dtype"])
    assert torch.equal(torch.from_numpy(raw), corpus.splits["test"])
