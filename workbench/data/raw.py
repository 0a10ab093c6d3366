"""Published data on this disk: fetched, unpacked, verified, prepared, and checked again.

An archive is downloaded beside its contents and removed when they are whole. What lies there
already, whoever put it there, is verified and never fetched again, so that `get` goes on wherever
it, or a user without internet, left off.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from workbench.config import load, nearest
from workbench.data import archives, download, registry, store
from workbench.data.pieces import SPLITS
from workbench.data.places import alone, writing
from workbench.data.published import Published
from workbench.data.registry import Download, Entry, Known, Source
from workbench.errors import ConfigError, DataError, DataMissing

logger = logging.getLogger("workbench")


class Got(NamedTuple):
    """What `get` found and did."""

    place: Path
    """the folder of the contents"""
    downloaded: tuple[str, ...]
    """the files that it fetched or unpacked; none: all was there"""
    prepared: tuple[str, ...]
    """the rules by which the corpus is prepared now"""


class Finding(NamedTuple):
    """What `check` says of one file or one prepared corpus."""

    what: str
    said: str
    good: bool


def get(name: str, *, rules: Sequence[str] = (), url: str | None = None, keep: bool = False) -> Got:
    """Have a published corpus or checkpoint on this disk, whole and verified.

    Safe to interrupt and to call again, and from several processes at once.

    Args:
        name: of the registry.
        rules: by which rules a corpus is prepared as well.
        url: where to download from instead: the file's address, or a folder's, ending in `/`.
        keep: whether a downloaded archive stays.

    Raises:
        ConfigError: there is no such name, or no such rule.
        DataMissing: it cannot be downloaded; says which files to put where.
        DataError: a file is there and is another one, or the disk is too full.
    """
    it = registry.entry(name)
    _known_rules(name, it, rules)
    to_prepare = [rule for rule in rules if not prepared(name, [rule])]
    done: list[str] = []
    with writing(it.place):
        if not by_authors_scripts(it):
            if absent(it):
                with alone(it.place / name):
                    _adopt(it)
                    done = _obtain(name, it, url, len(to_prepare))
            for content, known in it.contents.items():
                download.verify(it.place / content, known.checksums, known.bytes)
        if not keep:
            _tidy(it)
        check_room(it, None, len(to_prepare))
    with writing(store.root() / "prepared"):
        for rule in rules:
            load(Published, {"name": name, "rule": rule}).open()
    return Got(it.place, tuple(done), tuple(rules))


def _known_rules(name: str, it: Entry, rules: Sequence[str]) -> None:
    for rule in rules:
        if not it.rules:
            raise ConfigError(f"rule: got '{rule}', but {name} is a checkpoint, which has no rules")
        if rule not in it.rules:
            raise ConfigError(f"{name} has no rule '{rule}'. {nearest(rule, [*it.rules])}")


def absent(it: Entry) -> list[str]:
    """The contents that are not there."""
    return [name for name in it.contents if not (it.place / name).is_file()]


def by_authors_scripts(it: Entry) -> bool:
    """Whether the text lies there as the authors' scripts prepare it, which is as good."""
    # more files than three are no splits
    named = it.kind == "corpus" and len(it.contents) <= len(SPLITS)
    return named and all((it.place / f"{s}.txt").is_file() for s in SPLITS)


def _adopt(it: Entry) -> None:
    """Take what somebody unpacked there, in the archive's own folders, to its place."""
    for inside, name in (m for s in it.sources for f in s.files for m in f.members.items()):
        if (it.place / inside).is_file() and not (it.place / name).is_file():
            (it.place / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(it.place / inside, it.place / name)


def _obtain(name: str, it: Entry, url: str | None, n_rules: int) -> list[str]:
    """Fetch what is missing, from the first source that has it."""
    if not absent(it):
        # another process was quicker
        return []
    tried = ""
    # what somebody put there is used first
    for source in sorted(it.sources, key=lambda s: -sum(_there(it, f) for f in s.files)):
        check_room(it, source, n_rules)
        try:
            return [done for file in source.files for done in _take(it, file, url)]
        except download.NotFetched as error:
            tried += error.tried
    raise DataMissing(f"{name}: {tried}What has arrived is kept. {registry.by_hand(name)}")


def _there(it: Entry, file: Download) -> bool:
    return (it.place / file.name).is_file()


def _take(it: Entry, file: Download, url: str | None) -> list[str]:
    """Fetch one file and unpack what is missing of it; names of what came."""
    wanted = set(absent(it)) & set(file.yields)
    if not wanted:
        return []
    urls = file.urls if url is None else [f"{url}{file.name}" if url.endswith("/") else url]
    path = it.place / file.name
    download.fetch(urls, path, bytes=file.bytes, checksums=file.checksums)
    if file.members:
        members = {inside: out for inside, out in file.members.items() if out in wanted}
        # sizes that are not known exactly may be somewhat larger
        limit = 2 * sum(it.contents[out].size for out in members.values())
        archives.extract(path, members, it.place, limit_bytes=limit)
    return sorted(wanted)


def _tidy(it: Entry) -> None:
    """Remove archives; their contents are there."""
    for file in (f for source in it.sources for f in source.files if f.members):
        # by name: what somebody else put beside them stays
        for ending in ("", ".sha256", ".part", ".part.json", ".lock"):
            (it.place / f"{file.name}{ending}").unlink(missing_ok=True)


def check_room(it: Entry, source: Source | None, n_rules: int) -> None:
    """Refuse what the disk cannot hold, before anything is spent.

    Args:
        it: the entry.
        source: what is to be downloaded; None: nothing.
        n_rules: by how many rules it is to be prepared.

    Raises:
        DataError: too little is free.
    """
    missing = set(absent(it)) if source else set()
    files = [f for f in source.files if f.members and missing & set(f.yields)] if source else []
    packed = sum(f.size for f in files if not _there(it, f))
    unpacked = sum(it.contents[name].size for name in missing)
    # token ids take less than the text that they stand for; on the way they lie there twice
    ids = it.size * (n_rules + 1) if n_rules else 0
    needed, free = packed + unpacked + ids, free_bytes(it.place)
    if needed > free:
        words = registry.in_words
        raise DataError(
            f"{it.place}: got {words(free)} free, expected {words(needed)} ({words(packed)} to "
            f"download, {words(unpacked)} unpacked, {words(ids)} to prepare). Make room, or set "
            "the environment variable WORKBENCH_DATA to a folder on another disk"
        )


def free_bytes(place: Path) -> int:
    """Free space where a folder is, or will be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check(name: str) -> list[Finding]:
    """Read all of an entry's files and prepared corpora again and compare them with what is known.

    Raises:
        ConfigError: there is no such name.
        DataMissing: none of it is there.
    """
    it = registry.entry(name)
    if by_authors_scripts(it):
        said = "there, as the authors' scripts prepare the text; nobody says its checksum"
        found = [Finding(f"{split}.txt", said, True) for split in SPLITS]
    elif len(absent(it)) == len(it.contents):
        raise DataMissing(f"{name}: got none of its files. {registry.by_hand(name)}")
    else:
        found = [_file(it, content, known) for content, known in it.contents.items()]
    return [*found, *(_corpus(it, folder) for folder in prepared(name))]


def _file(it: Entry, content: str, known: Known) -> Finding:
    path = it.place / content
    if not path.is_file():
        return Finding(content, "missing: `workbench data get` goes on from what is there", False)
    first = not path.with_name(f"{path.name}.sha256").is_file()
    try:
        download.verify(path, known.checksums, known.bytes)
    except DataError as error:
        return Finding(content, f"differs: {error}", False)
    except OSError as error:
        return Finding(content, f"cannot be read: {path}: {error.strerror}", False)
    if known.checksums:
        return Finding(
            content, f"as published ({', '.join(known.checksums)}: {known.said_by})", True
        )
    return Finding(content, "recorded now" if first else "as recorded at its first use", True)


def prepared(name: str, rules: Sequence[str] = ()) -> list[Path]:
    """The folders of a corpus as it was prepared, by these rules or by any."""
    wanted = rules or [*registry.entry(name).rules]
    found = [store.root().glob(f"prepared/published-{name}-{rule}-*") for rule in wanted]
    return sorted(folder for some in found for folder in some if (folder / "info.json").is_file())


def _corpus(it: Entry, folder: Path) -> Finding:
    try:
        corpus = store.open_prepared(folder)
        corpus.check()
    except (DataError, store.Damaged) as error:
        said = f"damaged: {error}. Delete the folder {folder}; it is prepared again on next use"
        return Finding(folder.name, said, False)
    facts, tokens = it.rules[corpus.info["rule"]], corpus.info["tokens"]
    sizes = " / ".join(f"{tokens[split]:,}" for split in SPLITS)
    what = f"{corpus.info['rule']}, {corpus.vocabulary.size:,} symbols, {sizes} tokens"
    if fault := facts.fault(corpus.info["vocabulary_size"], tokens):
        return Finding(what, f"{fault}: another text than the published one", False)
    unsaid = "" if facts.tokens else "; no source says how many tokens"
    return Finding(what, f"as published{unsaid if facts.verified else ', as far as known'}", True)


def state(name: str) -> str:
    """What of an entry is here, in words."""
    it = registry.entry(name)
    if rules := [rule for rule in it.rules if prepared(name, [rule])]:
        return f"prepared: {', '.join(rules)}"
    missing = 0 if by_authors_scripts(it) else len(absent(it))
    if missing == len(it.contents):
        archives = any(_there(it, file) for source in it.sources for file in source.files)
        return "to unpack" if archives else "absent"
    return f"{missing} of {len(it.contents)} files missing" if missing else "downloaded"


def why_there() -> str:
    """Why the data folder is where it is."""
    if os.environ.get("WORKBENCH_DATA"):
        return "the environment variable WORKBENCH_DATA"
    own = (store.root() / "registry.yaml").is_file()
    return "data/ of this checkout" if own else "this user's cache folder"


def folders(name: str) -> Iterator[tuple[Path, int]]:
    """The folders of an entry that exist, with their bytes on the disk."""
    it = registry.entry(name)
    own = it.place if it.kind == "corpus" else None
    for folder in [*([own] if own else []), *prepared(name)]:
        if folder.is_dir():
            yield folder, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    for path in (it.place / content for content in it.contents if own is None):
        if path.is_file():
            yield path, path.stat().st_size
