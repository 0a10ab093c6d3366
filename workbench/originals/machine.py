"""A machine for the byte code in `torch.save`'s files that can build numbers and nothing else.

The format is a program for a stack machine; the standard reader lets it import and call whatever it
names. This one knows the programs that hold weights: plain values, containers, tensors cut from
storages, and, for whole pickled modules, *shells*: the path of a class and the attributes of an
instance, inert. Nothing named in a file is imported or called, and whatever is not on the lists
below is refused by name before anything is built from it.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.errors import CheckpointError, HostileFile
from workbench.originals.names import (
    CALLS,
    DATA_TYPES,
    STORAGES,
    Named,
    Shell,
    count,
    is_shell,
    key,
    known,
    part,
)

MAX_WORK, MAX_STACK, MAX_DEPTH = 1_000_000, 100_000, 200
MAX_BITS = 256
"""of a number; torch's own longest is the 80-bit mark at the start of its old files"""


class Storages(Protocol):
    """The raw numbers that a file's tensors are cut from."""

    def get(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """One storage as a 1-D tensor, always the same for a key.

        Raises:
            CheckpointError: it is not in the file, or not with so many numbers.
        """


class NoStorages:
    """Of a stream that may hold plain values only."""

    def get(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        raise HostileFile(f"the file's head refers to storage '{key}', where numbers are expected")


def run(stream: BytesIO, storages: Storages) -> Any:
    """Build the one object that the program at the stream's position describes.

    Args:
        stream: left behind the end of the program.
        storages: what tensors are cut from.

    Raises:
        HostileFile: the program names or does something that weights do not need.
        CheckpointError: it is torn.
    """
    result = _Machine(storages).run(stream)
    _check_depth(result)
    return result


def _operations(stream: BytesIO) -> Iterator[tuple[str, Any]]:
    """Name and argument of each operation up to the end of the program."""
    operations = pickletools.genops(stream)
    while True:
        try:
            operation, argument, _ = next(operations)
        except (ValueError, DeprecationWarning) as error:
            # odd escapes in old strings are warnings, where those are errors
            raise CheckpointError(f"the file is torn or no torch file: {error}") from None
        if operation.name == "STOP":
            return
        yield operation.name, argument


class _Machine:
    """Stack, marks and memo of one run."""

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_WORK

    def run(self, stream: BytesIO) -> Any:
        for operation, argument in _operations(stream):
            self.spend(1)
            if operation not in OPERATIONS:
                raise HostileFile(f"the file uses {operation}, which weights never need")
            try:
                OPERATIONS[operation](self, argument)
            except (IndexError, KeyError, TypeError, RuntimeError) as error:
                # not on the stack, not in the memo, no key, or sizes beyond what PyTorch counts
                raise CheckpointError(f"the file is torn at {operation} ({error!r})") from None
            if len(self.stack) > MAX_STACK:
                raise HostileFile(f"the file stacks more than {MAX_STACK} values")
        if not self.stack:
            raise CheckpointError("the file is torn: its program ends without a result")
        return self.stack.pop()

    def spend(self, work: int) -> None:
        """Bound the time and the memory of a run: operations, and items copied by one."""
        self.left -= work
        if self.left < 0:
            raise HostileFile(f"the file's program needs more than {MAX_WORK} steps")

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > MAX_BITS:
            raise HostileFile(f"the file holds a whole number of {value.bit_length()} bits")
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("stack")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def name(self, module: str, name: str) -> None:
        # as Python 2 called it
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if not known(path):
            raise HostileFile(f"the file names '{path}', which weights never need; nothing was run")
        self.stack.append(DATA_TYPES.get(path) or Named(path))

    def append(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise HostileFile(f"the file appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise HostileFile(f"the file sets items of a {type(target).__name__}")
        target.update(_pairs(items))

    def add(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise HostileFile(f"the file adds to a {type(target).__name__}")
        target.update(map(key, items))

    def call(self) -> None:
        named, arguments = self.last(2)
        path = named.path if isinstance(named, Named) else type(named).__name__
        if path not in CALLS or type(arguments) is not tuple:
            raise HostileFile(f"the file calls '{path}', which weights never need; nothing was run")
        self.spend(sum(len(x) for x in arguments if isinstance(x, list | tuple | str)))
        try:
            self.stack.append(CALLS[path](*arguments))
        except TypeError:
            raise HostileFile(
                f"the file calls '{path}' with {len(arguments)} odd arguments"
            ) from None

    def new(self) -> None:
        named, arguments = self.last(2)
        if not (isinstance(named, Named) and is_shell(named.path)) or arguments != ():
            path = named.path if isinstance(named, Named) else type(named).__name__
            raise HostileFile(f"the file makes an instance of '{path}' with arguments of its own")
        self.stack.append(Shell(named.path))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) not in (Shell, OrderedDict) or type(state) is not dict:
            kinds = f"a {type(target).__name__} from a {type(state).__name__}"
            raise HostileFile(f"the file sets the state of {kinds}")
        self.spend(len(state))
        # a state dict's own attributes are version numbers, which nobody needs here
        if isinstance(target, Shell):
            target.state.update(state)

    def persistent(self) -> None:
        mark = self.stack.pop()
        match mark:
            case ("module", Named(path=path) as named, _, _) if is_shell(path):
                self.stack.append(named)
            case ("storage", Named(path=path), str() as key, _, int() as numel, *view) if (
                path in STORAGES
            ):
                data = self.storages.get(key, STORAGES[path], count(numel, "storage"))
                self.stack.append(part(data, view[0]) if view and view[0] is not None else data)
            case _:
                raise HostileFile("the file has a persistent id that is no storage and no class")


def _pairs(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise IndexError("a key without a value")
    return [(key(k), v) for k, v in zip(items[::2], items[1::2], strict=True)]


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _duplicate(machine: _Machine, _: Any) -> None:
    machine.push(machine.stack[-1])


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _stack_name(machine: _Machine, _: Any) -> None:
    module, name = machine.last(2)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise HostileFile("the file names something by what is no text")
    machine.name(module, name)


VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(VALUES, lambda machine, value: machine.push(value)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: machine.push(dict(_pairs(machine.since_mark()))),
    "APPEND": lambda machine, _: machine.append(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"),
        lambda machine, index: machine.push(machine.memo[int(index)]),
    ),
    # the module's name and the thing's, with a blank between
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": _stack_name,
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}


def _check_depth(root: Any) -> None:
    """Refuse what is nested so deep that walking it would exhaust Python's stack."""
    seen, level = {id(root)}, [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, Shell):
                below += value.state.values()
        level = []
        for value in below:
            if isinstance(value, dict | list | tuple | Shell) and id(value) not in seen:
                seen.add(id(value))
                level.append(value)
        if not level:
            return
    raise HostileFile(f"the file nests values more than {MAX_DEPTH} deep")
