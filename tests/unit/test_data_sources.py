"""Where texts lie: lists, patterns, given splits, links, odd names, bad files, strings."""

import os
import stat
import time
from pathlib import Path

import pytest
from own_texts import joined, refused, write

from workbench.config import ConfigError, dump, load
from workbench.data import from_strings
from workbench.data.sources import find, matches
from workbench.data.text import Text
from workbench.errors import DataError, DataMissing

pytestmark = pytest.mark.usefixtures("prepared")


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("a.txt", "**/*.txt", True),
        ("x/y/a.txt", "**/*.txt", True),
        ("x/y/a.txt", "*.txt", False),
        ("x/y/a.txt", "*/*.txt", False),
        ("x/y/a.txt", "x/**", True),
        ("x/y/a.txt", "x/**/a.*", True),
        ("x/a.txt", "x/**/a.*", True),
        ("x/a.md", "**/*.txt", False),
        ("x/a.txt.gz", "**/*.txt", True),
        ("x/a.txt.gz", "**/*.gz", True),
        ("x/a.zip", "**/*.txt", False),
        ("A.TXT", "*.txt", False),
        ("a1.txt", "a[0-9].txt", True),
        ("ab.txt", "a?.txt", True),
    ],
)
def test_patterns(name, pattern, fits):
    assert matches(name, pattern) is fits


def test_a_list_is_read_in_its_order_and_each_file_once(tmp_path):
    for name in ("b", "a", "c/d", "c/e"):
        write(tmp_path / f"{name}.txt", name * 50)
    (tmp_path / "link.txt").symlink_to("a.txt")
    found = find(["b.txt", "*.txt", "c", str(tmp_path / "c" / "d.txt")], "**/*.txt")
    assert [m.name for m in found] == ["b.txt", "a.txt", "c/d.txt", "c/e.txt"]
    corpus = Text(path=("b.txt", "a.txt")).open()
    assert joined(corpus) == b"b" * 50 + b"\n" + b"a" * 50 + b"\n"
    assert corpus.name == "b"
    assert Text(path=("b.txt", "a.txt"), name="mine").open().name == "mine"
    assert joined(Text(path="c/[d-e].t*").open()) == b"c/d" * 50 + b"\n" + b"c/e" * 50 + b"\n"


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    write(tmp_path / "a[1].txt", "literal " * 20)
    write(tmp_path / "a1.txt", "pattern " * 20)
    assert joined(Text(path="a[1].txt").open()) == b"literal " * 20


def test_given_splits_are_taken_as_given(tmp_path):
    for name in ("one", "two", "held"):
        write(tmp_path / f"{name}.txt", f"{name} " * 20)
    write(tmp_path / "rest" / "x.txt", "rest " * 20)
    split = {"train": ["two.txt", "one.txt"], "valid": "held.txt", "test": "rest"}
    config = load(Text, {"level": "word", "split": split})
    assert load(Text, dump(config)) == config
    corpus = config.open()
    assert corpus.text("train").split() == [b"two"] * 20 + [b"one"] * 20
    assert corpus.info["unknown"] == {"train": 0, "valid": 20, "test": 20}
    assert corpus.info["split_rule"] == "as given"
    assert {f["path"]: f["split"] for f in corpus.files()}["valid/held.txt"] == "valid"
    # the same files in another role are another corpus
    other = {"train": "two.txt", "valid": ["one.txt", "held.txt"], "test": "rest"}
    assert load(Text, {"level": "word", "split": other}).open().folder != corpus.folder


def test_a_file_of_train_in_a_held_out_split_is_refused(tmp_path, caplog):
    write(tmp_path / "a.txt", "a " * 20)
    write(tmp_path / "b.txt", "b " * 20)
    (tmp_path / "again.txt").symlink_to("a.txt")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "a.txt")
    for held_out in ("a.txt", "again.txt", "hard.txt", "*.txt"):
        split = {"train": "a.txt", "valid": held_out}
        refused(DataError, "in train and in valid", "measured on", split=split)
    Text(split={"train": "a.txt", "valid": "b.txt", "test": "b.txt"}).open()
    assert "is in valid and in test" in caplog.text
    assert "of other names" not in caplog.text
    write(tmp_path / "copy.txt", "a " * 20)
    Text(split={"train": "a.txt", "valid": "b.txt", "test": "copy.txt"}).open()
    assert "1 text(s) of train are in valid or test too" in caplog.text


def test_files_of_one_name_in_two_splits_are_told_apart(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name / "data.txt", name * 20)
    corpus = Text(split={"train": "one", "valid": "two", "test": "two"}).open()
    paths = [(file["path"], file["split"]) for file in corpus.files()]
    assert paths == [(f"{split}/data.txt", split) for split in ("train", "valid", "test")]


@pytest.mark.parametrize(
    ("path", "name"),
    [("books/**/*.txt", "books"), ("books/a*/x.txt", "books"), ("b.txt.GZ", "b"), ("*.md", "text")],
)
def test_a_text_is_called_as_its_first_file_or_folder(path, name):
    assert Text(path=path).dataset == name


def test_a_folder_without_a_fitting_file_is_told_with_one_that_would_fit(tmp_path):
    write(tmp_path / "packed" / "x.gz", "x")
    refused(DataMissing, "(x.gz does not)", "example '**/*.gz'", path="packed")


@pytest.mark.parametrize("path", ["~nobody-at-all/x.txt", "~nobody-at-all/*.txt"])
def test_a_home_folder_that_is_not_there_is_a_path_that_is_not_there(path):
    refused(DataMissing, "which is not there", path=path)


def test_the_split_whose_files_are_not_there_is_named(tmp_path):
    write(tmp_path / "a.txt", "a " * 20)
    split = {"train": "a.txt", "valid": "gone.txt"}
    refused(DataMissing, "corpus.split.valid: got 'gone.txt'", split=split)


@pytest.mark.parametrize("split", [(0.8, 0.2, 0.0), {"train": "a.txt", "valid": "b.txt"}])
def test_there_may_be_no_test_split(tmp_path, split):
    write(tmp_path / "a.txt", "abcde" * 40)
    write(tmp_path / "b.txt", "abcde" * 9 + "abc")
    fields = {"split": split} if isinstance(split, dict) else {"split": split, "path": "*.txt"}
    corpus = Text(level="char", **fields).open()
    assert corpus.splits["test"].shape == (0,)
    assert len(corpus.splits["valid"]) == (48 if isinstance(split, dict) else 50)
    assert joined(Text(level="char", **fields).open()) == joined(corpus)


def test_whole_files_without_a_test_split(tmp_path):
    for i in range(30):
        write(tmp_path / "texts" / f"{i}.txt", f"{i:02}" * 50)
    corpus = Text(path="texts", split=(0.8, 0.2, 0.0)).open()
    assert corpus.info["split_rule"] == "by whole files"
    assert [len(ids) for ids in corpus.splits.values()] == [24 * 101, 6 * 101, 0]


def test_split_by_says_how_shares_are_cut(tmp_path):
    for i in range(25):
        write(tmp_path / "many" / f"{i:02}.txt", "x" * 99)
        if i < 10:
            write(tmp_path / "few" / f"{i}.txt", "x" * 99)
    cut = Text(path="many", split_by="position").open()
    assert cut.info["split_rule"] == "by position in bytes"
    assert [len(ids) for ids in cut.splits.values()] == [2250, 125, 125]
    whole = Text(path="few", split_by="file", split=(0.8, 0.1, 0.1)).open()
    assert [len(ids) for ids in whole.splits.values()] == [800, 100, 100]
    refused(DataError, "split_by: position", "at least 2", path="few", split_by="file")


@pytest.mark.parametrize("level", ["byte", "word"])
def test_an_empty_split_is_refused_before_anything_is_read(tmp_path, prepared, monkeypatch, level):
    monkeypatch.setattr("workbench.data.store.write", lambda *_: pytest.fail("it was prepared"))
    write(tmp_path / "a.txt", "a " * 50)
    write(tmp_path / "empty.txt", "")
    split = {"train": "a.txt", "valid": "empty.txt"}
    refused(DataError, "train 100, valid 0, test 0", "each split", split=split, level=level)
    assert list(prepared.iterdir()) == []


def test_empty_files_among_others_are_lines_of_their_own(tmp_path):
    write(tmp_path / "t" / "a.txt", "a" * 50)
    write(tmp_path / "t" / "b.txt", "")
    write(tmp_path / "t" / "c.txt", "c" * 50)
    assert joined(Text(path="t").open()) == b"a" * 50 + b"\n\n" + b"c" * 50 + b"\n"


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    write(tmp_path / "texts" / "a.txt", "a" * 50)
    write(tmp_path / "elsewhere" / "b.txt", "b" * 50)
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts")
    assert [m.name for m in find(["texts"], "**/*.txt")] == ["a.txt", "more/b.txt"]


def test_names_that_are_no_utf8_are_read(tmp_path):
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    try:
        for i in range(25):
            with open(folder + b"/\xff\xfe %02d\n.txt" % i, "wb") as file:
                file.write(b"text %02d" % i)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    corpus = Text(path="odd").open()
    lines = [line for split in corpus.splits for line in corpus.text(split).splitlines()]
    assert sorted(lines) == [b"text %02d" % i for i in range(25)]
    assert {os.fsencode(f["path"]) for f in corpus.files()} == set(os.listdir(folder))


@pytest.mark.parametrize("path", ["pipe", "/dev/null", "texts", "*.fifo", ("ok.txt", "pipe")])
def test_devices_and_pipes_are_refused(tmp_path, path):
    write(tmp_path / "ok.txt", "text")
    (tmp_path / "texts").mkdir()
    for name in ("pipe", "texts/pipe.txt", "x.fifo"):
        os.mkfifo(tmp_path / name)
    refused(DataError, "pipe", "from_strings", path=path)


def test_dangling_and_circular_links_are_refused_by_name(tmp_path):
    write(tmp_path / "texts" / "a.txt", "text")
    (tmp_path / "texts" / "gone.txt").symlink_to("nowhere")
    refused(DataError, "gone.txt", "No such file", path="texts")
    (tmp_path / "self").symlink_to("self")
    refused(DataError, "self", "symbolic links", path="self")


def test_what_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    write(tmp_path / "texts" / "a.txt", "text " * 50)
    secret = Path(write(tmp_path / "texts" / "secret" / "b.txt", "text " * 50))
    if os.getuid():
        secret.chmod(0)
        refused(DataError, "b.txt", "Permission denied", "permissions", path="texts")
        secret.parent.chmod(0)
        refused(DataError, "secret", "Permission denied", "permissions", path="texts")
        secret.parent.chmod(stat.S_IRWXU)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(secret))
        refused(DataError, "b.txt", "Permission denied", "permissions", path="texts")


@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_files_are_quick(n):
    for folder in range(100):
        os.makedirs(f"texts/{folder:02}")
    for i in range(n):
        with open(f"texts/{i % 100:02}/{i:04}.txt", "wb") as file:
            file.write(b"file %04d" % i)
    # of this process: other work on the machine does not count
    began = time.process_time()
    corpus = Text(path="texts").open()
    first = time.process_time() - began
    assert joined(corpus).count(b"file") == n
    began = time.process_time()
    Text(path="texts").open()
    assert time.process_time() - began < 1 + n / 10_000
    assert first < 1 + n / 2500


def test_strings_become_a_text_of_lines(tmp_path, prepared):
    config = from_strings((f"line {i}" for i in range(100)), "my lines!")
    assert joined(config.open()) == b"".join(b"line %d\n" % i for i in range(100))
    assert config.open().folder.name.startswith("text-my-lines--byte-")
    assert from_strings(["a b"] * 50, "words", level="word").open().vocabulary.size == 4


def test_strings_are_plain_data_for_a_recipe(tmp_path):
    config = from_strings(["one\n", "two", "", "zeilen\nmit é"] * 20, "mine", split=[0.8, 0.1, 0.1])
    assert load(Text, dump(config)) == config
    assert config.dataset == "mine"
    corpus = load(Text, dump(config)).open()
    assert joined(corpus) == "one\ntwo\n\nzeilen\nmit é\n".encode() * 20
    again = from_strings(["one\n", "two", "", "zeilen\nmit é"] * 20, "mine", split=[0.8, 0.1, 0.1])
    assert again == config
    assert again.open().folder == corpus.folder
    assert len(list((tmp_path / "cache" / "texts").iterdir())) == 1


@pytest.mark.parametrize(
    ("strings", "parts"),
    [
        ("one string", ["one str", "[text]"]),
        (None, ["one NoneType"]),
        ([], ["no strings", "begin it again"]),
        (["ok", b"bytes"], ["bytes", "item 1"]),
        (["ok", "half \ud83d pair"], ["'\\ud83d'", "character 5", "item 1"]),
    ],
)
def test_what_is_no_text_is_refused_and_nothing_stays(tmp_path, strings, parts):
    with pytest.raises(DataError) as caught:
        from_strings(strings, "mine")
    for part in ("mine: got", "expected", *parts):
        assert part in str(caught.value)
    assert list((tmp_path / "cache" / "texts").iterdir()) == []


@pytest.mark.parametrize("error", [KeyError("source"), OSError(5, "source")])
def test_an_iterator_that_fails_leaves_nothing_and_its_error_is_seen(tmp_path, error):
    def broken():
        yield "first"
        raise error

    with pytest.raises(type(error), match="source") as caught:
        from_strings(broken(), "mine")
    assert caught.value is error
    assert list((tmp_path / "cache" / "texts").iterdir()) == []


def test_a_misspelt_field_is_refused_before_the_strings_are_read():
    with pytest.raises(ConfigError, match="Did you mean 'level'"):
        from_strings(iter(lambda: pytest.fail("it was read"), None), "mine", levle="word")


def test_strings_are_never_held_together(tmp_path):
    import tracemalloc

    tracemalloc.start()
    config = from_strings(("x" * 99_999 for _ in range(500)), "large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.path.getsize(config.path) == 50_000_000
    assert peak < 5_000_000


def test_missing_things_are_named(tmp_path):
    write(tmp_path / "a.txt", "text")
    refused(DataMissing, "'no*.txt'", str(tmp_path), path="no*.txt")
    refused(DataMissing, "'gone.txt'", str(tmp_path), path=("a.txt", "gone.txt"))
