"""House rules of notebooks: thin, clean, typed parameters that papermill can see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from papermill import cli

BOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
by_book = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)


def code_cells(book: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(book, 4).cells if c.cell_type == "code"]


def parameters(book: Path) -> str:
    found = [c for c in code_cells(book) if "parameters" in c.metadata.get("tags", [])]
    assert len(found) == 1, "expected exactly one cell tagged `parameters`"
    return found[0].source


def test_the_four_notebooks_are_there() -> None:
    names = {book.stem for book in BOOKS}
    assert names >= {"train", "evaluate", "attention_span", "fast_weights"}


@by_book
def test_is_clean(book: Path) -> None:
    nb = nbformat.read(book, 4)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert nb.metadata.kernelspec.name == "python3"
    assert "papermill" not in nb.metadata and "widgets" not in nb.metadata
    for cell in code_cells(book):
        assert not cell.outputs and cell.execution_count is None, "outputs are committed"


def test_nbstripout_agrees() -> None:
    command = [sys.executable, "-m", "nbstripout", "--keep-id", "--verify"]
    keys = ["--extra-keys", "metadata.papermill cell.metadata.papermill"]
    done = subprocess.run([*command, *keys, *map(str, BOOKS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@by_book
def test_is_thin(book: Path) -> None:
    for cell in code_cells(book):
        assert len(cell.source.splitlines()) <= 30, f"a long cell:\n{cell.source}"
        # a cell that shows what a user writes may hold a class
        most = 25 if "own" in cell.metadata.get("tags", []) else 8
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= most, f"{node.name} belongs in the package"


@by_book
def test_begins_with_what_one_sees(book: Path) -> None:
    first = nbformat.read(book, 4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "arXiv:" in first.source and "You see" in first.source


@by_book
def test_parameters_are_annotated_commented_and_seen_by_papermill(book: Path) -> None:
    source = parameters(book)
    body = ast.parse(source).body
    assert all(isinstance(s, ast.AnnAssign) and s.value is not None for s in body)
    seen = papermill.inspect_notebook(book)
    for statement in body:
        name = statement.target.id
        assert name in seen, f"papermill cannot see {name}: write Optional[X], not X | None"
        assert seen[name]["inferred_type_name"] != "None", name
        assert len(seen[name]["help"]) >= 10, f"{name} lacks a comment on its line"
    assert len(seen) == len(body)


@by_book
def test_help_reads_well(book: Path) -> None:
    done = CliRunner().invoke(cli.papermill, ["--help-notebook", str(book)])
    assert done.exit_code == 0, done.output
    assert "Unknown type" not in done.output
    for statement in ast.parse(parameters(book)).body:
        assert f"{statement.target.id}: {ast.unparse(statement.annotation)}" in done.output
