"""What a model carries from one segment to the next, handled without knowing any family.

A *state* is a `NamedTuple` of tensors and plain ints, defined beside its mixer; the *carry* is the
tuple of states over the layers. One storage rule makes every family alike: **each tensor leaf has
batch on dim 0**. Hence these few functions serve attention memory, fast weights and LSTM states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

State = Any  # a NamedTuple of tensors and ints; each mixer defines its own
Carry = tuple[State, ...]


def map_tensors(function: Callable[[Tensor], Tensor], carry: Carry) -> Carry:
    """The same carry with `function` applied to every tensor leaf; ints pass unchanged."""
    return tuple(
        type(state)(*(function(x) if isinstance(x, Tensor) else x for x in state))
        for state in carry
    )


def detach(carry: Carry) -> Carry:
    """Cut the gradient: truncated back-propagation through time. Only the trainer calls it."""
    return map_tensors(Tensor.detach, carry)


def rows(carry: Carry, start: int, stop: int) -> Carry:
    """The carry of batch rows `start` to `stop`."""
    return map_tensors(lambda x: x[start:stop], carry)


def join(parts: Sequence[Carry]) -> Carry:
    """One carry from parts that hold different rows: the inverse of `rows`.

    Raises:
        ValueError: the parts disagree in a plain int (a memory length, say).
    """
    first = parts[0]
    for part in parts[1:]:
        for a, b in zip(first, part, strict=True):
            ints_a, ints_b = ([x for x in s if not isinstance(x, Tensor)] for s in (a, b))
            if ints_a != ints_b:
                raise ValueError(
                    f"cannot join states with different settings: {ints_a} and {ints_b}"
                )
    return tuple(
        type(states[0])(
            *(
                torch.cat(leaf) if isinstance(leaf[0], Tensor) else leaf[0]
                for leaf in zip(*states, strict=True)
            )
        )
        for states in zip(*parts, strict=True)
    )


def to(carry: Carry, device: torch.device | str) -> Carry:
    """The carry on another device."""
    return map_tensors(lambda x: x.to(device), carry)


def nbytes(carry: Carry) -> int:
    """Bytes held by all tensor leaves: the price of what is remembered."""
    return sum(x.numel() * x.element_size() for s in carry for x in s if isinstance(x, Tensor))


def flatten(carry: Carry) -> list[list[Tensor | int]]:
    """Plain lists of leaves, layer by layer: what a checkpoint stores (named tuples cannot be
    loaded with `weights_only`)."""
    return [list(state) for state in carry]


def unflatten(leaves: Sequence[Sequence[Tensor | int]], like: Carry) -> Carry:
    """Rebuild a carry from `flatten`'s leaves; `like` (any carry of the model) gives the types.

    Raises:
        ValueError: the leaves are those of another model.
    """
    got, expected = [len(x) for x in leaves], [len(s) for s in like]
    if got != expected:
        raise ValueError(f"carry has leaves {got} per layer, this model needs {expected}")
    return tuple(type(state)(*leaf) for state, leaf in zip(like, leaves, strict=True))
