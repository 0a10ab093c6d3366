"""The project's notebooks as a user has them: copied, with the first cell edited."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import nbformat

BOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def edited(source: str, values: dict[str, Any]) -> str:
    """A parameters cell with other values, and everything else as it was.

    Args:
        source: lines such as `steps: int = 3  # updates in all`.
        values: name -> new value.

    Raises:
        AssertionError: a name that the cell does not have.
    """
    lines, todo = source.split("\n"), dict(values)
    # from the end, so that the places of those before stay right
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id not in todo or node.value is None:
            continue
        first, last = node.value.lineno - 1, (node.value.end_lineno or node.value.lineno) - 1
        # columns of `ast` count bytes
        begin = lines[first].encode()[: node.value.col_offset].decode()
        end = lines[last].encode()[node.value.end_col_offset :].decode()
        lines[first : last + 1] = [f"{begin}{todo.pop(node.target.id)!r}{end}"]
    assert not todo, f"the parameters cell has no {', '.join(todo)}"
    return "\n".join(lines)


def copy(name: str, target: Path, values: dict[str, Any]) -> None:
    """Put a notebook of the project into a folder, its first cell edited as by hand.

    Args:
        name: such as `train`.
        target: the new file.
        values: parameters to replace.
    """
    book = nbformat.read(BOOKS / f"{name}.ipynb", 4)
    (cell,) = (c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = edited(cell.source, values)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, target)
