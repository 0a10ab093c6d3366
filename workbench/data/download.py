"""Files over HTTP: from one of several mirrors, resumed where they broke off, verified.

What arrives is kept beside its place as `<place>.part`; a whole and verified file is renamed, so
what lies at its place was never half. One process at a time fetches a file. Where no checksum is
known, the sha256 of the first file is kept as `<place>.sha256`, and compared ever after.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from workbench.data.places import alone, to_disk, writing
from workbench.data.transfer import BLOCK_BYTES, Broken, Partial, Patience, Refused, Session
from workbench.errors import DataError, DataMissing

logger = logging.getLogger("workbench")
NONE: Mapping[str, str] = MappingProxyType({})
PATIENCE = Patience()


class NotFetched(DataMissing):
    """No address gave the file."""

    def __init__(self, partial: Partial, reasons: Sequence[str]) -> None:
        self.tried = (
            f"{partial.place.name}: got no such file from any of {len(reasons)} address(es):\n"
            f"{''.join(reasons)}"
        )
        super().__init__(
            f"{self.tried}Run again when one can be reached (what has arrived is kept as "
            f"{partial.path.name}), or download the file on another machine and put it at "
            f"{partial.place}"
        )


def fetch(
    urls: Sequence[str],
    place: Path,
    *,
    bytes: int | None = None,
    checksums: Mapping[str, str] = NONE,
    limit_bytes: int = 64 << 30,
    patience: Patience = PATIENCE,
) -> Path:
    """The whole, verified file at `place`; without a request where it is there already.

    Safe to interrupt at any moment (the next call goes on from there), and to call from several
    processes at once (one fetches, the others wait).

    Args:
        urls: mirrors of the same file, in the order in which they are tried.
        place: the path of the file.
        bytes: its exact size, where that is known.
        checksums: by algorithm ("md5", "sha1", "sha256"); all must hold.
        limit_bytes: of a file whose size is not known.
        patience: with each address.

    Raises:
        NotFetched: no address gave the file; says why for each, and what to put where by hand.
        DataError: the file that is there is another one, or nothing can be written there.
    """
    with writing(place):
        known = checksums or _recorded(place)
        partial = Partial(place, bytes, bool(known), limit_bytes)
        if not place.is_file():
            with alone(place):
                # another process may have fetched it meanwhile
                if not place.is_file():
                    _fetch(urls, partial, known, patience)
        verify(place, checksums, bytes)
        # left by a process that was killed at the very end, or before the file was put there
        partial.discard()
    return place


def verify(place: Path, checksums: Mapping[str, str] = NONE, bytes: int | None = None) -> Path:
    """Compare a file with its size and checksums, or with its sha256 at its first use.

    Raises:
        DataError: it is another file.
    """
    known = checksums or _recorded(place)
    if fault := _fault(place, bytes, known):
        recorded = known is not checksums and known
        first = " as at its first use" if recorded else ""
        trust = f", or delete {_record(place).name} beside it to trust this one" if recorded else ""
        raise DataError(
            f"{place}: {fault}{first}. Put the right file there, or delete this one so that it "
            f"can be downloaded again{trust}"
        )
    if not known:
        try:
            _record(place).write_text(_digests(place, ["sha256"])["sha256"] + "\n", "ascii")
        except OSError as error:
            logger.warning("%s: its sha256 cannot be recorded (%s)", place, error.strerror)
    return place


def _fetch(
    urls: Sequence[str], partial: Partial, checksums: Mapping[str, str], patience: Patience
) -> None:
    """Fetch from the first address that has the file."""
    reasons = []
    with Session() as session:
        for url in urls:
            try:
                _patiently(partial, session, url, checksums, patience)
            except Refused as reason:
                reasons.append(f"  {url}: {reason}\n")
                continue
            to_disk(partial.path)
            os.replace(partial.path, partial.place)
            return
    raise NotFetched(partial, reasons)


def _patiently(
    partial: Partial,
    session: Session,
    url: str,
    checksums: Mapping[str, str],
    patience: Patience,
) -> None:
    """Attempts at one address, each from where the last one broke off."""
    reached, failures = partial.arrived(), 0
    while True:
        try:
            at_once = partial.complete(session, url, patience)
            if not (fault := _fault(partial.path, partial.size, checksums)):
                return
            partial.discard()
            # several responses may be of several files; one whole response is what is there
            raise (Refused if at_once else Broken)(fault)
        except Broken as reason:
            failures += 1
            if partial.arrived() >= reached + BLOCK_BYTES:
                reached, failures = partial.arrived(), 1
            if failures >= patience.attempts:
                raise Refused(f"{reason} (attempt {failures})") from None
            logger.info("%s: %s; trying again", url, reason)
            time.sleep(max(patience.wait_s * 2 ** (failures - 1), reason.wait_s))


def _record(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _recorded(place: Path) -> Mapping[str, str]:
    record = _record(place)
    said = record.read_text("ascii", "replace").strip() if record.is_file() else ""
    # a process that was killed may have left it empty
    return {"sha256": said} if re.fullmatch("[0-9a-fA-F]{64}", said) else NONE


def _digests(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Hexadecimal digests of a file, read once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            for digest in hashes.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _fault(path: Path, size: int | None, checksums: Mapping[str, str]) -> str:
    """What is wrong with a file; nothing where it is the right one."""
    if size is not None and (got := path.stat().st_size) != size:
        return f"got {got} bytes, expected {size}"
    digests = _digests(path, list(checksums)) if checksums else {}
    wrong = [n for n, digest in digests.items() if digest != checksums[n].lower()]
    return ", ".join(f"got {n} {digests[n]}, expected {checksums[n].lower()}" for n in wrong)
