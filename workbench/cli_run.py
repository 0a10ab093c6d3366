"""`workbench run`: a notebook from the command line, with typed parameters; it wraps papermill."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workbench.cli_data import say
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.books import Parameter

WIDTH = 100
EVERY_S = 15.0
"""between two lines of progress, where they cannot be rewritten"""
UNSEEN = {i: f"\\x{i:02x}" for i in [*range(32), *range(127, 160)] if chr(i) not in "\n\r\t"}
"""control characters as text: what a notebook prints may come from a text or a run of others"""


def add_run(commands: Any) -> None:
    about = "run a notebook unattended; `workbench run train -h` lists its parameters"
    parser = commands.add_parser(
        "run",
        help=about,
        description="Run a notebook through papermill with the engine `workbench`: parameters are "
        "checked first, what it prints is shown, and what it shows is kept in an executed copy. "
        "Exit status: 0 done, 1 it failed, 2 a message says what to mend, 75 it was stopped, and "
        "the same command goes on.",
        add_help=False,
    )
    parser.add_argument("name", nargs="?", help="of a notebook, or the path of a .ipynb file")
    parser.add_argument(
        *("-p", "--parameter"),
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter, read as the type that the notebook gives it; as often as wanted",
    )
    parser.add_argument("-y", "--yaml", action="append", default=[], help="parameters as YAML")
    parser.add_argument("-f", "--file", type=Path, action="append", default=[], help="a YAML file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the executed copy goes")
    parser.add_argument("-h", "--help", action="store_true", help="with a name: its parameters")
    parser.set_defaults(run=run_notebook, parser=parser)


def run_notebook(given: argparse.Namespace) -> int:
    """Check, run, and say how it went; returns the exit status."""
    if given.name is None:
        if not given.help:
            given.parser.error("which notebook? `workbench run -h` lists them")
        say(f"{given.parser.format_help()}\nnotebooks:\n{_listed()}")
        return 0

    import nbformat

    from workbench import books

    path = books.find(given.name)
    nb = nbformat.read(path, 4)
    known = books.declared(nb) or {}
    if given.help:
        say(describe(path.stem, nb, known))
        return 0
    values = _parameters(given, known)
    folder = _run_folder(known, values)
    executed = given.out or _executed(path.stem, folder)
    return _run(path, executed, values, folder if "out" in known else None)


def _parameters(given: argparse.Namespace, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values of files, of YAML and of single parameters; the later ones count."""
    from workbench import books

    values: dict[str, Any] = {}
    for file in given.file:
        if not file.is_file():
            raise ConfigError(f"-f: there is no file {file}")
        values |= _mapping(f"-f {file}", file.read_text(encoding="utf-8"))
    for text in given.yaml:
        values |= _mapping("-y", text)
    for name, text in given.parameter:
        values[name] = books.read_value(known[name], text) if name in known else text
    books.check(known, values)
    return values


def _mapping(option: str, text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option}: this is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{option}: got {found!r:.60}, expected names and values: '{{steps: 3}}'")
    return found


def _run_folder(known: Mapping[str, Parameter], values: Mapping[str, Any]) -> Path | None:
    """The folder that a notebook writes, or looks at, by its parameters."""
    from workbench import books

    for name in books.FOLDERS:
        if name in known:
            told = values.get(name, known[name].value())
            return books.place(told) if isinstance(told, str) and told else None
    return None


def _executed(name: str, folder: Path | None) -> Path:
    """Where the executed copy goes if nobody says: beside the run folder."""
    from workbench import books

    if folder is None:
        return books.place("runs") / f"{name}.ipynb"
    both = folder.name if folder.name == name else f"{folder.name}-{name}"
    return folder.with_name(f"{both}.ipynb")


def _run(book: Path, executed: Path, values: dict[str, Any], trains: Path | None) -> int:
    """Run it and say how it went.

    Args:
        book: the notebook.
        executed: where its executed copy goes.
        values: of its parameters, checked.
        trains: the run folder that it writes, if any.

    Returns:
        the exit status.
    """
    # papermill and its friends take a second to import
    from workbench.cluster import job

    logging.getLogger("papermill").setLevel(logging.ERROR)
    begin, heard = time.monotonic(), Heard()
    say(f"{book.name}: the executed copy will be {executed}")
    sys.stdout.flush()
    ended = job.attempt(str(book), executed, values, heard)
    heard.end()
    status, state = ended.status, job.state(trains) if trains is not None else ""
    if status == job.DONE and state == "stopped":
        status = job.STOPPED
    if ended.why:
        sys.stderr.write(f"workbench: {ended.why.translate(UNSEEN)}\n")
    words = {job.DONE: "done", job.STOPPED: "stopped; the same command goes on"}
    say(f"{words.get(status, 'failed')} after {time.monotonic() - begin:.0f} s: {executed}")
    if trains is not None and state:
        told = json.loads((trains / "status.json").read_text("utf-8"))
        say(f"run folder: {trains}, {state} at step {told.get('step', 0):,}")
    return status


class Heard:
    """What a notebook prints, on a terminal: progress on one line that is rewritten; elsewhere a
    line of it now and then, and the last."""

    def __init__(self) -> None:
        self.rewrites = sys.stdout.isatty()
        self._said_s, self._progress = time.monotonic(), ""

    def write(self, text: str) -> None:
        """Lines; one that begins with a carriage return replaces the one before it."""
        text = text.translate(UNSEEN)
        if not text.startswith("\r"):
            was_open = bool(self._progress)
            self.end()
            # the end of a bar's line is ours already
            sys.stdout.write(text.removeprefix("\n") if was_open else text)
            return
        # several may come at once: the last one is how it stands
        self._progress = ([part.rstrip() for part in text.split("\r") if part.strip()] or [""])[-1]
        now = time.monotonic()
        if self.rewrites:
            sys.stdout.write(f"\r\x1b[K{self._progress}")
        elif self._progress and now - self._said_s >= EVERY_S:
            say(self._progress)
            self._said_s, self._progress = now, ""

    def flush(self) -> None:
        """It may be long until the next line."""
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the last word about progress as it is."""
        if self._progress:
            say("" if self.rewrites else self._progress)
        self._progress = ""


def describe(name: str, nb: Any, known: Mapping[str, Parameter]) -> str:
    """What a notebook is for, and its parameters: type, default and help of each."""
    title, about = _heading(nb)
    lines = [f"workbench run {name}: {title or name}", "", *about, *([""] if about else [])]
    if not known:
        lines.append("It declares no parameters.")
    for p in known.values():
        lines.append(f"  -p {p.name}: {p.annotation or 'any type'} = {p.default}")
        indent = " " * 8
        lines += textwrap.wrap(p.help, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def _heading(nb: Any) -> tuple[str, list[str]]:
    """The title and the first paragraph of a notebook."""
    source = next((c.source for c in nb.cells if c.cell_type == "markdown"), "")
    title, _, rest = source.partition("\n")
    return title.lstrip("# "), rest.strip().split("\n\n")[0].splitlines()


def _listed() -> str:
    import nbformat

    from workbench import books

    paths = sorted(books.folder().glob("*.ipynb"))
    return "\n".join(f"  {p.stem:<16}{_heading(nbformat.read(p, 4))[0]}" for p in paths)
