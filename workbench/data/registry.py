"""The registry: every published corpus and checkpoint as `data/registry.yaml` describes it.

An entry has `sources`, tried in their order. Each is files with their addresses, and what becomes
of them: an archive gives the `members` named, another file is taken as it is. Every source yields
the same `contents`, so that a mirror may serve another archive or the bare files. Contents lie in
`<root>/<folder>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from workbench.config import Config, Positive, dump, load, model_validator, nearest
from workbench.data import store
from workbench.data.archives import leads_out
from workbench.errors import ConfigError

CHECKSUMS = {"sha256": 64, "sha512": 128, "sha1": 40, "md5": 32}
"""kinds of checksums, the one to prefer first, and their hexadecimal digits"""


class Known(Config):
    """What is known of a file: its size, and checksums where a source gives them."""

    bytes: Positive | None = None
    """size, where it is known for certain"""
    about_bytes: Positive | None = None
    """size for messages and for the space on the disk, where the exact one is not known"""
    sha256: str | None = None
    sha512: str | None = None
    sha1: str | None = None
    md5: str | None = None
    said_by: str = ""
    """who says so"""

    @model_validator(mode="after")
    def _sound(self) -> Known:
        if (self.bytes is None) == (self.about_bytes is None):
            raise ValueError("give either bytes or about_bytes")
        for kind, digits in CHECKSUMS.items():
            value = getattr(self, kind)
            if value is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
                raise ValueError(f"{kind}: got '{value}', expected {digits} hexadecimal digits")
        if self.checksums and not self.said_by:
            raise ValueError("a checksum needs its source in said_by")
        return self

    @property
    def size(self) -> int:
        """Bytes, as exactly as they are known."""
        return self.bytes or self.about_bytes or 0

    @property
    def checksums(self) -> dict[str, str]:
        """The known checksums by kind, the one to prefer first."""
        return {kind: value for kind in CHECKSUMS if (value := getattr(self, kind))}


class Download(Known):
    """One file to download."""

    name: str
    """what it is called on this disk"""
    urls: tuple[str, ...]
    """its addresses, tried in this order"""
    members: dict[str, str] = {}
    """of an archive: path inside -> name among the contents; none: it is itself one of them"""

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, data: Any) -> Any:
        pairs = data.get("members", {}).items()
        both = (zip(names(a), names(b), strict=True) for a, b in pairs)
        return {**data, "members": {a: b for some in both for a, b in some}}

    @property
    def yields(self) -> tuple[str, ...]:
        """The contents that it gives."""
        return tuple(self.members.values()) or (self.name,)


class Source(Config):
    """One way to all contents."""

    files: tuple[Download, ...]
    note: str = ""
    """whose it is"""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)

    @property
    def exact(self) -> bool:
        """Whether that is known for certain."""
        return all(file.bytes for file in self.files)


class Licence(Config):
    """Under which terms others gave it away; no legal advice."""

    name: str
    note: str
    url: str


class Tokens(Config):
    """Tokens of each split, `<eos>` included."""

    train: Positive
    valid: Positive
    test: Positive


class RuleFacts(Config):
    """What a corpus gives when it is prepared by the rule of one code base."""

    symbols: Positive
    """size of the vocabulary"""
    verified: bool = True
    """whether a source says so; false: assumed from what papers say roughly"""
    tokens: Tokens | None = None
    """where a source says them"""
    about: str = ""
    """what is special in it"""
    comparable: str
    """with which published numbers a result may be compared"""

    def fault(self, symbols: int, tokens: Mapping[str, int]) -> str:
        """How a prepared corpus differs from the published one; nothing where it does not."""
        known = {"symbols": self.symbols, **(dump(self.tokens) if self.tokens else {})}
        got = {"symbols": symbols, **tokens}
        differ = [f"{what} {got[what]:,}" for what in known if got[what] != known[what]]
        expected = [f"{what} {count:,}" for what, count in known.items()]
        about = "" if self.verified else "about "
        if not differ:
            return ""
        return f"got {', '.join(differ)}, expected {about}{', '.join(expected)}"


class Entry(Config):
    """A published corpus or checkpoint."""

    kind: Literal["corpus", "checkpoint"] = "corpus"
    title: str
    """what it is, in a line"""
    licence: Licence
    folder: str = ""
    """below the data folder; by default the entry's name"""
    sources: tuple[Source, ...]
    contents: dict[str, Known]
    """the files that are kept, by name below the folder"""
    level: Literal["byte", "char", "word"] | None = None
    """what a symbol is"""
    split: str = ""
    """how train, valid and test are cut"""
    rules: dict[str, RuleFacts] = {}
    """by whose preparation: what comes out"""

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, data: Any) -> Any:
        known = {name: facts for key, facts in data["contents"].items() for name in names(key)}
        return {**data, "contents": known}

    @model_validator(mode="after")
    def _whole(self) -> Entry:
        for source in self.sources:
            given = sorted(name for file in source.files for name in file.yields)
            if given != sorted(self.contents):
                raise ValueError(f"sources: got the files {given}, expected the contents")
        outside = [n for n in self.contents if leads_out(n)]
        if outside:
            raise ValueError(f"contents: got {outside}, expected names below the folder")
        if (self.kind == "corpus") != bool(self.level and self.split and self.rules):
            raise ValueError("a corpus has level, split and rules; a checkpoint has none of them")
        return self

    @property
    def size(self) -> int:
        """Bytes of all contents."""
        return sum(known.size for known in self.contents.values())

    @property
    def place(self) -> Path:
        """Where the contents lie, or should."""
        return store.root() / self.folder


def names(pattern: str) -> Iterator[str]:
    """The names that `a-{01..12}` stands for; a name without braces stands for itself."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if found is None:
        yield pattern
        return
    head, first, last, tail = found.groups()
    for number in range(int(first), int(last) + 1):
        yield f"{head}{number:0{len(first)}}{tail}"


def file() -> Path:
    """`data/registry.yaml` of the checkout, else where the installed package put it."""
    checkout = Path(__file__).resolve().parents[2] / "data" / "registry.yaml"
    if checkout.is_file():
        return checkout
    for installed in metadata.files("workbench") or ():
        if installed.parts[-2:] == ("data", "registry.yaml"):
            return Path(str(installed.locate()))
    raise AssertionError("the package was installed without data/registry.yaml")


@cache
def entries() -> Mapping[str, Entry]:
    """All entries by name."""
    data = yaml.safe_load(file().read_text("utf-8"))
    return {name: load(Entry, {"folder": name, **facts}, name) for name, facts in data.items()}


def entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    known = entries()
    if name not in known:
        raise ConfigError(f"there is no published data '{name}'. {nearest(name, [*known])}")
    return known[name]


def symbols() -> dict[tuple[str, str], int]:
    """(corpus, rule): size of its vocabulary."""
    found = ((name, e.rules) for name, e in entries().items())
    return {(name, rule): facts.symbols for name, rules in found for rule, facts in rules.items()}


def in_words(size: float) -> str:
    """A number of bytes for people: 36.4 MB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def by_hand(name: str) -> str:
    """How to have these data: the command, or which files to put where without a network."""
    it = entry(name)
    lines = [
        f"Run `workbench data get {name}` ({in_words(it.sources[0].size)} to download). Without "
        f"internet put files into the folder {it.place}, then run the same command:"
    ]
    for either, source in zip(("either", *["or"] * len(it.sources)), it.sources, strict=False):
        for wanted in source.files:
            lines.append(f"  {either} {described(wanted)} from {' or '.join(wanted.urls)}")
            either = "and"
    if any(wanted.members for wanted in it.sources[0].files):
        several = len(it.contents) > 4
        kept = f"{len(it.contents)} files such as " if several else ""
        lines.append(f"  or unpacked: {kept}{', '.join([*it.contents][: 1 if several else None])}")
    return "\n".join(lines)


def described(wanted: Download) -> str:
    """A file's name, size and checksum."""
    size = f"{wanted.bytes:,} bytes" if wanted.bytes else f"about {in_words(wanted.size)}"
    first = next(iter(wanted.checksums.items()), None)
    return f"{wanted.name} ({size}{', {} {}'.format(*first) if first else ''})"
