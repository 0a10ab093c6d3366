"""What this machine can compile with: a C++ compiler, ninja, and the flags both of them take."""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

FLAGS = ("-O3", "-std=c++20", "-fPIC", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math")
NATIVE = ("-march=native", "-mcpu=native", "")
"""the first that the compiler takes on this processor"""

NO_COMPILER = (
    "no C++ compiler was found ({looked}). Install one (Debian, Ubuntu: apt-get install g++; "
    "conda: conda install -c conda-forge cxx-compiler), or set CXX, then call "
    "workbench.kernels.prepare()"
)
NO_NINJA = (
    "the build tool ninja was not found. Install it (pip install ninja), then call "
    "workbench.kernels.prepare()"
)


@dataclass(frozen=True)
class Toolchain:
    """A compiler and ninja, found and not yet tried."""

    compiler: tuple[str, ...]
    """the command, its program as a full path"""
    ninja: str
    key: str
    """changes when the compiler is replaced"""


class Flags(NamedTuple):
    """Parts of commands, quoted for the shell."""

    compiler: str
    compile: str
    link: str


def find() -> Toolchain | str:
    """The toolchain, or why there is none. Starts no program."""
    if os.name != "posix":
        return "C++ kernels are built on Linux and macOS only"
    told = os.environ.get("CXX", "").strip()
    commands = [shlex.split(told)] if told else [["g++"], ["clang++"], ["c++"]]
    for command in commands:
        if path := shutil.which(command[0]):
            break
    else:
        looked = f"CXX is {told!r}" if told else "looked for g++, clang++, c++ on PATH"
        return NO_COMPILER.format(looked=looked)
    beside_python = str(Path(sys.executable).parent)
    ninja = shutil.which("ninja") or shutil.which("ninja", path=beside_python)
    if ninja is None:
        return NO_NINJA
    return Toolchain((path, *command[1:]), ninja, identity((path, *command[1:])))


def identity(command: tuple[str, ...]) -> str:
    """Tells compilers apart without running them: which file, how large, how old."""
    facts = list(command)
    for word in command:
        if found := shutil.which(word):
            stat = Path(found).resolve().stat()
            facts += [str(Path(found).resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12]


def includes() -> list[Path]:
    """PyTorch's own headers."""
    base = Path(torch.__file__).parent / "include"
    return [base, base / "torch" / "csrc" / "api" / "include"]


def probe(tools: Toolchain, folder: Path) -> Flags:
    """Try which optional flags the compiler takes: this processor's instructions, and threads."""
    program = folder / "probe.cpp"
    program.write_text("#ifdef _OPENMP\n#include <omp.h>\n#endif\nint main() { return 0; }\n")
    takes = functools.partial(_takes, tools.compiler, program)
    native = next((flag for flag in NATIVE if takes(flag)), "")
    threads, libraries = ("-fopenmp", _openmp()) if takes("-fopenmp") else ("", "")
    lib = Path(torch.__file__).parent / "lib"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    return Flags(
        shlex.join(tools.compiler),
        " ".join([*FLAGS, native, threads, abi]),
        f"-L{shlex.quote(str(lib))} -lc10 -ltorch_cpu {libraries} {undefined}",
    )


def _takes(compiler: tuple[str, ...], program: Path, flag: str) -> bool:
    command = [*compiler, *flag.split(), str(program), "-o", str(program.with_suffix(""))]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _openmp() -> str:
    """Link the OpenMP that PyTorch brought, so that both use one set of threads."""
    lib = Path(torch.__file__).parent / "lib"
    bundled = [*sorted(lib.glob("libgomp*.so*")), *sorted(lib.glob("libomp*.dylib"))]
    return shlex.quote(str(bundled[0])) if bundled else "-fopenmp"
