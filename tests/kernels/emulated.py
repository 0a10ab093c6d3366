"""A CUDA source on a CPU: compiled against the emulator, called with tensors.

`Emulated(path)` compiles once and keeps the library beside the built kernels. A launcher's inputs
are copied to guarded, read-only memory and its outputs (`Empty`) begin as NaN, so that a stray
access and an unwritten number are both found.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.kernels.build import cache_folder

HERE = Path(__file__).parent
COMMON = HERE.parents[1] / "kernels" / "common"
EMULATOR = HERE / "emulator"
# fused multiply-adds are the compiler's choice on a GPU too; here they are left out
FLAGS = ("-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-w")

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`Type` of device.cuh"""

ORDERS = {"forward": (0, 0), "reversed": (1, 0), "shuffled": (2, 1), "shuffled again": (2, 77)}
"""in which order blocks, and the threads that could go on, do go on"""


class Fault(Exception):
    """What the emulator found wrong, or a launcher refused."""


def compiler() -> str | None:
    """The C++ compiler, or None; clang has no section of its own here: it takes the same source."""
    return shutil.which(os.environ.get("CXX", "g++"))


@dataclass
class Empty:
    """An output of this shape and type, NaN before the call."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass
class Changed:
    """A tensor that the call may write to, beginning as it is given."""

    tensor: Tensor


@cache
def _library(source: Path) -> ctypes.CDLL:
    command = compiler()
    assert command, "ask `compiler()` first"
    digest = hashlib.sha256(" ".join([command, *FLAGS]).encode())
    headers = [*sorted(COMMON.glob("*.cuh")), *sorted(EMULATOR.glob("*.h"))]
    for file in [*sorted(source.parent.glob("*.cu*")), *headers]:
        digest.update(file.read_bytes())
    folder = cache_folder().parent / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        words = [command, *FLAGS, f"-I{COMMON}", f"-I{EMULATOR}", "-x", "c++", str(source)]
        done = subprocess.run([*words, "-o", str(part)], capture_output=True, text=True)
        if done.returncode:
            raise Fault(f"{source.name} does not compile: {done.stderr[-3000:]}")
        with suppress(FileNotFoundError):
            os.replace(part, target)
    library = ctypes.CDLL(str(target))
    library.emulator_allocate.restype = ctypes.c_void_p
    library.emulator_allocate.argtypes = [ctypes.c_size_t]
    library.emulator_free.argtypes = [ctypes.c_void_p]
    library.emulator_protect.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.emulator_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.emulator_conflicts.restype = ctypes.c_uint64
    return library


class Emulated:
    """The launchers of one `.cu` file."""

    def __init__(self, source: Path):
        self.library = _library(source)

    def call(self, launcher: str, *arguments: Any, order: str = "forward") -> list[Tensor]:
        """Call a launcher; the tensors it wrote, in the order of its arguments.

        Args:
            launcher: its name; the stream is added.
            arguments: tensors (read only), `Empty`, `Changed`, int, float, None (null pointer).
            order: one of ORDERS.

        Raises:
            Fault: anything that the emulator found, or that the launcher refused.
        """
        function = getattr(self.library, launcher)
        function.restype = ctypes.c_char_p
        self.library.emulator_order(*ORDERS[order])
        held: list[int] = []
        written: list[tuple[int, Tensor]] = []
        try:
            passed = [self._pass(x, held, written) for x in arguments]
            said = function(*passed, ctypes.c_void_p(0))
            if said is not None:
                raise Fault(said.decode())
            for address, tensor in written:
                ctypes.memmove(tensor.data_ptr(), address, tensor.nbytes)
        finally:
            for address in held:
                self.library.emulator_free(address)
        return [tensor for _, tensor in written]

    def _pass(self, x: Any, held: list[int], written: list[tuple[int, Tensor]]) -> Any:
        if x is None:
            return ctypes.c_void_p(0)
        if isinstance(x, (bool, int)):
            return ctypes.c_int64(x)
        if isinstance(x, float):
            return ctypes.c_double(x)
        if isinstance(x, Empty):
            tensor = torch.empty(x.shape, dtype=x.dtype)
        else:
            tensor = (x.tensor if isinstance(x, Changed) else x).detach().contiguous().clone()
        address = self.library.emulator_allocate(tensor.nbytes)
        held.append(address)
        if not isinstance(x, Empty):
            ctypes.memmove(address, tensor.data_ptr(), tensor.nbytes)
        if isinstance(x, Tensor):
            self.library.emulator_protect(address, 0)
        else:
            written.append((address, tensor))
        return ctypes.c_void_p(address)

    def conflicts(self) -> int:
        """Extra passes of `ldmatrix` over shared memory since this was last asked."""
        return int(self.library.emulator_conflicts())


def in_all_orders(run: Callable[[str], list[Tensor]]) -> list[Tensor]:
    """What `run(order)` gives, which must be the same bit for bit in every order."""
    first, *others = (run(order) for order in ORDERS)
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8)), "the order decides"
    return first
