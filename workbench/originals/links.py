"""Which original parameter is which of ours, told once and used in both directions.

Originals lay the same numbers out differently: heads and roles in other orders, two matrices in
one. A `Link` says how to rearrange theirs into ours. The way back, for gradients, is found by
sending numbered entries through the same rearrangement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import UnknownOriginal

Rearrange = Callable[..., Tensor | Sequence[Tensor]]


def same(x: Tensor) -> Tensor:
    return x


class Link(NamedTuple):
    """`ours = rearrange(*theirs)`: entries change places, never values."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    rearrange: Rearrange = same

    def convert(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        ours = self.rearrange(*theirs)
        return [ours] if isinstance(ours, Tensor) else list(ours)

    def revert(self, ours: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Values in our layout -> theirs, whose shapes are given."""
        sizes = [shape.numel() for shape in shapes]
        numbers = torch.arange(sum(sizes)).split(sizes)
        places = self.convert([n.view(s) for n, s in zip(numbers, shapes, strict=True)])
        flat = ours[0].new_zeros(sum(sizes))
        for place, value in zip(places, ours, strict=True):
            flat[place.flatten()] = value.flatten()
        return [x.view(s) for x, s in zip(flat.split(sizes), shapes, strict=True)]


def one(theirs: str, ours: str, rearrange: Rearrange = same) -> Link:
    """The link of one original tensor with one of ours."""
    return Link((theirs,), (ours,), rearrange)


def norm(theirs: str, ours: str) -> list[Link]:
    """Weight and bias of a LayerNorm or a linear map."""
    return [one(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def load_parameters(
    model: nn.Module, links: Sequence[Link], theirs: Mapping[str, Tensor], name: str
) -> None:
    """Copy an original's parameters into the model.

    Args:
        model: ours; its parameters are overwritten.
        links: each parameter of either side exactly once.
        theirs: original name -> value: no buffers, a shared tensor only under its first name.
        name: of the file, for messages.

    Raises:
        UnknownOriginal: a parameter of either side is not linked exactly once, or a shape differs.
    """
    ours = dict(model.named_parameters())
    for side, names, known in (
        ("original", [name for link in links for name in link.theirs], list(theirs)),
        ("our", [name for link in links for name in link.ours], list(ours)),
    ):
        if sorted(names) != sorted(known):
            odd = sorted(set(names) ^ set(known)) or "some twice"
            raise UnknownOriginal(f"{name}: {side} parameters do not match the links: {odd}")
    with torch.no_grad():
        for link in links:
            values = link.convert([theirs[part] for part in link.theirs])
            for part, value in zip(link.ours, values, strict=True):
                if ours[part].shape != value.shape:
                    want, got = tuple(ours[part].shape), tuple(value.shape)
                    raise UnknownOriginal(f"{name}: {part} has shape {want}, the link gives {got}")
                ours[part].copy_(value)


def in_their_layout(
    values: Mapping[str, Tensor], links: Sequence[Link], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Values by our parameter names -> by original names, in the original layout.

    Args:
        values: weights or gradients under our names.
        links: as for `load_parameters`.
        shapes: of the original parameters, by original name.
    """
    result: dict[str, Tensor] = {}
    for link in links:
        back = link.revert(
            [values[name] for name in link.ours], [shapes[name] for name in link.theirs]
        )
        result.update(zip(link.theirs, back, strict=True))
    return result
