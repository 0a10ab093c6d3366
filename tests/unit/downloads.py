"""What the tests of downloads share: a file, its checksums, and little patience."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer

from workbench.data.download import fetch
from workbench.data.transfer import Patience
from workbench.errors import DataMissing

DATA = random.Random(0).randbytes(300_000)
SUMS = {"md5": hashlib.md5(DATA).hexdigest(), "sha256": hashlib.sha256(DATA).hexdigest()}
QUICK = Patience(wait_s=0.01, connect_s=1, read_s=0.3, pace_s=0.3, pace_bytes=10_000)
KNOWN = {"bytes": len(DATA), "checksums": SUMS}


def files(place: Path) -> set[str]:
    """What lies beside a place, apart from its lock."""
    found = place.parent.iterdir() if place.parent.is_dir() else ()
    return {path.name for path in found} - {f"{place.name}.lock"}


def got(server: BadServer, place: Path, *paths: str, **options: Any) -> Path:
    urls = [server.url(path) for path in paths or ("/a",)]
    return fetch(urls, place, **({"patience": QUICK} | options))


def refused(server: BadServer, place: Path, *paths: str, **options: Any) -> str:
    """The message of a download that fails, which leaves nothing at its place."""
    with pytest.raises(DataMissing) as caught:
        got(server, place, *paths, **options)
    assert not place.exists()
    assert f"put it at {place}" in str(caught.value)
    return str(caught.value)
