"""Which implementation of an operation runs: the first that can, never one that silently cannot.

An `Op` is a contract: a plain PyTorch `reference` and a list of `Backend`s that compute the same
numbers faster, the reference last. Choosing looks at the arguments and at what `prepare` has
built; it never compiles. All of this is plain Python that `torch.compile` traces.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch.autograd import forward_ad

from workbench.errors import NoBackend

T = TypeVar("T")

OPS: dict[str, Op] = {}
ACCOUNTS: dict[str, Account] = {}

HALF = {torch.bfloat16, torch.float16}

# schemas are defined where an op is; the built libraries bring the implementations
LIBRARY = torch.library.Library("workbench", "DEF")

# plain globals and no ContextVar: torch.compile guards them instead of breaking the graph
_demanded = "auto"
# by every `use` that has not ended, newest last: threads may end theirs in any order
_demands: list[list[str]] = []
_warned: set[str] = set()


def constant_to_compile(function: Callable[..., T]) -> Callable[..., T]:
    """Let `torch.compile` call a function while it traces and keep the answer.

    This is `torch.compiler.assume_constant_result`, which would load the whole compiler already
    when this package is imported.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010  (not a declared attribute)
    return function


def transformed(*args: Any) -> list[str]:
    """Why a backend with a gradient of its own cannot run now; empty: it can.

    PyTorch takes the tangents of what it cannot look into for zeros, without a word.
    """
    if torch.compiler.is_compiling():
        return []
    functorch = torch._C._functorch.peek_interpreter_stack() is not None
    if functorch or forward_ad._current_level >= 0:
        return ["it has gradients alone: nothing for torch.func and forward-mode differentiation"]
    return []


def refuse_second_derivative(op: str) -> None:
    """Let a gradient of `workbench::<op>_backward` be an error, which PyTorch takes for zero."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NoBackend(
            f"{op}: a gradient was differentiated once more, of which its kernels know nothing. "
            'Compute it inside `with workbench.kernels.use("reference")`'
        )

    torch.library.register_autograd(f"workbench::{op}_backward", refuse)


def always(*args: Any) -> list[str]:
    """The `why_not` of a backend that refuses nothing."""
    return []


@dataclass(frozen=True)
class Backend:
    """One implementation of an op."""

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., list[str]] = always
    """called with the op's arguments: what keeps it from running them; empty: nothing does.
    Called without arguments: what keeps it from running at all on this machine."""
    device: str | None = None
    """the type of device whose tensors it is for; passing it over for others is no news"""

    def concerns(self, *args: Any) -> bool:
        """Whether tensors on this device are what the backend is for."""
        first = args[0] if args else None
        return self.device is None or not (
            isinstance(first, torch.Tensor) and first.device.type != self.device
        )


class Row(NamedTuple):
    """One line of `explain`: a backend and what it says to a call."""

    op: str
    backend: str
    chosen: bool
    why_not: list[str]


class Op:
    """An operation with one meaning and several implementations.

    Args:
        name: as in records and in `ran`.
        reference: the meaning, in plain PyTorch: differentiable, any device, any float type.
        backends: faster ones, best first.
        check: refuses arguments that no backend could take, with a `ValueError`.
        takes_half: where PyTorch's autocast is on, float tensors are handed to the op in float32;
            with this, the first so many stay as they are if all of them are bfloat16. In float16
            sums over keys and fast weights would overflow, and no faster backend knows it.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        backends: list[Backend],
        check: Callable[..., None] = always,  # type: ignore[assignment]
        takes_half: int = 0,
    ):
        self.name, self.reference, self.check = name, reference, check
        self.takes_half = takes_half
        self.backends = [*backends, Backend("reference", reference)]
        self.__doc__ = reference.__doc__
        # an attribute for each op and no common dict, whose length compiled code would guard
        self.ran_on: str | None = None
        OPS[name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join(b.name for b in self.backends)}>"

    def __call__(self, *args: Any) -> Any:
        if not _autocast(device := _device(args)):
            return self._run(*args)
        with torch.autocast(device, enabled=False):
            return self._run(*self._without_autocast(args))

    def _without_autocast(self, args: tuple[Any, ...]) -> list[Any]:
        """The arguments in types that the contract takes together."""
        n = self.takes_half
        types = {x.dtype for x in args[:n]}
        n = n if types == {torch.bfloat16} else 0
        return [*args[:n], *(_widened(x) for x in args[n:])]

    def _run(self, *args: Any) -> Any:
        self._check_numbers(args)
        self.check(*args)
        backend = self.choose(*args)
        self.ran_on = backend.name
        return backend.run(*args)

    def _check_numbers(self, args: tuple[Any, ...] | list[Any]) -> None:
        """Refuse what has no gradient, of which some backends would make wrong numbers."""
        first = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if first is not None and not first.is_floating_point():
            raise ValueError(
                f"{self.name}: got numbers of type {first.dtype}, expected a float type such as "
                "torch.float32. Convert before the call"
            )

    def choose(self, *args: Any) -> Backend:
        """The backend that a call with these arguments runs on.

        Raises:
            NoBackend: the one demanded by `use` cannot run them.
        """
        if _demanded != "auto":
            return self._demand(_demanded, *args)
        for backend in self.backends:
            reasons = backend.why_not(*args)
            if not reasons:
                return backend
            for reason in reasons if backend.concerns(*args) else ():
                if reason not in _warned:
                    warn_once(f"{self.name}: passing over the backend {backend.name!r}", reason)
        raise AssertionError("the reference refuses nothing")

    def _demand(self, name: str, *args: Any) -> Backend:
        for backend in self.backends:
            if backend.name == name:
                if reasons := backend.why_not(*args):
                    raise NoBackend(_refusal(self.name, name, reasons))
                return backend
        known = ", ".join(backend.name for backend in self.backends)
        raise NoBackend(f"{self.name} has no backend {name!r}. Choose one of: auto, {known}")

    def explain(self, *args: Any) -> list[Row]:
        """What every backend says to a call, best first; without arguments: to this machine."""
        rows: list[Row] = []
        for backend in self.backends:
            reasons = backend.why_not(*args)
            if _demanded == "auto":
                chosen = not reasons and not any(row.chosen for row in rows)
            else:
                chosen = not reasons and backend.name == _demanded
            rows.append(Row(self.name, backend.name, chosen, reasons))
        return rows


def _device(args: tuple[Any, ...]) -> str:
    """The kind of device that a call is about."""
    tensors = (x for x in args if isinstance(x, torch.Tensor))
    first = next(tensors, None)
    return "cpu" if first is None else first.device.type


def _autocast(device: str) -> bool:
    """Whether PyTorch's autocast is on; devices without numbers have none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def _widened(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.float() if x.dtype in HALF else x
    if isinstance(x, list):
        return [_widened(part) for part in x]
    if isinstance(x, tuple):
        parts = [_widened(part) for part in x]
        return tuple(parts) if type(x) is tuple else type(x)(*parts)
    return x


def in_float32(function: Callable[..., T]) -> Callable[..., T]:
    """Where PyTorch's autocast is on: run a function without it, its tensors in float32.

    For recurrences in plain PyTorch, whose state must not lose at each token what half precision
    loses.
    """

    @functools.wraps(function)
    def careful(*args: Any) -> T:
        if not _autocast(device := _device(args)):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*(_widened(x) for x in args))

    return careful


def _refusal(op: str, backend: str, reasons: list[str]) -> str:
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    return (
        f"{op} cannot run on the backend {backend!r} that was asked for:{listed}\n"
        f"Mend that, or ask for 'auto'."
    )


@constant_to_compile
def warn_once(what: str, reason: str) -> None:
    """Warn, unless this process has already been told the same reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"{what}: {reason}", RuntimeWarning, stacklevel=4)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op on one backend until the `with` block ends, in all threads of the process.

    Args:
        name: "auto" (the first backend that can), or the name of one.

    Raises:
        NoBackend: no op has such a backend; raised by a call too, where that op's backend of this
            name cannot run it.
    """
    global _demanded
    known = {backend.name for op in OPS.values() for backend in op.backends}
    if name != "auto" and name not in known:
        choices = ", ".join(["auto", *sorted(known)])
        raise NoBackend(f"no operation has a backend {name!r}. Choose one of: {choices}")
    demand = [name]
    _demands.append(demand)
    _demanded = name
    try:
        yield
    finally:
        _demands[:] = [one for one in _demands if one is not demand]
        _demanded = _demands[-1][0] if _demands else "auto"


def explain() -> list[Row]:
    """What every backend of every op says to this machine."""
    return [row for op in OPS.values() for row in op.explain()]


class Account:
    """What PyTorch last ran a layer of its own on, for `ran`; nothing is chosen here.

    Args:
        name: as in records and in `ran`.
    """

    def __init__(self, name: str):
        self.ran_on: str | None = None
        ACCOUNTS[name] = self


def ran() -> dict[str, str]:
    """The backend each op last ran on since `forget`: what a record of a speed must carry."""
    rows: list[tuple[str, Op | Account]] = [*OPS.items(), *ACCOUNTS.items()]
    return {name: row.ran_on for name, row in rows if row.ran_on is not None}


def forget() -> None:
    """Start a new account for `ran`."""
    rows: list[Op | Account] = [*OPS.values(), *ACCOUNTS.values()]
    for row in rows:
        row.ran_on = None
