"""One file from one HTTP address, in as many attempts as it takes: what has arrived is kept.

The unfinished file lies beside a small record of its origin. The rest is asked for only where it
will be known to belong to the beginning: by the server's mark of the version (ETag or
Last-Modified), or by a checksum of the whole. Nothing is written beyond the size that is expected.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm.auto import tqdm

BLOCK_BYTES = 1 << 20
MAX_REDIRECTS = 5
MAX_WAIT_S = 60.0


class Patience(NamedTuple):
    """How much is borne of a server before the next address is tried."""

    attempts: int = 4
    """in a row without another MiB"""
    wait_s: float = 1.0
    """before the second attempt; twice as long before each further one"""
    connect_s: float = 10.0
    read_s: float = 30.0
    """silence at a stretch"""
    pace_s: float = 60.0
    """time in which at least `pace_bytes` must come"""
    pace_bytes: int = 1 << 16


class Refused(Exception):
    """This address does not give the file."""


class Broken(Exception):
    """This attempt failed; another one may not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Origin(NamedTuple):
    """Where an unfinished file comes from, as the server described it; "" where it did not."""

    url: str
    etag: str
    modified: str
    total: int | None

    @property
    def mark(self) -> str:
        """What tells this version from others."""
        return self.etag or self.modified

    def contradicts(self, other: Origin) -> bool:
        """Whether two responses are of different files."""
        pairs: list[tuple[object, object]] = [(self.total, other.total)]
        if self.url == other.url:
            pairs += [(self.etag, other.etag), (self.modified, other.modified)]
        return any(a and b and a != b for a, b in pairs)


class Session(requests.Session):
    """Follows no redirect by itself, for that would read the whole body of each."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


@dataclass(frozen=True)
class Partial:
    """An unfinished file.

    Args:
        place: where the whole file is to be, beside the unfinished one.
        size: of the whole in bytes, where that is known.
        has_checksum: whether the whole will be compared with a checksum.
        limit_bytes: of a file whose size is not known.
    """

    place: Path
    size: int | None
    has_checksum: bool
    limit_bytes: int

    @property
    def path(self) -> Path:
        return self.place.with_name(f"{self.place.name}.part")

    @property
    def facts(self) -> Path:
        return self.place.with_name(f"{self.place.name}.part.json")

    def arrived(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def discard(self) -> None:
        """Forget what has arrived."""
        for path in (self.path, self.facts):
            # where there is nothing, a read-only folder is no fault
            if path.is_file():
                path.unlink()

    def complete(self, session: Session, url: str, patience: Patience) -> bool:
        """Make one attempt at all that is missing.

        Returns:
            whether everything came in one response, which also said how long it would be.

        Raises:
            Refused, Broken
        """
        have, origin = self._kept(url)
        # a process may have been killed between the last byte and the renaming
        if origin and have == (self.size or origin.total):
            return False
        headers = {"Accept-Encoding": "identity"}
        if origin:
            headers["Range"] = f"bytes={have}-"
            if origin.url == url and origin.mark:
                headers["If-Range"] = origin.mark
        with _open(session, url, headers, patience) as response:
            start, new = self._begin(response, url, have, origin)
            # a refused range: nothing is missing
            if response.status_code != 416:
                self._check(response, new)
                self._receive(response, start, new, patience)
        return start == 0 and new.total is not None

    def _kept(self, url: str) -> tuple[int, Origin | None]:
        """How many bytes can be kept, and where they come from."""
        have, origin = self.arrived(), self._origin()
        if origin is None:
            return 0, None
        sure = self.has_checksum or (origin.url == url and origin.mark)
        if not have or not sure or have > (self.size or origin.total or have):
            return 0, None
        return have, origin

    def _origin(self) -> Origin | None:
        """What was recorded, if that is whole."""
        try:
            return Origin(**json.loads(self.facts.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _begin(
        self, response: requests.Response, url: str, have: int, origin: Origin | None
    ) -> tuple[int, Origin]:
        """Where the response's body begins, and of which file it is."""
        start, total = _extent(response)
        etag, modified = (response.headers.get(h, "") for h in ("ETag", "Last-Modified"))
        # a weak one (W/...) does not promise the same bytes
        new = Origin(url, etag if etag.startswith('"') else "", modified, total)
        if response.status_code == 200:
            return 0, new
        if origin and response.status_code in (400, 412):
            self.discard()
            raise Broken(
                f"HTTP {response.status_code}, perhaps because only the rest was asked for"
            )
        if origin is None or response.status_code not in (206, 416):
            raise _failure(response)
        if start != have or origin.contradicts(new):
            self.discard()
            raise Broken(f"the file there is another one since {have} bytes of it arrived")
        return have, new

    def _check(self, response: requests.Response, new: Origin) -> None:
        """Refuse what cannot be the file, before anything is written."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        packed = response.headers.get("Content-Encoding", "identity").lower()
        expected = self.size if self.size is not None else new.total
        if new.total not in (None, expected):
            raise Refused(f"got {new.total} bytes ({kind or 'of no type'}), expected {expected}")
        if kind == "text/html" and not self.has_checksum and ".htm" not in self.place.suffix:
            raise Refused("got a web page (text/html), expected a file")
        # some servers call a packed file an encoding of the unpacked one
        if packed != "identity" and self.place.suffix not in (".gz", ".tgz"):
            raise Refused(f"got Content-Encoding {packed}, expected the file as it is")
        if self.size is None and (new.total or 0) > self.limit_bytes:
            raise Refused(f"got {new.total} bytes, expected at most {self.limit_bytes}")

    def _receive(
        self, response: requests.Response, have: int, new: Origin, patience: Patience
    ) -> None:
        """Append the body to what has arrived."""
        total = self.size if self.size is not None else new.total
        free = shutil.disk_usage(self.place.parent).free
        if total is not None and total - have > free:
            raise OSError(0, f"{total - have} bytes to come, {free} free on the disk")
        if not have:
            self.discard()
        # only if need be: whoever is killed while writing it has to start over
        if new != self._origin():
            self.facts.write_text(json.dumps(new._asdict()), "utf-8")
        with self.path.open("ab") as file, _bar(self.place.name, have, total) as bar:
            for block in _body(response, patience):
                have += len(block)
                if have > (self.limit_bytes if total is None else total):
                    self.discard()
                    raise Refused(f"got more than {total or self.limit_bytes} bytes")
                file.write(block)
                bar.update(len(block))
        if total is not None and have < total:
            raise Broken(f"the connection ended after {have} of {total} bytes")


def onward(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        Refused: away from HTTP, or from an encrypted address to one that is not.
    """
    try:
        target = urljoin(url, location)
        schemes = [urlsplit(address).scheme for address in (url, target)]
    except ValueError as error:
        raise Refused(f"it redirects to {location!r}: {error}") from None
    if schemes not in (["http", "http"], ["http", "https"], ["https", "https"]):
        raise Refused(f"it redirects from {url} to {target}, which is not safe")
    return target


def _open(
    session: Session, url: str, headers: dict[str, str], patience: Patience
) -> requests.Response:
    """The response at the end of all redirects."""
    timeout = (patience.connect_s, patience.read_s)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            response = session.get(
                url, headers=headers, timeout=timeout, stream=True, allow_redirects=False
            )
        # of an address that is none
        except ValueError as error:
            raise Refused(str(error)) from None
        except requests.RequestException as error:
            cause = _innermost(error)
            # no such name, or no network: neither comes back within seconds
            lasting = isinstance(cause, socket.gaierror)
            raise (Refused if lasting else Broken)(_said(cause)) from None
        if not response.is_redirect:
            return response
        with response:
            url = onward(url, response.headers["Location"])
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def _extent(response: requests.Response) -> tuple[int | None, int | None]:
    """Where a body begins in its file, and how long the file is; None where it is not said.

    A refused range (416) says how long the file is: the rest, if it is empty, begins there.
    """
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        plain = length.isdecimal() and "Transfer-Encoding" not in response.headers
        return 0, int(length) if plain else None
    said = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    total = int(said[2]) if said and said[2] != "*" else None
    return (int(said[1]) if said and said[1] else total), total


def _failure(response: requests.Response) -> Exception:
    """What a status means that brings no file."""
    said = f"HTTP {response.status_code} {response.reason}"
    if response.status_code < 500 and response.status_code not in (408, 425, 429):
        return Refused(said)
    try:
        wait_s = urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except urllib3.exceptions.InvalidHeader:
        wait_s = 0.0
    return Broken(said, min(wait_s, MAX_WAIT_S))


def _body(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """What comes, as it comes, unless it comes too slowly."""
    due, came = time.monotonic() + patience.pace_s, 0
    try:
        while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
            yield block
            came += len(block)
            if time.monotonic() > due:
                if came < patience.pace_bytes:
                    raise Broken(f"{came} bytes in {patience.pace_s:g} s are too slow")
                due, came = time.monotonic() + patience.pace_s, 0
    except urllib3.exceptions.HTTPError as error:
        raise Broken(_said(_innermost(error))) from None


def _bar(name: str, have: int, total: int | None) -> tqdm:
    """Progress, where somebody can see it."""
    shown = sys.stderr.isatty() or "ipykernel.kernelapp" in sys.modules
    return tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=not shown)


def _innermost(error: BaseException) -> BaseException:
    """The reason itself, which the libraries wrap many times."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
