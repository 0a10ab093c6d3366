"""Downloads that break off: what has arrived is kept where it is known to belong to the rest."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer, Resource
from downloads import DATA, KNOWN, QUICK, SUMS, files, got, refused


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set" / "file.zip"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("known", [{}, {"checksums": SUMS}, KNOWN], ids=["", "sums", "size"])
def test_a_broken_connection_is_taken_up_where_it_broke(
    place: Path, seed: int, known: dict[str, Any]
) -> None:
    random.seed(seed)
    breaks = [random.choice([0, 1, random.randrange(len(DATA))]) for _ in range(3)]
    bad = Resource(DATA, break_after=breaks, reset=bool(seed % 2), step=1 << 13)
    with BadServer({"/a": bad}) as server:
        got(server, place, **known)
        assert place.read_bytes() == DATA
        # a byte is sent again only where a reset overtook it
        starts = [int(r.headers.get("Range", "bytes=0-")[6:-1]) for r in server.requests]
        assert starts == sorted(starts)
        sent = sum(r.sent for r in server.requests)
        assert sent - len(DATA) == sum(
            before.sent - (after - start)
            for before, start, after in zip(server.requests, starts, starts[1:], strict=False)
        )
    assert files(place) <= {"file.zip", "file.zip.sha256"}


def test_what_has_arrived_is_kept_for_the_next_call(place: Path) -> None:
    with BadServer({"/a": Resource(DATA, break_after=[90_000] * 3)}) as server:
        once = QUICK._replace(attempts=1)
        message = refused(server, place, patience=once)
        assert "attempt 1" in message and "kept as file.zip.part" in message
        assert place.with_name("file.zip.part").stat().st_size > 0
        refused(server, place, patience=once)
        refused(server, place, patience=once)
        got(server, place, patience=once)
        assert place.read_bytes() == DATA
        assert [r.status for r in server.requests] == [200, 206, 206, 206]
        assert {r.headers.get("If-Range") for r in server.requests} == {None, '"v1"'}


def test_attempts_count_from_the_last_progress(place: Path) -> None:
    data = random.Random(1).randbytes(8 << 20)
    sums = {"md5": hashlib.md5(data).hexdigest()}
    breaks = [(1 << 20) + 300_000] * 6
    with BadServer({"/a": Resource(data, break_after=breaks)}) as server:
        got(server, place, checksums=sums, patience=QUICK._replace(attempts=2))
    assert place.read_bytes() == data


@pytest.mark.parametrize(
    "resource",
    [
        Resource(ranges=False),
        Resource(etag="", modified=""),
        Resource(etag='W/"v1"', modified=""),
    ],
    ids=["ranges ignored", "no mark of the version", "weak mark of the version"],
)
def test_where_the_rest_cannot_be_had_all_is_fetched_again(place: Path, resource: Resource) -> None:
    resource.data, resource.break_after = DATA, [100_000, 200_000]
    with BadServer({"/a": resource}) as server:
        got(server, place)
        assert [r.status for r in server.requests] == [200, 200, 200]
    assert place.read_bytes() == DATA


def test_a_checksum_allows_to_go_on_without_a_mark_and_at_another_address(place: Path) -> None:
    resources = {
        "/a": Resource(DATA, etag="", modified="", break_after=[100_000, 0, 0, 0]),
        "/b": Resource(DATA, etag='"other"', break_after=[50_000]),
    }
    with BadServer(resources) as server:
        got(server, place, "/a", "/b", checksums=SUMS)
        assert [r.status for r in server.requests] == [200, 206, 206, 206, 206, 206]
        assert server.requests[4].headers.get("If-Range") is None
        assert server.requests[5].headers["If-Range"] == '"other"'
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("respects", [True, False])
@pytest.mark.parametrize("known", [{}, KNOWN], ids=["unknown", "known"])
def test_a_file_that_changes_meanwhile_is_not_glued(
    place: Path, respects: bool, known: dict[str, Any]
) -> None:
    def change(resource: Resource, number: int) -> None:
        if number == 2:
            resource.data, resource.etag = DATA, '"v2"'

    old = bytes(len(DATA))
    bad = Resource(old, break_after=[100_000], respects_if_range=respects, before=change)
    with BadServer({"/a": bad}) as server:
        got(server, place, **known)
    assert place.read_bytes() == DATA


def test_a_file_that_changes_unmarked_is_fetched_again_by_its_checksum(place: Path) -> None:
    def change(resource: Resource, number: int) -> None:
        resource.data = bytes(len(DATA)) if number == 1 else DATA

    bad = Resource(break_after=[100_000], before=change)
    with BadServer({"/a": bad}) as server:
        got(server, place, **KNOWN)
        assert [r.status for r in server.requests] == [200, 206, 200]
    assert place.read_bytes() == DATA


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Content-Range": "bytes 5-299999/300000"}, "another one"),
        ({"Content-Range": "bytes 100000-299999/999999"}, "another one"),
        ({"Content-Range": "nonsense"}, "another one"),
        ({"Content-Range": ""}, "another one"),
    ],
)
def test_a_range_that_is_not_what_was_asked_for_is_not_taken(
    place: Path, headers: dict[str, str], reason: str
) -> None:
    def lie(resource: Resource, number: int) -> None:
        resource.headers = headers if number == 2 else {}

    bad = Resource(DATA, break_after=[100_000], before=lie)
    with BadServer({"/a": bad}) as server:
        once = QUICK._replace(attempts=1)
        refused(server, place, patience=once)
        assert reason in refused(server, place, patience=once)
        assert files(place) == set()
        got(server, place)
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("status", [400, 412])
def test_a_server_that_takes_offence_at_ranges(place: Path, status: int) -> None:
    bad = Resource(DATA, status=[200, status], break_after=[100_000])
    with BadServer({"/a": bad}) as server:
        got(server, place)
        assert [r.status for r in server.requests] == [200, status, 200]
    assert place.read_bytes() == DATA


def part(place: Path, data: bytes, url: str, total: int | None) -> None:
    """What a killed process leaves."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_name("file.zip.part").write_bytes(data)
    total_ = "null" if total is None else total
    facts = f'{{"url": "{url}", "etag": "\\"v1\\"", "modified": "", "total": {total_}}}'
    place.with_name("file.zip.part.json").write_text(facts)


def test_a_whole_part_is_taken_without_a_request(place: Path) -> None:
    with BadServer({"/a": Resource(DATA)}) as server:
        part(place, DATA, server.url("/a"), len(DATA))
        got(server, place)
        assert server.requests == []
        place.unlink()
        part(place, DATA, server.url("/a"), None)
        got(server, place, **KNOWN)
        assert server.requests == []
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("kind", ["whole", "too long", "says nothing"])
def test_a_refused_range_is_understood(place: Path, kind: str) -> None:
    resource = Resource(DATA, headers={"Content-Range": ""} if kind == "says nothing" else {})
    with BadServer({"/a": resource}) as server:
        part(place, DATA + b"more" * (kind == "too long"), server.url("/a"), None)
        got(server, place)
        expected = [416] if kind == "whole" else [416, 200]
        assert [r.status for r in server.requests] == expected
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("facts", ["", "{", "[]", "{}", '{"url": 1}', "\x00\xff"])
def test_a_part_of_unknown_origin_is_not_used(place: Path, facts: str) -> None:
    with BadServer({"/a": Resource(DATA)}) as server:
        part(place, bytes(1000), server.url("/a"), len(DATA))
        place.with_name("file.zip.part.json").write_text(facts, "latin-1")
        got(server, place)
        assert [r.status for r in server.requests] == [200]
    assert place.read_bytes() == DATA


def test_a_broken_chunked_answer_is_taken_up(place: Path) -> None:
    bad = Resource(DATA, chunked=True, break_after=[100_000, 50_000])
    with BadServer({"/a": bad}) as server:
        got(server, place)
        assert [r.status for r in server.requests] == [200, 206, 206]
    assert place.read_bytes() == DATA
