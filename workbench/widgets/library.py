"""Plotly's program, once on a page, for all figures there."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import anywidget
import traitlets
from plotly.offline import get_plotlyjs


class Library(anywidget.AnyWidget):
    """Plotly's program, as one text that a page runs once."""

    _esm = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")

    source = traitlets.Unicode().tag(sync=True)
    key = traitlets.Unicode().tag(sync=True)
    """by which the page finds this widget itself"""

    def __init__(self) -> None:
        key = uuid4().hex
        super().__init__(source=get_plotlyjs(), key=key, model_id=key)


_library: Library | None = None


def library() -> Library:
    """The one of this process; made when it is first wanted."""
    global _library
    # whoever closes all widgets of a notebook closes this one, too
    if _library is None or _library.comm is None:
        _library = Library()
    return _library
