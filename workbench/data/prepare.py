"""From byte ranges of files to token ids on disk: streaming, in parallel, in bounded memory.

    pieces of each split ── cut ──> chunks of 32 to 128 MB
      chunk  ── count ──> table of its symbols, words as provisional ids in a spool
      tables ── merge ──> how often each symbol occurs, in order of first appearance
      counts ── learn ──> vocabulary
      part   ── place ──> final ids in the smallest type, at their offset in train.bin ...

The jobs `count`, `encode` (for a vocabulary made beforehand) and `place` go to a crew of workers
(`workbench.data.crew`, `jobs`); merging and learning are done here. Words are read once, since
splitting them costs most; bytes and characters are read again to be placed, which is quicker than a
spool, and plain bytes are not counted at all. Chunks do not follow from the number of workers, so
neither does the result.

Memory: a worker holds the table of one part (at most about 1,000,000 words), 20 MB of words met
lately (`words`) and 4 MB of ids, and no vocabulary. The process that merges holds the symbols of
some buckets (`tables`) and those that are kept: all of them, or those that `Keep` allows. Neither
grows with the text; the spool on disk does, by four bytes a word, and shrinks again while the parts
are placed.

A preparation lies in a folder of its own until it is whole (`store`). If it is killed its workers
end with it, and the next one sweeps away what it left.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from workbench.data import crew, pieces
from workbench.data.pieces import SPLITS, Member, Piece, chunks
from workbench.data.symbols import Part, Symbols, renumber
from workbench.data.tables import Counts, Keep, merge
from workbench.data.vocabulary import Vocabulary

Chunks = Mapping[str, list[list[Piece]]]
Parts = Mapping[str, list[list[Part]]]


class Counted(NamedTuple):
    """A vocabulary that follows from how often each symbol occurs."""

    symbols: Symbols
    learn: Callable[[Counts], Vocabulary]
    """makes it from the counts of each split (in order of first appearance there)"""
    keep: Keep | None = None
    """which symbols it can hold at most; the counts then lack the others"""


Rule = Counted | Vocabulary
"""how symbols get ids; a vocabulary made beforehand encodes the text itself, by its `ids`"""


class Tokens(NamedTuple):
    """What was written: the record of each split."""

    vocabulary: Vocabulary
    tokens: dict[str, int]
    unknown: dict[str, int]
    tokens_sha256: dict[str, str]
    replaced: dict[str, int]
    """places that were no UTF-8"""
    edges: dict[str, list[int]]
    """where the tokens of each file begin, and their end; only if asked for"""


def write_tokens(
    folder: Path, rule: Rule, splits: Mapping[str, Sequence[Piece]], work: crew.Crew, edges: bool
) -> Tokens:
    """Write `vocabulary.json` and the token file of each split.

    Args:
        folder: where to; a folder `spool` in it is used meanwhile.
        rule: how symbols get ids.
        splits: the pieces of each split; above byte level each ends with the end of a symbol.
        work: who does it.
        edges: record where the tokens of each file begin.
    """
    level = rule.symbols.level if isinstance(rule, Counted) else rule.level
    size = pieces.chunk_bytes(sum(_size(splits[s]) for s in SPLITS))
    cut = {s: chunks(splits[s], level, size, alone=edges) for s in SPLITS}
    saved, spool = folder / "vocabulary.json", folder / "spool"
    spool.mkdir()
    if isinstance(rule, Counted):
        parts = _ask(cut, spool, work, {"do": "count", "how": rule.symbols})
        stems = {s: [part.stem for group in parts[s] for part in group] for s in SPLITS}
        vocabulary = rule.learn(merge(stems, rule.keep))
        vocabulary.save(saved)
    else:
        vocabulary = rule
        vocabulary.save(saved)
        assert rule.unknown is None, "a vocabulary made beforehand has ids for every text"
        if level == "byte":
            # bytes are their own ids, so nothing need be known to place them
            parts = {s: [[Part(chunk, "", _size(chunk))] for chunk in cut[s]] for s in SPLITS}
        else:
            job = {"do": "encode", "level": level, "vocabulary": str(saved)}
            parts = _ask(cut, spool, work, job)
    tokens = _place(folder, vocabulary, parts, work, rule)
    shutil.rmtree(spool)
    return tokens._replace(
        edges={s: _edges(splits[s], cut[s], parts[s]) for s in SPLITS} if edges else {}
    )


def _size(chunk: Sequence[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in chunk)


def _shown(results: Iterable[Any], sizes: Sequence[int], what: str, unit: str) -> Iterator[Any]:
    """The results, with a bar on a terminal or in a notebook once they take long."""
    seen = sys.stderr.isatty() or "ipykernel.kernelapp" in sys.modules
    total = sum(sizes)
    bar = tqdm(desc=what, total=total, unit=unit, unit_scale=True, delay=2, disable=not seen)
    with bar:
        for result, size in zip(results, sizes, strict=True):
            yield result
            bar.update(size)


def _ask(cut: Chunks, spool: Path, work: crew.Crew, job: dict[str, Any]) -> Parts:
    """Have all chunks counted or encoded; their parts, chunk by chunk."""
    asked = [
        {**job, "pieces": _plain(chunk), "stem": str(spool / f"{split}-{number}")}
        for split in SPLITS
        for number, chunk in enumerate(cut[split])
    ]
    sizes = [_size(chunk) for split in SPLITS for chunk in cut[split]]
    answers = _shown(work.map(asked), sizes, "reading text", "B")
    return {s: [[Part.of(plain) for plain in next(answers)] for _ in cut[s]] for s in SPLITS}


def _plain(chunk: Sequence[Piece]) -> list[Any]:
    return [(None if p.path is None else str(p.path), p.start, p.stop) for p in chunk]


def _place(
    folder: Path, vocabulary: Vocabulary, parts: Parts, work: crew.Crew, rule: Rule
) -> Tokens:
    """Have all parts written to their offsets; hash the tokens as they become complete."""
    size = vocabulary.dtype().itemsize
    how = rule.symbols if isinstance(rule, Counted) else None
    flat = [(s, part) for s in SPLITS for group in parts[s] for part in group]
    ends = {s: list(accumulate(p.tokens for g in parts[s] for p in g)) for s in SPLITS}
    tokens = {s: ends[s][-1] if ends[s] else 0 for s in SPLITS}
    stops = [stop for s in SPLITS for stop in ends[s]]
    for split in SPLITS:
        with (folder / f"{split}.bin").open("wb") as file:
            file.truncate(tokens[split] * size)
    digests, unknown = {s: hashlib.sha256() for s in SPLITS}, dict.fromkeys(SPLITS, 0)

    def jobs_to_do() -> Iterator[dict[str, Any]]:
        for (split, part), stop in zip(flat, stops, strict=True):
            # here, so that no worker holds the vocabulary: there may be many of them
            if how is not None:
                unknown[split] += renumber(vocabulary, part)
            plain = (_plain(part.pieces), part.stem, part.tokens)
            to = {"target": str(folder / f"{split}.bin"), "offset": stop - part.tokens}
            yield {"do": "place", "dtype": vocabulary.dtype().str, "how": how, "part": plain, **to}

    sizes = [part.tokens for _, part in flat]
    placed = _shown(work.map(jobs_to_do()), sizes, "writing tokens", " tokens")
    for (split, part), stop, _ in zip(flat, stops, placed, strict=True):
        written = Piece(folder / f"{split}.bin", (stop - part.tokens) * size, stop * size)
        for *_, block in pieces.raw_blocks([written]):
            digests[split].update(block)
    sha256 = {s: digests[s].hexdigest() for s in SPLITS}
    replaced = {s: sum(part.replaced for group in parts[s] for part in group) for s in SPLITS}
    return Tokens(vocabulary, tokens, unknown, sha256, replaced, {})


def _edges(listed: Sequence[Piece], cut: list[list[Piece]], parts: list[list[Part]]) -> list[int]:
    """Where the tokens of each file begin, and where the last ends."""
    files = {(p.path, p.start) for p in listed if p.path is not None}
    sizes = [sum(part.tokens for part in group) for group in parts]
    starts = [0, *accumulate(sizes)]
    begins = [n for n, chunk in zip(starts, cut, strict=False) if chunk[0][:2] in files]
    return [*begins, starts[-1]]


def hash_jobs(members: Sequence[Member]) -> Iterator[dict[str, Any]]:
    """Jobs that give the sha256 of all files in order."""
    paths: list[str] = []
    room = pieces.CHUNK_BYTES
    for m in members:
        paths.append(str(m.path))
        room -= m.bytes
        if room <= 0:
            yield {"do": "hash", "paths": paths}
            paths, room = [], pieces.CHUNK_BYTES
    if paths:
        yield {"do": "hash", "paths": paths}
