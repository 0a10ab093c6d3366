"""Downloads from bad servers: the right file in its place, or none, and a message that says why."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer, Resource

from workbench.data.download import fetch
from workbench.data.transfer import Patience

DATA = random.Random(0).randbytes(300_000)
SUMS = {"md5": hashlib.md5(DATA).hexdigest(), "sha256": hashlib.sha256(DATA).hexdigest()}
WRONG = {"md5": "0" * 32}
QUICK = Patience(wait_s=0.01, connect_s=1, read_s=0.3, pace_s=0.3, pace_bytes=10_000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set" / "file.zip"


def files(place: Path) -> set[str]:
    """What lies beside a place, apart from its lock."""
    found = place.parent.iterdir() if place.parent.is_dir() else ()
    return {path.name for path in found} - {f"{place.name}.lock"}


def got(server: BadServer, place: Path, *paths: str, **options: Any) -> Path:
    urls = [server.url(path) for path in paths or ("/a",)]
    return fetch(urls, place, **({"patience": QUICK} | options))


def test_a_file_is_fetched_once(place: Path) -> None:
    with BadServer({"/a": Resource(DATA)}) as server:
        assert got(server, place, bytes=len(DATA), checksums=SUMS) == place
        assert place.read_bytes() == DATA
        assert files(place) == {"file.zip"}
        assert server.requests[0].headers["Accept-Encoding"] == "identity"
        got(server, place, bytes=len(DATA), checksums=SUMS)
        assert len(server.requests) == 1
