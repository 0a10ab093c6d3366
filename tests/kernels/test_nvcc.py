"""Every device source compiles for the GPUs it is meant for, within what a block of them has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from emulated import COMMON, EMULATOR

KERNELS = COMMON.parent
SOURCES = [*sorted(KERNELS.glob("*/*.cu")), EMULATOR / "selftest.cu"]
SHARED_BYTES = {"80": 163 * 1024, "90": 227 * 1024}


class Use(NamedTuple):
    """What ptxas says of one kernel."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def uses(said: str) -> list[Use]:
    """The reports of `-Xptxas -v`."""
    found = []
    for part in said.split("Compiling entry function")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert spills and registers, part
        found.append(
            Use(
                part.split("'")[1],
                int(registers[1]),
                int(spills[1]) + int(spills[2]),
                int(shared[1]) if shared else 0,
            )
        )
    return found


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, arch: str, tmp_path, record_property):
    command = ["nvcc", "-std=c++20", "-O3", "-Xptxas", "-v", f"-I{COMMON}", "-cubin"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out.cubin")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr, done.stderr
    report = uses(done.stderr)
    assert report
    for use in report:
        record_property(use.kernel, use._asdict())
        assert use.spilled_bytes == 0, use
        assert use.shared_bytes <= SHARED_BYTES[arch], use


@pytest.mark.parametrize("source", [*KERNELS.rglob("*.cu"), *KERNELS.rglob("*.cuh")], ids=str)
def test_device_sources_know_no_pytorch(source: Path):
    assert not re.search(r"#include [<\"](torch|ATen|c10)/", source.read_text("utf-8"))
