"""Downloads in processes that are killed: run as a program, told a case per line, in JSON.

It imports once and forks for each process, since an import takes longer than a download.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from workbench.data.download import fetch
from workbench.data.transfer import Patience
from workbench.errors import DataMissing

QUICK = Patience(wait_s=0.01, connect_s=5, read_s=5)


def start(url: str, place: Path, checksums: dict[str, str], file_bytes: int = 0) -> int:
    """The id of a process that downloads, and ends with 0 when it has."""
    if pid := os.fork():
        return pid
    status = 9
    try:
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        fetch([url], place, checksums=checksums, patience=QUICK)
        status = 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Its exit status; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until_done(case: dict[str, Any], seed: int, how: str, within_s: float) -> int:
    """Kill each process at some moment, until one was quicker; how many were not."""
    moments, killed = random.Random(seed), 0
    while True:
        pid = start(**case)
        # later and later, so that a busy machine comes to an end too
        time.sleep(moments.random() * within_s * (1 + killed / 10))
        os.kill(pid, signal.Signals[how])
        if ended(pid) == 0:
            return killed
        killed += 1
        assert killed < 100, "no process comes to an end"


def main() -> None:
    with contextlib.suppress(DataMissing):
        # whatever the libraries load at the first request
        fetch(["http://127.0.0.1:9/"], Path(sys.argv[1]) / "none", patience=Patience(attempts=1))
    for line in sys.stdin:
        case, order = json.loads(line)
        case["place"] = Path(case["place"])
        if "processes" in order:
            result: Any = [ended(pid) for pid in [start(**case) for _ in range(order["processes"])]]
        else:
            result = until_done(case, **order)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
