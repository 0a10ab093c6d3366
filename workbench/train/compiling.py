"""`train.compile`: the model through `torch.compile`, and without it where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


class Compiled:
    """A function, compiled when it is first called.

    Where PyTorch cannot compile it, one warning says why, and the function runs as it is from then
    on. Errors of the function itself are raised.

    Attributes:
        active: false after a failure.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.active = True
        self._plain, self._compiled = function, torch.compile(function)

    def __call__(self, *args: Any) -> Any:
        if not self.active:
            return self._plain(*args)
        try:
            return self._compiled(*args)
        except _failures() as error:
            first = str(error).strip().split("\n")[0]
            self.active = False
            warnings.warn(
                f"train.compile: PyTorch could not compile the model, which runs uncompiled now "
                f"({type(error).__name__}: {first}). Mend that, or write compile: false",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._plain(*args)


def _failures() -> tuple[type[Exception], ...]:
    # loaded late: they bring the whole compiler
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
