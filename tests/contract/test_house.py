"""The house rules hold everywhere, and each of their checkers can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "workbench").rglob("*.py"))
PYTHON = [*PACKAGE, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / ".ci").glob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {module_name(path) for path in PACKAGE}

Check = Callable[[str], list[str]]
EVERYWHERE: list[Check] = [house.too_long]
IN_THE_PACKAGE: list[Check] = [
    house.prints,
    house.guesses,
    house.swallowed,
    house.open_configs,
    house.unpickles,
]


def faults(check: Check, paths: list[Path]) -> list[str]:
    found = ((path, check(path.read_text("utf-8"))) for path in paths)
    return [f"{path.relative_to(ROOT)}:{fault}" for path, each in found for fault in each]


@pytest.mark.parametrize("check", EVERYWHERE, ids=lambda c: c.__name__)
def test_rule_everywhere(check: Check) -> None:
    assert faults(check, PYTHON) == []


@pytest.mark.parametrize("check", IN_THE_PACKAGE, ids=lambda c: c.__name__)
def test_rule_in_the_package(check: Check) -> None:
    assert faults(check, PACKAGE) == []


def test_imports_point_one_way() -> None:
    found = [
        fault
        for path in PACKAGE
        for fault in house.wrong_way(
            path.read_text("utf-8"), module_name(path), path.name == "__init__.py", KNOWN
        )
    ]
    assert found == []


def test_notebooks_carry_no_outputs() -> None:
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert faults(house.carries_outputs, books) == []


def test_warnings_are_errors() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert settings["ini_options"]["filterwarnings"][0] == "error"


# (checker, what it must refuse, the same thing done well)
EXAMPLES: list[tuple[Check, str, str]] = [
    (house.too_long, "x = 1\n" * 401, "x = 1\n" * 400),
    (house.too_long, "def f():\n" + "    x = 1\n" * 60, "def f():\n" + "    x = 1\n" * 59),
    (
        house.too_long,
        f"def f({', '.join(f'a{i}' for i in range(11))}, *b, c): ...",
        f"def f({', '.join(f'a{i}' for i in range(10))}, *b, c): ...",
    ),
    (house.prints, "def f(x): print(x)", "def f(x): log.info(x); pprint(x)"),
    (house.guesses, "if hasattr(x, 'y'): ...", "if isinstance(x, Y): ..."),
    (house.swallowed, "try: f()\nexcept: pass", "try: f()\nexcept:\n    g()\n    raise"),
    (
        house.swallowed,
        "try: f()\nexcept (OSError, Exception):\n    x = 0",
        "try: f()\nexcept Exception:\n    # a broken font must not end a run\n    x = 0",
    ),
    (house.swallowed, "try: f()\nexcept BaseException: pass", "try: f()\nexcept OSError: pass"),
    (
        house.open_configs,
        "class A(MixerConfig):\n    def build(self, **kw): ...",
        "class A(nn.Module):\n    def build(self, **kw): ...",
    ),
    (house.unpickles, "import pickle", "import json"),
    (house.unpickles, "from dill import load", "from json import load"),
    (house.unpickles, "torch.load(p)", "torch.load(p, weights_only=True)"),
    (house.unpickles, "torch.load(p, weights_only=ok)", "json.load(p)"),
    (house.unpickles, "np.load(p, allow_pickle=True)", "np.load(p, allow_pickle=False)"),
    (
        house.carries_outputs,
        json.dumps({"cells": [{"cell_type": "code", "outputs": [{}], "execution_count": None}]}),
        json.dumps({"cells": [{"cell_type": "code", "outputs": [], "execution_count": None}]}),
    ),
    (
        house.carries_outputs,
        json.dumps({"cells": [{"cell_type": "code", "outputs": [], "execution_count": 3}]}),
        json.dumps({"cells": [{"cell_type": "markdown"}]}),
    ),
]


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    EXAMPLES,
    ids=[f"{c.__name__}{i}" for i, (c, *_) in enumerate(EXAMPLES)],
)
def test_a_checker_tells_bad_from_good(check: Check, bad: str, good: str) -> None:
    assert len(check(bad)) == 1
    assert check(good) == []


@pytest.mark.parametrize(
    ("source", "module", "package", "right"),
    [
        ("from workbench.train.run import start", "workbench.models.blocks", False, False),
        ("from workbench import train", "workbench.data.text", False, False),
        ("import workbench.models", "workbench.kernels.delta_rule", False, False),
        ("def f():\n    from workbench.models import blocks", "workbench.carry", False, False),
        ("from ..train import run", "workbench.models.blocks", False, False),
        ("from . import train", "workbench.config", False, False),
        ("from .train import run", "workbench", True, True),
        ("from . import blocks", "workbench.models", True, True),
        ("import workbench", "workbench.errors", False, False),
        ("from workbench.train import run", "workbench.recipe", False, False),
        ("from workbench.train.config import TrainConfig", "workbench.recipe", False, True),
        ("from workbench import kernels", "workbench.models.mixers.attention", False, True),
        ("from workbench.demo import main", "workbench.train.run", False, False),
        ("from workbench.train.run import Run", "workbench.demo", False, True),
        ("import torch, workbenches", "workbench.errors", False, True),
    ],
)
def test_the_import_checker(source: str, module: str, package: bool, right: bool) -> None:
    known = {
        "workbench.train",
        "workbench.models.blocks",
        "workbench.kernels",
        "workbench.train.run",
    }
    assert (house.wrong_way(source, module, package, known) == []) is right


# torch and its friends may look around the machine; from then on nothing may start or be written
WATCH = """
import sys, pkgutil, importlib
BEFORE
seen = []
def hook(event, args):
    written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if event in STARTS or written:
        seen.append(f"{event} {args[:2]}")
STARTS = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.mkdir"}
sys.dont_write_bytecode = True
sys.addaudithook(hook)
AFTER
sys.exit("\\n".join(seen) or 0)
"""


BEFORE = "import torch, plotly.graph_objects, anywidget, ipywidgets, papermill"
IMPORT_ALL = """
import workbench
for module in pkgutil.walk_packages(workbench.__path__, "workbench."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def watched(tmp_path: Path, before: str, after: str) -> subprocess.CompletedProcess[str]:
    code = WATCH.replace("BEFORE", before).replace("AFTER", after)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "WORKBENCH_CACHE": str(tmp_path / "cache"),
        "WORKBENCH_DATA": str(tmp_path / "data"),
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)


def test_importing_builds_nothing(tmp_path: Path) -> None:
    done = watched(tmp_path, BEFORE, IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists() and not (tmp_path / "data").exists()


def test_a_build_while_importing_would_be_seen(tmp_path: Path) -> None:
    code = "import subprocess; subprocess.run(['true']); open('made', 'w').close()"
    done = watched(tmp_path, "", code)
    assert done.returncode == 1
    assert "subprocess.Popen" in done.stderr and "open ('made'" in done.stderr
