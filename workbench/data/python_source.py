"""The corpus that is on every machine: the source text of Python's standard library.

`.py` files below the running Python's `stdlib` folder at byte level, without tests and installed
packages, without files that are no UTF-8 text, and each text once. It differs from one Python
version to the next, so results are comparable between runs with the same recorded sha256 only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sysconfig
from pathlib import Path
from typing import Literal

from workbench.data import store
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.pieces import Member, member, split_by_file, whole
from workbench.data.vocabulary import BYTES, ByteVocabulary
from workbench.errors import DataMissing

logger = logging.getLogger("workbench")
MIN_BYTES = 8_000_000
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
RULE = (
    "whole files in order of the sha256 of their names, large ones to train; "
    "90/5/5 by bytes; a newline after each file"
)


class PythonSource(CorpusConfig):
    """The standard library of the running Python, byte level, split 90/5/5 by whole files."""

    kind: Literal["python-source"] = "python-source"

    @property
    def n_symbols(self) -> int:
        return ByteVocabulary.size

    def open(self) -> Corpus:
        """Prepare on first use (about a second), then map the files.

        Raises:
            DataMissing: this Python has less than 8 MB of source text beside it.
        """
        folder = stdlib_folder()
        listed = listing(folder)
        self._enough(listed, folder)
        version = platform.python_version()
        name = f"python-source-{version}-{store.key(listed, {'rule': RULE})}"

        def build(target: Path) -> None:
            members = texts(listed)
            self._enough(members, folder)
            chosen = split_by_file(members, (0.9, 0.05, 0.05), largest=0.25)
            about = {
                "name": "python-source",
                "source": str(folder),
                "python": version,
                "implementation": platform.python_implementation(),
                "split_rule": RULE,
                "left_out": len(listed) - len(members),
            }
            splits = {s: whole(chosen[s]) for s in chosen}
            split_of = {m.name: s for s, group in chosen.items() for m in group}
            store.write(target, splits, BYTES, members, split_of, about)
            logger.info("prepared python-source: %d files of Python %s", len(members), version)

        return store.obtain(name, build)

    @staticmethod
    def _enough(members: list[Member], folder: Path) -> None:
        got = sum(m.bytes for m in members)
        if got < MIN_BYTES:
            raise DataMissing(
                f"python-source: got {got:,} bytes in {len(members)} .py files below {folder}, "
                f"expected at least {MIN_BYTES:,}. Use a complete Python (Debian and Ubuntu: "
                "apt-get install libpython3-stdlib; conda and python.org builds are complete), or "
                "a text of your own: `corpus: {kind: text, path: ...}`."
            )


def stdlib_folder() -> Path:
    """Where the running Python keeps the modules of its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def listing(folder: Path) -> list[Member]:
    """The `.py` files below a folder in order of their POSIX names, tests and packages left out."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in LEFT_OUT]
        for name in names:
            path = Path(here, name)
            if name.endswith(".py") and not name.startswith("test_") and path.is_file():
                found.append(member(path, path.relative_to(folder).as_posix()))
    return sorted(found)


def texts(members: list[Member]) -> list[Member]:
    """Those files that hold UTF-8 text, each text only once (a copy would leak between splits)."""
    kept, seen = [], set()
    for m in members:
        try:
            data = m.path.read_bytes()
            data.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(data).digest()
        if data and b"\0" not in data and digest not in seen:
            seen.add(digest)
            kept.append(m)
    return kept
