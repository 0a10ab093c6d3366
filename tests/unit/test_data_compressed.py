"""Compressed files and archives as texts: alone, in folders, as splits; damaged, hostile, large."""

import gzip
import os
import shutil

import pytest
from own_texts import joined, refused, write
from packed import KINDS, PACKERS, zipped

from workbench.data.text import Text
from workbench.errors import DataError, DataMissing

pytestmark = pytest.mark.usefixtures("prepared")

TEXT = b"".join(b"line %d of the text\n" % i for i in range(2000))


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("level", ["byte", "char", "word"])
def test_a_compressed_file_is_the_text_that_it_holds(tmp_path, ending, level):
    plain = Text(path=write(tmp_path / "plain.txt", TEXT), level=level).open()
    for name in (f"MINE.TXT.{ending.upper()}", f"mine.txt.{ending}"):
        path = write(tmp_path / name, PACKERS[ending](TEXT))
        corpus = Text(path=path, level=level).open()
        assert corpus.info["tokens_sha256"] == plain.info["tokens_sha256"]
    assert corpus.info["sha256"] == plain.info["sha256"]
    assert corpus.name == "mine"
    assert corpus.files()[0]["path"] == f"mine.txt.{ending}"
    assert not [p for p in corpus.folder.iterdir() if p.is_dir()]
    os.utime(path, ns=(1, 1))
    assert Text(path=path, level=level).open().folder != corpus.folder


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz", "tar.xz", "tar.bz2", "tar.zst"])
def test_an_archive_is_a_folder_of_files(tmp_path, ending):
    members = {"b.txt": b"b" * 99, "a/z.txt": b"a" * 99, "c.md": b"never read"}
    path = write(tmp_path / f"books.{ending}", KINDS[f"a.{ending}"](members))
    corpus = Text(path=path).open()
    assert joined(corpus) == b"a" * 99 + b"\n" + b"b" * 99 + b"\n"
    names = [f["path"] for f in corpus.files()]
    assert names == [f"books.{ending}/a/z.txt", f"books.{ending}/b.txt"]
    assert joined(Text(path=path, glob="*.txt").open()) == b"b" * 99
    refused(DataMissing, "*.rst", "corpus.glob", path=path, glob="*.rst")


def test_a_folder_holds_all_kinds_side_by_side(tmp_path, caplog):
    for number, ending in enumerate(PACKERS):
        write(tmp_path / "t" / f"{number}.txt.{ending}", PACKERS[ending](b"%d" % number * 30))
    write(tmp_path / "t" / "5.txt", b"5" * 30)
    write(tmp_path / "t" / "6.txt.zip", zipped({"6.txt": b"6" * 30}))
    write(tmp_path / "t" / "5.txt.gz", gzip.compress(b"the same, packed"))
    lines = joined(Text(path="t").open()).split()
    assert lines == [b"%d" % i * 30 for i in (0, 1, 2, 3, 5, 6)]
    assert "left out, the same text is there unpacked: 5.txt.gz" in caplog.text
    assert b"the same, packed\n" in joined(Text(path="t/*.txt.*").open())


def test_many_compressed_files_are_split_whole(tmp_path):
    for i in range(25):
        write(tmp_path / "t" / f"{i:02}.txt.gz", gzip.compress(b"%02d" % i * 50))
    corpus = Text(path="t").open()
    assert corpus.info["split_rule"] == "by whole files"
    assert sum(map(len, corpus.splits.values())) == 25 * 101


def test_given_splits_may_be_compressed(tmp_path):
    write(tmp_path / "train.txt.gz", gzip.compress(b"train " * 50))
    write(tmp_path / "rest.zip", zipped({"valid.txt": b"valid " * 10}))
    corpus = Text(split={"train": "train.txt.gz", "valid": "rest.zip"}).open()
    assert corpus.text("train") == b"train " * 50
    assert corpus.text("valid") == b"valid " * 10


@pytest.mark.parametrize("ending", [*PACKERS, "zip"])
def test_a_torn_file_is_refused_and_leaves_nothing(tmp_path, prepared, ending):
    noise = os.urandom(30_000)
    packed = zipped({"a.txt": noise}) if ending == "zip" else PACKERS[ending](noise)
    path = write(tmp_path / f"a.txt.{ending}", packed[:-2000])
    refused(DataError, f"a.txt.{ending}", path=path)
    assert list(prepared.iterdir()) == []


def test_what_is_not_compressed_is_refused(tmp_path):
    refused(DataError, "a.txt.gz", path=write(tmp_path / "a.txt.gz", TEXT))


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path, prepared):
    path = write(tmp_path / "bad.zip", zipped({"../../evil.txt": TEXT}))
    refused(DataError, "evil.txt", path=path)
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("ending", [*PACKERS, "zip"])
def test_a_bomb_stops_at_the_limit(tmp_path, prepared, ending):
    zeros = bytes(12 << 20)
    packed = zipped({"a.txt": zeros}) if ending == "zip" else PACKERS[ending](zeros)
    path = write(tmp_path / f"a.txt.{ending}", packed)
    limit = {"path": path, "max_unpacked_bytes": 10 << 20}
    refused(DataError, "10,485,760 unpacked", "corpus.max_unpacked_bytes", **limit)
    assert list(prepared.iterdir()) == []
    assert len(Text(path=path, max_unpacked_bytes=12 << 20).open().splits["train"]) == 11324620


def test_the_limit_is_for_all_files_together(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / f"{split}.txt.gz", gzip.compress(TEXT))
    split = {"train": "train.txt.gz", "valid": "valid.txt.gz"}
    limit = 2 * len(TEXT)
    assert Text(split=split, max_unpacked_bytes=limit).open()
    write(tmp_path / "train.txt.gz", gzip.compress(TEXT + b"!"))
    refused(DataError, "valid.txt.gz", split=split, max_unpacked_bytes=limit)


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path, prepared, monkeypatch):
    path = write(tmp_path / "a.txt.gz", gzip.compress(TEXT))
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(DataError, "104,857,600 bytes of free space", "WORKBENCH_DATA", path=path)
    assert list(prepared.iterdir()) == []


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, prepared, monkeypatch):
    from workbench.data import store

    path = tmp_path / "a.txt.gz"
    write(path, gzip.compress(TEXT))
    real = store.write

    def meanwhile(*args, **kwargs):
        real(*args, **kwargs)
        path.write_bytes(gzip.compress(TEXT * 2))

    monkeypatch.setattr(store, "write", meanwhile)
    refused(DataError, "a.txt.gz", "another size", "Run again", path=str(path))
    monkeypatch.setattr(store, "write", lambda *args: path.unlink())
    refused(DataError, "a.txt.gz", "No such file", path=str(path))
    assert list(prepared.iterdir()) == []
