"""A preparation that is killed at random moments: nothing unfinished keeps its name, and the next
one makes the same files as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.data import places
from workbench.data.text import Text

HERE = Path(__file__).parents[2]

# one process that has imported all; it forks a preparation for each kill
KILLER = """
import os, random, shutil, signal, sys, time
from workbench.data import crew, pieces, store, symbols
from workbench.data.text import Text

path, level, seed, kills, reference, victim = sys.argv[1:]
pieces.CHUNK_BYTES, crew.SMALL_BYTES, symbols.PART_WORDS = 20_000, 0, 500

def prepare(root):
    os.environ["WORKBENCH_DATA"] = root
    return Text(path=path, level=level).open()

start = time.perf_counter()
prepare(reference)
lasts_s = time.perf_counter() - start
draw = random.Random(int(seed))
for _ in range(int(kills)):
    child = os.fork()
    if child == 0:
        prepare(victim)
        os._exit(0)
    time.sleep(lasts_s * draw.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for folder in store.Path(victim, "prepared").glob("[!.]*"):
        store.open_prepared(folder).check()
        # undone, so that the next one has something to do
        shutil.rmtree(folder)
"""


@pytest.mark.parametrize(
    ("level", "workers", "kills"),
    [
        ("word", "2", 3),
        ("char", "0", 4),
        pytest.param("word", "2", 200, marks=pytest.mark.slow),
        pytest.param("word", "0", 200, marks=pytest.mark.slow),
        pytest.param("byte", "2", 100, marks=pytest.mark.slow),
    ],
)
def test_a_killed_preparation_leaves_nothing_under_its_name(
    tmp_path, monkeypatch, level, workers, kills
):
    draw = random.Random(1)
    path = tmp_path / "t.txt"
    words = [f"w{int(draw.paretovariate(0.7)) % 3000}" for _ in range(30_000)]
    path.write_text(" ".join(words) + "\n")
    roots = {name: str(tmp_path / name) for name in ("reference", "victim")}
    command = [sys.executable, "-c", KILLER, str(path), level, "3", str(kills), *roots.values()]
    env = {**os.environ, "WORKBENCH_WORKERS": workers}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("WORKBENCH_DATA", roots["victim"])
    again = Text(path=str(path), level=level).open()
    again.check()
    assert [f.name for f in again.folder.parent.iterdir()] == [again.folder.name]
    expected = tmp_path / "reference" / "prepared" / again.folder.name
    names = sorted(f.name for f in expected.iterdir())
    assert sorted(f.name for f in again.folder.iterdir()) == names
    for name in names:
        assert (again.folder / name).read_bytes() == (expected / name).read_bytes()


# imports once; for each folder it is told, a process begins a preparation there and waits
PREPARES = """
import os, signal, sys
from workbench.data import crew, pieces
from workbench.data.text import Text
pieces.CHUNK_BYTES, crew.SMALL_BYTES = 1000, 0
def waits(self, asked):
    print(os.getpid(), *self.pids, flush=True)
    signal.pause()
crew.Workers.map = waits
for root in sys.stdin:
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        os.environ["WORKBENCH_DATA"] = root.strip()
        Text(path=sys.argv[1], level="word").open()
"""


def gone(pid):
    """Whether a process has ended (and at most waits to be reaped)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] in "ZX"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("to be or not to be\n" * 1000)
    env = {**os.environ, "WORKBENCH_WORKERS": "2"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", PREPARES, str(path)]
    with subprocess.Popen(command, cwd=HERE, env=env, text=True, **pipes) as process:
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            root = tmp_path / how.name
            process.stdin.write(f"{root}\n")
            process.stdin.flush()
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 3 and not any(map(gone, pids))
            os.kill(pids[0], how)
            until = time.monotonic() + 60
            while not all(map(gone, pids)) and time.monotonic() < until:
                time.sleep(0.01)
            assert all(map(gone, pids)), how
            left = [*(root / "prepared").iterdir()]
            if how == signal.SIGINT:
                assert left == []
            assert all(folder.name.startswith(places.ASIDE) for folder in left)
        process.kill()
