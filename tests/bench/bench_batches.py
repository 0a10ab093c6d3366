"""How fast batches come, beside the fastest training step: `python tests/bench/bench_batches.py`.

For every order, type and number of streams: tokens/s of the batches alone, how many times the
tokens/s of training that is, and the share of a step's time that making its batch would take.
Training is that of the fastest of the tiny recipes, measured in the same run on the same machine
(the GPU where there is one). `cold` reads a text that the page cache does not hold.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench import kernels
from workbench.data import Segments
from workbench.data.ahead import Ahead, ahead
from workbench.data.batches import Batches, Reader
from workbench.data.segments import RandomLengths
from workbench.data.sentences import SentenceBatches
from workbench.models.language_model import build_model
from workbench.recipe import Recipe, load_recipe, recipe_names
from workbench.train.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RECIPES = [name for name in recipe_names() if name.endswith("-python-tiny")]
TOKENS, SENTENCE, SHARDS = 40_000_000, 27, 10
T, STREAMS, BATCHES = 128, (8, 64, 256), 200
Make = Callable[[Tensor, int], Batches]


def per_call(call: Callable[[], object], times: int) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def training() -> dict[str, float]:
    """Tokens/s of a step of each tiny recipe, the batch included."""
    text = torch.randint(256, (200_000,), dtype=torch.uint8)
    rates = {}
    for name in RECIPES:
        recipe = load_recipe(name)
        assert isinstance(recipe, Recipe)
        batches = Segments(
            text, recipe.data.batch_size, recipe.data.segment_len, reader=Reader(DEVICE)
        )
        model = build_model(recipe.model, 256, seed=1).to(DEVICE)
        trainer = Trainer(model, ahead(batches, DEVICE), recipe.train, name)

        def step(trainer: Trainer = trainer) -> None:
            trainer.update()
            # waits for the device
            trainer.check_finite()

        per_call(step, 3)
        rates[name] = recipe.data.batch_size * recipe.data.segment_len / per_call(step, 10)
    return rates


def mapped(path: Path, dtype: type) -> Tensor:
    return torch.from_numpy(np.asarray(np.memmap(path, dtype=dtype, mode="c")))


def write(folder: Path, dtype: type) -> Path:
    """Random ids; the id 0 opens a sentence now and then."""
    draw = np.random.default_rng(1)
    ids = draw.integers(1, 200 if dtype == np.uint8 else 30_000, TOKENS, dtype=dtype)
    ids[draw.random(TOKENS) < 1 / SENTENCE] = 0
    ids[:: TOKENS // SHARDS] = ids[-1] = 0
    path = folder / f"{np.dtype(dtype).name}.bin"
    with path.open("wb") as file:
        file.write(ids.tobytes())
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def contiguous(text: Tensor, B: int) -> Batches:
    return Segments(text, B, T, reader=Reader(DEVICE))


def random_lengths(text: Tensor, B: int) -> Batches:
    return Segments(text, B, T, lengths=RandomLengths(), reader=Reader(DEVICE))


def random_offset(text: Tensor, B: int) -> Batches:
    return Segments(text, B, T, restart="random_offset", reader=Reader(DEVICE))


def sentences(text: Tensor, B: int) -> Batches:
    edges = [*range(0, TOKENS, TOKENS // SHARDS), TOKENS - 1]
    return SentenceBatches(text, edges, 0, B, T, reader=Reader(DEVICE))


def with_thread(text: Tensor, B: int) -> Batches:
    return Ahead(contiguous(text, B), DEVICE)


ORDERS: tuple[Make, ...] = (contiguous, random_lengths, random_offset, sentences, with_thread)


def lines(path: Path, dtype: type, fastest: float) -> Iterator[str]:
    cases = [(make, B, "warm") for make in ORDERS for B in STREAMS]
    cases += [(make, B, "cold") for make in (contiguous, sentences) for B in STREAMS]
    for make, B, cache in cases:
        if cache == "cold":
            forget(path)
        begin = time.perf_counter()
        source = make(mapped(path, dtype), B)
        if cache == "warm":
            per_call(source.next, 20)
            begin = time.perf_counter()
        median = per_call(source.next, BATCHES)
        mean = (time.perf_counter() - begin) / BATCHES
        # the mean tells of new shards and, cold, of the disk and of opening
        rate = B * T / mean
        name = np.dtype(dtype).name
        yield (
            f"{make.__name__:15s} {name:7s} {cache:5s} B{B:<4d} {1e3 * median:8.3f} ms median "
            f"{1e3 * mean:8.3f} ms mean {rate / 1e6:8.1f} Mtokens/s "
            f"{rate / fastest:8.0f}x training {fastest / rate:8.3%} of a step"
        )


def main() -> None:
    torch.set_num_threads(1)
    kernels.prepare()
    rates = training()
    for name, rate in sorted(rates.items(), key=lambda item: item[1]):
        print(f"{name:25s} {rate:12,.0f} tokens/s of training on {DEVICE}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (np.uint8, np.int32):
            for line in lines(write(Path(folder), dtype), dtype, max(rates.values())):
                print(line, flush=True)


if __name__ == "__main__":
    main()
