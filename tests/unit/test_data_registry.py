"""The registry of published data: every entry is sound, and every recipe finds its corpus in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from workbench.config import load
from workbench.data import published, registry, rules
from workbench.data.registry import Entry, Known
from workbench.errors import ConfigError
from workbench.recipe import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = registry.entries()
CORPORA = {name: e for name, e in ENTRIES.items() if e.kind == "corpus"}
LICENCE = {"name": "CC0", "note": "", "url": "https://a.example/"}


def small(**changes: Any) -> dict[str, Any]:
    """A sound entry of one archive with two files."""
    file = {
        "name": "a.zip",
        "bytes": 10,
        "urls": ["https://a.example/a.zip"],
        "members": {"in/x-{1..2}": "x-{1..2}"},
    }
    facts = {"symbols": 3, "comparable": "nothing"}
    return {
        "title": "t",
        "licence": LICENCE,
        "sources": [{"files": [file]}],
        "contents": {"x-{1..2}": {"about_bytes": 5}},
        "level": "char",
        "split": "as published",
        "rules": {"awd-lstm": facts},
        **changes,
    }


def test_every_recipe_finds_its_corpus_and_rule() -> None:
    wanted = set()
    for name in recipe_names():
        corpus = getattr(load_recipe(name).data, "corpus", None)
        if isinstance(corpus, published.Published):
            wanted.add((corpus.name, corpus.rule))
    assert wanted <= set(registry.symbols())
    assert len(wanted) > 10


def test_the_corpora_are_those_a_recipe_can_name() -> None:
    assert set(CORPORA) == set(get_args(rules.Name))
    for entry in CORPORA.values():
        assert "plain" in entry.rules and set(entry.rules) <= set(get_args(rules.Rule))
    levels = {name: entry.level for name, entry in CORPORA.items() if entry.level != "word"}
    assert levels == {"enwik8": "byte", "text8": "char", "ptb-char": "char"}
    assert len(ENTRIES) - len(CORPORA) == 4


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_whole(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.title and entry.licence.name and entry.sources
    for source in entry.sources:
        for file in source.files:
            assert file.urls and len(set(file.urls)) == len(file.urls)
            for url in file.urls:
                parts = urlsplit(url)
                assert parts.scheme == "https" and parts.netloc and parts.path.count("/") >= 1
            assert file.size > 0
    for facts in entry.rules.values():
        assert facts.comparable


def test_the_same_file_has_the_same_facts_everywhere() -> None:
    """simple-examples.tgz is the source of two corpora; the files of ptb are contents too."""
    facts: dict[str, Any] = {}
    for entry in ENTRIES.values():
        files = [file for source in entry.sources for file in source.files]
        pairs = [(file.name, file) for file in files if not file.name.startswith("wiki")]
        for name, known in pairs:
            said = (known.size, known.checksums)
            assert facts.setdefault(name, said) == said
            if name in entry.contents:
                assert (entry.contents[name].size, entry.contents[name].checksums) == said


def test_sizes_and_checksums_that_the_specification_names() -> None:
    enwik8 = ENTRIES["enwik8"]
    assert enwik8.sources[0].files[0].bytes == 36_445_475
    assert enwik8.contents["enwik8"].md5 == "a1fa5ffddb56f4953e226637dabbb36a"
    assert enwik8.contents["enwik8"].sha1 == "57b8363b814821dc9d47aa4d41f58733519076b2"
    assert ENTRIES["text8"].sources[0].files[0].bytes == 31_344_016
    tokens = ENTRIES["wikitext-103"].rules["transformer-xl"].tokens
    assert tokens and (tokens.train, tokens.valid, tokens.test) == (103_227_021, 217_646, 245_569)
    assert {name for name, e in CORPORA.items() for f in e.rules.values() if not f.verified} == {
        "ptb-char",
        "lm1b",
    }


def test_one_billion_word_has_its_99_shards() -> None:
    contents = [*ENTRIES["lm1b"].contents]
    assert len(contents) == 101
    assert contents[0].endswith("news.en-00001-of-00100")
    assert contents[98].endswith("news.en-00099-of-00100")


def test_braces_stand_for_numbers_of_one_width() -> None:
    assert list(registry.names("a-{08..11}.txt")) == [
        f"a-{n}.txt" for n in ("08", "09", "10", "11")
    ]
    assert list(registry.names("a.txt")) == ["a.txt"]
    assert list(load(Entry, small()).contents) == ["x-1", "x-2"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"contents": {"x-1": {"bytes": 1}}},
            r"got the files \['x-1', 'x-2'\], expected the",
        ),
        ({"rules": {}}, "a corpus has level, split and rules"),
        ({"kind": "checkpoint"}, "a checkpoint has none of them"),
        ({"titel": "x"}, "Did you mean 'title'"),
        ({"contents": {"x-{1..2}": {"bytes": 1, "md5": "12"}}}, "expected 32 hexadecimal digits"),
        ({"contents": {"x-{1..2}": {"bytes": 1, "md5": "0" * 32}}}, "needs its source in said_by"),
        ({"contents": {"x-{1..2}": {"bytes": 1, "md5": ""}}}, "expected 32 hexadecimal digits"),
        ({"contents": {"x-{1..2}": {}}}, "either bytes or about_bytes"),
        (
            {
                "sources": [
                    {"files": [{"name": "../x", "bytes": 1, "urls": ["https://a.example"]}]}
                ],
                "contents": {"../x": {"bytes": 1}},
            },
            r"got \['../x'\], expected names below the folder",
        ),
    ],
)
def test_an_unsound_entry_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(Entry, small(**changes))


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no published data 'enwik'. Did you mean 'enwik8'"):
        registry.entry("enwik")


def test_the_preferred_checksum_comes_first() -> None:
    known = Known(bytes=1, md5="0" * 32, sha256="1" * 64, said_by="x")
    assert list(known.checksums) == ["sha256", "md5"]


def test_by_hand_names_file_size_checksum_address_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    for name, entry in ENTRIES.items():
        text = registry.by_hand(name)
        assert f"workbench data get {name}" in text and str(tmp_path / entry.folder) in text
        for source in entry.sources:
            for file in source.files:
                assert file.name in text and all(url in text for url in file.urls)
                assert all(value in text for value in [*file.checksums.values()][:1])


@pytest.mark.parametrize(
    ("size", "words"), [(7, "7 bytes"), (36_445_475, "36.4 MB"), (1_792_209_805, "1.8 GB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert registry.in_words(size) == words


def test_an_installation_has_the_registry() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["data-files"]["share/workbench/data"] == ["data/registry.yaml"]
    assert registry.file() == ROOT / "data" / "registry.yaml"


def test_git_keeps_what_describes_data_and_ignores_data() -> None:
    kept = (ROOT / "data" / ".gitignore").read_text().split()
    assert kept[0] == "*" and {"!registry.yaml", "!README.md"} <= set(kept)
    assert all(re.fullmatch(r"\*|![\w.]+", line) for line in kept)


def test_the_page_of_the_data_folder_lists_every_corpus_with_its_licence() -> None:
    lines = (ROOT / "data" / "README.md").read_text("utf-8").splitlines()
    for name, entry in CORPORA.items():
        (row,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert row.rstrip(" |").endswith(entry.licence.name) and f"| {entry.level} |" in row
