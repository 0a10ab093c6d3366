"""Training from a shell, in one process or, under `torchrun`, in several.

    python -m workbench.train RECIPE --set train.steps=200 --out runs/mine
    torchrun --standalone --nproc-per-node 2 -m workbench.train RECIPE --out runs/mine

The same command again continues the run. The exit status is 0 when the run is done or was stopped
after its checkpoint (`status.json` says which: `done` or `stopped`), 2 where the user can mend
something, and is told how. SIGTERM and Ctrl-C stop it after the update at work; a second one acts
at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch.distributed as dist
import yaml
from torch.distributed.elastic.multiprocessing.errors import record

from workbench.errors import ConfigError, WorkbenchError
from workbench.metrics import bits_per_token
from workbench.train import distributed
from workbench.train.records import CheckpointRecord, DoneRecord, EvalRecord, Record, TrainRecord
from workbench.train.start import start
from workbench.train.torchrun import die_with_parent

log = logging.getLogger("workbench")


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        if not distributed.told_elsewhere():
            super()._print_message(message, file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if status and distributed.told_elsewhere():
            _let_them_speak()
        super().exit(status, message)


def _let_them_speak() -> None:
    # torchrun ends all of a machine's processes when the first one has failed
    time.sleep(distributed.LAST_WORDS_S)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m workbench.train",
        description="Train a recipe, or continue where its folder stands.",
    )
    parser.add_argument("recipe", help="a name that `workbench recipes` lists, or a file .yaml")
    parser.add_argument("--out", help="the run folder (default: runs/<name of the recipe>)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change the recipe, such as train.steps=200; as often as wanted",
    )
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="NAME",
        help="follow the run in tensorboard or wandb too; as often as wanted",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that defines mixers or other kinds which the recipe names",
    )
    return parser


def overrides_of(assignments: Sequence[str]) -> dict[str, Any]:
    """Values at dotted paths from `path=value`, the values as in YAML.

    Raises:
        ConfigError: one is none.
    """
    found: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not path or not equals:
            raise ConfigError(f"--set: got '{assignment}', expected path=value: train.steps=200")
        try:
            found[path] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: '{text}' is no value of YAML ({error})") from None
    return found


def line(record: Record) -> str:
    """A record for someone who watches a terminal."""
    match record:
        case TrainRecord():
            return (
                f"step {record.step:>8}  loss {bits_per_token(record.loss_nats):.4f} bits  "
                f"lr {record.lr:.3g}  |grad| {record.grad_norm:.3g}  "
                f"{record.tokens_per_s:,.0f} tokens/s"
            )
        case EvalRecord():
            bits = bits_per_token(record.loss_nats)
            return f"step {record.step:>8}  {record.split} {bits:.4f} bits"
        case CheckpointRecord():
            best = ", the best so far" if record.best else ""
            return f"step {record.step:>8}  {record.path}{best}"
        case DoneRecord():
            return f"step {record.step:>8}  {record.reason} after {record.elapsed_s:.0f} s"


def _say(text: str) -> None:
    """Show a line to whoever still looks; the records are in the run folder in any case."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # the terminal was closed, or the program behind a pipe has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        log.warning("nobody reads this any more (%s): training goes on in silence", error)


@record
def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    given = _parser().parse_args(arguments)
    # what is worth knowing happens in all processes alike
    level = logging.ERROR if distributed.told_elsewhere() else logging.INFO
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if dist.is_available() and dist.is_torchelastic_launched():
        die_with_parent()
    for module in given.modules:
        importlib.import_module(module)
    try:
        run = start(given.recipe, overrides_of(given.set), given.out, trackers=given.track)
        for told in run:
            if run.leads:
                _say(line(told))
    except WorkbenchError as error:
        if distributed.told_elsewhere(error):
            _let_them_speak()
        else:
            sys.stderr.write(f"workbench: {error}\n")
            sys.stderr.flush()
        return 2
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
