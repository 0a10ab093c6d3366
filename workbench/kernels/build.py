"""Build the C++ kernels that this machine can build, once; afterwards only load them.

Building is apart from choosing: nothing compiles unless `prepare` is called. What was built lies in
`$WORKBENCH_CACHE/kernels`, else `~/.cache/workbench/kernels`, one library per op, under a name made
of a hash of everything that could change the result: sources, flags, PyTorch, processor, compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from workbench.kernels import toolchain
from workbench.kernels.dispatch import constant_to_compile, warn_once
from workbench.kernels.toolchain import Toolchain

BUILT_OPS = ("attention", "delta_rule", "dpfp", "dropout", "forget_mult", "sum_rule")

NOT_BUILT = (
    "the C++ kernels have not been built on this machine. "
    "Call workbench.kernels.prepare() once; it takes about a minute"
)

# what `missing` answers: "" where the op's library is loaded. `_turn` counts the calls of `prepare`
# that changed an answer, so that compiled code which was told the old one is traced again
_missing: dict[str, str] = {}
_turn = 0


@dataclass(frozen=True)
class BuildReport:
    """What `prepare` found, did and could not do."""

    loaded: dict[str, Path] = field(default_factory=dict)
    """op: its library"""
    missing: dict[str, str] = field(default_factory=dict)
    """op: why it has no library"""
    compiled: list[str] = field(default_factory=list)
    """the ops that were compiled by this call; the others came from the cache"""
    cuda: dict[str, Path] = field(default_factory=dict)
    """op: its library for NVIDIA GPUs"""
    no_cuda: dict[str, str] = field(default_factory=dict)
    """op: why it has none"""
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"C++ kernels, {self.seconds:.1f} s:"]
        for op, path in self.loaded.items():
            lines.append(f"  {op}: {'compiled' if op in self.compiled else 'cached'}, {path}")
        lines += [f"  {op}: not available, {reason}" for op, reason in self.missing.items()]
        lines += [f"  {op} on a GPU: {path}" for op, path in self.cuda.items()]
        lines += [f"  {op} on a GPU: not available, {why}" for op, why in self.no_cuda.items()]
        return "\n".join(lines)


def prepare() -> BuildReport:
    """Build and load every kernel this machine can; warn once where it cannot.

    The CUDA kernels too, where there is a GPU and an nvcc.

    Safe to call again, from several processes at once, and after an interruption. Never raises for
    a machine that cannot build: the ops then run on PyTorch alone.
    """
    global _turn
    start, before = time.perf_counter(), dict(_missing)
    compiled: list[str] = []
    todo = [op for op in BUILT_OPS if _missing.get(op) != ""]
    with contextlib.ExitStack() as stack:
        tools = toolchain.find()
        if todo and isinstance(tools, Toolchain):
            try:
                stack.enter_context(lock())
                compiled = _compile([op for op in todo if not _library(op, tools)], tools)
            except OSError as error:
                tools = (
                    f"the C++ kernels could not be built in {cache_folder()}: {error}. "
                    "Set WORKBENCH_CACHE to a folder that can be written"
                )
        for op in todo:
            _missing[op] = _load(op, tools)
    _turn += before != _missing
    missing = {op: reason for op, reason in _missing.items() if reason}
    for reason in missing.values():
        warn_once("operations run on PyTorch alone, several times slower", reason)
    loaded = {op: path for op, path in _paths.items() if not _missing[op]}
    from workbench.kernels import cuda  # it stands on this module

    on_gpu, no_gpu = cuda.prepare()
    return BuildReport(
        loaded, missing, compiled, on_gpu, no_gpu, seconds=time.perf_counter() - start
    )


def missing(op: str) -> list[str]:
    """Why an op's library is not there; empty: it is loaded. Looks it up, never compiles."""
    reason = _look_up(op, _turn)
    return [reason] if reason else []


# a constant to torch.compile, which cannot trace the loading of a library; guarded by `turn`
@constant_to_compile
def _look_up(op: str, turn: int) -> str:
    if op not in _missing:
        _missing[op] = _load(op, toolchain.find())
    return _missing[op]


_paths: dict[str, Path] = {}


def _load(op: str, tools: Toolchain | str) -> str:
    """Load an op's library from the cache; the answer is why not, or empty."""
    path = _library(op, tools)
    if path is None:
        if isinstance(tools, str):
            return tools
        failed = _target(op, tools).with_suffix(".failed")
        return failed.read_text("utf-8") if failed.exists() else NOT_BUILT
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path} could not be loaded: {error}. Delete it and call prepare() again"
    _paths[op] = path
    return ""


# --- where things are ----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where built kernels are kept for this user."""
    if told := os.environ.get("WORKBENCH_CACHE"):
        return Path(told) / "kernels"
    return Path.home() / ".cache" / "workbench" / "kernels"


def source_folder() -> Path:
    """`kernels/` of the checkout, else where the installed package put it."""
    checkout = Path(__file__).resolve().parents[2] / "kernels"
    if (checkout / "common").is_dir():
        return checkout
    for file in metadata.files("workbench") or ():
        if file.parts[-2:] == (BUILT_OPS[0], f"{BUILT_OPS[0]}.cpp"):
            return Path(str(file.locate())).resolve().parents[1]
    raise AssertionError("the package was installed without its kernels' sources")


def _target(op: str, tools: Toolchain) -> Path:
    return cache_folder() / f"{op}-{_machine_key(op)}-{tools.key}.so"


def _library(op: str, tools: Toolchain | str) -> Path | None:
    if isinstance(tools, Toolchain):
        path = _target(op, tools)
        return path if is_whole(path) else None
    # built before the compiler went away, or on another node with the same home folder
    found = sorted(cache_folder().glob(f"{op}-{_machine_key(op)}-*.so"))
    return next(filter(is_whole, reversed(found)), None)


def is_whole(library: Path) -> bool:
    """Whether a library is there as it was built: loading one cut short would end the process."""
    try:
        return library.stat().st_size == int(library.with_suffix(".size").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return False


def place(built: Path, library: Path) -> None:
    """Move what was built into the cache in one step, where `is_whole` knows it again."""
    library.with_suffix(".size").write_text(str(built.stat().st_size), "utf-8")
    os.replace(built, library)
    library.with_suffix(".failed").unlink(missing_ok=True)


def _machine_key(op: str) -> str:
    """Everything but the compiler that makes a build usable or not."""
    digest = hashlib.sha256()
    for path in [*sorted(source_folder().glob(f"{op}/{op}.cpp")), *_headers()]:
        digest.update(path.name.encode() + path.read_bytes())
    for part in (
        torch.__version__,
        sys.platform,
        *toolchain.FLAGS,
        *toolchain.NATIVE,
        *_processor(),
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _headers() -> list[Path]:
    return sorted((source_folder() / "common").glob("*.h"))


def _processor() -> list[str]:
    """What this processor can do: code built for another one may be illegal here."""
    facts = [platform.machine(), platform.processor()]
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        wanted = ("flags", "Features", "model name", "CPU part")
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return facts


# --- building ------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One builder at a time; the system releases the lock of a process that died."""
    import fcntl  # absent on Windows, where no toolchain is found in the first place

    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(ops: list[str], tools: Toolchain) -> list[str]:
    """Compile ops with ninja, the lock being held; what fails leaves its reason in the cache."""
    if not ops:
        return []
    for abandoned in cache_folder().glob("building-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache_folder()) as name:
        folder = Path(name)
        (folder / "build.ninja").write_text(_ninja_file(ops, toolchain.probe(tools, folder)))
        subprocess.run([tools.ninja, "-C", name, "-k", "0"], capture_output=True, check=False)
        return [op for op in ops if _keep(op, folder, tools)]


def _keep(op: str, folder: Path, tools: Toolchain) -> bool:
    """Move a library into the cache in one step, or the compiler's message in its place."""
    target, failed = _target(op, tools), _target(op, tools).with_suffix(".failed")
    built = folder / f"{op}.so"
    if built.exists():
        place(built, target)
        return True
    logs = [path.read_text("utf-8", "replace") for path in sorted(folder.glob(f"{op}*.log"))]
    said = "".join(logs).strip() or "ninja itself failed"
    log = target.with_suffix(".log")
    log.write_text(said, "utf-8")
    first = next(
        (line for line in said.splitlines() if "error" in line.lower()), said.split("\n")[0]
    )
    failed.write_text(
        f"the compiler {' '.join(tools.compiler)} failed: {first.strip()}. Its messages are in "
        f"{log.parent}/*.log; mend it or set CXX to another, then call prepare()",
        "utf-8",
    )
    return False


def _ninja_file(ops: list[str], flags: toolchain.Flags) -> str:
    sources = source_folder()
    include = f"-I{shlex.quote(str(sources / 'common'))}"
    for path in toolchain.includes():
        include += f" -isystem {shlex.quote(str(path))}"
    compile_ = f"{flags.compiler} {flags.compile} {include}".replace("$", "$$")
    link = flags.link.replace("$", "$$")
    lines = [
        "rule compile",
        f"  command = {compile_} -c $in -o $out > $out.log 2>&1",
        "rule link",
        f"  command = {flags.compiler} -shared $in -o $out {link} > $out.log 2>&1",
    ]
    for op in ops:
        source = str(sources / op / f"{op}.cpp").replace("$", "$$").replace(" ", "$ ")
        lines += [f"build {op}.o: compile {source}", f"build {op}.so: link {op}.o"]
    return "\n".join(lines) + "\n"
