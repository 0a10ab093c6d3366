"""Screenshots, small enough to be committed: scaled, with a palette instead of all colours."""

from __future__ import annotations

import io
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "screenshots"
MAX_BYTES = 120_000
WIDTHS = {"wide": 1400, "narrow": 700}
"""of the page, in pixels"""
HEIGHT = 900
STORED_WIDTH = 1100
"""of a stored picture at most; words stay readable"""


def shrink(png: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """The same picture in at most so many bytes: fewer colours first, then fewer pixels.

    Args:
        png: a picture of any size.
        max_bytes: of the result.
    """
    from PIL import Image

    full = Image.open(io.BytesIO(png)).convert("RGB")
    scale = min(1.0, STORED_WIDTH / full.width)
    while True:
        size = (max(1, round(full.width * scale)), max(1, round(full.height * scale)))
        small = full.resize(size, Image.Resampling.LANCZOS)
        for colours in (256, 128, 64):
            held = io.BytesIO()
            # a palette that covers rare colours, too: a thin line keeps its own; and without
            # dithering, whose grain costs bytes and blurs words
            few = small.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(held, "PNG", optimize=True)
            if held.tell() <= max_bytes:
                return held.getvalue()
        scale *= 0.9


def store(png: bytes, view: str, theme: str, width: str) -> Path:
    """Keep a picture as `<view>-<light|dark>-<wide|narrow>.png`."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{view}-{theme}-{width}.png"
    path.write_bytes(shrink(png))
    return path
