"""Make `.venv` and install the workbench into it: standard library only, at once when up to date.

    python3 .ci/setup_env.py            # what `make setup` runs
    TORCH=cpu python3 .ci/setup_env.py  # or cuda, cu126 (any CUDA build of PyTorch's), skip
    python3 .ci/setup_env.py .venv browser  # what only the browser tests need, after the setup

Which PyTorch: with an NVIDIA GPU the default build, which brings CUDA; without one the CPU build,
from the indexes that pip is configured with or from PyTorch's own. Only where neither has it, the
default build after all, and a message says so. `TORCH=skip` leaves the choice to pip.
In the active conda environment `workbench` it installs there and keeps the PyTorch it finds.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / ".setup" / "pip.log"
PYTHONS = ("3.13", "3.12", "3.11")
# extra of pyproject.toml -> what can be imported when it is there
EXTRAS = {"browser": "playwright, PIL, kaleido, pyarrow"}
INDEX = "https://download.pytorch.org/whl/"
STRIP = """if [ -x {0} ]; then exec {0} -m nbstripout --keep-id \\
  --extra-keys 'metadata.papermill cell.metadata.papermill'; else exec cat; fi"""


def stop(got: str, expected: str, todo: str) -> None:
    sys.exit(f"setup stopped\n  got:      {got}\n  expected: {expected}\n  to do:    {todo}")


def output(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_python(version: str) -> str:
    """This Python where its `version` fits, else the newest on the PATH that fits and starts."""
    for name in [sys.executable] * (version in PYTHONS) + [f"python{v}" for v in PYTHONS]:
        path = output(name, "-c", "import sys; print(sys.executable)")
        if path:
            return path
    todo = "install one of these, or name one: make setup PYTHON=/path/to/python3.12"
    return stop(f"Python {version}", "Python 3.11, 3.12 or 3.13", todo) or ""


def make_venv(env: Path) -> None:
    python = find_python("{}.{}".format(*sys.version_info))
    command = [python, "-m", "venv", "--clear", str(env)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(env, ignore_errors=True)
        todo = "on Debian and Ubuntu: sudo apt install python3-venv; then run this again"
        stop((made.stdout + made.stderr).strip(), f"{python} to make a virtual environment", todo)


def pip(python: Path, *words: str) -> bool:
    """Whether `pip install` succeeds. Its lines go to the log, and one at a time to a terminal."""
    live = sys.stdout.isatty()
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *words]
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, **pipe)
        for line in child.stdout:
            log.write(line)
            if live:
                print(f"\r\033[K    {line.strip()[:70]}", end="", flush=True)
    if live:
        print("\r\033[K", end="", flush=True)
    return child.wait() == 0


def pip_failed(what: str) -> None:
    lines = [line for line in LOG.read_text().splitlines() if line.startswith("ERROR")][-4:]
    todo = f"see {LOG.relative_to(ROOT)}; check the network and pip's index; run this again"
    stop("\n            ".join(lines) or "an error of pip's", f"pip to install {what}", todo)


def reachable(url: str) -> bool:
    """Whether `url` answers within seconds: without internet nothing may hang."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True


def torch_attempts(pin: str, choice: str, gpu: bool, linux: bool) -> list[tuple[str, list[str]]]:
    """What to ask pip for, in order, until one succeeds: (in words, pip's arguments).

    A local version such as `+cpu` sorts above the plain one, so each build is asked for by name.
    """
    default = ("the default build (with CUDA: gigabytes)", [f"torch=={pin},!={pin}+cpu"])
    offered = ("the build that pip offers (perhaps with CUDA: gigabytes)", [f"torch=={pin}"])
    if not linux or choice == "skip":
        return [("the build that pip offers", [f"torch=={pin}"])]
    if choice == "cuda" or (choice == "auto" and gpu):
        return [default, offered][: 1 if choice == "cuda" else 2]
    build = "cpu" if choice == "auto" else choice
    named = f"torch=={pin}+{build}"
    here = (f"the {build} build", [named])
    theirs = (f"the {build} build from {INDEX}{build}", [named, "--index-url", INDEX + build])
    return [here, theirs, offered][: 3 if choice == "auto" else 2]


def keeps(version: str, floor: str, choice: str, gpu: bool) -> bool:
    """Whether an installed PyTorch may stay: new enough, and the build that was asked for."""
    number, _, build = version.partition("+")
    have, need = ([int(x) for x in re.findall(r"\d+", v)[:2]] for v in (number, floor))
    wanted = {"skip": True, "auto": not (gpu and build == "cpu"), "cuda": build != "cpu"}
    return bool(have) and have >= need and wanted.get(choice, build == choice)


def install_torch(python: Path, pin: str, floor: str, choice: str) -> None:
    gpu = bool(output("nvidia-smi", "-L"))
    found = output(str(python), "-W", "ignore", "-c", "import torch; print(torch.__version__)")
    if keeps(found, floor, choice, gpu):
        print(f"  PyTorch {found} is there and stays")
        return
    for words, asked in torch_attempts(pin, choice, gpu, sys.platform == "linux"):
        if "--index-url" in asked and not reachable(asked[-1]):
            continue
        print(f"  PyTorch {pin}, {words}", flush=True)
        if pip(python, "--no-deps", *asked):
            return
    pip_failed(f"PyTorch {pin} (TORCH={choice})")


def finish(env: Path, python: Path) -> None:
    """The Jupyter kernel `python3` of this environment, the git filter, and a last look."""
    name = ["--sys-prefix", "--name", "python3", "--display-name", "Python 3 (workbench)"]
    output(str(python), "-m", "ipykernel", "install", *name)
    if (ROOT / ".git").exists() and env == ROOT / ".venv":
        # in this clone's own configuration; without `.venv` the filter passes notebooks unchanged
        strip = STRIP.format(".venv/bin/python")
        output("git", "-C", str(ROOT), "config", "filter.nbstripout.clean", strip)
    look = "import torch, workbench; print(torch.__version__, torch.cuda.is_available())"
    version, _, cuda = output(str(python), "-W", "ignore", "-c", look).partition(" ")
    if not version:
        stop("an installation that does not import", "torch and workbench to import", "rm -r .venv")
    if output("nvidia-smi", "-L") and cuda != "True":
        print(f"  the NVIDIA GPU is out of reach for PyTorch {version}: the driver may be too old.")
        print("  Update it, or choose an older CUDA: make setup TORCH=cu126")
    print(f"  ready: PyTorch {version}, {'NVIDIA GPU' if cuda == 'True' else 'CPU'}", flush=True)


def add_extra(env: Path, python: Path, extra: str) -> None:
    """Install what an optional part wants, in the tested versions, unless it is there."""
    if extra not in EXTRAS:
        stop(f"the extra {extra}", " or ".join(EXTRAS), "one of these")
    look = f"import {EXTRAS[extra]}; print('there')"
    if output(str(python), "-W", "ignore", "-c", look):
        return
    print(f"  what workbench[{extra}] wants", flush=True)
    LOG.parent.mkdir(exist_ok=True)
    pins = [] if (env / "conda-meta").is_dir() else ["-c", "constraints.txt"]
    if not pip(python, "-e", f".[{extra}]", *pins):
        pip_failed(f"workbench[{extra}]")


def main() -> None:
    env = Path(os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv"))
    python, conda = env / "bin" / "python", (env / "conda-meta").is_dir()
    if len(sys.argv) > 2:
        add_extra(env, python, sys.argv[2])
        return
    choice = os.environ.get("TORCH") or "auto"
    if not re.fullmatch(r"auto|cpu|cuda|cu\d+|skip", choice):
        stop(f"TORCH={choice}", "auto, cpu, cuda, skip or a build such as cu126", "one of these")
    inputs = [Path(__file__), ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in inputs) + choice.encode()).hexdigest()
    stamp = env / "workbench-setup"
    before = stamp.read_text().splitlines() if stamp.is_file() else []
    if before == [str(env), key] and python.exists():
        return
    print(f"setup in {env}", flush=True)
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    version = output(str(python), "-c", "import sys; print('{}.{}'.format(*sys.version_info))")
    # a virtual environment that was moved or copied still points to where it was
    if not conda and (version not in PYTHONS or before[:1] not in ([], [str(env)])):
        make_venv(env)
    project, pins = (p.read_text() for p in inputs[1:])
    pin = re.search(r"^torch==(\S+)", pins, re.M)[1]
    install_torch(python, pin, re.search(r'"torch>=([\d.]+)', project)[1], choice)
    print("  the workbench, JupyterLab and the tools (a minute or two)", flush=True)
    # conda has solved its own set; elsewhere the tested versions
    if not pip(python, "-e", ".[dev]", *([] if conda else ["-c", "constraints.txt"])):
        pip_failed("the workbench")
    finish(env, python)
    stamp.write_text(f"{env}\n{key}\n")


if __name__ == "__main__":
    main()
