"""Where a text of the user's lies: files, folders and patterns, listed in an order that stays.

Whatever is named or matches is read, or refused by name; nothing is left out silently. Links are
followed, to folders too; a file or folder that is reached twice (by a link, or by two of the names
given) counts once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from workbench.data.pieces import Member
from workbench.errors import DataError, DataMissing

COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".zip")
MAGIC = "*?["


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name.removesuffix(next((e for e in COMPRESSED if name.endswith(e)), ""))


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


def find(paths: Sequence[str], glob: str) -> list[Member]:
    """The files of a text: in the order of `paths`, sorted by name inside a folder or pattern.

    Args:
        paths: files, folders and patterns such as `books/**/*.txt`; `~` is the home folder.
        glob: which files of a folder belong to the text.

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
        root, files = _expand(path, glob)
        roots.append(root)
        for file in files:
            facts = _facts(file)
            found.setdefault((facts.st_dev, facts.st_ino), (file, facts))
    root = Path(os.path.commonpath(roots))
    return [
        Member(file.relative_to(root).as_posix(), file, facts.st_size, facts.st_mtime_ns)
        for file, facts in found.values()
    ]


def _expand(path: str, glob: str) -> tuple[Path, list[Path]]:
    """The folder that a path's names start from, and its files."""
    full = Path(path).expanduser().absolute()
    mode = _mode(full)
    if mode is None and any(c in path for c in MAGIC):
        parts = full.parts
        n = next(i for i, part in enumerate(parts) if any(c in part for c in MAGIC))
        full, glob = Path(*parts[:n]), "/".join(parts[n:])
        mode = _mode(full)
    if mode is None:
        raise DataMissing(
            f"corpus.path: got '{path}', which is not there ({full}), expected a text file, a "
            "folder or a pattern. Correct the path or put the text there; a relative path starts "
            f"from the working directory {Path.cwd()}."
        )
    if not stat.S_ISDIR(mode):
        return full.parent, [full]
    if files := sorted(_walk(full, glob), key=lambda file: file.relative_to(full).as_posix()):
        return full, files
    raise DataMissing(
        f"corpus.path: got the folder {full} without a file that matches '{glob}', expected text "
        "files. Put them there, or set corpus.glob, for example '**/*.md'."
    )


def _walk(folder: Path, pattern: str) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise _unreadable(Path(str(error.filename)), error)

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
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _facts(file: Path) -> os.stat_result:
    """Size and time of a regular file that may be read."""
    try:
        facts = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(
            f"{file}: got a device, pipe or socket, expected a file: a text is read more than "
            "once. Write it to a file, or give its lines to workbench.data.from_strings."
        )
    if not os.access(file, os.R_OK):
        raise _unreadable(file, PermissionError("Permission denied"))
    return facts


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: got '{error.strerror or error}', expected a text that can be read. Correct its "
        "permissions or the link, or leave it out (corpus.path, corpus.glob)."
    )
