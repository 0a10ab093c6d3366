"""Downloads from bad servers: the right file in its place, or none, and a message that says why."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer, Resource
from downloads import DATA, KNOWN, QUICK, SUMS, files, got, refused

from workbench.data import download
from workbench.data.download import fetch, verify
from workbench.data.transfer import Refused, onward
from workbench.errors import DataError, DataMissing


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "set" / "file.zip"


def test_a_file_is_fetched_once(place: Path) -> None:
    with BadServer({"/a": Resource(DATA)}) as server:
        assert got(server, place, **KNOWN) == place
        assert place.read_bytes() == DATA
        assert files(place) == {"file.zip"}
        assert server.requests[0].headers["Accept-Encoding"] == "identity"
        got(server, place, **KNOWN)
        assert len(server.requests) == 1


def test_a_file_that_is_there_needs_no_server(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    for name in ("file.zip.part", "file.zip.part.json"):
        place.with_name(name).write_text("left by a process that was killed")
    assert fetch(["http://127.0.0.1:9/a"], place, bytes=len(DATA), checksums=SUMS) == place
    assert files(place) == {"file.zip"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"checksums": {"md5": "0" * 32}}, f"got md5 {SUMS['md5']}, expected {'0' * 32}"),
        ({"bytes": 7}, "got 300000 bytes, expected 7"),
        ({"checksums": SUMS | {"sha1": "F" * 40}}, f"expected {'f' * 40}"),
    ],
)
def test_another_file_that_is_there_is_kept_and_refused(
    place: Path, options: dict[str, Any], reason: str
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    with pytest.raises(DataError, match=reason) as caught:
        fetch(["http://127.0.0.1:9/a"], place, **options)
    assert "delete this one" in str(caught.value) and str(place) in str(caught.value)
    assert place.read_bytes() == DATA


def test_without_a_checksum_the_first_file_is_remembered(place: Path) -> None:
    with BadServer({"/a": Resource(DATA), "/b": Resource(b"another")}) as server:
        got(server, place)
        record = place.with_name("file.zip.sha256")
        assert record.read_text() == SUMS["sha256"] + "\n"
        got(server, place)
        place.write_bytes(b"another")
        with pytest.raises(DataError, match=r"as at its first use.*delete file.zip.sha256"):
            got(server, place)
        place.unlink()
        assert SUMS["sha256"] in refused(server, place, "/b")
        got(server, place, "/b", "/a")
        assert place.read_bytes() == DATA
        # as a process leaves it that was killed between opening and writing
        record.write_text("")
        place.write_bytes(b"another")
        assert verify(place) == place
        assert record.read_text() == hashlib.sha256(b"another").hexdigest() + "\n"


@pytest.mark.parametrize("known", [{}, KNOWN], ids=["unknown", "known"])
def test_wrong_bytes_are_discarded_and_the_next_address_is_tried(
    place: Path, known: dict[str, Any]
) -> None:
    wrong = bytes(len(DATA))
    with BadServer({"/a": Resource(wrong), "/b": Resource(DATA)}) as server:
        got(server, place, "/a", "/b", **(known or {"checksums": SUMS}))
        assert [r.path for r in server.requests] == ["/a", "/b"]
        place.unlink()
        message = refused(server, place, **KNOWN)
        assert f"{server.url('/a')}: got md5 {hashlib.md5(wrong).hexdigest()}, exp" in message
        assert f"expected {SUMS['md5']}" in message
    assert files(place) == set()


@pytest.mark.parametrize(
    ("resource", "known", "reason"),
    [
        (Resource(DATA, length=200_000), KNOWN, "got 200000 bytes"),
        (Resource(DATA, length=200_000), {"checksums": SUMS}, "got md5"),
        (Resource(DATA, length=400_000), KNOWN, "got 400000 bytes"),
        (Resource(DATA, length=400_000), {}, "another one"),
        (Resource(DATA + b"x", length=-1), KNOWN, "got more than 300000 bytes"),
        (Resource(DATA + b"x", chunked=True), KNOWN, "got more than 300000 bytes"),
        (Resource(DATA[:-1], length=-1), KNOWN, "got 299999 bytes, expected 300000"),
        (Resource(DATA[:-1], chunked=True), KNOWN, "got 299999 bytes, expected 300000"),
        (Resource(DATA, chunked=True, lost_end=True, ranges=False), {}, "attempt 4"),
        (Resource(DATA, length=-1), {"limit_bytes": 1000}, "got more than 1000 bytes"),
        (Resource(DATA), {"limit_bytes": 1000}, "got 300000 bytes, expected at most 1000"),
        (Resource(DATA, headers={"Content-Length": "-5"}), {"limit_bytes": 9}, "more than 9"),
        (Resource(), KNOWN, "got 0 bytes"),
    ],
)
def test_a_wrong_length_is_refused(
    place: Path, resource: Resource, known: dict[str, Any], reason: str
) -> None:
    bound = known.get("bytes", known.get("limit_bytes", len(DATA)))
    largest = 0

    def watch(_: Resource, __: int) -> None:
        nonlocal largest
        unfinished = place.with_name("file.zip.part")
        largest = max(largest, unfinished.stat().st_size if unfinished.exists() else 0)

    resource.before = watch
    with BadServer({"/a": resource}) as server:
        assert reason in refused(server, place, **known)
    watch(resource, 0)
    assert largest <= bound


@pytest.mark.parametrize(
    "resource",
    [Resource(DATA, length=-1), Resource(DATA, chunked=True), Resource(DATA, chunked=True, step=7)],
    ids=["no length", "chunked", "small chunks"],
)
@pytest.mark.parametrize("known", [{}, KNOWN], ids=["unknown", "known"])
def test_a_length_need_not_be_said(place: Path, resource: Resource, known: dict[str, Any]) -> None:
    with BadServer({"/a": resource}) as server:
        got(server, place, **known)
    assert place.read_bytes() == DATA


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_also_to_another_host(place: Path, status: int) -> None:
    with BadServer({"/c": Resource(DATA, break_after=[100_000])}) as other:
        there = other.url("/c").replace("127.0.0.1", "localhost")
        resources = {
            "/a": Resource(redirect="/b", redirect_status=status),
            "/b": Resource(redirect=there, redirect_status=status),
        }
        with BadServer(resources) as server:
            got(server, place, **KNOWN)
            assert [r.path for r in server.requests] == ["/a", "/b", "/a", "/b"]
        assert [r.status for r in other.requests] == [200, 206]
    assert place.read_bytes() == DATA


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/a", "more than 5 redirects"),
        ("file:///etc/passwd", "file:///etc/passwd, which is not safe"),
        ("ftp://127.0.0.1/a", "not safe"),
        ("gopher:x", "not safe"),
        ("http://", "more than 5 redirects"),
        ("http://[::1", "Invalid"),
    ],
)
def test_redirects_that_lead_nowhere(place: Path, target: str, reason: str) -> None:
    with BadServer({"/a": Resource(redirect=target), "/b": Resource(DATA)}) as server:
        assert reason in refused(server, place)
        got(server, place, "/a", "/b")
    assert place.read_bytes() == DATA


def test_the_body_of_a_redirect_is_not_read(place: Path) -> None:
    endless = Resource(redirect="/b", redirect_length=1 << 40)
    with BadServer({"/a": endless, "/b": Resource(DATA)}) as server:
        got(server, place)
    assert place.read_bytes() == DATA


def test_redirects_keep_encryption() -> None:
    assert onward("https://a.org/b/c", "../d") == "https://a.org/d"
    assert onward("https://a.org/b", "//c.org/d") == "https://c.org/d"
    assert onward("http://a.org/b", "https://a.org/b") == "https://a.org/b"
    for target in ("http://a.org/b", "HTTP://a.org", "ftp://a.org", "javascript:x", "data:,x"):
        with pytest.raises(Refused, match="not safe"):
            onward("https://a.org/b", target)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 300, 304, 204])
def test_a_status_that_stays_ends_the_address_at_once(place: Path, status: int) -> None:
    resources = {"/a": Resource(DATA, status=[status]), "/b": Resource(DATA)}
    with BadServer(resources) as server:
        got(server, place, "/a", "/b")
        assert [r.path for r in server.requests] == ["/a", "/b"]
        resources["/a"].status = [status]
        place.unlink()
        assert f"HTTP {status} " in refused(server, place)


def test_a_status_that_passes_is_waited_for(place: Path) -> None:
    bad = Resource(DATA, status=[500, 503, 429], headers={"Retry-After": "0.2"})
    with BadServer({"/a": bad}) as server:
        got(server, place)
        assert [r.status for r in server.requests] == [500, 503, 429, 200]
    assert place.read_bytes() == DATA


@pytest.mark.parametrize(
    ("said", "waits"), [("7", 7), ("999999", 60), ("soon", 0.01), ("-1", 0.01)]
)
def test_the_server_says_how_long_to_wait(
    place: Path, said: str, waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    bad = Resource(DATA, status=[503, 503], headers={"Retry-After": said})
    with BadServer({"/a": bad}) as server:
        got(server, place)
    assert slept == [waits, max(waits, 0.02)]


def test_a_silent_server_is_given_up(place: Path) -> None:
    resources = {"/a": Resource(DATA, hang_after=0), "/b": Resource(DATA, hang_after=1000)}
    patience = QUICK._replace(attempts=2, read_s=0.1)
    with BadServer(resources) as server:
        message = refused(server, place, "/a", "/b", patience=patience)
        assert message.count("timed out") == 2
        # what came counts, as long as something comes
        resources["/b"].hang_after = 120_000
        got(server, place, "/b", patience=patience._replace(attempts=4))
    assert place.read_bytes() == DATA


def test_a_server_that_does_not_even_answer_is_given_up(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/a"
        with pytest.raises(DataMissing, match="timed out"):
            fetch([url], place, patience=QUICK._replace(attempts=1))


def test_a_slow_server_is_borne_down_to_a_pace(place: Path) -> None:
    slow = {"/a": Resource(DATA, pause_s=0.02, step=100), "/b": Resource(DATA, pause_s=0.01)}
    with BadServer(slow) as server:
        begun = time.monotonic()
        patience = QUICK._replace(attempts=1)
        assert "too slow" in refused(server, place, patience=patience)
        assert time.monotonic() - begun < 1
        got(server, place, "/b", checksums=SUMS)
    assert place.read_bytes() == DATA


def test_a_packed_answer_does_not_corrupt(place: Path) -> None:
    packed = gzip.compress(DATA)
    bad = Resource(packed, headers={"Content-Encoding": "gzip"})
    with BadServer({"/a": bad, "/b": Resource(DATA)}) as server:
        assert "got Content-Encoding gzip" in refused(server, place)
        got(server, place, "/a", "/b")
        assert place.read_bytes() == DATA
        # the file itself is packed, and the server says so in the wrong header
        archive = place.with_name("file.tar.gz")
        got(server, archive, checksums={"md5": hashlib.md5(packed).hexdigest()})
        assert archive.read_bytes() == packed


def test_a_web_page_is_no_file(place: Path) -> None:
    page = Resource(b"<!DOCTYPE html>log in first", kind="text/html; charset=utf-8")
    with BadServer({"/a": page, "/b": Resource(DATA, kind="text/html")}) as server:
        assert "got a web page" in refused(server, place)
        assert "got 27 bytes (text/html), expected 300000" in refused(server, place, **KNOWN)
        assert "got md5" in refused(server, place, checksums=SUMS)
        # a type that is wrong does not matter where the file is right
        got(server, place, "/b", **KNOWN)
        assert place.read_bytes() == DATA
        got(server, place.with_name("page.html"))


def test_dead_mirrors_are_passed_by_and_named_if_all_are_dead(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
    with BadServer({"/b": Resource(DATA)}) as server:
        quick = QUICK._replace(attempts=2)
        urls = [dead, "http://no-such-host.invalid/a", server.url("/none"), "no address"]
        with pytest.raises(DataMissing) as caught:
            fetch(urls, place, patience=quick)
        lines = str(caught.value).splitlines()
        assert lines[0] == "file.zip: got no such file from any of 4 address(es):"
        for line, url in zip(lines[1:5], urls, strict=True):
            assert line.startswith(f"  {url}: ")
        assert "refused" in lines[1].lower()
        # a name that nobody knows is not asked for again
        assert "gaierror" in lines[2] and "attempt" not in lines[2]
        assert "HTTP 404" in lines[3]
        assert lines[5].endswith(f"put it at {place}")
        fetch([*urls, server.url("/b")], place, patience=quick)
    assert place.read_bytes() == DATA


def test_without_an_address_the_message_says_what_to_do(place: Path) -> None:
    with pytest.raises(DataMissing, match="put it at"):
        fetch([], place)


def test_two_at_once_fetch_one_file(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BadServer({"/a": Resource(DATA, pause_s=0.02)}) as server:
        threads = [threading.Thread(target=got, args=(server, place)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [r.sent for r in server.requests] == [len(DATA)]
    assert place.read_bytes() == DATA
    assert "another process is at work on it" in caplog.text


def test_a_full_disk_is_noticed_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with (
        BadServer({"/a": Resource(DATA)}) as server,
        pytest.raises(DataError, match=r"300000 bytes to come, 1000 free.*WORKBENCH_DATA"),
    ):
        got(server, place)
    assert files(place) == set()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="expected to write there"):
        fetch(["http://127.0.0.1:9/a"], tmp_path / "file" / "set" / "a.zip")


def test_a_read_only_folder(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    place.parent.chmod(0o500)
    if os.access(place.parent, os.W_OK):
        pytest.skip("this user may write everywhere")
    try:
        # what is there can be used, though its checksum cannot be recorded
        assert verify(place) == place
        with pytest.raises(DataError, match="Permission denied"):
            fetch(["http://127.0.0.1:9/a"], place.with_name("b.zip"))
    finally:
        place.parent.chmod(0o700)


def test_progress_is_for_those_who_look(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with BadServer({"/a": Resource(DATA)}) as server:
        got(server, place)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        got(server, place.with_name("b.zip"))
        out, err = capsys.readouterr()
    assert out == "" and "b.zip: 100%" in err and "300k/300k" in err
