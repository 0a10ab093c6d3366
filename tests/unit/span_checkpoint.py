"""A small checkpoint as the adaptive-span code writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def span_state(vocab_size: int = 28, n_layers: int = 1) -> dict[str, Tensor]:
    """The state dict of a small adaptive-span model; width 8, two heads, span 12."""
    draw = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    state = {"key_pe": some(1, 4, 12), "in_emb.weight": some(vocab_size, 8)}
    state |= {"out_emb.weight": some(vocab_size, 8), "out_emb.bias": some(vocab_size)}
    for layer in range(n_layers):
        at = f"layers.{layer}"
        state |= {f"{at}.attn.proj_{p}.weight": some(8, 8) for p in ("query", "key", "val", "out")}
        mask = f"{at}.attn.attn.adaptive_span._mask"
        state |= {f"{mask}.current_val": some(2, 1, 1).sigmoid()}
        state |= {f"{mask}.mask_template": torch.arange(-11.0, 1.0)}
        state |= {f"{at}.ff.fc1.weight": some(6, 8), f"{at}.ff.fc1.bias": some(6)}
        state |= {f"{at}.ff.fc2.weight": some(8, 6), f"{at}.ff.fc2.bias": some(8)}
        state |= {f"{at}.norm{i}.{p}": some(8) for i in (1, 2) for p in ("weight", "bias")}
    return state


def saved(state: dict[str, Tensor], path: Path) -> Path:
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"iter_no": 3, "model": wrapped, "logger": {}, "optimizer": {}}, path)
    return path
