"""Downloads by several processes, killed at any moment: what is in its place is always whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer, Resource

DATA = random.Random(0).randbytes(1 << 20)
SUMS = {"md5": hashlib.md5(DATA).hexdigest()}
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


class Driver:
    """`killed.py`, waiting for cases."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder)],
                env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, server: BadServer, place: Path, order: dict[str, Any], **case: Any) -> Any:
        """How the processes of a case ended."""
        assert self.process.stdin and self.process.stdout
        case = {"url": server.url("/a"), "place": str(place), "checksums": {}} | case
        self.process.stdin.write(json.dumps([case, order]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.said.read_text()
        return json.loads(answer)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("driver"))
    with driver.process as process:
        yield driver
        assert process.stdin
        process.stdin.close()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"a.zip.lock"}


@pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 52), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("checksums", [{}, SUMS], ids=["unknown", "known"])
def test_whoever_was_killed_is_taken_over(
    tmp_path: Path, driver: Driver, seeds: range, how: str, checksums: dict[str, str]
) -> None:
    kills = 0
    for seed in seeds:
        place = tmp_path / str(seed) / "a.zip"

        def watch(_: Resource, __: int, place: Path = place) -> None:
            """Whatever is in its place, at the beginning of any request, is whole."""
            assert not place.exists() or place.read_bytes() == DATA

        slow = Resource(DATA, pause_s=0.001, step=1 << 14, before=watch)
        with BadServer({"/a": slow}) as server:
            order = {"seed": seed, "how": how, "within_s": 0.1}
            killed = driver.run(server, place, order, checksums=checksums)
            again = sum(r.sent for r in server.requests) - len(DATA)
            assert {r.status for r in server.requests} <= {200, 206}
            starts = [int(r.headers.get("Range", "bytes=0-")[6:-1]) for r in server.requests]
        # each kill loses what was under way, not what had arrived
        assert starts == sorted(starts)
        assert again <= killed * len(DATA) / 2
        kills += killed
        assert place.read_bytes() == DATA
        assert files(place.parent) == ({"a.zip"} if checksums else {"a.zip", "a.zip.sha256"})
    assert kills


def test_processes_at_once_fetch_one_file(tmp_path: Path, driver: Driver) -> None:
    place = tmp_path / "a.zip"
    with BadServer({"/a": Resource(DATA, pause_s=0.01)}) as server:
        assert driver.run(server, place, {"processes": 3}) == [0, 0, 0]
        assert [r.sent for r in server.requests] == [len(DATA)]
    assert place.read_bytes() == DATA
    assert f"{place}: another process is at work on it" in driver.said.read_text()


def test_a_disk_that_fills_up(tmp_path: Path, driver: Driver) -> None:
    place = tmp_path / "a.zip"
    with BadServer({"/a": Resource(DATA)}) as server:
        assert driver.run(server, place, {"processes": 1}, file_bytes=300_000) == [9]
        assert not place.exists()
        # what was written is kept, and there is room now
        assert driver.run(server, place, {"processes": 1}) == [0]
        assert [r.status for r in server.requests] == [200, 206]
    assert place.read_bytes() == DATA
    said = driver.said.read_text()
    assert f"DataError: {place}: got 'File too large'" in said and "WORKBENCH_DATA" in said
