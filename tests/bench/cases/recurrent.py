"""QRNN pooling against the step loop; recurrent layers beside PyTorch's LSTM."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.case import BOTH, FWD, Case, Ways, on, on_backends, together, with_gradients
from workbench.kernels.dispatch import OPS
from workbench.models.mixers.qrnn import QRNNConfig
from workbench.models.mixers.recurrent import LSTMConfig

LOOP, LSTM = "step loop", "nn.LSTM"
KINDS = {"lstm": LSTMConfig, "qrnn": QRNNConfig}


def step_loop(f_BTU: Tensor, z_BTU: Tensor, state_BU: Tensor) -> Tensor:
    """`c = f z + (1 - f) c` as one writes it down: what all tokens can do at once is done at once,
    the rest token by token, time first."""
    f_TBU, z_TBU = f_BTU.transpose(0, 1), z_BTU.transpose(0, 1)
    new_TBU, keep_TBU, c_BU, c = f_TBU * z_TBU, 1 - f_TBU, state_BU, []
    for new_BU, keep_BU in zip(new_TBU.unbind(), keep_TBU.unbind(), strict=True):
        c_BU = new_BU + keep_BU * c_BU
        c.append(c_BU)
    return torch.stack(c).transpose(0, 1)


def make(B: int, T: int, U: int, way: str, device: torch.device) -> Ways:
    generator = torch.Generator(device).manual_seed(0)
    f = torch.rand(B, T, U, generator=generator, device=device)
    z, seed = torch.randn(2, B, T, U, generator=generator, device=device)
    state = torch.randn(B, U, generator=generator, device=device)
    arguments = [f, z, state]
    ours = on_backends("forget_mult", arguments, way, seed)
    loop = on("reference", together(OPS["forget_mult"], arguments, way, [seed]))
    return Ways(
        ours or {"reference": loop},
        {LOOP: together(step_loop, arguments, way, [seed]), "loop of lerp": loop},
    )


def layer(kind: str, B: int, T: int, U: int, device: torch.device) -> Ways:
    """A recurrent layer as wide as its input; PyTorch's LSTM with the same weights where it has
    them."""
    torch.manual_seed(0)
    mixer = KINDS[kind](d_hidden=U).build(U).to(device)
    x, seed = torch.randn(2, B, T, U, device=device)
    x.requires_grad_()
    start = mixer.initial_state(B)
    lstm = torch.nn.LSTM(U, U, batch_first=True).to(device)
    if kind == "lstm":
        with torch.no_grad():
            for own, theirs in zip(mixer.parameters(), lstm.parameters(), strict=True):
                theirs.copy_(own)

    def ours() -> Tensor:
        return mixer(x, start)[0]

    return Ways(
        {"auto": with_gradients(ours, [x, *mixer.parameters()], BOTH, [seed])},
        {LSTM: with_gradients(lambda: lstm(x)[0], [x, *lstm.parameters()], BOTH, [seed])},
        unlike=frozenset() if kind == "lstm" else frozenset({LSTM}),
    )


def layer_case(kind: str, B: int, T: int, U: int, tiny: bool = False) -> Case:
    # gates times (input and hidden units): products forward, and twice as many backward
    flops = 3 * 2.0 * B * T * U * U * (8 if kind == "lstm" else 3)
    return Case(
        group="recurrent",
        name=f"{kind} layer",
        size=f"B{B} T{T} U{U}",
        way=BOTH,
        make=partial(layer, kind, B, T, U),
        flops=flops,
        quick=False,
        full=not tiny,
        tiny=tiny,
    )


def cases() -> list[Case]:
    """The sizes of the AWD-QRNN's layers, and growth with T."""
    result = [layer_case(kind, 20, 70, 1150) for kind in ("lstm", "qrnn")]
    result += [layer_case(kind, 2, 3, 8, tiny=True) for kind in ("lstm", "qrnn")]
    for T in (70, 1, 8, 512, 2048):
        for way in (FWD, BOTH) if T == 70 else (BOTH,):
            B, U = 20, 1150
            result.append(
                Case(
                    group="recurrent",
                    name="forget_mult",
                    size=f"B{B} T{T} U{U}",
                    way=way,
                    make=partial(make, B, T, U, way),
                    bytes_=4.0 * B * T * U * (3 if way == FWD else 8),
                    targets={LOOP: 7.0} if T == 70 and way == BOTH else {},
                    sweep="T",
                    x=T,
                    quick=T == 70,
                    tiny=T == 1,
                )
            )
    return result
