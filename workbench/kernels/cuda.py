"""Build the CUDA kernels where there is a GPU, once; afterwards only load them.

An op has one if its folder holds `<op>_cuda.cpp` (the binding) beside `<op>.cu` (the device code).
Libraries lie beside those of the C++ kernels, under a name made of a hash of sources, flags,
PyTorch, both compilers and the compute capabilities of the GPUs that are visible.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.kernels import build, toolchain
from workbench.kernels.dispatch import constant_to_compile, transformed

FLAGS = ("-O3", "-std=c++20", "-DNDEBUG", "-Xcompiler", "-fPIC")
OLDEST = (8, 0)
"""compute capability from which bf16 tensor cores and cp.async exist"""

MOST_FEATURES = 256
"""of a key, in the kernels of the fast-weight rules"""

NOT_BUILT = (
    "the CUDA kernels have not been built on this machine. "
    "Call workbench.kernels.prepare() once; it takes some minutes"
)
NO_NVCC = (
    "no nvcc was found (looked in $CUDA_HOME/bin, on PATH, in /usr/local/cuda/bin). Install the "
    "CUDA toolkit {version} that PyTorch was built with, then call workbench.kernels.prepare()"
)

# as in `build`: "" where the op's library is loaded
_missing: dict[str, str] = {}
_paths: dict[str, Path] = {}
_turn = 0


@dataclass(frozen=True)
class CudaToolchain:
    """nvcc, the host's toolchain, and what to compile for."""

    nvcc: str
    host: toolchain.Toolchain
    capabilities: tuple[tuple[int, int], ...]
    key: str


def ops() -> list[str]:
    """The ops that have a CUDA kernel."""
    return sorted(path.stem[: -len("_cuda")] for path in build.source_folder().glob("*/*_cuda.cpp"))


def find() -> CudaToolchain | str:
    """What to compile with, or why there is nothing. Starts no program."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU that PyTorch can use"
    every = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    able = tuple(sorted(capability for capability in every if capability >= OLDEST))
    if not able:
        return f"got GPUs of compute capability {_dotted(max(every))}, expected {_dotted(OLDEST)}"
    beside = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME",) if name in os.environ]
    looked = [str(folder) for folder in [*beside, *os.get_exec_path(), "/usr/local/cuda/bin"]]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(looked))
    if nvcc is None:
        return NO_NVCC.format(version=torch.version.cuda)
    host = toolchain.find()
    if isinstance(host, str):
        return host
    facts = [toolchain.identity((nvcc,)), host.key, *map(_dotted, able)]
    return CudaToolchain(
        nvcc, host, able, hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]
    )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def prepare() -> tuple[dict[str, Path], dict[str, str]]:
    """Build and load what is missing; each op's library, and why others have none.

    Called by `workbench.kernels.prepare`.
    """
    global _turn
    before, tools = dict(_missing), find()
    todo = [op for op in ops() if _missing.get(op) != ""]
    if todo and isinstance(tools, CudaToolchain):
        try:
            with build.lock():
                _compile([op for op in todo if not target(op, tools).exists()], tools)
        except OSError as error:
            tools = f"the CUDA kernels could not be built in {build.cache_folder()}: {error}"
    for op in todo:
        _missing[op] = _load(op, tools)
    _turn += before != _missing
    missing = {op: reason for op, reason in _missing.items() if reason}
    return {op: path for op, path in _paths.items() if not _missing[op]}, missing


def reasons(op: str, *arguments: Any) -> list[str]:
    """Why an op's CUDA kernel is not there for these tensors; empty: it is."""
    first = arguments[0] if arguments else None
    if isinstance(first, torch.Tensor) and first.device.type != "cuda":
        return [f"the CUDA kernels run on a GPU, the tensors are on {first.device.type}"]
    reason = _look_up(op, _turn)
    return [reason] if reason else transformed()


# a constant to torch.compile, which cannot trace the loading of a library; guarded by `turn`
@constant_to_compile
def _look_up(op: str, turn: int) -> str:
    if op not in _missing:
        _missing[op] = _load(op, find())
    return _missing[op]


@constant_to_compile
def shared_bytes(device: int) -> int:
    """The most shared memory that a block of a GPU can have."""
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def _load(op: str, tools: CudaToolchain | str) -> str:
    """Load an op's library from the cache; the answer is why not, or empty."""
    if isinstance(tools, str):
        return tools
    path = target(op, tools)
    if not path.exists():
        failed = path.with_suffix(".failed")
        return failed.read_text("utf-8") if failed.exists() else NOT_BUILT
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path} could not be loaded: {error}. Delete it and call prepare() again"
    _paths[op] = path
    return ""


def target(op: str, tools: CudaToolchain) -> Path:
    """Where the library of an op is kept."""
    sources, digest = build.source_folder(), hashlib.sha256()
    common = sources / "common"
    files = [*sorted((sources / op).glob("*.cu*")), sources / op / f"{op}_cuda.cpp"]
    for path in [*files, *sorted(common.glob("*.cuh")), *sorted(common.glob("*.hpp"))]:
        digest.update(path.name.encode() + path.read_bytes())
    for part in (torch.__version__, str(torch.version.cuda), *FLAGS, *toolchain.FLAGS):
        digest.update(part.encode() + b"\0")
    name = f"{op}-cuda-{digest.hexdigest()[:16]}-{tools.key}.so"
    return build.cache_folder() / name


def _compile(todo: list[str], tools: CudaToolchain) -> None:
    """Compile ops with ninja, the lock being held; what fails leaves its reason in the cache."""
    if not todo:
        return
    with tempfile.TemporaryDirectory(prefix="building-", dir=build.cache_folder()) as name:
        folder = Path(name)
        (folder / "build.ninja").write_text(
            ninja_file(todo, tools, toolchain.probe(tools.host, folder))
        )
        subprocess.run([tools.host.ninja, "-C", name, "-k", "0"], capture_output=True, check=False)
        for op in todo:
            path, built = target(op, tools), folder / f"{op}.so"
            if built.exists():
                os.replace(built, path)
                path.with_suffix(".failed").unlink(missing_ok=True)
                continue
            logs = [p.read_text("utf-8", "replace") for p in sorted(folder.glob(f"{op}*.log"))]
            path.with_suffix(".log").write_text("".join(logs) or "ninja itself failed", "utf-8")
            path.with_suffix(".failed").write_text(
                f"{tools.nvcc} or the C++ compiler failed on the CUDA kernel of {op}: see "
                f"{path.with_suffix('.log')}; mend it, then call prepare()",
                "utf-8",
            )


def ninja_file(todo: list[str], tools: CudaToolchain, host: toolchain.Flags) -> str:
    """The build of these ops: device code by nvcc, bindings and linking by the C++ compiler."""
    sources = build.source_folder()
    cuda = Path(tools.nvcc).resolve().parents[1]
    own = f"-I{shlex.quote(str(sources / 'common'))}"
    headers = " ".join(
        f"-isystem {shlex.quote(str(path))}" for path in [*toolchain.includes(), cuda / "include"]
    )
    architectures = " ".join(
        f"-gencode=arch=compute_{a}{b},code=sm_{a}{b}" for a, b in tools.capabilities
    )
    lib = Path(torch.__file__).parent / "lib"
    runtime = f"-L{shlex.quote(str(cuda / 'lib64'))} -lcudart"
    libraries = f"{host.link} -L{shlex.quote(str(lib))} -lc10_cuda -ltorch_cuda {runtime}"
    nvcc = f"{shlex.quote(tools.nvcc)} -ccbin {shlex.quote(tools.host.compiler[0])}"
    device = f"{nvcc} --cudart=shared {' '.join(FLAGS)} {architectures} {own}"
    lines = [
        "rule device",
        f"  command = {_dollars(device)} -c $in -o $out > $out.log 2>&1",
        "rule binding",
        f"  command = {_dollars(f'{host.compiler} {host.compile} {own} {headers}')}"
        " -c $in -o $out > $out.log 2>&1",
        "rule link",
        f"  command = {_dollars(host.compiler)} -shared $in -o $out {_dollars(libraries)}"
        " > $out.log 2>&1",
    ]
    for op in todo:
        source = str(sources / op / op).replace("$", "$$").replace(" ", "$ ")
        lines += [
            f"build {op}.device.o: device {source}.cu",
            f"build {op}.binding.o: binding {source}_cuda.cpp",
            f"build {op}.so: link {op}.device.o {op}.binding.o",
        ]
    return "\n".join(lines) + "\n"


def _dollars(command: str) -> str:
    return command.replace("$", "$$")
