"""Walk over a whole pickled module, read as shells: its sub-modules, attributes and tensors."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from workbench.errors import CheckpointError, HostileFile
from workbench.originals.names import Shell

T = TypeVar("T")
MAX_MODULES, MAX_INT = 10_000, 2**31


def below(shell: Shell, path: str) -> Shell:
    """A sub-module, by its dotted path."""
    for name in path.split("."):
        modules = shell.state.get("_modules")
        found = modules.get(name) if isinstance(modules, dict) else None
        if not isinstance(found, Shell):
            raise CheckpointError(f"the checkpoint's '{shell.path}' has no part '{name}'")
        shell = found
    return shell


def attribute(shell: Shell, name: str, kind: type[T]) -> T:
    """A plain attribute of a module; numbers only of a size that a model may have."""
    value = shell.state.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    too_large = isinstance(value, int) and abs(value) >= MAX_INT
    # exactly of the kind: a bool is an int too
    if isinstance(value, kind) and type(value) is kind and not too_large:
        return value
    raise CheckpointError(
        f"the checkpoint's '{shell.path}' has no usable attribute '{name}' (expected "
        f"{kind.__name__})"
    )


def tensor_named(shell: Shell, name: str) -> Tensor | None:
    """A tensor that is an ordinary attribute of a module, or of one of its parts."""
    parts = [part for _, part in _named(shell, "_modules", Shell)]
    parts += [x for x in shell.state.values() if isinstance(x, Shell)]
    held = [part.state.get(name) for part in (shell, *parts)]
    return next((x for x in held if isinstance(x, Tensor)), None)


def same_tensor(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return (x.data_ptr(), x.shape, x.stride()) == (y.data_ptr(), y.shape, y.stride())


def state_dict(shell: Shell, prefix: str = "") -> tuple[dict[str, Tensor], frozenset[str]]:
    """What the module's own `state_dict()` would give, and which of it are buffers.

    Raises:
        HostileFile: modules contain each other without end.
    """
    tensors: dict[str, Tensor] = {}
    buffers = set()
    waiting, visits = [(prefix, shell)], 0
    while waiting:
        at, module = waiting.pop()
        visits += 1
        if visits > MAX_MODULES:
            raise HostileFile(f"the checkpoint's model has more than {MAX_MODULES} parts")
        hidden = module.state.get("_non_persistent_buffers_set") or ()
        for name, value in _named(module, "_parameters", Tensor):
            tensors[at + name] = value
        for name, value in _named(module, "_buffers", Tensor):
            if name not in hidden:
                tensors[at + name] = value
                buffers.add(at + name)
        parts = _named(module, "_modules", Shell)
        waiting += [(f"{at}{name}.", part) for name, part in reversed(parts)]
    return tensors, frozenset(buffers)


def _named(shell: Shell, held_in: str, kind: type[T]) -> list[tuple[str, T]]:
    held = shell.state.get(held_in, {})
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise CheckpointError(f"the checkpoint's '{shell.path}' has odd {held_in}")
    return [(name, value) for name, value in held.items() if isinstance(value, kind)]
