"""A data folder, a registry and a server of small published data, all of this machine."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer, Resource

from workbench.config import load
from workbench.data import registry
from workbench.data.registry import Entry

TEXT = {
    "ptb.train.txt": b" a b a\n c <unk>\n",
    "ptb.valid.txt": b" b b\n",
    "ptb.test.txt": b" a c\n",
}


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"in/{name}", content)
    return data.getvalue()


ARCHIVE = zipped(TEXT)
REAL = registry.entries()


def known(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "said_by": "us"}


class World:
    """A data folder, a server and a registry of one corpus and one checkpoint."""

    def __init__(self, root: Path, server: BadServer) -> None:
        self.root, self.server = root, server
        self.place = root / "ptb"

    def entries(self) -> dict[str, Entry]:
        members = {f"in/{name}": name for name in TEXT}
        archive = {
            "name": "a.zip",
            "urls": [self.server.url("/dead.zip"), self.server.url("/a.zip")],
            "members": members,
            **known(ARCHIVE),
        }
        bare = [
            {"name": name, "urls": [self.server.url(f"/{name}")], **known(data)}
            for name, data in TEXT.items()
        ]
        corpus = {
            "title": "a small text",
            "licence": {"name": "CC0", "note": "ours", "url": "https://a.example/"},
            "folder": "ptb",
            "sources": [{"files": [archive]}, {"files": bare}],
            "contents": {name: known(data) for name, data in TEXT.items()},
            "level": "word",
            "split": "as published",
            "rules": {
                "plain": {"symbols": 5, "comparable": "nothing"},
                "transformer-xl": {"symbols": 5, "verified": False, "comparable": "nothing"},
                "awd-lstm": {
                    "symbols": 5,
                    "tokens": {"train": 7, "valid": 3, "test": 3},
                    "comparable": "nothing",
                },
            },
        }
        checkpoint = {
            "kind": "checkpoint",
            "title": "a model",
            "licence": corpus["licence"],
            "folder": "checkpoints",
            "sources": [
                {"files": [{"name": "m.pt", "about_bytes": 9, "urls": [self.server.url("/m.pt")]}]}
            ],
            "contents": {"m.pt": {"about_bytes": 9}},
        }
        return {**REAL, "ptb": load(Entry, corpus), "model": load(Entry, checkpoint)}

    def files(self, folder: Path | None = None) -> set[str]:
        """Names in the folder, without locks."""
        found = (folder or self.place).iterdir()
        return {path.name for path in found if path.suffix != ".lock"}

    def put(self, files: dict[str, bytes]) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (self.place / name).write_bytes(data)

    def asked(self) -> list[str]:
        return [request.path for request in self.server.requests]


@contextmanager
def world(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The registry's other entries stay as they are, so that recipes find theirs."""
    monkeypatch.setenv("WORKBENCH_DATA", str(root))
    resources = {"/a.zip": Resource(ARCHIVE), "/m.pt": Resource(b"weights")}
    with BadServer(resources) as server:
        made = World(root, server)
        monkeypatch.setattr(registry, "entries", made.entries)
        yield made
