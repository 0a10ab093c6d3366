"""The rows as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.run import Row

WIDTHS = {
    "what": 50, "ours": 10, "ms": 9, "peer": 29, "peer ms": 9, "ratio": 7, "target": 10, "peak": 5,
    "MB": 7,
}  # fmt: skip
LEFT = ("what", "ours", "peer")


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def mark(row: Row) -> str:
    """Met or not, as measured; ~ where others used the processor meanwhile."""
    noise = "~" if row.get("disturbed") else ""
    if row["target"] is None:
        return noise
    if row["ratio"] is None:
        return f"{row['target']:g} ?"
    met = "met" if row["ratio"] >= row["target"] else "NOT"
    return f"{row['target']:g} {met}{noise}"


def cells(row: Row) -> dict[str, str]:
    """One row as texts."""
    peer = row["peer"] or ""
    if row["ratio"] is None and row["note"]:
        peer = f"{peer}: {row['note']}" if peer else row["note"]
    rate = row.get("rate")
    fraction = row.get("gemm_fraction", row.get("memory_fraction"))
    dtype = "bf16" if row["dtype"] == "bfloat16" else ""
    return {
        "what": " ".join(x for x in (row["name"], row["size"], dtype, row["way"]) if x),
        "ours": row["backend"],
        "ms": number(row["ours_ms"]),
        "peer": f"{number(rate, 4)} {row['unit']}" if rate else peer,
        "peer ms": number(row["peer_ms"]),
        "ratio": number(row["ratio"]),
        "target": mark(row),
        "peak": number(fraction, 2),
        "MB": number(row.get("memory_mb")),
    }


class Printer:
    """Prints rows as they come, below one head."""

    def __init__(self) -> None:
        self.begun = False

    def show(self, row: Row) -> None:
        if not self.begun:
            self._line({name: name for name in WIDTHS})
            self.begun = True
        self._line(cells(row))

    def _line(self, texts: dict[str, str]) -> None:
        parts = [
            f"{texts[name]:<{width}}" if name in LEFT else f"{texts[name]:>{width}}"
            for name, width in WIDTHS.items()
        ]
        print(" ".join(parts).rstrip(), flush=True)


def verdict(rows: Sequence[Row]) -> str:
    """How many of the targets are met."""
    asked = [row for row in rows if row["target"] is not None]
    open_ = [row for row in asked if row["ratio"] is None]
    met = [row for row in asked if row["ratio"] is not None and row["ratio"] >= row["target"]]
    return f"targets: {len(met)} of {len(asked)} met, {len(open_)} not measured"


def targets(rows: Sequence[Row]) -> list[str]:
    """A line for each row that a target is set for: what, ratio, target, met or missed."""
    lines = ["targets"]
    for row in rows:
        if row["target"] is None:
            continue
        what = f"{cells(row)['what']} against {row['peer']}"
        if row["ratio"] is None:
            end = row["note"] or "not measured"
        else:
            end = "met" if row["ratio"] >= row["target"] else "missed"
            end += ", disturbed" * bool(row.get("disturbed"))
        lines.append(f"{what:<82} {number(row['ratio']):>6} {row['target']:>5g}  {end}")
    return lines


def markdown(rows: Sequence[Row]) -> str:
    """The table with its run on top, as a record to commit."""
    last = rows[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    lines = [
        "# Benchmark",
        "",
        f"`{last['command']}`, {last['time']}, {last['device']}, {last['threads']} threads, "
        f"{versions}.",
        "",
        "Medians of turns taken in one process, milliseconds. `ratio`: peer / ours. `peak`: share "
        "of the measured peak of products of the same type, or of the memory's bandwidth where "
        "there are none. `MB`: most memory beyond the inputs. `~`: others used the processor.",
        "",
        f"{verdict(rows)}.",
        "",
        _line(WIDTHS),
        _line("---" if name in LEFT else "---:" for name in WIDTHS),
    ]
    lines += [_line(cells(row).values()) for row in rows]
    lines += ["", "```", *targets(rows), "```"]
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def write(rows: list[Row], folder: Path, keep: bool = False) -> list[Row]:
    """Write `bench.json` and `bench.md`.

    Args:
        keep: rows that the file has and that were not measured again stay.

    Returns:
        All rows that are now in the file.
    """
    path = folder / "bench.json"
    if keep and path.is_file():
        again = {_case(row) for row in rows}
        before = json.loads(path.read_text())
        kept = [row for row in before if row["group"] != "limits" and _case(row) not in again]
        limits = [row for row in rows if row["group"] == "limits"]
        rows = [*limits, *kept, *rows[len(limits) :]]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def _case(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("name", "size", "way", "dtype"))
