"""Archives and compressed files: the named files in their places, or none, whatever is in them."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from packed import KINDS, PACKERS, TEXTS, WANTED, files, put, refused, tarred, zipped

from workbench.data.archives import extract, read
from workbench.errors import DataError


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_members_are_taken(tmp_path: Path, kind: str) -> None:
    archive = put(tmp_path, kind, KINDS[kind](TEXTS))
    out = tmp_path / "out"
    found = extract(archive, WANTED, out, limit_bytes=10_000)
    assert found == [out / "train.txt", out / "sub" / "valid.txt"]
    assert [path.read_bytes() for path in found] == [*TEXTS.values()][:2]
    assert files(out) == {"train.txt", "sub/valid.txt"}
    assert not (out / ".unpacking").exists()
    sizes = {m.name: m.bytes for m in read(archive, limit_bytes=10_000)}
    assert sizes == {name: len(data) for name, data in TEXTS.items()}
    whole = {m.name: b"".join(m.blocks) for m in read(archive, limit_bytes=10_000)}
    assert whole == TEXTS


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_folders_and_replaced_files(tmp_path: Path, kind: str) -> None:
    shards = {f"./lm/train/news-{i:02}-of-03": b"%d" % i for i in (2, 0, 1)}
    others = {"lm/held/news-00-of-03": b"held", "lm/train/deep/news-00-of-03": b"deep"}
    archive = put(tmp_path, kind, KINDS[kind](shards | others))
    wanted = {f"lm/train/news-{i:02}-of-03": f"train/news-{i:02}-of-03" for i in range(3)}
    wanted |= {"./lm/held/news-00-of-03": "held.txt"}
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    put(out, "train/news-01-of-03", b"old")
    found = extract(archive, wanted, out, limit_bytes=100)
    names = [path.relative_to(out).as_posix() for path in found]
    assert names == [*(f"train/news-{i:02}-of-03" for i in range(3)), "held.txt"]
    assert [path.read_bytes() for path in found] == [b"0", b"1", b"2", b"held"]
    assert files(out) == set(names)


@pytest.mark.parametrize("name", ["text8.gz", "text8.xz", "text8.bz2", "text8.zst"])
def test_a_compressed_file_has_one_member(tmp_path: Path, name: str) -> None:
    archive = put(tmp_path, name, PACKERS[name[6:]](b"words " * 1000))
    (found,) = extract(archive, {"text8": "text8"}, tmp_path / "out", limit_bytes=6000)
    assert found.read_bytes() == b"words " * 1000
    assert [(m.name, m.bytes) for m in read(archive, limit_bytes=0)] == [("text8", None)]
    (tmp_path / "out" / "text8").unlink()
    assert "more bytes than expected" in refused(
        tmp_path, name, archive.read_bytes(), {"text8": "text8"}, 5999
    )


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    archive = put(tmp_path, "a.zip", zipped(TEXTS))
    (tmp_path / "out" / ".unpacking").mkdir(parents=True)
    put(tmp_path / "out", ".unpacking/train.txt", b"half")
    put(tmp_path / "out", ".unpacking/other", b"half")
    extract(archive, WANTED, tmp_path / "out", limit_bytes=10_000)
    assert files(tmp_path / "out") == {"train.txt", "sub/valid.txt"}


NAMES = ["../x", "a/../../x", "/etc/x", "..", "..\\x", "C:x", "a/C:x", "C:/x", r"\\host\x", r"a\b"]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(tmp_path: Path, kind: str, name: str) -> None:
    # whether it is asked for or not
    evil = KINDS[kind](TEXTS | {name: b"evil"})
    assert "leads out of its folder" in refused(tmp_path, kind, evil)
    assert "leads out of its folder" in refused(tmp_path, kind, evil, {name: "x"})
    with pytest.raises(DataError, match="leads out"):
        list(read(tmp_path / kind, limit_bytes=10_000))


def test_a_zip_name_with_a_hidden_end(tmp_path: Path) -> None:
    evil = zipped({"set/train.txtX.exe": b"evil"}).replace(b".txtX", b".txt\0")
    assert "leads out" in refused(tmp_path, "a.zip", evil, {"set/train.txt": "train.txt"})


def test_folders_that_lead_out(tmp_path: Path) -> None:
    evil = tarred(TEXTS | {"../x": b""}, type=tarfile.DIRTYPE)
    assert "leads out" in refused(tmp_path, "a.tar", evil)
    assert "leads out" in refused(tmp_path, "a.zip", zipped(TEXTS | {"../x/": b""}))


def test_places_outside_are_a_fault_of_ours(tmp_path: Path) -> None:
    archive = put(tmp_path, "a.zip", zipped(TEXTS))
    with pytest.raises(AssertionError):
        extract(archive, {"set/train.txt": "../x"}, tmp_path / "out", limit_bytes=10_000)


LINKS = {
    "symbolic": tarfile.SYMTYPE,
    "hard": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: str) -> None:
    name = "set/valid.txt"
    texts = {"set/train.txt": TEXTS["set/train.txt"], name: b""}
    evil = tarred(texts, tarfile.GNU_FORMAT, type=LINKS[kind], linkname="/etc/passwd")
    assert "a link, device or sparse file" in refused(tmp_path, "a.tar", evil)
    # what was not asked for is not made
    archive = put(tmp_path, "a.tar", evil)
    extract(archive, {"set/train.txt": "x"}, tmp_path / "out", limit_bytes=10_000)
    assert files(tmp_path / "out") == {"x"}


@pytest.mark.parametrize("below", [{}, {"set/valid.txt/x": b"evil"}])
def test_a_link_is_not_written_through(tmp_path: Path, below: dict[str, bytes]) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tarred({"set": b""}, type=tarfile.SYMTYPE, linkname=str(tmp_path / "elsewhere"))
    archive = put(tmp_path, "a.tar", link[:512] + tarred(TEXTS | below))
    extract(archive, WANTED, tmp_path / "out", limit_bytes=10_000)
    assert files(tmp_path / "out") == {"train.txt", "sub/valid.txt"}
    assert files(tmp_path / "elsewhere") == set()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_links_and_devices_in_a_zip(tmp_path: Path, mode: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("set/train.txt", TEXTS["set/train.txt"])
        info = zipfile.ZipInfo("set/valid.txt")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "a link or device 'set/valid.txt'" in refused(tmp_path, "a.zip", out.getvalue())


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.xz"])
@pytest.mark.parametrize("name", ["set/train.txt", "set//train.txt", "./set/./train.txt"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path, kind: str, name: str) -> None:
    twice = KINDS[kind]([*TEXTS.items(), (name, b"other")])
    assert "got two members 'set/train.txt'" in refused(tmp_path, kind, twice)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_member_is_named_with_the_nearest(tmp_path: Path, kind: str) -> None:
    message = refused(tmp_path, kind, KINDS[kind](TEXTS), WANTED | {"set/tset.txt": "test.txt"})
    assert "got no member 'set/tset.txt' among 3 files" in message and "set/" in message
    assert "among 0 files" in refused(tmp_path, kind, KINDS[kind]({}))
