"""`workbench data get` killed at random moments, and from two processes at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_server import BadServer, Resource
from data_world import known, zipped

from workbench.config import dump
from workbench.data import registry

CHILD = """
import sys
from pathlib import Path
from workbench.data import registry
registry.file = lambda: Path(sys.argv[1])
from workbench import cli
sys.exit(cli.main(["data", "get", "ptb", "--rule", "awd-lstm"]))
"""
LETTERS = random.Random(0)
TEXT = {
    f"ptb.{split}.txt": " ".join(
        LETTERS.choice("abcdefg") + LETTERS.choice("hijklmn\n") for _ in range(n)
    ).encode()
    for split, n in (("train", 400_000), ("valid", 1000), ("test", 1000))
}


class Child:
    """A process that gets the corpus."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root / "registry.yaml")],
            env={**os.environ, "WORKBENCH_DATA": str(root / "data"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def output(self) -> str:
        """All that it says; it must succeed."""
        said = self.process.communicate()[0]
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BadServer]:
    archive = zipped(TEXT)
    slow = Resource(archive, pause_s=0.02, step=1 << 14)
    with BadServer({"/a.zip": slow}) as server:
        entry: dict[str, Any] = dump(registry.entry("ptb"))
        entry["sources"] = [
            {
                "files": [
                    {
                        "name": "a.zip",
                        "urls": [server.url("/a.zip")],
                        "members": {f"in/{name}": name for name in TEXT},
                        **known(archive),
                    }
                ]
            }
        ]
        entry["contents"] = {name: known(data) for name, data in TEXT.items()}
        (tmp_path / "registry.yaml").write_text(yaml.safe_dump({"ptb": entry}))
        yield server


def whole(root: Path) -> None:
    """What is left in the end is right, and nothing else is."""
    place = root / "data" / "ptb"
    names = {path.name for path in place.iterdir() if path.suffix != ".lock"}
    assert names == set(TEXT)
    assert {name: (place / name).read_bytes() for name in TEXT} == TEXT
    folders = [p for p in (root / "data" / "prepared").iterdir() if p.suffix != ".lock"]
    assert len(folders) == 1 and folders[0].name.startswith("published-ptb-awd-lstm-")


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_and_ends_right(
    tmp_path: Path, server: BadServer
) -> None:
    moments = random.Random(1)
    started = time.monotonic()
    Child(tmp_path).output()
    lasts = time.monotonic() - started
    whole(tmp_path)
    shutil.rmtree(tmp_path / "data")
    for _ in range(6):
        child = Child(tmp_path)
        time.sleep(moments.uniform(0.3, 1.1) * lasts)
        child.process.send_signal(moments.choice([signal.SIGKILL, signal.SIGINT]))
        child.process.communicate()
    Child(tmp_path).output()
    whole(tmp_path)


@pytest.mark.slow
def test_two_processes_at_once_do_the_work_once(tmp_path: Path, server: BadServer) -> None:
    children = [Child(tmp_path) for _ in range(2)]
    said = [child.output() for child in children]
    assert len(server.requests) == 1
    assert sorted("all was there" in text for text in said) == [False, True]
    whole(tmp_path)
