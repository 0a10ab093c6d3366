"""Prepare Zipf text at every level: speed, memory, and the time to open the result.

    python tests/bench/bench_data.py --mb 1000 --levels byte word

The text has a vocabulary of 267,735 words (as WikiText-103), frequent ones shorter, in lines; the
same seed gives the same text. Each level is prepared in a process of its own, so that its peak of
memory is its own: imports of the package, PyTorch among them, take about 230 MB of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_WORDS = 267_735
P_END_OF_LINE = 0.04
BLOCK_WORDS = 1_000_000
COLUMNS = {
    "level": "s",
    "tokens": ",d",
    "symbols": ",d",
    "s": ".1f",
    "MB/s": ".1f",
    "MB/s per core": ".1f",
    "MB/s per CPU second": ".1f",
    "parent MB": ",d",
    "worker MB": ",d",
    "open ms": ".1f",
}


def words(draw: np.random.Generator) -> list[str]:
    """Different words, the frequent ones short: five bytes a token with the blank."""
    ranks = np.arange(1, N_WORDS + 1)
    lengths = np.clip(draw.normal(1.6 + 0.42 * np.log2(ranks), 1.6), 1, 24).astype(int)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    found: dict[str, None] = {}
    for length in lengths.tolist():
        word = "".join(draw.choice(letters, length))
        while word in found:
            word += str(draw.choice(letters))
        found[word] = None
    return list(found)


def make_text(path: Path, n_bytes: int, seed: int) -> None:
    """Write a text whose word of rank r is drawn with probability about 1 / (r ln V)."""
    draw = np.random.default_rng(seed)
    table = words(draw)
    ends = [*(word + " " for word in table), *(word + "\n" for word in table)]
    with path.open("w", encoding="ascii") as file:
        while (left := n_bytes - file.tell()) > 0:
            ranks = np.exp(draw.random(BLOCK_WORDS) * math.log(N_WORDS + 1)).astype(np.int64) - 1
            ranks += N_WORDS * (draw.random(BLOCK_WORDS) < P_END_OF_LINE)
            file.write("".join(map(ends.__getitem__, ranks.tolist()))[:left])


def peak_mb(pid: int | str) -> int:
    """Most memory that a process held at a time, so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kb,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kb) >> 10


def cpu_s() -> float:
    """Seconds of all cores, of this process and its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(path: Path, level: str) -> dict[str, object]:
    """Prepare and open one text."""
    from workbench.data import crew
    from workbench.data.text import Text

    peaks = [0]
    close = crew.Workers.close

    def noting(self: crew.Workers) -> None:
        peaks.extend(peak_mb(pid) for pid in self.pids)
        close(self)

    crew.Workers.close = noting  # type: ignore[method-assign]
    config = Text(path=str(path), level=level)
    began, cpu = time.perf_counter(), cpu_s()
    corpus = config.open()
    took, cpu = time.perf_counter() - began, cpu_s() - cpu
    parent = peak_mb("self")
    opening = []
    for _ in range(5):
        began = time.perf_counter()
        config.open()
        opening.append(time.perf_counter() - began)
    mb = path.stat().st_size / 1e6
    return {
        "level": level,
        "tokens": sum(corpus.info["tokens"].values()),
        "symbols": corpus.info["vocabulary_size"],
        "s": took,
        "MB/s": mb / took,
        "MB/s per core": mb / took / max(1, crew.n_workers()),
        "MB/s per CPU second": mb / cpu,
        "parent MB": parent,
        "worker MB": max(peaks),
        "open ms": 1e3 * min(opening),
    }


def table(rows: list[dict[str, object]]) -> str:
    """The measurements as a Markdown table."""
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[format(row[name], how) for name, how in COLUMNS.items()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=100, help="size of the text in 10**6 bytes")
    parser.add_argument("--levels", nargs="+", default=["byte", "char", "word"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where text and corpora lie meanwhile")
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "LEVEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-data-", dir=args.folder))
    try:
        path = folder / "zipf.txt"
        began = time.perf_counter()
        make_text(path, args.mb * 10**6, args.seed)
        print(f"{path.stat().st_size:,} bytes made in {time.perf_counter() - began:.1f} s")
        env = {**os.environ, "WORKBENCH_DATA": str(folder)}
        rows = []
        for level in args.levels:
            command = [sys.executable, __file__, "--measure", str(path), level]
            rows.append(json.loads(subprocess.check_output(command, env=env, text=True)))
            shutil.rmtree(folder / "prepared")
        print(table(rows))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
