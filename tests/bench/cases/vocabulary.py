"""What a softmax over many words costs: growth with the vocabulary, whole and in clusters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.case import BOTH, Case, Ways, with_gradients
from bench.configurations import zipf
from workbench.config import load
from workbench.models.language_model import ModelConfig
from workbench.models.vocabulary import Vocabulary

PLAIN, BUILT_IN, FULL = "cross_entropy(linear)", "PyTorch's adaptive softmax", "softmax over all"
N, D = 1024, 256
CUTOFFS = {10_000: (2_000,), 30_000: (4_000, 12_000), 267_735: (20_000, 40_000, 200_000)}
FULL_UP_TO = 100_000
"""classes; beyond them the logits of a step take gigabytes"""


def vocabulary(C: int, **options: Any) -> Vocabulary:
    """The softmax end of a model."""
    torch.manual_seed(0)
    block = {"mixer": {"kind": "qrnn", "d_hidden": D}, "residual": "none"}
    told = {"d_model": D, "stack": [{"block": block}], "init_std": 0.02, "vocabulary": options}
    return load(ModelConfig, told, "model").build(C).vocabulary


def inputs(C: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, Zipf targets, and the gradient of a mean."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(8, N // 8, D, generator=generator, device=device).requires_grad_()
    targets = zipf(C, N).view(8, -1).to(device)
    return hidden, targets, torch.full((8, N // 8), 1 / N, device=device)


def whole(C: int, device: torch.device) -> Ways:
    """One softmax over all classes."""
    hidden, targets, seed = inputs(C, device)
    ours = vocabulary(C, kind="plain").to(device)
    # tied: one matrix for both ends
    weight, bias = (x for name, x in ours.named_parameters() if name != "output.weight")
    wanted = [hidden, weight, bias]

    def plain() -> Tensor:
        logits = F.linear(hidden.flatten(0, 1), weight, bias)
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets)

    def work() -> Tensor:
        return ours.nll(hidden, targets)

    return Ways(
        {"auto": with_gradients(work, wanted, BOTH, [seed])},
        {PLAIN: with_gradients(plain, wanted, BOTH, [seed])},
    )


def clustered(C: int, div_val: int, device: torch.device) -> Ways:
    """Frequent classes and clusters of the others, with narrower vectors where div_val is not 1.

    PyTorch's module has a projection for each tail, also a D x D one where ours has none, and no
    biases; our head has a projection where div_val is not 1, as the codes of Transformer-XL.
    """
    hidden, targets, seed = inputs(C, device)
    ours = vocabulary(C, kind="adaptive", cutoffs=CUTOFFS[C], div_val=div_val).to(device)
    cutoffs = list(CUTOFFS[C])
    built_in = nn.AdaptiveLogSoftmaxWithLoss(D, C, cutoffs, div_value=float(div_val)).to(device)

    def work() -> Tensor:
        return ours.nll(hidden, targets)

    def theirs() -> Tensor:
        return -built_in(hidden.flatten(0, 1), targets.flatten()).output.view_as(targets)

    read = list(ours.parameters())
    if div_val > 1:
        # the head's projection at the input is not that at the output
        read = [p for name, p in ours.named_parameters() if not name.startswith("project_in.0.")]
    ways = Ways(
        {"auto": with_gradients(work, [hidden, *read], BOTH, [seed])},
        {BUILT_IN: with_gradients(theirs, [hidden, *built_in.parameters()], BOTH, [seed])},
    )
    if C <= FULL_UP_TO:
        ways.peers[FULL] = whole(C, device).peers[PLAIN]
    ways.unlike = frozenset({BUILT_IN, FULL})
    return ways


def cases() -> list[Case]:
    result = []
    for C in (1_000, 10_000, 30_000, 100_000):
        result.append(
            Case(
                group="vocabulary",
                name="softmax nll",
                size=f"N{N} D{D} C{C}",
                way=BOTH,
                make=partial(whole, C),
                flops=6.0 * N * D * C,
                sweep="vocabulary",
                x=C,
                quick=C == 30_000,
                tiny=C == 1_000,
            )
        )
    for C, div_val in [*((C, 1) for C in CUTOFFS), (30_000, 2), (30_000, 4)]:
        result.append(
            Case(
                group="vocabulary",
                name="adaptive softmax nll",
                size=f"N{N} D{D} C{C}" + (f" div_val {div_val}" if div_val > 1 else ""),
                way=BOTH,
                make=partial(clustered, C, div_val),
                sweep="vocabulary" if div_val == 1 else "",
                x=C,
                quick=C == 30_000 and div_val == 1,
                tiny=C == 10_000,
            )
        )
    return result
