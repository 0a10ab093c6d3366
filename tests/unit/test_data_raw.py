"""`workbench data` from end to end: small corpora from a server on this machine, or put by hand."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_server import Resource
from data_world import ARCHIVE, TEXT, World, world

from workbench import cli
from workbench.cli_data import used
from workbench.data import archives, raw, registry
from workbench.errors import DataError, DataMissing


@pytest.fixture(name="world")
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world(tmp_path, monkeypatch) as made:
        yield made


def test_get_downloads_unpacks_verifies_and_prepares(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raw.state("ptb") == "absent"
    assert cli.main(["data", "get", "ptb"]) == 0
    out = capsys.readouterr().out
    assert f"ptb: {', '.join(sorted(TEXT))}; in {world.place}" in out
    rules = [rule for rule in registry.entry("ptb").rules if rule in used()["ptb"]]
    assert rules and f"prepared by the rules: {', '.join(rules)}\n" in out
    assert "licence: CC0 (ours; https://a.example/)" in out
    assert world.files() == set(TEXT)
    assert {name: (world.place / name).read_bytes() for name in TEXT} == TEXT
    assert raw.state("ptb").startswith("prepared: ")
    assert world.asked() == ["/dead.zip", "/a.zip"]


def test_a_second_time_there_is_nothing_to_do(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.get("ptb")
    assert raw.state("ptb") == "downloaded"
    before, asked = world.files(), world.asked()
    assert cli.main(["data", "get", "ptb", "--rule", "plain"]) == 0
    assert "ptb: all was there; in " in capsys.readouterr().out
    assert (world.files(), world.asked()) == (before, asked)
    assert raw.state("ptb") == "prepared: plain"


def test_the_archive_is_kept_where_that_is_asked(world: World) -> None:
    assert set(raw.get("ptb", keep=True).downloaded) == set(TEXT)
    assert world.files() == {"a.zip", *TEXT}
    raw.get("ptb")
    assert world.files() == set(TEXT)


def test_an_archive_put_there_by_hand_is_used_without_the_network(world: World) -> None:
    world.put({"a.zip": ARCHIVE})
    assert raw.state("ptb") == "to unpack"
    world.put({"a.zip.mine": b"notes"})
    raw.get("ptb")
    assert world.files() == {"a.zip.mine", *TEXT} and world.asked() == []


def test_an_archive_of_the_wrong_size_is_refused_and_left_alone(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.put({"a.zip": ARCHIVE[:-1]})
    assert cli.main(["data", "get", "ptb"]) == 2
    said = capsys.readouterr().err
    assert f"got {len(ARCHIVE) - 1} bytes, expected {len(ARCHIVE)}" in said
    assert f"{world.place / 'a.zip'}" in said and "delete this one" in said
    assert (world.place / "a.zip").read_bytes() == ARCHIVE[:-1] and world.asked() == []


def test_unpacked_files_put_there_by_hand_are_used(world: World) -> None:
    world.put(TEXT)
    assert raw.get("ptb", rules=["plain"]).downloaded == ()
    assert world.asked() == []


def test_unpacked_files_that_are_others_are_refused(world: World) -> None:
    world.put({**TEXT, "ptb.valid.txt": b" b c\n"})
    with pytest.raises(DataError, match=r"ptb.valid.txt: got sha256 .* expected"):
        raw.get("ptb")
    assert (world.place / "ptb.valid.txt").read_bytes() == b" b c\n"


def test_only_what_is_missing_is_unpacked(world: World) -> None:
    world.put({name: data for name, data in TEXT.items() if name != "ptb.test.txt"})
    os.utime(world.place / "ptb.train.txt", (1, 1))
    assert raw.state("ptb") == "1 of 3 files missing"
    assert raw.get("ptb").downloaded == ("ptb.test.txt",)
    assert (world.place / "ptb.train.txt").stat().st_mtime == 1


def test_another_form_of_the_source_is_tried_next(world: World) -> None:
    del world.server.resources["/a.zip"]
    world.server.resources.update({f"/{name}": Resource(data) for name, data in TEXT.items()})
    assert set(raw.get("ptb").downloaded) == set(TEXT)
    assert world.asked() == ["/dead.zip", "/a.zip", *(f"/{name}" for name in TEXT)]


def test_what_the_authors_scripts_prepare_is_as_good(world: World) -> None:
    world.put({f"{name.split('.')[1]}.txt": data for name, data in TEXT.items()})
    assert raw.get("ptb", rules=["awd-lstm"]).downloaded == ()
    assert world.asked() == []
    files = [finding.what for finding in raw.check("ptb")]
    assert files[:3] == ["train.txt", "valid.txt", "test.txt"] and len(files) == 4


def test_without_a_network_it_says_what_to_put_where(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.server.resources.clear()
    assert cli.main(["data", "get", "ptb"]) == 2
    said = capsys.readouterr().err
    assert "HTTP 404" in said and "run the same command" in said
    digest = hashlib.sha256(ARCHIVE).hexdigest()
    assert f"either a.zip ({len(ARCHIVE)} bytes, sha256 {digest}) from http://" in said
    assert f"the folder {world.place}" in said
    assert "or ptb.train.txt (16 bytes" in said and "and ptb.valid.txt (" in said
    assert "or unpacked: ptb.train.txt, ptb.valid.txt, ptb.test.txt" in said


def test_another_address_may_be_given(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.server.resources = {"/mirror/a.zip": Resource(ARCHIVE)}
    assert cli.main(["data", "get", "ptb", "--url", world.server.url("/mirror/")]) == 0
    assert world.asked() == ["/mirror/a.zip"]


def test_a_full_disk_is_told_before_anything_is_spent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "free_bytes", lambda place: len(ARCHIVE))
    with pytest.raises(DataError, match=r"free, expected .* download, .* to prepare"):
        raw.get("ptb", rules=["plain"])
    assert world.asked() == [] and not (world.root / "prepared").exists()


def test_the_space_that_is_needed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    it = registry.entry("ptb")
    unpacked = sum(map(len, TEXT.values()))
    needed = len(ARCHIVE) + unpacked + 3 * unpacked
    monkeypatch.setattr(raw, "free_bytes", lambda place: needed)
    raw.check_room(it, it.sources[0], 2)
    monkeypatch.setattr(raw, "free_bytes", lambda place: needed - 1)
    with pytest.raises(DataError):
        raw.check_room(it, it.sources[0], 2)
    # an archive that is there needs no more room, nor does a bare file beside itself
    world.put({"a.zip": ARCHIVE})
    raw.check_room(it, it.sources[0], 2)
    raw.check_room(it, it.sources[1], 2)


def test_what_was_unpacked_with_the_archives_own_folders_is_taken(world: World) -> None:
    (world.place / "in").mkdir(parents=True)
    world.put({f"in/{name}": data for name, data in TEXT.items()})
    raw.get("ptb")
    assert world.asked() == [] and {*TEXT} <= world.files()


def test_there_must_be_room_to_prepare(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put(TEXT)
    monkeypatch.setattr(raw, "free_bytes", lambda place: 10)
    with pytest.raises(DataError, match=r"got 10 bytes free, .* to prepare"):
        raw.get("ptb", rules=["plain"])
    assert not (world.root / "prepared").exists()
    assert raw.get("ptb").downloaded == ()


def test_interrupted_at_the_unpacking_it_goes_on_from_there(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "extract", interrupted)
        assert cli.main(["data", "get", "ptb"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert world.files() == {"a.zip"}
    asked = world.asked()
    raw.get("ptb")
    assert world.asked() == asked and world.files() == set(TEXT)


def test_two_at_once_download_once(world: World) -> None:
    world.server.resources["/a.zip"].pause_s = 0.2
    faults: list[BaseException] = []

    def work() -> None:
        try:
            raw.get("ptb")
        except BaseException as fault:
            faults.append(fault)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert faults == []
    assert world.asked() == ["/dead.zip", "/a.zip"] and world.files() == set(TEXT)


def test_a_file_without_a_checksum_is_compared_with_its_first_use(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "get", "model"]) == 0
    path = world.root / "checkpoints" / "m.pt"
    assert path.read_bytes() == b"weights"
    assert raw.check("model") == [raw.Finding("m.pt", "as recorded at its first use", True)]
    path.write_bytes(b"others!")
    capsys.readouterr()
    assert cli.main(["data", "check", "model"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("BAD m.pt: differs") and "as at its first use" in said
    assert cli.main(["data", "get", "model"]) == 2


def test_a_file_put_there_by_hand_is_recorded_when_it_is_checked(world: World) -> None:
    (world.root / "checkpoints").mkdir()
    (world.root / "checkpoints" / "m.pt").write_bytes(b"by hand")
    assert raw.check("model")[0].said == "recorded now"
    assert raw.check("model")[0].said == "as recorded at its first use"


def test_check_compares_files_and_prepared_corpora(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.get("ptb", rules=["plain", "awd-lstm"])
    assert cli.main(["data", "check", "ptb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"ok  {name}: as published (sha256: us)" for name in TEXT]
    assert lines[3:] == [
        "ok  awd-lstm, 5 symbols, 7 / 3 / 3 tokens: as published",
        "ok  plain, 5 symbols, 7 / 3 / 3 tokens: as published; no source says how many tokens",
    ]


def test_check_finds_damage_and_says_what_to_do(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.get("ptb", rules=["awd-lstm"])
    (folder,) = raw.prepared("ptb")
    (folder / "valid.bin").write_bytes(b"\0\0\0")
    (world.place / "ptb.test.txt").unlink()
    assert cli.main(["data", "check", "ptb"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("BAD ptb.test.txt: missing: `workbench data get`")
    assert lines[3].startswith("BAD") and f"Delete the folder {folder}" in lines[3]


def test_check_of_another_text_says_that_it_differs(world: World) -> None:
    world.put({"train.txt": b"a b c d e\n", "valid.txt": b"a a\n", "test.txt": b"b b\n"})
    raw.get("ptb", rules=["awd-lstm"])
    said = raw.check("ptb")[-1]
    assert not said.good
    assert said.what == "awd-lstm, 6 symbols, 6 / 3 / 3 tokens"
    assert said.said.startswith(
        "got symbols 6, train 6, expected symbols 5, train 7, valid 3, test 3"
    )


def test_check_of_what_is_absent_says_how_to_get_it(world: World) -> None:
    with pytest.raises(DataMissing, match="Run `workbench data get ptb`"):
        raw.check("ptb")


def test_check_goes_on_after_what_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.get("ptb", rules=["awd-lstm"])
    real = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name in ("ptb.test.txt", "files.jsonl"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    said = [finding.said for finding in raw.check("ptb") if not finding.good]
    assert len(said) == 2
    assert said[0].startswith("cannot be read") and said[0].endswith("Permission denied")
    assert said[1].startswith("damaged") and "files.jsonl: got 'Permission denied'" in said[1]
