"""Every device source compiles for the GPUs it is meant for, within what a block of them has."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from emulated import COMMON, EMULATOR

from workbench import kernels
from workbench.kernels import cuda, toolchain
from workbench.kernels.build import cache_folder

KERNELS = COMMON.parent
SOURCES = [*sorted(KERNELS.glob("*/*.cu")), EMULATOR / "selftest.cu"]
# minutes, for their many sizes; `make test-slow`
LONG = ("attention", "delta_rule", "sum_rule")
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


def compiled(source: Path, arch: str) -> str:
    """What nvcc says of a source; kept, for minutes go into the larger ones."""
    command = ["nvcc", "-std=c++20", "-O3", "-Xptxas", "-v", f"-I{COMMON}", "-cubin"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source)]
    digest = hashlib.sha256(" ".join(command).encode())
    digest.update(subprocess.run(["nvcc", "--version"], capture_output=True, check=True).stdout)
    for file in [source, *sorted(COMMON.glob("*.cuh"))]:
        digest.update(file.read_bytes())
    folder = cache_folder().parent / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{source.stem}-{arch}-{digest.hexdigest()[:16]}.log"
    if not kept.exists():
        part = kept.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        part.write_text(done.stderr, "utf-8")
        os.replace(part, kept)
    return kept.read_text("utf-8")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize(
    "source",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG), id=p.stem) for p in SOURCES],
)
def test_compiles_without_spills(source: Path, arch: str, record_property):
    said = compiled(source, arch)
    assert "warning" not in said, said
    report = uses(said)
    assert report
    for use in report:
        record_property(use.kernel, use._asdict())
        assert use.spilled_bytes == 0, use
        assert use.shared_bytes <= SHARED_BYTES[arch], use


def cuda_headers() -> Path | None:
    """The toolkit's headers; the bindings need no more of it to be checked."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "-"], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.MULTILINE)
    folder = Path(top[1]).resolve() / "include" if top else None
    return folder if folder and (folder / "cuda_runtime_api.h").exists() else None


@pytest.mark.parametrize("source", sorted(KERNELS.glob("*/*_cuda.cpp")), ids=lambda p: p.stem)
def test_binding_compiles(source: Path, tmp_path):
    """Types and names fit PyTorch's; it can be linked only where PyTorch has CUDA."""
    tools, headers = toolchain.find(), cuda_headers()
    if isinstance(tools, str) or headers is None:
        pytest.skip("no C++ compiler or no CUDA headers here")
    stub = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"  # builds without CUDA lack it
    stub.parent.mkdir(parents=True)
    stub.write_text("#pragma once\n")
    command = [*tools.compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", f"-I{COMMON}"]
    command += [f"-isystem{path}" for path in [*toolchain.includes(), headers, tmp_path]]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_build_of_the_cuda_kernels_names_every_step(tmp_path):
    tools = toolchain.find()
    if isinstance(tools, str):
        pytest.skip(tools)
    gpu = cuda.CudaToolchain("/opt/cuda/bin/nvcc", tools, ((8, 0), (9, 0)), "key")
    text = cuda.ninja_file(["delta_rule"], gpu, toolchain.Flags("c++", "-O3", "-lc10"))
    (tmp_path / "build.ninja").write_text(text)
    done = subprocess.run(
        [tools.ninja, "-C", str(tmp_path), "-t", "commands"], capture_output=True, text=True
    )
    device, binding, link = sorted(
        done.stdout.splitlines(), key=lambda line: ("-shared " in line, "nvcc" not in line)
    )
    assert "delta_rule.cu " in device and "code=sm_80" in device and "code=sm_90" in device
    assert "delta_rule_cuda.cpp" in binding and "torch" in binding
    assert "-ltorch_cuda" in link and "-lcudart" in link
    assert cuda.target("delta_rule", gpu) != cuda.target("sum_rule", gpu)


def test_without_a_gpu_the_reasons_say_so():
    assert {"delta_rule", "sum_rule"} <= set(cuda.ops())
    if not torch.cuda.is_available():
        _, missing = cuda.prepare()
        assert set(missing) == set(cuda.ops())
        assert all("CUDA" in reason or "GPU" in reason for reason in missing.values())
    q = torch.randn(1, 3, 1, 4)
    arguments = (q, q, q, torch.rand(1, 3, 1), torch.zeros(1, 1, 4, 4))
    with kernels.use("cuda"), pytest.raises(kernels.NoBackend, match="the tensors are on cpu"):
        kernels.delta_rule(*arguments)
    with kernels.use("cuda"), pytest.raises(kernels.NoBackend, match="256 features"):
        wide = torch.randn(1, 1, 1, 300)
        kernels.sum_rule(wide, wide, q[:, :1], torch.zeros(1, 1, 300, 4))
    with kernels.use("flash_linear_attention"), pytest.raises(kernels.NoBackend):
        kernels.delta_rule(*arguments)


@pytest.mark.parametrize("source", [*KERNELS.rglob("*.cu*")], ids=str)
def test_device_sources_know_no_pytorch(source: Path):
    assert not re.search(r"#include [<\"](torch|ATen|c10)/", source.read_text("utf-8"))
