"""Every combination of options of Transformer-XL's code, against its equations written as loops.

The stored arrays of the authors' code hold some combinations; here the equations, with the code's
own errors (positions that pile up in memory, un-normalised queries, a swapped memory update), are
written down once more, without any of our modules, and all combinations are run.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import Limits
from workbench.originals import transformer_xl
from workbench.originals.links import in_their_layout, load_parameters

SIZES = {"n_token": 11, "n_layer": 2, "n_head": 2, "d_model": 6, "d_head": 3, "d_inner": 7}
H, K, D = SIZES["n_head"], SIZES["d_head"], SIZES["d_model"]
LENGTHS = [(0, 2), (5, 0), (5, 2), (3, 4)]


def sinusoid(positions: Tensor) -> Tensor:
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def by_distance(rows: Tensor, n: int) -> Tensor:
    """Rows for distances n - 1, ..., 0; the first row stands for all farther ones."""
    padding = rows[:1].expand(max(0, n - len(rows)), *rows.shape[1:])
    return torch.cat([padding, rows])[-n:] if n else rows[:0]


class Reference:
    """The equations; sequences are [time, width], one text at a time."""

    def __init__(self, ctor: dict[str, Any], p: dict[str, Tensor]):
        self.ctor, self.p, self.kind = ctor, p, ctor["attn_type"]
        self.mems = [torch.zeros(0, D).double() for _ in range(SIZES["n_layer"] + 1)]

    def segment(self, tokens: Tensor, lengths: dict[str, int]) -> Tensor:
        T, M = len(tokens), len(self.mems[0])
        x = self.p["word_emb.emb_layers.0.weight"][tokens] * math.sqrt(D)
        clamp = self.ctor["clamp_len"]
        distance = torch.arange(M + T - 1, -1, -1).double()
        codes = sinusoid(distance.clamp(max=clamp) if clamp > 0 else distance)
        if self.kind == 2:
            self.mems[0] = self.mems[0] + codes[:M]
            x = x + codes[M:]
        hidden = [x]
        for layer in range(SIZES["n_layer"]):
            if self.kind == 3:
                table = by_distance(self.p["r_emb"][layer].flatten(1), M + T)
                self.mems[layer] = self.mems[layer] + table[:M]
                x = hidden[layer] = x + table[M:]
            x = self.layer(layer, x, self.mems[layer], codes, lengths["mem_len"])
            hidden.append(x)
        end = T + max(0, M - lengths["ext_len"])
        start = max(0, end - lengths["mem_len"])
        self.mems = [torch.cat([m, h])[start:end] for m, h in zip(self.mems, hidden, strict=True)]
        return x

    def norm(self, layer: int, part: str, x: Tensor) -> Tensor:
        at = f"layers.{layer}.{part}.layer_norm"
        return F.layer_norm(x, (D,), self.p[f"{at}.weight"], self.p[f"{at}.bias"])

    def layer(self, layer: int, x: Tensor, mem: Tensor, codes: Tensor, mem_len: int) -> Tensor:
        at, pre = f"layers.{layer}", self.ctor["pre_lnorm"]
        context = torch.cat([mem, x])
        normed = self.norm(layer, "dec_attn", context) if pre else context
        a = self.attend(layer, x, normed, codes, mem_len)
        x = x + a if pre else self.norm(layer, "dec_attn", x + a)
        inner = self.norm(layer, "pos_ff", x) if pre else x
        first, second = (f"{at}.pos_ff.CoreNet.{i}" for i in (0, 3))
        inner = (inner @ self.p[f"{first}.weight"].T + self.p[f"{first}.bias"]).relu()
        inner = inner @ self.p[f"{second}.weight"].T + self.p[f"{second}.bias"]
        return x + inner if pre else self.norm(layer, "pos_ff", x + inner)

    def attend(self, layer: int, x: Tensor, context: Tensor, codes: Tensor, mem_len: int) -> Tensor:
        at, T, S = f"layers.{layer}.dec_attn", len(x), len(context)
        if self.kind in (0, 1):
            q, k, v = (context @ self.p[f"{at}.qkv_net.weight"].T).chunk(3, dim=-1)
            q = q[S - T :]
        else:
            q = x @ self.p[f"{at}.q_net.weight"].T
            k, v = (context @ self.p[f"{at}.kv_net.weight"].T).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (H, K)) for y in (q, k, v))
        out = torch.zeros(T, H, K).double()
        for i, n in itertools.product(range(T), range(H)):
            keys = self.visible(i, T, S, mem_len)
            scores = torch.stack(
                [self.score(layer, q[i, n], k[j, n], n, i + S - T - j, codes) for j in keys]
            )
            out[i, n] = (scores / math.sqrt(K)).softmax(0) @ v[keys, n]
        return out.flatten(1) @ self.p[f"{at}.o_net.weight"].T

    def visible(self, i: int, T: int, S: int, mem_len: int) -> list[int]:
        keys = list(range(i + S - T + 1))
        if not self.ctor["same_length"]:
            return keys
        trimmed = S - mem_len
        shift = T - trimmed if trimmed > 0 else T
        return [j for j in keys if j > i - shift]

    def score(
        self, layer: int, q: Tensor, k: Tensor, n: int, distance: int, codes: Tensor
    ) -> Tensor:
        p = self.p
        if self.kind == 0:
            r = p[f"layers.{layer}.dec_attn.r_net.weight"] @ codes[len(codes) - 1 - distance]
            return (q + p["r_w_bias"][n]) @ k + (q + p["r_r_bias"][n]) @ r.unflatten(0, (H, K))[n]
        if self.kind == 1:
            keep = self.ctor["clamp_len"] if self.ctor["clamp_len"] > 0 else 10**6
            rows, biases = p["r_emb"][layer][-keep:], p["r_bias"][layer][-keep:]
            at = max(0, len(rows) - 1 - distance)
            return (q + p["r_w_bias"][layer, n]) @ k + q @ rows[at, n] + biases[at, n]
        return q @ k


def build(ctor: dict[str, Any]) -> tuple[LanguageModel, dict[str, Tensor]]:
    """Our model with random parameters, and those under the original's names."""
    model = load(ModelConfig, transformer_xl.model_config(ctor), "model").build(SIZES["n_token"])
    model = model.double().eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.6
    links = transformer_xl.links(ctor)
    values = {name: p.detach() for name, p in model.named_parameters()}
    theirs = in_their_layout(values, links, shapes(ctor))
    load_parameters(model, links, theirs, "reference")
    return model, theirs


def shapes(ctor: dict[str, Any]) -> dict[str, torch.Size]:
    L, C, kind = SIZES["n_layer"], SIZES["n_token"], ctor["attn_type"]
    rows = ctor["tgt_len"] + ctor["ext_len"] + ctor["mem_len"]
    found: dict[str, tuple[int, ...]] = {
        "word_emb.emb_layers.0.weight": (C, D),
        "crit.out_layers.0.bias": (C,),
        **({"r_w_bias": (H, K), "r_r_bias": (H, K)} if kind == 0 else {}),
        **({"r_w_bias": (L, H, K), "r_bias": (L, rows, H)} if kind == 1 else {}),
        **({"r_emb": (L, rows, H, K)} if kind in (1, 3) else {}),
    }
    for layer in range(L):
        at = f"layers.{layer}"
        joint = {"qkv_net": (3 * H * K, D), "r_net": (H * K, D)}
        if kind == 1:
            del joint["r_net"]
        apart = {"q_net": (H * K, D), "kv_net": (2 * H * K, D)}
        for name, shape in {**(joint if kind < 2 else apart), "o_net": (D, H * K)}.items():
            found[f"{at}.dec_attn.{name}.weight"] = shape
        for name, shape in {
            "dec_attn.layer_norm": (D,),
            "pos_ff.layer_norm": (D,),
            "pos_ff.CoreNet.0": (SIZES["d_inner"], D),
            "pos_ff.CoreNet.3": (D, SIZES["d_inner"]),
        }.items():
            found[f"{at}.{name}.weight"], found[f"{at}.{name}.bias"] = shape, shape[:1]
    return {name: torch.Size(shape) for name, shape in found.items()}


def text(lengths: dict[str, int]) -> list[Tensor]:
    """Three segments, each but the first with its extended context in front."""
    tokens, T = torch.arange(3 * lengths["tgt_len"]) * 7 % SIZES["n_token"], lengths["tgt_len"]
    return [tokens[max(0, at - lengths["ext_len"]) : at + T] for at in range(0, 3 * T, T)]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("pre_lnorm", [False, True], ids=["post", "pre"])
def test_all_options_are_the_equations(kind: int, pre_lnorm: bool) -> None:
    for (mem_len, ext_len), same_length, clamp_len in itertools.product(
        LENGTHS, [False, True], [-1, 3]
    ):
        if same_length and not mem_len:
            continue
        lengths = {"tgt_len": 4, "ext_len": ext_len, "mem_len": mem_len}
        options = {"same_length": same_length, "clamp_len": clamp_len, "pre_lnorm": pre_lnorm}
        ctor = {**SIZES, **lengths, **options, "attn_type": kind}
        model, theirs = build(ctor)
        # an evaluation with a longer memory than the model was built for, and as it was built
        for longer in (0, 4 if mem_len else 0):
            now = {**lengths, "mem_len": mem_len + longer}
            limits = Limits(memory_len=now["mem_len"], ext_len=ext_len)
            reference, carry = Reference(ctor, theirs), model.initial_carry(1, limits)
            for tokens in text(now):
                expected = reference.segment(tokens, now)
                with torch.no_grad():
                    hidden, carry = model(tokens[None], carry)
                torch.testing.assert_close(hidden[0], expected, rtol=1e-6, atol=1e-6)
                for state, mem in zip(carry, reference.mems, strict=False):
                    torch.testing.assert_close(state.hidden_BMD[0], mem, rtol=1e-6, atol=1e-6)
