"""The folder of prepared corpora: written aside, moved into place whole, checked when opened.

A prepared corpus is `<root>/prepared/<name>-<key>/` with `info.json`, `files.jsonl` (sha256,
bytes, split, path of each source file), `vocabulary.json` and `train.bin valid.bin test.bin`. The
key is a digest of everything that the contents follow from. One process prepares a corpus and
the others wait for it; a lock in `<root>/locks` sees to it, which ends with its holder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.data.corpus import Corpus
from workbench.data.crew import hire
from workbench.data.pieces import SPLITS, Member, Piece, check_unchanged
from workbench.data.places import alone, aside, writing
from workbench.data.prepare import Rule, Tokens, hash_jobs, write_tokens
from workbench.data.vocabulary import restore
from workbench.errors import DataError

logger = logging.getLogger("workbench")
FORMAT = 3
TOLD = {"name", "unit", "vocabulary_size", "unknown", "sha256", "tokens_sha256"}
"""what others read of `info.json`"""


class Damaged(Exception):
    """A prepared folder is not whole; it is made again, so no user meets this."""


def root() -> Path:
    """Where data lives: $WORKBENCH_DATA, else `data/` of the checkout, else the user's cache."""
    if told := os.environ.get("WORKBENCH_DATA"):
        # not that of pathlib, which stops at a user that is not there
        return Path(os.path.expanduser(told)).absolute()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data" / "README.md").is_file():
        return checkout / "data"
    import pooch  # here: it is slow to import and not needed in a checkout

    return Path(pooch.os_cache("workbench"))


def key(members: Sequence[Member], options: dict[str, Any]) -> str:
    """Digest of what the prepared files follow from: places, sizes, times, options, format."""
    facts = [FORMAT, options, [(m.name, str(m.path), m.bytes, m.mtime_ns) for m in members]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def obtain(name: str, build: Callable[[Path], None]) -> Corpus:
    """Open the prepared corpus `name`; build it first if it is absent or damaged.

    Args:
        name: the folder's name, with the key in it.
        build: fills an empty folder; called only if needed.
    """
    folder = root() / "prepared" / name
    for _ in range(5):
        if folder.exists():
            try:
                return open_prepared(folder)
            except Damaged as fault:
                logger.warning("prepared corpus %s is damaged (%s): making it again", folder, fault)
        _make(folder, build)
    raise DataError(
        f"{folder}: got a damaged folder five times, expected a prepared corpus to stay whole. "
        "Does another program write there? Set WORKBENCH_DATA to a folder of your own."
    )


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    """Build aside, then move into place; whatever happens, nothing unfinished keeps its name."""
    with writing(folder), alone(root() / "locks" / folder.name), aside(folder.parent) as beside:
        if folder.exists() and _whole(folder):
            # another process has made it meanwhile
            return
        fresh, old = beside / "fresh", beside / "old"
        fresh.mkdir()
        build(fresh)
        if folder.exists():
            _move(folder, old)
        _move(fresh, folder)


def spool(blocks: Iterable[bytes], folder: Path, name: str) -> Path:
    """Write `<folder>/<name>-<digest>.txt`, whole or not at all; one that is there stays."""
    digest = hashlib.sha256()
    with aside(folder) as beside:
        fresh = beside / "fresh"
        # an error of whoever gives the blocks is none of this disk
        for several in _joined(blocks):
            digest.update(several)
            with writing(folder), fresh.open("ab") as file:
                file.write(several)
        path = folder / f"{name}-{digest.hexdigest()[:16]}.txt"
        if not path.is_file():
            with writing(folder):
                _move(fresh, path)
    return path


def _joined(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks of at least a MiB, but for the last."""
    held, size = list[bytes](), 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= 1 << 20:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _move(source: Path, target: Path) -> None:
    """Rename, where another process may have been quicker: then its result is as good."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _whole(folder: Path) -> bool:
    try:
        open_prepared(folder)
    except Damaged:
        return False
    return True


def write(
    folder: Path,
    splits: dict[str, list[Piece]],
    rule: Rule,
    members: Sequence[Member],
    split_of: dict[str, str],
    about: dict[str, Any],
    edges: bool = False,
) -> dict[str, Any]:
    """Write the token files and the vocabulary, record everything.

    Args:
        folder: an empty folder.
        splits: the pieces of each split, none where there is no such split; above byte level each
            ends with the end of a symbol.
        rule: how symbols get ids: `Counted`, or a vocabulary made beforehand.
        members: the source files, for the record.
        split_of: split of each file's name, where whole files are split ("" otherwise).
        about: further entries of `info.json`; "name" among them.
        edges: record where the tokens of each file begin, as "edges" of `info.json`.

    Returns:
        what `info.json` says.

    Raises:
        DataError: the text cannot be decoded, or a split is left without two tokens.
    """
    n_bytes = {s: sum(p.stop - p.start for p in splits[s]) for s in SPLITS}
    with hire(sum(n_bytes.values())) as work:
        hashing = work.map(hash_jobs(members))
        written = write_tokens(folder, rule, splits, work, edges)
        hashes = [sha256 for some in hashing for sha256 in some]
    vocabulary = written.vocabulary
    info: dict[str, Any] = {
        **about,
        "format": FORMAT,
        "level": vocabulary.level,
        "unit": {"word": "word", "bpe": "token"}.get(vocabulary.level, "character"),
        "vocabulary_size": vocabulary.size,
        "dtype": vocabulary.dtype().str,
        "files": len(members),
        "bytes": n_bytes,
        "tokens": written.tokens,
        "unknown": written.unknown,
        "replaced": written.replaced,
        "tokens_sha256": written.tokens_sha256,
        **({"edges": written.edges} if edges else {}),
    }
    _check_length(about["name"], written, splits, sum(n_bytes.values()))
    info["sha256"] = _record_files(folder, members, split_of, hashes)
    names = ("vocabulary.json", "files.jsonl")
    info["sizes"] = {name: (folder / name).stat().st_size for name in names}
    info["files_sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names
    }
    record(folder, info)
    return info


def _check_length(name: str, written: Tokens, splits: dict[str, list[Piece]], n_bytes: int) -> None:
    """Refuse a split without a token to read and one to predict."""
    if min(n for split, n in written.tokens.items() if splits[split]) < 2:
        got = ", ".join(f"{split} {n}" for split, n in written.tokens.items())
        raise DataError(
            f"{name}: got a text of {n_bytes} bytes that gives {got} tokens at "
            f"{written.vocabulary.level} level, expected at least 2 in each split. Use a longer "
            "text or a larger share for the short split."
        )


def record(folder: Path, info: dict[str, Any]) -> None:
    """Write `info.json`."""
    (folder / "info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


def _record_files(
    folder: Path, members: Sequence[Member], split_of: dict[str, str], hashes: Sequence[str]
) -> str:
    """Write the list of source files; sha256 of the only file, or of the list for several.

    Raises:
        DataError: a file changed since it was listed, so the record would be of another text.
    """
    check_unchanged(members)
    lines = []
    for m, sha256 in zip(members, hashes, strict=True):
        split = split_of.get(m.name, "")
        facts = {"sha256": sha256, "bytes": m.bytes, "split": split, "path": m.name}
        lines.append(json.dumps(facts) + "\n")
    manifest = "".join(lines).encode("ascii")
    (folder / "files.jsonl").write_bytes(manifest)
    return hashes[0] if len(members) == 1 else hashlib.sha256(manifest).hexdigest()


def open_prepared(folder: Path) -> Corpus:
    """Map the token files of a prepared folder.

    Raises:
        Damaged: a file is absent, unreadable or not of the recorded size.
    """
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise Damaged(f"format {info['format']}, expected {FORMAT}")
        if lacking := TOLD - info.keys():
            raise Damaged(f"info.json lacks {', '.join(sorted(lacking))}")
        dtype = np.dtype(info["dtype"])
        splits = {}
        for name in SPLITS:
            path, expected = folder / f"{name}.bin", info["tokens"][name] * dtype.itemsize
            if path.stat().st_size != expected:
                raise Damaged(f"{path.name} has {path.stat().st_size} bytes, expected {expected}")
            # copy-on-write: the tensor may not promise to be read-only, the file stays as it is
            ids = np.memmap(path, dtype=dtype, mode="c") if expected else np.empty(0, dtype)
            splits[name] = torch.from_numpy(np.asarray(ids))
        for name in ("vocabulary.json", "files.jsonl"):
            if (got := (folder / name).stat().st_size) != (expected := info["sizes"][name]):
                raise Damaged(f"{name} has {got} bytes, expected {expected}")
        symbols = partial(restore, info["level"], folder / "vocabulary.json")
        return Corpus(folder, info, symbols, splits)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
