"""Where a text of the user's lies: files, folders, patterns and archives, in an order that stays.

Whatever is named or matches is read, or refused by name; nothing is left out silently. Links are
followed, to folders too; a file or folder that is reached twice (by a link, or by two of the names
given) counts once.

A compressed file (gz, xz, bz2, zst) is the file that it holds, an archive (zip, tar, also a
compressed tar) a folder of files. Both are listed as they are and unpacked only to be prepared.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path

from workbench.data import archives
from workbench.data.compressed import ENDINGS, Blocks, unpacked
from workbench.data.pieces import Member, member, readable
from workbench.errors import DataError, DataMissing

logger = logging.getLogger("workbench")
ARCHIVES = (".zip", ".tar", ".tgz", *(".tar" + ending for ending in ENDINGS))
MAGIC = "*?["
ROOM_BYTES = 256 << 20
"""what unpacking leaves free on the disk"""


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    ending = next((e for e in (*ENDINGS, ".zip") if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def fixed(pattern: str) -> str:
    """The folders of a pattern before the first part with a wildcard; all of a plain path."""
    parts = Path(pattern).parts
    n = next((i for i, part in enumerate(parts) if any(c in part for c in MAGIC)), len(parts))
    return str(Path(*parts[:n]))


def matches(name: str, pattern: str) -> bool:
    """Whether a relative POSIX path fits a pattern, in which `**` is any number of folders.

    The ending of a compressed file does not count: `a.txt.gz` fits `*.txt`.
    """
    wanted = pattern.split("/")
    return any(_fit(n.split("/"), wanted) for n in {name, plain_name(name)})


def _fit(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_fit(parts[i:], rest or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], first) and _fit(parts[1:], rest)


def find(paths: Sequence[str], glob: str, where: str = "corpus.path") -> list[Member]:
    """The files of a text: in the order of `paths`, sorted by name inside a folder or pattern.

    Args:
        paths: files, folders and patterns such as `books/**/*.txt`; `~` is the home folder.
        glob: which files of a folder belong to the text.
        where: what the messages call `paths`.

    Returns:
        the files, their names relative to the folder that holds all of `paths`; compressed ones
        as they are.

    Raises:
        DataMissing: a path is not there, or no file matches.
        DataError: something cannot be read, or is no file (a device, a pipe).
    """
    found: dict[tuple[int, int], tuple[Path, os.stat_result]] = {}
    roots = []
    for path in paths:
        root, files = _expand(path, glob, where)
        roots.append(root)
        for file in files:
            facts = _facts(file)
            found.setdefault((facts.st_dev, facts.st_ino), (file, facts))
    root = Path(os.path.commonpath(roots))
    return [
        Member(file.relative_to(root).as_posix(), file, facts.st_size, facts.st_mtime_ns)
        for file, facts in found.values()
    ]


def _expand(path: str, glob: str, where: str) -> tuple[Path, list[Path]]:
    """The folder that a path's names start from, and its files."""
    # not that of pathlib, which stops at a user that is not there
    full = Path(os.path.expanduser(path)).absolute()
    mode = _mode(full)
    if mode is None and any(c in path for c in MAGIC):
        n = len(Path(fixed(str(full))).parts)
        full, glob = Path(*full.parts[:n]), "/".join(full.parts[n:])
        mode = _mode(full)
    if mode is None:
        raise DataMissing(
            f"{where}: got '{path}', which is not there ({full}), expected a text file, a "
            "folder or a pattern. Correct the path or put the text there; a relative path starts "
            f"from the working directory {Path.cwd()}."
        )
    if not stat.S_ISDIR(mode):
        return full.parent, [full]
    names = {file.relative_to(full).as_posix(): file for file in _walk(full, glob)}
    if twice := sorted(n for n in names if n != plain_name(n) and plain_name(n) in names):
        logger.warning("%s: left out, the same text is there unpacked: %s", full, ", ".join(twice))
    if names:
        return full, [names[n] for n in sorted(names) if n not in twice]
    other = next(_walk(full, "**/*"), None)
    example = f"**/*{other.suffix}" if other else "**/*.md"
    raise DataMissing(
        f"{where}: got the folder {full} without a file that matches '{glob}'"
        f"{f' ({other.name} does not)' if other else ''}, expected text files. Put them there, or "
        f"set corpus.glob, for example '{example}'."
    )


def _walk(folder: Path, pattern: str) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        with readable(Path(str(error.filename))):
            raise error

    seen = set()
    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in seen:
            # a link led here again, in a loop perhaps
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort()
        below = Path(here).relative_to(folder)
        yield from (Path(here, n) for n in names if matches((below / n).as_posix(), pattern))


def _mode(path: Path) -> int | None:
    """The kind of what is there; None where nothing is."""
    with readable(path):
        try:
            return path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None


def _facts(file: Path) -> os.stat_result:
    """Size and time of a regular file that may be read."""
    with readable(file):
        facts = file.stat()
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(
            f"{file}: got a device, pipe or socket, expected a file: a text is read more than "
            "once. Write it to a file, or give its lines to workbench.data.from_strings."
        )
    return facts


def unpack(members: Sequence[Member], folder: Path, glob: str, limit_bytes: int) -> list[Member]:
    """The same text in plain files: what is compressed is written to a folder, the rest stays.

    Args:
        members: as `find` gives them.
        folder: where to; names in it are numbers, whatever an archive says.
        glob: which files of an archive belong to the text.
        limit_bytes: of all that is written.

    Raises:
        DataMissing: no file of an archive matches.
        DataError: it is more than the limit or the disk can hold, damaged, or hostile.
    """
    plain: list[Member] = []
    written = 0
    for m in members:
        if not m.name.lower().endswith((*ENDINGS, *ARCHIVES)):
            plain.append(m)
            continue
        parts: list[Member] = []
        # closed at once, so that no file stays open where this ends early
        with closing(_contents(m, glob, limit_bytes)) as contents:
            for name, blocks in contents:
                place, left = folder / str(len(plain) + len(parts)), limit_bytes - written
                too_large = (
                    f"{m.path}: got more than {left:,} unpacked bytes, expected no more: that is "
                    "what other files leave of corpus.max_unpacked_bytes. Raise it if all are to "
                    "be trusted."
                )
                with closing(blocks):
                    archives.spool(_with_room(blocks, folder, m.path), place, left, too_large)
                parts.append(member(place, name))
                written += parts[-1].bytes
        if not parts:
            raise DataMissing(
                f"{m.path}: got an archive without a file that matches '{glob}', expected text "
                "files. Set corpus.glob, for example '**/*'."
            )
        plain += sorted(parts)
    return plain


def _contents(m: Member, glob: str, limit_bytes: int) -> Generator[tuple[str, Blocks], None, None]:
    """The files inside a compressed file or archive."""
    if not m.name.lower().endswith(ARCHIVES):
        yield m.name, unpacked(m.path)
        return
    for part in archives.read(m.path, lambda n: matches(n, glob), limit_bytes=limit_bytes):
        yield f"{m.name}/{part.name}", part.blocks


def _with_room(blocks: Iterator[bytes], folder: Path, source: Path) -> Iterator[bytes]:
    """The same blocks, as long as the disk has room for more than these."""
    for number, block in enumerate(blocks):
        if number % 16 == 0 and (free := shutil.disk_usage(folder).free) < ROOM_BYTES:
            raise DataError(
                f"{folder}: got {free:,} bytes of free space while {source.name} is unpacked, "
                f"expected {ROOM_BYTES:,} at least. Make room, or set WORKBENCH_DATA to a folder "
                "on a larger disk."
            )
        yield block
