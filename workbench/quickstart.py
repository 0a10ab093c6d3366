"""A text to begin with, for `quickstart.ipynb`: Python's own manual, which comes with Python."""

from __future__ import annotations

import importlib
from pathlib import Path

from workbench.errors import DataMissing
from workbench.notebook import place

MANUAL = "python-manual.txt"


def own_text(text: str | None, folder: Path) -> str:
    """The path of a text: the user's, or of one that is on every machine.

    Args:
        text: a file, a folder or a pattern, as in a recipe; None for the language reference of the
            running Python (what `help("while")` shows), half a million characters of English.
        folder: where that is written.

    Raises:
        DataMissing: there is no such text, or this Python came without its manual.
    """
    if text is not None:
        path = place(text)
        if not (path.exists() or any(c in text for c in "*?[")):
            raise DataMissing(
                f"parameter text: there is no {path}; give the path of a file, a folder, or a "
                "pattern such as books/**/*.txt"
            )
        return str(path)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANUAL
    if not path.is_file():
        path.write_text(_manual(), encoding="utf-8")
    return str(path)


def _manual() -> str:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise DataMissing(
            "this Python has no pydoc_data, the text of its manual; set the parameter `text` to "
            "the path of a text of yours (a few hundred kilobytes or more)"
        ) from None
    # several names may lead to one topic
    return "\n\n".join(dict.fromkeys(topics[name] for name in sorted(topics)))
