"""The command line: `workbench recipes` lists the experiments, `workbench data` has the corpora,
`workbench generate`, `workbench score` and `workbench evaluate` use a trained model,
`workbench report` and `workbench export` write what a run shows, `workbench run` runs a notebook
unattended, and `workbench sweep` trains many.

A command is a function `add_*` that describes its arguments and names what runs them. What a
command needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.cli_cluster import add_slurm_script, add_sweep
from workbench.cli_data import add_data, say
from workbench.cli_evaluate import add_evaluate
from workbench.cli_export import add_export_run, add_report
from workbench.cli_run import add_run
from workbench.errors import ConfigError, DataMissing, WorkbenchError

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


def add_generate(commands: Commands) -> None:
    about = "let a trained model write on from a prompt"
    parser = commands.add_parser("generate", help=about, description=about)
    parser.add_argument("folder", help="the folder of a run")
    parser.add_argument("--prompt", default="", help="what comes before (default: a new line)")
    parser.add_argument("--length", type=int, default=200, help="tokens to write (default: 200)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest tokens")
    parser.add_argument("--top-k", type=int, help="draw from the likeliest so many")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest of this probability")
    parser.add_argument("--stop", action="append", default=[], help="end with this string")
    parser.add_argument("--seed", type=int, help="to write the same text again")
    parser.set_defaults(run=write_text)


def write_text(given: argparse.Namespace) -> None:
    """Write the prompt and each token as it comes."""
    from workbench.generation import generate

    names = ("prompt", "length", "temperature", "top_k", "top_p", "stop", "seed")
    written = generate(given.folder, **{name: getattr(given, name) for name in names})
    sys.stdout.write(given.prompt)
    for token in written:
        sys.stdout.write(token.text)
        sys.stdout.flush()
    say("")
    sys.stderr.write(f"seed {written.seed}; {written.settings}\n")


def add_score(commands: Commands) -> None:
    about = "what each token of a text costs under a trained model"
    parser = commands.add_parser("score", help=about, description=about)
    parser.add_argument("folder", help="the folder of a run")
    parser.add_argument("file", help="the text; - for standard input")
    parser.add_argument("--json", action="store_true", help="every token, for programs")
    parser.set_defaults(run=score_text)


def score_text(given: argparse.Namespace) -> None:
    """Write the mean over the text, or a JSON list of its tokens."""
    from workbench.metrics import bits_per_token, perplexity
    from workbench.scoring import score

    path = Path(given.file)
    if given.file != "-" and not path.is_file():
        raise DataMissing(f"there is no file {path}; give the path of a text, or - for a pipe")
    found = score(given.folder, sys.stdin.buffer.read() if given.file == "-" else path.read_bytes())
    if given.json:
        pairs = zip(found.positions.tolist(), found.nll_nats.tolist(), strict=True)
        rows = [{"token": found.symbols[at], "position": at, "nats": cost} for at, cost in pairs]
        say(json.dumps(rows, indent=1))
        return
    bits = bits_per_token(found.mean_nats)
    say(f"{len(found.nll_nats):,} tokens, {found.unknown:,} unknown; {found.settings}")
    say(f"{bits:.4f} bits per token, perplexity {perplexity(found.mean_nats):.3f}")
    if found.characters:
        say(
            f"{found.bits_per_character:.4f} bits per character, {found.bits_per_byte:.4f} per byte"
        )


def add_import(commands: Commands) -> None:
    about = "turn a checkpoint of the papers' code into a run folder; nothing of it is executed"
    parser = commands.add_parser("import-checkpoint", help=about, description=about)
    parser.add_argument("checkpoint", help="the authors' file, or the name of a published one")
    parser.add_argument("--out", required=True, help="a new folder for the run")
    parser.add_argument("--recipe", help="take text, training and evaluation from this recipe")
    parser.add_argument("--corpus", help="the text, as a recipe says it: {kind: text, path: ...}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what the file does not say, such as ramp=32; the answer lists what was taken",
    )
    parser.add_argument("--optimizer", help="the file of its optimizer, where that is another one")
    parser.add_argument("--url", help="of a published one: where it is to be downloaded from")
    parser.set_defaults(run=import_checkpoint)


def import_checkpoint(given: argparse.Namespace) -> None:
    """Import a file or a published checkpoint, and say what was taken for what it does not say."""
    from workbench import exchange
    from workbench.config import nearest
    from workbench.originals.published import CHECKPOINTS

    if not Path(given.checkpoint).exists():
        if given.checkpoint not in CHECKPOINTS:
            raise DataMissing(
                f"there is no file {given.checkpoint}; give the path of a checkpoint, or the name "
                f"of a published one. {nearest(given.checkpoint, [*CHECKPOINTS])}"
            )
        say(str(exchange.import_published(given.checkpoint, given.out, url=given.url)))
        return
    if odd := [pair for pair in given.set if "=" not in pair]:
        raise ConfigError(f"--set: got '{odd[0]}', expected NAME=VALUE, such as ramp=32")
    pairs = (pair.partition("=") for pair in given.set)
    asked = {name: _value(f"--set {name}", value) for name, _, value in pairs}
    corpus = _value("--corpus", given.corpus) if given.corpus else None
    imported = exchange.import_checkpoint(
        given.checkpoint,
        given.out,
        recipe=given.recipe,
        asked=asked,
        corpus=corpus,
        optimizer=given.optimizer,
    )
    say(str(imported))


def _value(option: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{option}: got {text!r}, which is no YAML; write the value as in a recipe"
        ) from None


def add_export(commands: Commands) -> None:
    about = "write a run's weights under the original code's names, for its load_state_dict"
    parser = commands.add_parser("export-checkpoint", help=about, description=about)
    parser.add_argument("folder", help="the folder of a run")
    parser.add_argument("file", help="the file to write")
    parser.add_argument("--which", choices=("last", "best"), default="last")
    parser.add_argument(
        "--like", help="a checkpoint of the original code, or a run imported from one"
    )
    parser.set_defaults(run=export_checkpoint)


def export_checkpoint(given: argparse.Namespace) -> None:
    """Export a run."""
    from workbench import exchange

    exchange.export_checkpoint(given.folder, given.file, which=given.which, like=given.like)
    say(f"written: {given.file}")


COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_recipes,
    add_run,
    add_generate,
    add_score,
    add_evaluate,
    add_report,
    add_export_run,
    add_import,
    add_export,
    add_data,
    add_sweep,
    add_slurm_script,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="A research workbench for sequence models that carry state."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (1: what was checked differs; 2: the user can mend
    it, and is told how)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name or a text may hold what a terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = _parser().parse_args(arguments)
        status = given.run(given)
        sys.stdout.flush()
    except WorkbenchError as error:
        sys.stderr.write(f"workbench: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("workbench: interrupted\n")
        return 130
    except BrokenPipeError:
        # whoever read our output (`| head`) has enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status or 0
