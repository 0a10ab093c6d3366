"""How fast a model could be trained on this machine at the very best: a line for its speed.

Every token goes through each weight matrix of the blocks once, and through the softmax's: two
floating-point operations a weight forward, and four backward, for the gradients of input and
weight. Divided by what the machine does in a large matrix product, measured once in the precision
of training, that is a speed which nothing can surpass: attention between tokens, fast weights,
everything element by element and all traffic with memory come on top and are counted as free.

Position codes, which the rows of a batch share, are left out, so is a vocabulary that is split into
clusters or sampled, and a tensor that layers share counts once: that makes the limit higher, never
too low.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import CannotWrite
from workbench.kernels.build import cache_folder
from workbench.models.language_model import LanguageModel
from workbench.models.vocabulary import Plain
from workbench.train import storage
from workbench.train.environment import choose_device, processor
from workbench.train.launch import LaunchedRun
from workbench.train.start import AnyRun

log = logging.getLogger("workbench")

LIMIT = "limit.json"
PRODUCT = {"cpu": 1024, "cuda": 8192}
"""rows and columns of the matrices that are multiplied"""
TRIES = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SpeedLimit:
    """What the machine allows."""

    tokens_per_s: float
    flop_per_token: int
    """forward and backward, of weight matrices alone"""
    flop_per_s: float
    """of the best of some large matrix products"""
    precision: str
    device: str
    """what was measured, with its threads or how many there are"""


def flop_per_token(model: LanguageModel) -> int:
    """Floating-point operations that training cannot do without, for one token."""
    matrices: list[torch.Tensor] = [
        parameter
        for name, parameter in model.blocks.named_parameters()
        if parameter.ndim == 2
        and name.split(".")[-1].startswith("weight")
        and "positions" not in name.split(".")
    ]
    if isinstance(model.vocabulary, Plain) and model.vocabulary.sampler is None:
        matrices.append(model.vocabulary.output.weight)
    weights = {id(w): w.numel() for w in matrices}
    return 6 * sum(weights.values())


def matmul_flop_per_s(device: torch.device, precision: str) -> float:
    """Of the best of some products of square matrices; measured once for each machine and kept in
    the user's cache.

    Args:
        device: of training; threads as PyTorch has now.
        precision: `fp32`, `bf16` or `fp16`.
    """
    key = f"{_name(device)}, {precision}, torch {torch.__version__}"
    path = cache_folder().parent / "limits.json"
    known = _plain(path)
    if isinstance(rate := known.get(key), int | float) and rate > 0:
        return float(rate)
    rate = _measure(device, precision)
    try:
        with storage.writing(path.name, path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.replace(path, json.dumps({**known, key: rate}, indent=1).encode())
    except CannotWrite as error:
        log.info("the machine's limit is measured again next time: %s", error)
    return rate


def _measure(device: torch.device, precision: str) -> float:
    n = PRODUCT[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, device=device) for _ in range(2))
    a, b = (x.to(DTYPES[precision]) for x in (a, b))
    best_s = float("inf")
    for _ in range(TRIES):
        begin = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - begin)
    # whoever disturbs us makes it slower, never faster: the best is the nearest to the truth
    del c
    return 2.0 * n**3 / best_s


def of_run(run: AnyRun) -> SpeedLimit | None:
    """The limit of a run that is about to begin; None where it trains on no text."""
    if not isinstance(model := run.model, LanguageModel):
        return None
    device = choose_device(run.recipe.train.device)
    # processes on a CPU share its cores, on GPUs each has its own
    together = run.processes if isinstance(run, LaunchedRun) else run.world.size
    processes = together if device.type == "cuda" else 1
    precision = run.recipe.train.precision
    rate = matmul_flop_per_s(device, precision) * processes
    work = flop_per_token(model)
    name = _name(device) + (f" x {processes}" if processes > 1 else "")
    return SpeedLimit(rate / work, work, rate, precision, name)


def keep(folder: Path, limit: SpeedLimit) -> None:
    """Write `limit.json` into the folder of a run that has begun.

    Raises:
        CannotWrite: the disk is full or read-only.
    """
    with storage.writing(LIMIT, folder):
        text = json.dumps(asdict(limit), indent=1) + "\n"
        storage.replace(folder / LIMIT, text.encode(), durable=False)


def read(folder: Path) -> SpeedLimit | None:
    """The limit that a run folder tells; None where it tells none, or nothing that can be one."""
    data = _plain(folder / LIMIT)
    try:
        limit = SpeedLimit(**data)
    except TypeError:
        return None
    numbers = (limit.tokens_per_s, limit.flop_per_token, limit.flop_per_s)
    if not all(isinstance(x, int | float) and 0 < x < float("inf") for x in numbers):
        return None
    return limit


def _plain(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{processor()}, {torch.get_num_threads()} threads"
