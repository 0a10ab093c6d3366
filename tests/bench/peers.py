"""The packages that we are compared with, where `install_peers.py` could fetch them.

Every function here either gives a callable with our meaning, (B, T, H, *) in and out apart from a
layout that its authors chose (then the inputs are laid out so before, outside of the time), or
raises `Missing` with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PEERS = Path(__file__).resolve().parents[2] / ".setup" / "peers"
PACKAGES = {
    "flash-linear-attention": "fla-core",
    "fast-transformers": "pytorch-fast-transformers",
    "x-transformers": "x-transformers",
}


class Missing(Exception):
    """A peer that is not here, and why."""


def reveal() -> None:
    """Let imports find the peers, after everything else."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))


def why_not(peer: str) -> str:
    """What kept a peer from being installed."""
    try:
        told = json.loads((PEERS / "why_not.json").read_text())["why_not"].get(peer)
    except (OSError, ValueError, KeyError):
        told = None
    return told or f"{peer} is not installed: python tests/bench/install_peers.py"


def load(peer: str, module: str) -> ModuleType:
    """Import a module of a peer.

    Raises:
        Missing: it is not installed or does not import here.
    """
    reveal()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module} does not import: {error}" if PEERS.is_dir() else why_not(peer)
        raise Missing(reason) from error


def load_alone(peer: str, name: str) -> ModuleType:
    """Import one file of a package that would not import as a whole: FLA's asks for Triton.

    Raises:
        Missing: it is not installed.
    """
    reveal()
    places = [Path(p) / name for p in sys.path]
    for path in places:
        if path.is_file():
            spec = importlib.util.spec_from_file_location("peer_" + path.parent.name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except ImportError as error:
                raise Missing(f"{name} does not import: {error}") from error
            return module
    raise Missing(why_not(peer))


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    reveal()
    found = {"torch": torch.__version__}
    for name, package in PACKAGES.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if (PEERS / name.replace("-", "_")).is_dir():
                found[name] = "0.4.0"
    return found


def by_head(x: Tensor) -> Tensor:
    """(B, T, H, ...) laid out as (B, H, T, ...)."""
    return x.transpose(1, 2).contiguous()


def fla_delta(chunk: int = 32) -> Callable[..., Tensor]:
    """FLA's torch reference of the chunkwise delta rule, (B, H, T, *); starts from zeros."""
    naive = load_alone("flash-linear-attention", "fla/ops/delta_rule/naive.py")

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        return naive.delta_rule_chunkwise(q, k, v, beta, chunk_size=chunk)[0]

    return run


def fla_sum() -> Callable[..., Tensor]:
    """FLA's torch reference of chunkwise linear attention, (B, T, H, *); starts from zeros."""
    naive = load_alone("flash-linear-attention", "fla/ops/linear_attn/naive.py")

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return naive.naive_chunk_linear_attn(q, k, v, scale=1.0)

    return run


def fla_triton(op: str, function: str) -> Callable[..., Any]:
    """One of FLA's Triton ops, (B, T, H, *)."""
    if not torch.cuda.is_available():
        raise Missing("FLA's Triton ops need a GPU")
    return getattr(load("flash-linear-attention", f"fla.ops.{op}"), function)


def fast_sum() -> Callable[..., Tensor]:
    """fast-transformers' causal product, (B, H, T, *); starts from zeros."""
    return load("fast-transformers", "fast_transformers.causal_product").causal_dot_product


def x_transformers_step(B: int, T: int, memory_len: int, vocab: int, clip_norm: float) -> Any:
    """A training step of x-transformers' decoder with Transformer-XL's memory, at the sizes of
    `configurations.xl`, with rotary positions: a call that goes on from segment to segment."""
    library = load("x-transformers", "x_transformers")
    # it advises wider heads than the model that it stands beside
    load("x-transformers", "loguru").logger.disable("x_transformers")
    torch.manual_seed(1)
    layers = library.Decoder(
        dim=256, depth=4, heads=8, attn_dim_head=32, ff_mult=4, ff_dropout=0.1, pre_norm=False,
        rotary_pos_emb=True,
    )  # fmt: skip
    model = library.TransformerWrapper(
        num_tokens=vocab, max_seq_len=T, max_mem_len=memory_len, emb_dropout=0.1,
        use_abs_pos_emb=False, tie_embedding=True, attn_layers=layers,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    ids = torch.randint(vocab, (B, 50 * T + 1), generator=torch.Generator().manual_seed(0))
    memory, place = None, 0

    def step() -> tuple[Tensor, ...]:
        nonlocal memory, place
        ids_BT = ids[:, place : place + T + 1]
        place = (place + T) % (50 * T)
        logits_BTC, memory = model(ids_BT[:, :-1], mems=memory, return_mems=True)
        memory = [x.detach() for x in memory]
        loss = torch.nn.functional.cross_entropy(logits_BTC.mT, ids_BT[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return ()

    for _ in range(2):
        step()
    return step
