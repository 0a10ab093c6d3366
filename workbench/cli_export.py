"""The commands that make files of run folders: `workbench export`, `workbench report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from workbench.cli_data import say
from workbench.errors import DataMissing

Commands = Any
ABOUT = {
    "html": "one self-contained page (default)",
    "png": "figures as pictures; needs workbench[images] and a Chromium",
    "svg": "figures as drawings; needs the same",
    "csv": "records, evaluation and the numbers of all figures (default)",
    "parquet": "the same numbers; needs workbench[parquet]",
}


def add_export_run(commands: Commands) -> None:
    about = "write a run's figures, numbers and report as files for other programs"
    parser = commands.add_parser("export", help=about, description=about)
    parser.add_argument("folder", help="the folder of a run")
    parser.add_argument("--to", help="where to (default: `exports` in that folder)")
    for kind, told in ABOUT.items():
        parser.add_argument(f"--{kind}", action="store_true", help=told)
    parser.add_argument("--theme", choices=("light", "dark"), help="of pictures")
    parser.set_defaults(run=run_export)


def run_export(given: argparse.Namespace) -> None:
    """Write what is asked for, and name each file."""
    from workbench import export

    asked = [kind for kind in ABOUT if getattr(given, kind)]
    for path in export.run(given.folder, given.to, asked or ("html", "csv"), given.theme):
        say(f"written: {path}")


def add_report(commands: Commands) -> None:
    about = "one self-contained page of runs: their table, and every figure that notebooks kept"
    parser = commands.add_parser("report", help=about, description=about)
    parser.add_argument("folders", nargs="+", metavar="folder", help="the folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as r.html")
    parser.set_defaults(run=run_report)


def run_report(given: argparse.Namespace) -> None:
    """Write the page."""
    from workbench import report
    from workbench.train.folder import RunFolder

    folders = [RunFolder(path) for path in given.folders]
    if missing := [f.path for f in folders if not f.exists()]:
        raise DataMissing(f"{missing[0]} is no run folder; give folders that hold recipe.yaml")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    say(f"written: {report.build(given.out, folders)}")
