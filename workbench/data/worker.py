"""A worker of a preparation: reads a job as a line of JSON, answers with one, ends with its parent.

`python -m workbench.data.worker`, started by `workbench.data.crew` and by nobody else. When stdin
ends, whether the parent closed it or was killed, the worker ends at once, in the middle of a job.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, TextIO

from workbench.data.jobs import perform
from workbench.errors import DataError


def main() -> None:
    """Do jobs until stdin ends."""
    # Ctrl-C reaches the whole group of processes; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # whatever else is written to stdout must not get between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()
    while True:
        answers.write(json.dumps(answer(json.loads(lines.get())), default=str) + "\n")
        answers.flush()


def _listen(stdin: TextIO, lines: queue.SimpleQueue[str]) -> None:
    for line in stdin:
        lines.put(line)
    os._exit(0)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a job, or what went wrong."""
    try:
        return {"result": perform(job)}
    except DataError as error:
        return {"data_error": str(error)}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror or str(error), error.filename]}
    except MemoryError:
        return {"data_error": f"{_what(job)}: got a worker without memory left. {FEWER}"}
    except Exception:  # a fault of the program: the parent shows it
        return {"fault": traceback.format_exc()}


def _what(job: dict[str, Any]) -> str:
    paths = [p[0] for p in job.get("pieces", []) if p[0]] or job.get("paths") or [job["do"]]
    return str(paths[0])


FEWER = (
    "Close other programs, or have fewer workers: set the environment variable WORKBENCH_WORKERS=1"
)

if __name__ == "__main__":
    main()
