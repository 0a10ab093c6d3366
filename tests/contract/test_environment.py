"""The set-up chooses the right PyTorch, and every list of dependencies says the same."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# trackers, clusters, browser tests, pictures: who uses one installs it; their tests are skipped
# elsewhere, and those of pictures and Parquet run with the browser tests
BY_CHOICE = {"browser", "cluster", "images", "parquet", "tracking", "wandb"}
CONDA_NAMES = {"pytorch": "torch"}


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(x) for x in lines if x and not x.startswith("#")]


def pins() -> dict[str, Version]:
    assert all(str(r.specifier).startswith("==") for r in constraints())
    return {canonicalize_name(r.name): Version(str(r.specifier)[2:]) for r in constraints()}


def wanted(without: set[str] = BY_CHOICE) -> list[Requirement]:
    extras = [e for name, e in PROJECT["optional-dependencies"].items() if name not in without]
    asked = map(Requirement, [*PROJECT["dependencies"], *(x for e in extras for x in e)])
    return [r for r in asked if r.name != PROJECT["name"]]


def test_the_tools_bring_every_extra() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    own = [r for r in map(Requirement, extras.pop("dev")) if r.name == PROJECT["name"]]
    assert {e for r in own for e in r.extras} == set(extras) - BY_CHOICE, "the tests use them"


def test_what_the_requirements_bring_is_pinned_too() -> None:
    pinned, todo, unpinned = pins(), [(r.name, "") for r in wanted()], set()
    seen = {canonicalize_name(PROJECT["name"]), "torch"}  # torch: its build brings its own
    while todo:
        name, parent = todo.pop()
        if canonicalize_name(name) in seen:
            continue
        seen.add(canonicalize_name(name))
        if canonicalize_name(name) not in pinned:
            unpinned.add(f"{name} (for {parent or 'pyproject.toml'})")
        brought = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [
            (r.name, name) for r in brought if not r.marker or r.marker.evaluate({"extra": ""})
        ]
    assert unpinned == set()


@pytest.mark.parametrize("requirement", wanted(without=set()), ids=lambda r: r.name)
def test_a_tested_version_is_pinned_in_range(requirement: Requirement) -> None:
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} is in pyproject.toml and not in constraints.txt"
    assert pin in requirement.specifier, f"{requirement} does not admit the tested {pin}"


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0"])
def test_every_python_of_the_range_can_take_the_pins(python: str) -> None:
    refused = []
    for pin in constraints():
        env = {"python_full_version": python, "python_version": python.rsplit(".", 1)[0]}
        if pin.marker and not pin.marker.evaluate(env):
            continue
        try:
            there = importlib.metadata.distribution(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only another Python needs it
        needs = SpecifierSet(there.metadata["Requires-Python"] or "")
        if there.version.split("+")[0] in pin.specifier and python not in needs:
            refused.append(f"{pin} needs Python {needs}")
    assert refused == []


def test_conda_and_pip_agree() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    specs = {r.name: r.specifier for r in (Requirement(x) for x in listed if isinstance(x, str))}
    assert specs.pop("python") == SpecifierSet(PROJECT["requires-python"])
    ours = {r.name: r.specifier for r in wanted()}
    for name in specs.keys() - {"pip", "make", "cxx-compiler"}:
        assert specs[name] == ours[CONDA_NAMES.get(name, name)], name
    assert "pytorch" in specs, "pip's torch would bring CUDA to machines without a GPU"
    # one list of dependencies: everything else comes by reference
    assert [x["pip"] for x in listed if isinstance(x, dict)] == [["-e .[dev]"]]


def test_python_versions_agree(setup_env: ModuleType) -> None:
    inside = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{m}" for m in range(20, 0, -1) if f"3.{m}" in inside] == list(setup_env.PYTHONS)


@pytest.fixture
def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / ".ci" / "setup_env.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CPU = ["torch==2.13.0+cpu"]
CPU_INDEX = [*CPU, "--index-url", "https://download.pytorch.org/whl/cpu"]
CU126 = ["torch==2.13.0+cu126"]
CU126_INDEX = [*CU126, "--index-url", "https://download.pytorch.org/whl/cu126"]
CUDA = ["torch==2.13.0,!=2.13.0+cpu"]
PLAIN = ["torch==2.13.0"]


@pytest.mark.parametrize(
    ("choice", "gpu", "linux", "expected"),
    [
        ("auto", False, True, [CPU, CPU_INDEX, PLAIN]),
        ("auto", True, True, [CUDA, PLAIN]),
        ("auto", False, False, [PLAIN]),
        ("cpu", True, True, [CPU, CPU_INDEX]),
        ("cuda", False, True, [CUDA]),
        ("cu126", True, True, [CU126, CU126_INDEX]),
        ("skip", True, True, [PLAIN]),
    ],
)
def test_the_order_of_builds(
    setup_env: ModuleType, choice: str, gpu: bool, linux: bool, expected: list[list[str]]
) -> None:
    attempts = setup_env.torch_attempts("2.13.0", choice, gpu, linux)
    assert [asked for _, asked in attempts] == expected


@pytest.mark.parametrize(
    ("version", "choice", "gpu", "stays"),
    [
        ("", "auto", False, False),
        ("2.10.1+cpu", "auto", False, False),
        ("2.11.0", "auto", False, True),
        ("2.13.0+cpu", "auto", False, True),
        ("2.13.0+cpu", "auto", True, False),
        ("2.13.0+cu130", "auto", False, True),
        ("2.13.0+cu130", "cpu", True, False),
        ("2.13.0+cpu", "cuda", True, False),
        ("3.0.0", "skip", True, True),
    ],
)
def test_an_installed_pytorch_is_respected(
    setup_env: ModuleType, version: str, choice: str, gpu: bool, stays: bool
) -> None:
    assert setup_env.keeps(version, "2.11", choice, gpu) is stays


def test_without_internet_the_next_build_is_tried(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup_env, "output", lambda *command: "")
    monkeypatch.setattr(setup_env, "reachable", lambda url: False)
    monkeypatch.setattr(
        setup_env, "pip", lambda python, *words: asked.append(words) or len(asked) > 1
    )
    monkeypatch.setattr(setup_env.sys, "platform", "linux")
    setup_env.install_torch(Path("python"), "2.13.0", "2.11", "auto")
    assert asked == [("--no-deps", *CPU), ("--no-deps", *PLAIN)]
    assert "gigabytes" in capsys.readouterr().out


def test_an_unreachable_index_is_noticed(setup_env: ModuleType) -> None:
    # port 9 of this machine: nobody listens
    assert setup_env.reachable("http://127.0.0.1:9/") is False


@pytest.mark.parametrize(("there", "conda"), [(True, False), (False, False), (False, True)])
def test_an_extra_is_installed_where_it_is_missing(
    setup_env: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    there: bool,
    conda: bool,
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup_env, "output", lambda *command: "there" * there)
    monkeypatch.setattr(setup_env, "pip", lambda python, *words: asked.append(words) or True)
    monkeypatch.setattr(setup_env, "LOG", tmp_path / "setup" / "pip.log")
    if conda:
        (tmp_path / "conda-meta").mkdir()
    setup_env.add_extra(tmp_path, tmp_path / "python", "browser")
    pins = () if conda else ("-c", "constraints.txt")
    assert asked == ([] if there else [("-e", ".[browser]", *pins)])


def test_extras_of_the_setup_are_extras_of_the_project(setup_env: ModuleType) -> None:
    assert set(setup_env.EXTRAS) <= set(PROJECT["optional-dependencies"])
    with pytest.raises(SystemExit, match="the extra browsers"):
        setup_env.add_extra(Path("env"), Path("python"), "browsers")


def run_setup(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "setup_env.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


def test_a_wrong_choice_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = run_setup(str(tmp_path / "env"), TORCH="gpu")
    assert done.returncode == 1
    assert "TORCH=gpu" in done.stderr and "expected" in done.stderr and "to do" in done.stderr
    assert not any(tmp_path.iterdir())


def test_an_unfit_python_looks_for_a_fit_one(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"python3.12": "/opt/python3.12"}
    monkeypatch.setattr(setup_env, "output", lambda name, *rest: found.get(name, ""))
    assert setup_env.find_python("3.9") == "/opt/python3.12"
    found.clear()
    with pytest.raises(SystemExit, match=r"(?s)got: +Python 3\.9.*3\.11.*PYTHON="):
        setup_env.find_python("3.9")


def test_a_missing_venv_module_is_explained(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # a Python that starts and has no working `venv`, as on a bare Debian
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ensurepip is not available'; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(setup_env, "find_python", lambda version: str(python))
    with pytest.raises(SystemExit, match=r"(?s)ensurepip.*python3-venv"):
        setup_env.make_venv(tmp_path / "env")
