"""What the browser tests stand on, as far as it needs no browser."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from browser import books, chromium, pictures, watch

CELL = """# what to look at
run: str = "runs/a"  # folder ("é" counts as one letter)
steps: Optional[int] = None  # updates; None: all
contexts: list[int] = [
    1,
    4,
]  # lengths
last: float = 1.0"""


def test_values_are_replaced_and_nothing_else() -> None:
    changed = books.edited(CELL, {"run": 'x"y', "contexts": [2], "steps": 5})
    assert changed.split("\n") == [
        "# what to look at",
        'run: str = \'x"y\'  # folder ("é" counts as one letter)',
        "steps: Optional[int] = 5  # updates; None: all",
        "contexts: list[int] = [2]  # lengths",
        "last: float = 1.0",
    ]
    assert books.edited(CELL, {}) == CELL


def test_a_parameter_that_is_not_there_is_told() -> None:
    with pytest.raises(AssertionError, match="has no stepps"):
        books.edited(CELL, {"stepps": 5})


@pytest.mark.parametrize("path", sorted(books.BOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_can_be_edited(path: Path, tmp_path: Path) -> None:
    (cell,) = (
        c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])
    )
    names = [n.target.id for n in ast.parse(cell.source).body if isinstance(n, ast.AnnAssign)]
    books.copy(path.stem, tmp_path / "book.ipynb", dict.fromkeys(names, "other"))
    (copied,) = (
        c
        for c in nbformat.read(tmp_path / "book.ipynb", 4).cells
        if "parameters" in c.metadata.get("tags", [])
    )
    space = {"Optional": list, "Any": object, "Literal": list}
    exec(copied.source, space)
    assert [space[name] for name in names] == ["other"] * len(names)


@pytest.mark.parametrize(
    ("address", "away"),
    [
        ("http://127.0.0.1:8888/lab", False),
        ("ws://localhost:1/api", False),
        ("data:image/png;base64,AAAA", False),
        ("blob:http://127.0.0.1:1/x", False),
        ("file:///tmp/report.html", False),
        ("https://cdn.plot.ly/plotly.js", True),
        ("//127.0.0.1.example.org/x", True),
        ("http://127.0.0.1.example.org/", True),
        ("wss://example.org/", True),
        ("ftp://example.org/", True),
    ],
)
def test_which_addresses_are_elsewhere(address: str, away: bool) -> None:
    assert watch.leaves(address) is away


def test_a_picture_becomes_small_and_stays_itself() -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install 'workbench[browser]'")
    noise = np.random.default_rng(0).integers(0, 256, (225, 350, 3), dtype=np.uint8)
    noise[:, :175] = (255, 0, 0)
    held = io.BytesIO()
    image.fromarray(noise).save(held, "PNG")
    small = pictures.shrink(held.getvalue(), 9_000)
    assert len(small) <= 9_000
    back = image.open(io.BytesIO(small))
    assert back.mode == "P" and back.width / back.height == pytest.approx(350 / 225, rel=0.02)
    red = np.asarray(back.convert("RGB"))[:, : back.width // 2 - 8]
    assert np.abs(red.astype(int) - (255, 0, 0)).max() < 16


def test_stored_pictures_are_small() -> None:
    sizes = {p.name: p.stat().st_size for p in pictures.FOLDER.glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > pictures.MAX_BYTES} == {}


def test_without_a_browser_the_status_says_so(tmp_path: Path) -> None:
    script = Path(chromium.__file__)
    env = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == chromium.MISSING == 77
    assert "Chromium" in done.stderr and f"apt install {chromium.PACKAGES}" in done.stderr
