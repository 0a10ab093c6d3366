"""`workbench data`: the published corpora and checkpoints, on this disk and elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from typing import Any


def add_data(commands: Any) -> None:
    about = "published corpora and checkpoints: what there is, download, check, where they lie"
    parser = commands.add_parser("data", help=about, description=about)
    below = parser.add_subparsers(metavar="what", required=True)
    _add(below, "list", "all of them: size, licence, what of them is here", show).add_argument(
        "--json", action="store_true", help="all that is known, for programs"
    )
    one = _add(below, "get", "download, verify, unpack and prepare one; goes on where it was", get)
    one.add_argument("name", help="as in the list")
    one.add_argument(
        "--rule",
        action="append",
        help="prepare it by this rule, once or more (default: those of the recipes)",
    )
    one.add_argument("--url", help="download from here: a file, or a folder, ending in /")
    one.add_argument("--keep", action="store_true", help="keep the archive")
    _add(below, "check", "read one again and compare it with what is known", check).add_argument(
        "name", help="as in the list"
    )
    place = _add(below, "where", "the folders, their sizes, and what is free", where)
    place.add_argument("name", nargs="?", help="of this one alone")


def _add(below: Any, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = below.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")


def used() -> dict[str, Counter[str]]:
    """corpus -> rule -> how many recipes train on it."""
    from workbench.data.published import Published
    from workbench.recipe import load_recipe, recipe_names

    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name in recipe_names():
        corpus = getattr(load_recipe(name).data, "corpus", None)
        if isinstance(corpus, Published):
            found[corpus.name][corpus.rule] += 1
    return found


def show(given: argparse.Namespace) -> None:
    """Write the table, or the JSON list, of all entries."""
    from workbench.config import dump
    from workbench.data import raw, registry

    entries, recipes = registry.entries(), used()
    if given.json:
        facts = [
            {"name": name, "here": raw.state(name), "recipes": recipes[name], **dump(entry)}
            for name, entry in entries.items()
        ]
        say(json.dumps(facts, indent=1))
        return
    rows = [("name", "level", "download", "licence", "recipes", "here", "what it is")]
    for name, it in entries.items():
        size = f"{'' if it.sources[0].exact else '~'}{registry.in_words(it.sources[0].size)}"
        count = str(recipes[name].total() or "-")
        level = it.level or it.kind
        rows.append((name, level, size, it.licence.name, count, raw.state(name), it.title))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip())


def get(given: argparse.Namespace) -> None:
    """Have one on this disk."""
    from workbench.data import raw, registry

    it = registry.entry(given.name)
    recipes = {} if given.rule else used()[given.name]
    rules = given.rule or [rule for rule in it.rules if rule in recipes]
    got = raw.get(given.name, rules=rules, url=given.url, keep=given.keep)
    some = ", ".join(got.downloaded) if len(got.downloaded) <= 4 else f"{len(got.downloaded)} files"
    say(f"{given.name}: {some or 'all was there'}; in {got.place}")
    if got.prepared:
        say(f"prepared by the rules: {', '.join(got.prepared)}")
    say(f"licence: {it.licence.name} ({it.licence.note}; {it.licence.url})")


def check(given: argparse.Namespace) -> int:
    """Say how one fares; 1 where something differs."""
    from workbench.data import raw

    findings = raw.check(given.name)
    for finding in findings:
        say(f"{'ok ' if finding.good else 'BAD'} {finding.what}: {finding.said}")
    return 0 if all(finding.good for finding in findings) else 1


def where(given: argparse.Namespace) -> None:
    """Write the folders and their sizes."""
    from workbench.data import raw, registry, store

    root, words = store.root(), registry.in_words
    say(f"{root}: {raw.why_there()}; {words(raw.free_bytes(root))} free")
    names = [given.name] if given.name else [*registry.entries()]
    rows = [(str(path), words(size)) for name in names for path, size in raw.folders(name)]
    width = max((len(path) for path, _ in rows), default=0)
    for path, size in rows:
        say(f"  {path:<{width}}  {size:>10}")
    if given.name and not rows:
        say(f"  {given.name} would lie in {registry.entry(given.name).place}")
