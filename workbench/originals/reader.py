"""Read a checkpoint of the papers' code without running anything of it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, HostileFile
from workbench.originals.archive import read_old, read_zip

MAX_BYTES = 64 * 2**30


def read(path: str | Path) -> Any:
    """The object that `torch.save` put into a file, as inert values.

    Containers, numbers and text are themselves, tensors are on the CPU (parameters as plain
    tensors; tensors that shared a storage share it still), and instances of known classes are
    `machine.Shell`s. Nothing that the file names is imported or called.

    Raises:
        HostileFile: the file names, does or claims something that weights do not need.
        CheckpointError: it is torn, or no file of `torch.save`.
    """
    path = Path(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise CheckpointError("this is not a file; give the checkpoint file itself")
        if facts.st_size > MAX_BYTES:
            raise CheckpointError(f"{facts.st_size} bytes, at most {MAX_BYTES} are read")
        with path.open("rb") as file:
            reader = read_zip if file.read(2) == b"PK" else read_old
            file.seek(0)
            return reader(file, facts.st_size)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); give the path of a checkpoint"
        ) from None
    except CheckpointError as error:
        # the same fault, with the file it is in
        cure = "" if isinstance(error, HostileFile) else ". Expected a whole file of torch.save"
        raise type(error)(f"{path.name}: {error}{cure}") from None
