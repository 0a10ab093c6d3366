"""Lines by part of the house against their targets: what `make size` prints.

The targets are the design's; a part may grow past its own, and then this table says so.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# part: (where, endings, lines aimed at or None)
PARTS: dict[str, tuple[str, tuple[str, ...], int | None]] = {
    "workbench, top level": ("workbench/*", (".py",), 900),
    "workbench/models": ("workbench/models/**/*", (".py",), 2060),
    "  of it mixers": ("workbench/models/mixers/*", (".py",), None),
    "workbench/kernels": ("workbench/kernels/**/*", (".py",), 890),
    "workbench/data": ("workbench/data/**/*", (".py",), 720),
    "workbench/train": ("workbench/train/**/*", (".py",), 950),
    "workbench/originals": ("workbench/originals/**/*", (".py",), 1200),
    "workbench/plots": ("workbench/plots/**/*", (".py",), 440),
    "workbench, all": ("workbench/**/*", (".py",), 5500),
    "compiled kernels": ("**/*", (".cpp", ".cu", ".cuh", ".h"), 1800),
    "recipes": ("workbench/recipes/*", (".yaml",), None),
    "notebooks": ("notebooks/*", (".ipynb",), None),
    "tests": ("tests/**/*", (".py",), None),
    "  of them parity": ("tests/parity/*", (".py",), None),
}


def files(pattern: str, endings: tuple[str, ...]) -> list[Path]:
    skipped = {".venv", ".setup", "build", "dist", "runs", "golden"}
    found = (p for p in ROOT.glob(pattern) if p.suffix in endings and p.is_file())
    return [p for p in found if not skipped & set(p.relative_to(ROOT).parts)]


def main() -> None:
    print(f"{'part':<22}{'files':>6}{'lines':>8}{'target':>8}  longest file")
    for part, (pattern, endings, target) in PARTS.items():
        lines = {
            p: len(p.read_text(encoding="utf-8").splitlines()) for p in files(pattern, endings)
        }
        total = sum(lines.values())
        count, path = max(((n, p) for p, n in lines.items()), default=(0, ROOT))
        name = f"{count} {path.relative_to(ROOT)}" if count else ""
        over = "  OVER" if target and total > target else ""
        print(f"{part:<22}{len(lines):>6}{total:>8}{target or '':>8}  {name}{over}")
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in files("workbench/**/*", (".py",))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    )
    middle, longest = lengths[len(lengths) // 2], lengths[-1]
    print(f"{len(lengths)} functions in workbench: median {middle} lines, longest {longest}")


if __name__ == "__main__":
    main()
