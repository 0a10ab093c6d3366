"""Fetch what the benchmark compares with into `.setup/peers`; `make bench` begins with it.

Only from pip's indexes, and never PyTorch itself: packages are taken without their dependencies,
which the environment has. What cannot be had is noted in `why_not.json`; the benchmark then says so
in its rows. Nothing to do where nothing changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".setup" / "peers"
WHY_NOT = PEERS / "why_not.json"
FLA = ("fla-core==0.6.0", "einops==0.8.2")
FAST = "pytorch-fast-transformers==0.4.0"
X = (
    "x-transformers==2.31.10",
    "einx==0.4.3",
    "frozendict==2.4.7",
    "loguru==0.7.3",
    "torch-einops-utils==0.1.41",
)
FLAGS = ["-O3", "-march=native", "-fopenmp", "-ffast-math"]
"""the last two are its own; without the first two it would run at half its speed"""


SOURCE = "causal_product/causal_product_cpu.cpp"


class Failed(Exception):
    """A peer that cannot be had here, and why."""


def pip(*words: str, env: dict[str, str] | None = None) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        *words,
        "--disable-pip-version-check",
        "--retries",
        "1",
        "-q",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if "rror" in line]
        raise Failed(f"pip {words[0]}: {(said or ['failed'])[-1][:200]}")


def into_peers(*packages: str) -> None:
    pip("install", "--no-deps", "--upgrade", "--target", str(PEERS), *packages)


def fla() -> None:
    """flash-linear-attention's ops. Its Triton comes with PyTorch's CUDA builds."""
    into_peers(*FLA)


def x_transformers() -> None:
    into_peers(*X)


def fast_transformers() -> None:
    """Its causal product for CPUs, which its authors give as source only; the rest is not built."""
    folder = PEERS / "source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tools = folder / "tools"
    # its setup.py is run to learn its name: that needs PyTorch, and takes any nvcc for a CUDA build
    pip("install", "--target", str(tools), "setuptools<81", "wheel")
    paths = os.environ["PATH"].split(os.pathsep)
    env = os.environ | {
        "PATH": os.pathsep.join(p for p in paths if not shutil.which("nvcc", path=p)),
        "PYTHONPATH": str(tools),
    }
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    pip("download", *options, "--dest", str(folder), FAST, env=env)
    package = PEERS / "fast_transformers"
    shutil.rmtree(package, ignore_errors=True)
    (package / "causal_product").mkdir(parents=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for name in ("__init__.py", "causal_product/__init__.py", SOURCE):
            found = next(m for m in tar if m.name.endswith(f"/fast_transformers/{name}"))
            with tar.extractfile(found) as file, (package / name).open("wb") as target:
                shutil.copyfileobj(file, target)
    build(package / SOURCE)
    shutil.rmtree(folder)


def build(source: Path) -> None:
    """Compile a C++ extension of PyTorch's beside its source."""
    from torch.utils import cpp_extension

    try:
        cpp_extension.load(
            source.stem, [str(source)], extra_cflags=FLAGS, extra_ldflags=["-fopenmp"],
            build_directory=str(source.parent),
        )  # fmt: skip
    except (OSError, RuntimeError, ImportError) as error:
        raise Failed(f"compiling {source.name}: {str(error)[:200]}") from error


INSTALLERS: dict[str, Callable[[], None]] = {
    "flash-linear-attention": fla,
    "fast-transformers": fast_transformers,
    "x-transformers": x_transformers,
}


def key() -> str:
    return f"{torch.__version__} {sys.version.split()[0]} {FLA} {FAST} {X} {FLAGS}"


def main() -> None:
    # ninja came with the environment, which need not be active
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    before = json.loads(WHY_NOT.read_text()) if WHY_NOT.is_file() else {}
    fresh = before.get("key") == key()
    found = before.get("why_not", {}) if fresh else {}
    PEERS.mkdir(parents=True, exist_ok=True)
    for name, install in INSTALLERS.items():
        if fresh and not found.get(name):
            continue
        print(f"  peer {name}", end=" ", flush=True)
        try:
            install()
            found[name] = ""
        except Exception as error:
            # the benchmark runs without its peers, and says so in its rows
            found[name] = str(error) if isinstance(error, Failed) else repr(error)
        print(f"is not to be had: {found[name]}" if found[name] else "is there", flush=True)
    WHY_NOT.write_text(json.dumps({"key": key(), "why_not": found}, indent=1))


if __name__ == "__main__":
    main()
