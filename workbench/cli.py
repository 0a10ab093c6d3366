"""The command line: `workbench recipes` lists the experiments.

A command is a function `add_*` that describes its arguments and names what runs them. What a
command needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from workbench.errors import WorkbenchError

Commands = Any
"""what argparse's `add_subparsers` returns; its class has no public name"""


def add_recipes(commands: Commands) -> None:
    about = "list the recipes: data set, parameters, published result"
    parser = commands.add_parser("recipes", help=about, description=about)
    parser.add_argument("words", nargs="*", help="only those with all of these words in the name")
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")
    parser.set_defaults(run=list_recipes)


def list_recipes(given: argparse.Namespace) -> None:
    """Write the table, or the JSON list, of the recipes asked for."""
    from workbench import catalogue

    found = catalogue.entries(given.words)
    if given.json:
        say(json.dumps([dataclasses.asdict(entry) for entry in found], indent=1))
    else:
        say(catalogue.table(found))


COMMANDS: tuple[Callable[[Commands], None], ...] = (add_recipes,)


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the user can mend it, and is told how)."""
    parser = argparse.ArgumentParser(
        prog="workbench", description="A research workbench for sequence models that carry state."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except WorkbenchError as error:
        sys.stderr.write(f"workbench: {error}\n")
        return 2
    except BrokenPipeError:
        # whoever read our output (`| head`) has enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
