"""Evaluation as the papers define it against their procedures written plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Results, Ways, Work, on
from bench.configurations import WORDS, awd, build, fwms, xl, zipf
from bench.procedures import TransformerXL, sliding_windows
from workbench.carry import Carry
from workbench.models.base import evaluating
from workbench.models.language_model import LanguageModel
from workbench.originals import transformer_xl
from workbench.reading import Reader
from workbench.train.config import EvalConfig
from workbench.train.evaluate import evaluate, measure

PROCEDURE, STEP_LOOP = "original procedure", "original procedure, step loop"
OWN_QUERIES = "the same, queries of the segment only"
SKIP = {"skip_attn_normalization": True}
SLIDING: dict[str, Callable[..., LanguageModel]] = {
    "softmax (t2)": partial(fwms, 2),
    "linear sum (t4)": partial(fwms, 4),
    "linear delta (t14)": partial(fwms, 24, **SKIP),
    "DPFP-3 delta (t16)": partial(fwms, 26, n_roll=3, **SKIP),
}


def sliding(kind: str, vocab: int, W: int, n_windows: int, device: torch.device) -> Ways:
    """The same windows, scored by both."""
    model = SLIDING[kind](vocab, div_val=1, **WORDS).to(device).eval()
    tokens_N = zipf(vocab, W + n_windows)
    config = EvalConfig(method="windows", context_len=W, skip_first=True)

    def ours() -> Results:
        return (evaluate(model, tokens_N, config).nll_nats,)

    def procedure() -> Results:
        return (sliding_windows(model, tokens_N.to(device), W).cpu(),)

    ways = Ways({"auto": ours}, {PROCEDURE: procedure})
    if kind.endswith("(t14)") or kind.endswith("(t16)"):
        # as their code runs where there is no GPU
        ways.peers[STEP_LOOP] = on("reference", procedure)
    return ways


def long_memory(
    d_model: int, n_layers: int, T: int, M: int, n_segments: int, device: torch.device
) -> Ways:
    """Segments one after another, once the memory is full."""
    ctor = {"n_token": 205, "n_layer": n_layers, "n_head": 8, "d_model": d_model}
    ctor |= {"d_head": d_model // 8, "d_inner": 4 * d_model, "tgt_len": T, "mem_len": M}
    model = build(transformer_xl.model_config(ctor) | {"init_std": 0.02}, 205).to(device).eval()
    n_full = -(-M // T)
    ids_1N = zipf(205, (n_full + n_segments) * T + 1)[None].to(device)
    config = EvalConfig(method="streams", batch_size=1, segment_len=T, memory_len=M)
    full: list[Carry] = []

    def read(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Results, Carry]:
        nll_BT, carry = model.nll(tokens_BT, targets_BT, carry)
        full[:] = [carry]
        return (nll_BT,), carry

    # as an evaluation begins, until the memory is full
    measure(model, ids_1N[0, : n_full * T + 1].cpu(), config, read)

    def segments() -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(n_full * T, ids_1N.shape[1] - 1, T):
            ids_1T = ids_1N[:, begin : begin + T + 1]
            yield ids_1T[:, :-1], ids_1T[:, 1:]

    def ours() -> Results:
        carry, nll = full[0], []
        with evaluating(model):
            for tokens_1T, targets_1T in segments():
                nll_1T, carry = model.nll(tokens_1T, targets_1T, carry)
                nll.append(nll_1T)
        return (torch.cat(nll, dim=1),)

    def plainly(all_queries: bool) -> Work:
        reader = TransformerXL(model, M, all_queries)
        start = reader.start(1)
        for begin in range(0, n_full * T, T):
            ids_1T = ids_1N[:, begin : begin + T + 1]
            _, start = reader.nll(ids_1T[:, :-1], ids_1T[:, 1:], start)

        def run() -> Results:
            memory, nll = start, []
            for tokens_1T, targets_1T in segments():
                nll_1T, memory = reader.nll(tokens_1T, targets_1T, memory)
                nll.append(nll_1T)
            return (torch.cat(nll, dim=1),)

        return run

    return Ways({"auto": ours}, {PROCEDURE: plainly(True), OWN_QUERIES: plainly(False)})


GENERATING: dict[str, Callable[[], LanguageModel]] = {
    "linear delta (t14)": partial(fwms, 24, no_pos=True, **SKIP),
    "DPFP-3 delta (t16)": partial(fwms, 26, n_roll=3, no_pos=True, **SKIP),
    "AWD-QRNN": partial(awd, "QRNN"),
    "TXL char": xl,
}
N_TOKENS = 32


def generating(kind: str, T: int, device: torch.device) -> Ways:
    """One token after another, when a text of T tokens has been read: it costs the same."""
    model = GENERATING[kind]().to(device)
    reader = Reader(model, EvalConfig(method="carried"))
    ids_1N = zipf(model.vocab_size, T + N_TOKENS)[None]
    reader.read(ids_1N[:, :T])

    def tokens() -> Results:
        for place in range(N_TOKENS):
            reader.read(ids_1N[:, T + place, None])
        return ()

    return Ways({"auto": tokens})


def cases() -> list[Case]:
    result = [
        Case(
            group="evaluation",
            name="sliding windows",
            size=f"{kind} W256 C30000",
            way=f"{n} windows",
            make=partial(sliding, kind, 30_000, 256, n),
            targets={PROCEDURE: 2.0},
            tolerance=1e-3,
            quick=n == 8,
            full=n != 8,
        )
        for kind, n in [*((kind, 32) for kind in SLIDING), ("linear delta (t14)", 8)]
    ]
    for d_model, n_layers, quick in ((512, 4, False), (256, 4, True)):
        T, M, n = 80, 2100, 8
        result.append(
            Case(
                group="evaluation",
                name="TXL evaluation",
                size=f"T{T} M{M} D{d_model} L{n_layers}",
                way=f"{n} segments",
                make=partial(long_memory, d_model, n_layers, T, M, n),
                targets={PROCEDURE: 3.0},
                tolerance=1e-3,
                quick=quick,
            )
        )
    for kind in GENERATING:
        for T in (16, 4096):
            make, way = partial(generating, kind, T), f"{N_TOKENS} tokens"
            told = {"sweep": "T", "x": T, "quick": False, "tiny": T == 16 and kind != "AWD-QRNN"}
            result.append(Case("evaluation", kind, f"generation after {T}", way, make, **told))
    tiny = {
        "sliding windows": partial(sliding, "linear delta (t14)", 20_000, 4, 3),
        "TXL evaluation": partial(long_memory, 16, 2, 3, 7, 2),
    }
    for name, make in tiny.items():
        told = {"tolerance": 1e-3, "quick": False, "full": False, "tiny": True}
        result.append(Case("evaluation", name, "tiny", "", make, **told))  # type: ignore[arg-type]
    return result
