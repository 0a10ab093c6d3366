"""Whether somebody looks at a notebook, or it runs unattended."""

from __future__ import annotations

import os
from typing import Any

from IPython.core.getipython import get_ipython


def kernel() -> Any:
    """The Jupyter kernel that this process is; None in plain Python."""
    return getattr(get_ipython(), "kernel", None)


def in_batch() -> bool:
    """Whether nobody watches: our papermill engine says so (`WORKBENCH_BATCH`), and whoever runs a
    notebook without a page (plain papermill, `nbconvert --execute`) says that it takes no input,
    which JupyterLab and VS Code do."""
    if os.environ.get("WORKBENCH_BATCH"):
        return True
    here = kernel()
    return here is not None and not getattr(here, "_allow_stdin", False)


def attended() -> bool:
    """Whether somebody may press a button: in a notebook on a page."""
    return kernel() is not None and not in_batch()
