"""What a checkpoint may name, and the inert things that stand for it.

Each builder below checks what a file claims before it makes anything of it: a tensor is a view of
numbers that are there, and a class is a path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.errors import HostileFile

MAX_DIMENSIONS = 16

DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGES = {
    f"{home}.{name}Storage": dtype
    for home in ("torch", "torch.cuda")
    for name, dtype in DTYPES.items()
} | {f"{home}.UntypedStorage": torch.uint8 for home in ("torch", "torch.storage")}


def _classes(namespace: Any, base: type) -> set[str]:
    """The paths of PyTorch's own classes of one kind."""
    found = [x for x in vars(namespace).values() if isinstance(x, type) and issubclass(x, base)]
    return {f"{x.__module__}.{x.__qualname__}" for x in found}


SHELLS = {
    *_classes(torch.nn, torch.nn.Module),
    *_classes(torch.optim, torch.optim.Optimizer),
    "model.RNNModel",
    "locked_dropout.LockedDropout",
    "weight_drop.WeightDrop",
    "splitcross.SplitCrossEntropyLoss",
    "torchqrnn.qrnn.QRNNLayer",
    "torchqrnn.qrnn.QRNN",
}
HOMES = {
    "mem_transformer",
    "proj_adaptive_softmax",
    "model_main",
    "utils.cuda_fast_weight_layer",
    "utils.fast_weight",
    "utils.model_utils",
    "utils.proj_adaptive_softmax",
}
"""Modules of the papers' code whose classes, all of them, are read as shells."""


class Named:
    """A name that a file refers to: a path, never the thing itself."""

    def __init__(self, path: str) -> None:
        self.path = path


class Shell:
    """An instance of a class that is not there: the class's path and the attributes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {}


class Bound:
    """A method of a shell, by name; weight drop leaves one on its LSTM."""

    def __init__(self, owner: Shell, name: str) -> None:
        self.owner, self.name = owner, name


def key(key: Any) -> Any:
    """Only keys whose hash is cheap and cannot be made to collide: text, small numbers, tensors."""
    if key is None or isinstance(key, str | Tensor) or (isinstance(key, int) and abs(key) < 2**60):
        return key
    raise HostileFile(f"the file has a {type(key).__name__} as a key")


def count(number: Any, what: str) -> int:
    if type(number) is not int or not 0 <= number < 2**48:
        raise HostileFile(f"the file has a {what} of {number!r} numbers")
    return number


def part(data: Tensor, view: Any) -> Tensor:
    """The part of a storage that old files know as a storage of its own: (key, offset, size)."""
    _, offset, size = view
    if count(offset, "part") + count(size, "part") > len(data):
        raise HostileFile(f"the file takes numbers {offset} to {offset + size} of {len(data)}")
    return data[offset : offset + size]


def _tensor(data: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of a storage: only numbers that are there, none of them twice."""
    if not isinstance(data, Tensor) or data.dim() != 1:
        raise HostileFile("the file cuts a tensor from something that is no storage")
    if type(size) not in (tuple, torch.Size) or type(stride) is not tuple:
        raise HostileFile("the file has a tensor whose sizes or strides are no tuples")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise HostileFile(f"the file has a tensor of {len(size)} sizes and {len(stride)} strides")
    numel = 1
    for n in size:
        numel *= count(n, "dimension")
    last = count(offset, "offset")
    last += sum((n - 1) * count(s, "stride") for n, s in zip(size, stride, strict=True) if n > 1)
    if numel and (numel > len(data) or last >= len(data)):
        raise HostileFile(
            f"the file has a tensor of {numel} numbers, up to place {last}, in a storage of "
            f"{len(data)}"
        )
    # a part of an old storage does not begin where its memory does
    return data.as_strided(size, stride, data.storage_offset() + (offset if numel else 0))


def _tensor_v2(
    data: Any, offset: Any, size: Any, stride: Any, _grad: Any, hooks: Any, _meta: Any = None
) -> Tensor:
    _no_hooks(hooks)
    return _tensor(data, offset, size, stride)


def _tensor_v3(
    data: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    _m: Any = None,
) -> Tensor:
    if not isinstance(data, Tensor) or not isinstance(dtype, torch.dtype):
        raise HostileFile("the file cuts a tensor from something that is no storage")
    if len(data) * data.itemsize % dtype.itemsize:
        raise HostileFile(f"the file reads {len(data)} bytes as {dtype}")
    return _tensor_v2(data.view(dtype), offset, size, stride, grad, hooks)


def _parameter(data: Any, _grad: Any = True, hooks: Any = None) -> Tensor:
    """Here a parameter is its tensor; what is one follows from where it stands in the module."""
    _no_hooks(hooks)
    if not isinstance(data, Tensor):
        raise HostileFile("the file has a parameter that is no tensor")
    return data


def _no_hooks(hooks: Any) -> None:
    if hooks:
        raise HostileFile("the file has a tensor with backward hooks, which are code")


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    """From Python 2 with its items as a list of pairs."""
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in items):
        raise HostileFile("the file makes an OrderedDict from something else than pairs")
    return OrderedDict((key(k), v) for k, v in items)


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    if factory is not None and not (isinstance(factory, Named) and factory.path in PLAIN):
        raise HostileFile(
            "the file has a defaultdict that makes something else than dicts or lists"
        )
    return {}


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise HostileFile(f"the file makes a set from a {type(items).__name__}")
    return set(map(key, items))


def _bound(owner: Any, name: Any) -> Bound:
    """The method that weight drop puts in place of an LSTM's `flatten_parameters`."""
    if not isinstance(owner, Shell) or (owner.path, name) not in METHODS:
        of = owner.path if isinstance(owner, Shell | Named) else type(owner).__name__
        raise HostileFile(f"the file asks for attribute {name!r:.60} of '{of}'; nothing was run")
    return Bound(owner, name)


def _size(sizes: Any = ()) -> torch.Size:
    return torch.Size([count(n, "dimension") for n in sizes])


def _device(*named: Any) -> str:
    """Where a tensor was; here all are on the CPU."""
    return ":".join(str(part) for part in named if isinstance(part, str | int))


METHODS = {("weight_drop.WeightDrop", "widget_demagnetizer_y2k_edition")}
CALLS: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _bound,
    "builtins.set": _set,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    # modules of the first PyTorch versions name their library of functions
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,
}
DATA_TYPES = {str(dtype): dtype for dtype in DTYPES.values()}
PLAIN: dict[str, Any] = {"builtins.dict": dict, "builtins.list": list, **DATA_TYPES}


def is_shell(path: str) -> bool:
    """Whether instances of this class are read as shells."""
    home, _, name = path.rpartition(".")
    return path in SHELLS or (home in HOMES and name.isidentifier() and name[0].isupper())


def known(path: str) -> bool:
    """Whether a file may refer to this name at all."""
    return is_shell(path) or path in STORAGES or path in CALLS or path in PLAIN
