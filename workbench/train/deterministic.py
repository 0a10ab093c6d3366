"""`train.deterministic`: the same bits from the same run, on a GPU too.

On a CPU runs are so by themselves, with the same number of threads. On a GPU sums may come out in
another order each time, where threads add to one place; PyTorch has other algorithms for most of
these, which are slower, and refuses the rest by name. This package's own kernels always are
deterministic. On a CPU it costs nothing that could be measured (0.25 s a step of txl-python-tiny in
both cases).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, PyTorch uses deterministic algorithms alone, if wanted; then all is as it was."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    # it would choose by speed, each time anew
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.backends.cudnn.benchmark = benchmark


def check_deterministic(device: torch.device) -> None:
    """Refuse a GPU whose matrix products would still vary.

    Raises:
        ConfigError: the environment does not say what cuBLAS needs.
    """
    got = os.environ.get(WORKSPACE)
    if device.type == "cuda" and got not in WORKSPACES:
        raise ConfigError(
            f"train.deterministic is true, but {WORKSPACE} is {got or 'not set'}, expected "
            f"{' or '.join(WORKSPACES)}: without it cuBLAS may sum in any order. Set it before "
            f"Python starts (export {WORKSPACE}={WORKSPACES[0]}), or write deterministic: false"
        )
