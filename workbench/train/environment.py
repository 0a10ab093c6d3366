"""On what a run runs: versions, device, commit. Written once into the run folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from workbench.errors import ConfigError

PACKAGES = ("workbench", "torch", "numpy", "pydantic", "safetensors")


def choose_device(wanted: str) -> torch.device:
    """The device of `train.device`.

    Raises:
        ConfigError: CUDA is demanded and PyTorch sees no NVIDIA GPU.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device is cuda, but PyTorch sees no NVIDIA GPU here (a CPU build of PyTorch, or "
            "no driver). Write auto or cpu, or install a CUDA build"
        )
    return torch.device(wanted)


def describe(device: torch.device, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data about software, machine and text."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "git_commit": _commit(),
        "corpus": data,
    }


def processor() -> str:
    """The name of this machine's processor, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """What must be the same for a continued run to be the same, bit for bit."""
    return {
        "workbench": _version("workbench"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this package's checkout; None when it is installed from elsewhere."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # a virtual environment may lie inside the checkout of something else
    return git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", __file__) else None
