"""Building: once, for several processes at once, and never a reason to stop."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cases import NAMES, usable

from workbench.kernels import build

ROOT = Path(__file__).resolve().parents[2]

# the answer of the ops beside their references, and which backend gave it
CALL = """
import warnings, sys
sys.path.insert(0, {here!r})
from cases import inputs
import torch
from workbench import kernels
from workbench.kernels.dispatch import OPS
{before}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {prepare}
    for name in ["delta_rule", "sum_rule"] * 2:
        for got, want in zip(OPS[name](*inputs(name)), OPS[name].reference(*inputs(name))):
            torch.testing.assert_close(got, want)
for w in caught:
    print("WARNED", w.message)
print("RAN", sorted(set(kernels.ran().values())))
"""
REPORT = "report = kernels.prepare(); print(report); print('COMPILED', sorted(report.compiled))"


def start(cache: Path, prepare: str = REPORT, before: str = "", **env: str) -> subprocess.Popen:
    code = CALL.format(here=str(Path(__file__).parent), prepare=prepare, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WORKBENCH_CACHE": str(cache)} | env,
    )


def said(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A compiler that notes each call and is quick: it hands out what was built before."""
    built = {op: build._paths[op] for op in NAMES}
    lines = [f'echo "$@" >> {tmp_path}/calls', 'for last; do case "$prev" in -o) out=$last;; esac']
    lines += ["prev=$last; done", 'echo "" > "$out"']
    for op, path in built.items():
        hand_out = f'sleep 1; cp {shlex.quote(str(path))} "$out"'
        lines.append(f'case "$out" in {op}.so) {hand_out};; esac')
    return program(tmp_path / "bin" / "g++", "\n".join(lines))


needs_cpp = pytest.mark.skipif(("sum_rule", "cpp") not in usable(), reason="no C++ compiler here")


def test_without_a_compiler_one_warning_says_what_to_do(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    output = said(start(tmp_path / "cache", PATH=str(empty), CXX=""))
    warned = [line for line in output.splitlines() if line.startswith("WARNED")]
    assert len(warned) == 1
    assert "no C++ compiler was found" in warned[0] and "apt-get install g++" in warned[0]
    assert "RAN ['chunked']" in output


def test_a_compiler_that_fails_is_quoted(tmp_path):
    broken = program(tmp_path / "g++", "echo 'x.cpp:1: fatal error: no such luck' >&2; exit 1")
    output = said(start(tmp_path / "cache", CXX=str(broken)))
    warned = [line for line in output.splitlines() if line.startswith("WARNED")]
    assert len(warned) == 1 and "no such luck" in warned[0] and str(broken) in warned[0]
    assert "RAN ['chunked']" in output
    logs = list((tmp_path / "cache" / "kernels").glob("*.log"))
    assert len(logs) == len(NAMES) and all("no such luck" in log.read_text() for log in logs)
    # a later process that does not build knows why, too
    output = said(start(tmp_path / "cache", prepare="", CXX=str(broken)))
    assert output.count("WARNED") == 1 and "no such luck" in output


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    output = said(start(tmp_path / "file", CXX="true"))
    assert output.count("WARNED") == 1 and "WORKBENCH_CACHE" in output
    assert "RAN ['chunked']" in output


def test_never_prepared_warns_once_and_runs(tmp_path):
    output = said(start(tmp_path / "cache", prepare="", CXX="true"))
    assert output.count("WARNED") == 1 and "Call workbench.kernels.prepare() once" in output
    assert "RAN ['chunked']" in output
    assert not (tmp_path / "cache").exists()


@needs_cpp
def test_two_at_once_build_once_and_the_third_only_loads(tmp_path, stand_in):
    cache, calls = tmp_path / "cache", tmp_path / "calls"
    torn = cache / "kernels" / "building-of-a-process-that-died"
    torn.mkdir(parents=True)
    both = [start(cache, CXX=str(stand_in)) for _ in range(2)]
    outputs = [said(process) for process in both]
    assert all("RAN ['cpp']" in output and "WARNED" not in output for output in outputs)
    compiled = [f"COMPILED {sorted(NAMES)}" in output for output in outputs]
    assert sorted(compiled) == [False, True]
    assert calls.read_text().count("-shared ") == len(NAMES)
    assert not torn.exists()

    noted = calls.read_text()
    assert "RAN ['cpp']" in said(start(cache, CXX=str(stand_in)))
    # without prepare(), too: looking up is not building
    assert "RAN ['cpp']" in said(start(cache, prepare="", CXX=str(stand_in)))
    # and where the compiler has gone since
    output = said(start(cache, PATH=str(tmp_path), CXX=""))
    assert "RAN ['cpp']" in output and "WARNED" not in output
    assert calls.read_text() == noted


@needs_cpp
def test_a_library_cut_short_is_built_again(tmp_path, stand_in):
    """By a full disk, or a copy that was broken off: loading it would end the process."""
    cache = tmp_path / "cache"
    said(start(cache, CXX=str(stand_in)))
    for library in (cache / "kernels").glob("*.so"):
        library.write_bytes(library.read_bytes()[:5000])
    output = said(start(cache, prepare="", CXX=str(stand_in)))
    assert "RAN ['chunked']" in output and "Call workbench.kernels.prepare()" in output
    output = said(start(cache, CXX=str(stand_in)))
    assert "RAN ['cpp']" in output and f"COMPILED {sorted(NAMES)}" in output


@needs_cpp
def test_the_name_changes_with_whatever_changes_the_result(tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("CXX", str(stand_in))
    sources = tmp_path / "kernels"
    shutil.copytree(build.source_folder(), sources)
    monkeypatch.setattr(build, "source_folder", lambda: sources)

    def name(op: str = "sum_rule") -> str:
        tools = build.toolchain.find()
        assert not isinstance(tools, str)
        return build._target(op, tools).name

    names = [name()]
    with (sources / "delta_rule" / "delta_rule.cpp").open("a") as file:
        file.write("// more\n")
    assert name() == names[0], "another op's source"
    (sources / "common" / "panel.h").write_text("// less\n")
    names.append(name())
    stand_in.write_text("#!/bin/sh\n# a newer compiler\n")
    names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr(build, "_processor", lambda: ["another"])
        names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr(build.torch, "__version__", "9.9")
        names.append(name())
    with monkeypatch.context() as patch:
        patch.setattr(build.toolchain, "FLAGS", ("-O0",))
        names.append(name())
    assert len(set(names)) == len(names)


def test_report_reads_as_text():
    report = build.prepare()
    assert set(report.loaded) | set(report.missing) == set(NAMES)
    assert all(op in str(report) for op in NAMES)
    assert report.compiled == [] and report.seconds < 1
