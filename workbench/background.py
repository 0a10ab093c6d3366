"""Training in a process of its own, which a notebook watches and which outlives it.

The process belongs to nobody: closing the tab, restarting the Jupyter kernel and shutting down
JupyterLab leave it alone, and whoever opens the notebook again finds it by its run folder. It ends
when the run does, when it is asked to (`workbench.train.control`), or with the machine; SIGTERM
makes it write a checkpoint first, as it makes every run. What it says goes to `training.log`.

    python -m workbench.background --out runs/mine < recipe.yaml
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from workbench.company import Company
from workbench.errors import ConfigError, WorkbenchError
from workbench.recipe import AnyRecipe, from_data
from workbench.samples import SampleSettings
from workbench.train import storage
from workbench.train.folder import BACKGROUND_LOG, RunFolder
from workbench.train.launch import modules_of
from workbench.train.lock import check_free
from workbench.train.start import start
from workbench.train.torchrun import STORY_LINES

STORY_BYTES = 1 << 16
MARK = "workbench: "
"""begins a message to the user, in the log"""


def begin(
    recipe: AnyRecipe,
    out: Path,
    *,
    processes: int = 1,
    track: Sequence[str] = (),
    samples: SampleSettings | None = None,
) -> subprocess.Popen[bytes]:
    """Start training, or go on, in a process of its own; what is quickly seen to be wrong is
    refused first.

    Args:
        recipe: what to train.
        out: the run folder.
        processes: how many share each batch.
        track: names of trackers.
        samples: of text, to be drawn meanwhile; None for none.

    Raises:
        ConfigError: the folder holds something else, or another process trains in it; the recipe
            names something that is defined in the notebook.
        CannotWrite: the disk is full or read-only.
    """
    folder = RunFolder(out.resolve())
    folder.check(recipe)
    check_free(folder.path)
    words = [sys.executable, "-m", "workbench.background", "--out", str(folder.path)]
    words += ["--processes", str(processes)]
    words += [word for name in track for word in ("--track", name)]
    words += [word for name in modules_of(recipe) for word in ("--import", name)]
    if samples is not None:
        samples.check()
        words += [f"--sample-every={samples.every}", f"--sample-length={samples.length}"]
        words += [f"--prompt={samples.prompt}", f"--temperature={samples.temperature}"]
        words += [f"--sample-seed={samples.seed}"]
    with storage.writing(BACKGROUND_LOG, folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        # of this session alone: what an earlier one failed of has been told
        log = (folder.path / BACKGROUND_LOG).open("wb")
    with log:
        child = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_settings(),
            # Jupyter ends what belongs to its kernel's session
            start_new_session=True,
        )
    assert child.stdin is not None
    with child.stdin as told:
        told.write(recipe.to_yaml().encode())
    return child


def _settings() -> dict[str, str]:
    """The environment of the process: ours, in which it finds this package as we did."""
    settings = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # it is no notebook: one signal reaches it once
    settings.pop("WORKBENCH_BATCH", None)
    home = Path(__file__).resolve().parents[1]
    if not home.name.endswith("-packages"):
        paths = [str(home), os.environ.get("PYTHONPATH", "")]
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return settings


def last_words(folder: Path) -> str:
    """Why the process ended that trained behind a notebook, as its log tells: the message, or the
    end of the traceback; "" where there is none."""
    path = folder / BACKGROUND_LOG
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - STORY_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    told = [i for i, line in enumerate(lines) if line.startswith(MARK)]
    if told:
        return "\n".join(lines[told[-1] :][:STORY_LINES]).removeprefix(MARK)
    if any(line.startswith("Traceback ") for line in lines):
        return "\n".join(lines[-STORY_LINES:])
    return ""


def _parser() -> argparse.ArgumentParser:
    normal = SampleSettings()
    parser = argparse.ArgumentParser(
        prog="python -m workbench.background",
        description="Train the recipe of the standard input, with samples of text.",
    )
    parser.add_argument("--out", required=True, help="the run folder")
    parser.add_argument("--processes", type=int, default=1, help="how many share each batch")
    parser.add_argument("--track", action="append", default=[], metavar="NAME")
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    parser.add_argument("--sample-every", type=int, default=0, help="updates; 0: no samples")
    parser.add_argument("--sample-length", type=int, default=normal.length, help="tokens")
    parser.add_argument("--sample-seed", type=int, default=normal.seed)
    parser.add_argument("--prompt", default=normal.prompt)
    parser.add_argument("--temperature", type=float, default=normal.temperature)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit status: 0 when the run is done or was stopped, 2 where the user can
    mend something."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    for module in given.modules:
        importlib.import_module(module)
    settings = SampleSettings(
        every=given.sample_every,
        length=given.sample_length,
        prompt=given.prompt,
        temperature=given.temperature,
        seed=given.sample_seed,
    )
    try:
        data = yaml.safe_load(sys.stdin.read())
        if not isinstance(data, dict):
            raise ConfigError("standard input: expected a recipe, complete, as YAML")
        train(from_data(data), Path(given.out), given.processes, given.track, settings)
    except WorkbenchError as error:
        sys.stderr.write(f"{MARK}{error}\n")
        return 2
    return 0


def train(
    recipe: AnyRecipe, out: Path, processes: int, track: Sequence[str], samples: SampleSettings
) -> None:
    """Train to the end, with samples of text where there is one, and with the machine's limit.

    Raises:
        WorkbenchError: see `workbench.start`, and what training may meet.
    """
    company = Company(start(recipe, out=out, processes=processes, trackers=track), samples)
    for record in company.run:
        company.see(record)


if __name__ == "__main__":
    sys.exit(main())
