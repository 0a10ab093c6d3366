"""The corpus that is on every machine: real text, enough of it, in splits that do not leak."""

import hashlib
import time

import pytest

from workbench.data import python_source
from workbench.data.python_source import PythonSource, listing, texts
from workbench.errors import DataMissing


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_DATA", str(tmp_path_factory.mktemp("python-source")))
        return PythonSource().open()


def test_at_least_eight_megabytes_split_90_5_5(corpus):
    sizes = {s: len(ids) for s, ids in corpus.splits.items()}
    total = sum(sizes.values())
    assert total >= 8_000_000
    assert sizes["train"] / total == pytest.approx(0.9, abs=0.01)
    assert sizes["valid"] / total == pytest.approx(0.05, abs=0.005)
    assert sizes["test"] / total == pytest.approx(0.05, abs=0.005)


def test_each_recorded_file_is_in_its_split_alone_with_its_sha256(corpus):
    folder = python_source.stdlib_folder()
    texts = {s: corpus.text(s) for s in corpus.splits}
    at = dict.fromkeys(texts, 0)
    files = corpus.files()
    assert [f["path"] for f in files] == sorted(f["path"] for f in files)
    for file in files:
        data = (folder / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
        split, start = file["split"], at[file["split"]]
        assert texts[split][start : start + len(data) + 1] == data + b"\n"
        at[split] += len(data) + 1
    # nothing but the recorded files is in a split
    assert at == {s: len(text) for s, text in texts.items()}
    assert len({f["sha256"] for f in files}) == len(files)
    assert len({f["path"] for f in files}) == len(files)


def test_no_single_file_or_folder_makes_up_a_held_out_split(corpus):
    for split in ("valid", "test"):
        sizes = [f["bytes"] for f in corpus.files() if f["split"] == split]
        folders = {f["path"].split("/")[0] for f in corpus.files() if f["split"] == split}
        assert max(sizes) < sum(sizes) / 4
        assert len(sizes) >= 15
        assert len(folders) >= 10


def test_tests_and_packages_are_left_out(corpus):
    for file in corpus.files():
        *folders, name = file["path"].split("/")
        assert not {"test", "tests", "idle_test", "site-packages", "__pycache__"} & set(folders)
        assert name.endswith(".py")
        assert not name.startswith("test_")


def test_the_record_identifies_the_text(corpus):
    record = (corpus.folder / "files.jsonl").read_bytes()
    assert corpus.info["sha256"] == hashlib.sha256(record).hexdigest()
    assert corpus.info["python"]
    assert corpus.info["files"] == len(corpus.files())
    corpus.check()


def test_a_second_preparation_makes_the_same_bytes_and_opening_is_fast(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    again = PythonSource().open()
    assert again.folder != corpus.folder
    assert again.folder.name == corpus.folder.name
    assert again.info == corpus.info
    start = time.perf_counter()
    PythonSource().open()
    assert time.perf_counter() - start < 0.5


@pytest.fixture
def library(tmp_path):
    texts = {
        "b.py": "import a\n",
        "a.py": "x = 1\n",
        "copy_of_a.py": "x = 1\n",
        "empty.py": "",
        "test_a.py": "assert x\n",
        "package/test/helper.py": "y = 2\n",
        "package/__init__.py": "y = 3\n",
        "lib2to3/tests/data.py": "y = 4\n",
        "site-packages/other.py": "y = 5\n",
        "__pycache__/a.py": "y = 6\n",
        "notes.txt": "not source",
    }
    for name, text in texts.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "lib" / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    (tmp_path / "lib" / "nul.py").write_bytes(b"x = '\x00'\n")
    return tmp_path / "lib"


def test_what_is_listed_and_what_is_left_out(library):
    listed = listing(library)
    names = [m.name for m in listed]
    assert names == sorted(names)
    assert set(names) == {
        "a.py", "b.py", "copy_of_a.py", "empty.py", "latin.py", "nul.py", "package/__init__.py"
    }  # fmt: skip
    assert [m.name for m in texts(listed)] == ["a.py", "b.py", "package/__init__.py"]


def test_too_little_source_says_what_to_do(library, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(python_source, "stdlib_folder", lambda: library)
    with pytest.raises(DataMissing) as caught:
        PythonSource().open()
    message = str(caught.value)
    for part in ("got", str(library), "expected at least 8,000,000", "install", "kind: text"):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_a_python_without_a_library_folder_says_so_too(tmp_path, monkeypatch):
    monkeypatch.setattr(python_source, "stdlib_folder", lambda: tmp_path / "python311.zip")
    with pytest.raises(DataMissing, match="got 0 bytes in 0"):
        PythonSource().open()
