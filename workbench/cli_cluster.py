"""The commands for many runs and other machines: `workbench sweep`, `workbench slurm-script`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from workbench.cli_data import say
from workbench.errors import ConfigError

Commands = Any


def add_sweep(commands: Commands) -> None:
    about = "train every run of a table, here or on a cluster, and compare them"
    parser = commands.add_parser("sweep", help=about, description=about)
    parser.add_argument("table", type=Path, help="a YAML file that lists recipes and overrides")
    parser.add_argument("--out", type=Path, help="its folder (default: runs/<name of the table>)")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="runs at a time (default: 1 here, on Slurm what it allows)",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="options of sbatch: partition=gpu,time=12:00:00,gpus_per_node=1",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and start nothing")
    parser.set_defaults(run=run_sweep)


def run_sweep(given: argparse.Namespace) -> int:
    """Check the table, run what is not done, compare; returns the exit status."""
    from workbench.sweep import load_sweep, plan

    if given.at_once is not None and given.at_once < 1:
        raise ConfigError(f"--at-once: got {given.at_once}, expected 1 or more")
    given_options = options(given.slurm)
    if given_options and given.executor != "slurm":
        raise ConfigError(
            "--slurm: options of sbatch, but the executor is not slurm; add --executor slurm"
        )
    table = load_sweep(given.table)
    folder = (given.out or Path("runs") / str(table.name)).expanduser().resolve()
    runs = plan(table, folder, given.table.resolve().parent)
    if given.dry_run:
        for run in runs:
            changes = ", ".join(f"{k}={v}" for k, v in run.job.overrides.items())
            done = "  (done)" if run.is_done else ""
            say(f"{run.name}: {run.job.recipe}  {changes}{done}")
        say(f"{len(runs)} runs, {sum(run.is_done for run in runs)} done; they go into {folder}")
        return 0

    from workbench.cluster import submission
    from workbench.cluster.conduct import conduct
    from workbench.sweep import LOGS

    logging.getLogger("papermill").setLevel(logging.WARNING)
    executor: submission.Executor
    if given.executor == "slurm":
        executor = submission.Slurm(folder / LOGS, given_options, given.at_once, str(table.name))
    else:
        executor = submission.Local(folder / LOGS, given.at_once or 1)
    return conduct(table, runs, folder, executor, given.at_once or 1, _say_now)


def _say_now(text: str) -> None:
    say(text)
    # it may be hours until the next line
    sys.stdout.flush()


def options(groups: list[str]) -> dict[str, str]:
    """Options of sbatch from `name=value,name=value`."""
    found: dict[str, str] = {}
    for group in groups:
        # n[1,3] and the like: a part without `=` belongs to the value before it
        for part in group.split(","):
            name, equals, value = part.partition("=")
            if equals:
                last = name.strip().removeprefix("--")
                found[last] = value
            elif found:
                found[last] += f",{part}"
            else:
                raise ConfigError(
                    f"--slurm: got '{part}', expected name=value, such as partition=gpu"
                )
    return found


def add_slurm_script(commands: Commands) -> None:
    about = "where the Slurm script for one training is: sbatch $(workbench slurm-script) ..."
    parser = commands.add_parser("slurm-script", help=about, description=about)
    parser.set_defaults(run=find_slurm_script)


def find_slurm_script(given: argparse.Namespace) -> None:
    """Write the path; the script itself says how it is used."""
    say(str(Path(__file__).with_name("cluster") / "train.sbatch"))
