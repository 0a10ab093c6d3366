"""The CPU kernels with other compilers and for other processors than this machine's own."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from workbench.kernels import toolchain

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
SOURCES = sorted(path for path in KERNELS.glob("*/*.cpp") if not path.stem.endswith("_cuda"))
X86 = platform.machine() in ("x86_64", "AMD64")


class Target(NamedTuple):
    """A compiler, what it compiles for, and the Debian package that has it."""

    compiler: str
    flags: tuple[str, ...] = ()
    package: str = ""
    runner: str = ""
    """what runs its programs here, where this processor cannot; of the package `qemu-user`"""


GCC = Target("g++", package="g++")
CLANG = Target("clang++", package="clang")
ARM = Target("aarch64-linux-gnu-g++", ("-static",), "g++-aarch64-linux-gnu", "qemu-aarch64")
# vectors of 16 bytes and of 32, wherever this machine has wider ones
NARROW = [GCC._replace(flags=(f"-march={march}",)) for march in ("x86-64", "x86-64-v3") if X86]


def installed(program: str, package: str) -> str:
    """The program's full path; skips with what would install it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} here (Debian, Ubuntu: apt-get install {package})")
    return path


def words(target: Target, folder: Path) -> list[str]:
    """The command that `kernels.prepare` compiles with, and every warning an error."""
    compiler = installed(target.compiler, target.package)
    flags = toolchain.probe(toolchain.Toolchain((compiler,), "", ""), folder)
    chosen = [*flags.compile.split(), *target.flags, f"-I{KERNELS / 'common'}"]
    return [flags.compiler, *chosen, "-Wall", "-Wextra", "-Werror"]


def done(command: list[str]) -> str:
    """What a command prints; it must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    return ended.stdout


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
@pytest.mark.parametrize("target", [GCC, CLANG, ARM], ids=lambda target: target.compiler)
def test_compiles_without_a_warning(target: Target, source: Path, tmp_path: Path) -> None:
    """As objects: only PyTorch's own libraries for the processor would link them."""
    command = words(target, tmp_path)
    command += [f"-isystem{path}" for path in toolchain.includes()]
    result = tmp_path / f"{source.stem}.o"
    done([*command, "-c", str(source), "-o", str(result)])
    machine = int.from_bytes(result.read_bytes()[18:20], "little")
    if sys.platform == "linux" and target is ARM:
        assert machine == 183, "an ELF file for another processor than AArch64"


@pytest.mark.parametrize(
    "target", [GCC, *NARROW, CLANG, ARM], ids=lambda target: " ".join(target[:1] + target.flags)
)
def test_vectors_compute_as_plain_loops_do(target: Target, tmp_path: Path) -> None:
    """Panels, products, packing and exp of `kernels/common`, which every kernel stands on."""
    command = words(target, tmp_path)
    runner = [installed(target.runner, "qemu-user")] if target.runner else []
    program = tmp_path / "vectors"
    done([*command, str(HERE / "vectors.cpp"), "-o", str(program)])
    said = done([*runner, str(program)])
    assert said.endswith(" 0 failures\n")
    if target in (ARM, *NARROW):
        width = 32 if "x86-64-v3" in said + " ".join(target.flags) else 16
        assert said.startswith(f"vectors of {width} bytes")
