"""The training steps at which the originals were timed: their constructors' arguments.

What `workbench.originals` makes of these arguments is our model of the same shapes. `train_ms` and
`eval_tokens_per_s` are the originals' on two cores of a machine whose fp32 GEMM did 180 GFLOP/s:
forward, backward, clipping and optimizer, with dropout, on random tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.attention import Attention
from workbench.models.mixers.span import LearnedSpan
from workbench.originals import adaptive_span, awd_lstm, fast_weight, transformer_xl
from workbench.recipe import Recipe, load_recipe
from workbench.train.config import TrainConfig

ADAM = {"kind": "adam", "lr": 2.5e-4}
PER_TENSOR = {"kind": "adagrad", "lr": 0.07, "clip": "per_tensor"}
SGD = {"kind": "sgd", "lr": 1.0, "weight_decay": 1.2e-6}


@dataclass(frozen=True)
class Configuration:
    """A model, its segments, and what the original takes for them."""

    name: str
    model: Callable[[], LanguageModel]
    vocab: int
    T: int
    B: int
    optimizer: dict[str, Any]
    clip_norm: float
    train_ms: float
    eval_tokens_per_s: float | None = None
    carry: str = "keep"
    target: float | None = None
    """the least ratio asked for"""

    def train_config(self, precision: str = "fp32") -> TrainConfig:
        # rates so small that spans stay where they were put
        schedule = {"kind": "constant", "warmup_steps": 100_000}
        told = {"optimizer": self.optimizer, "schedule": schedule, "clip_norm": self.clip_norm}
        told |= {"steps": 1_000_000, "carry": self.carry, "precision": precision}
        return load(TrainConfig, told, "train")


def build(config: dict[str, Any], vocab: int) -> LanguageModel:
    torch.manual_seed(1)
    return load(ModelConfig, config, "model").build(vocab)


def xl(vocab: int = 205, **options: Any) -> LanguageModel:
    """4 layers, width 256, 8 heads, segment and memory of 128."""
    ctor = {"n_token": vocab, "n_layer": 4, "n_head": 8, "d_model": 256, "d_head": 32}
    ctor |= {"d_inner": 1024, "dropout": 0.1, "dropatt": 0.0, "tgt_len": 128, "mem_len": 128}
    ctor |= {"ext_len": 0, "attn_type": 0, "tie_weight": True, **options}
    return build(transformer_xl.model_config(ctor) | {"init_std": 0.02}, vocab)


def fwms(kind: int, vocab: int = 205, **options: Any) -> LanguageModel:
    """4 layers, width 256, 8 heads, segments of 256."""
    ctor = {"n_token": vocab, "n_layer": 4, "n_head": 8, "d_model": 256, "d_head": 32}
    ctor |= {"d_inner": 1024, "dropout": 0.1, "dropatt": 0.0, "tgt_len": 256, "mem_len": 0}
    ctor |= {"ext_len": 0, "attn_type": kind, "tie_weight": True, **options}
    return build(fast_weight.model_config(ctor) | {"init_std": 0.02}, vocab)


def span(
    limit: int, spans: Callable[[int, int], list[float]] | None, persistent: int = 0
) -> LanguageModel:
    """4 layers, width 256, 8 heads, blocks of 128.

    Args:
        limit: the longest span.
        spans: (layer, limit) -> the span of each head; None: spans are not learned.
        persistent: vectors instead of the feed-forward sub-layer.
    """
    sizes = {"attn_span": limit, "hidden_size": 256, "inner_hidden_size": 1024, "nb_heads": 8}
    sizes |= {"nb_layers": 4, "vocab_size": 205, "dropout": 0.1, "emb_dropout": 0.1}
    learned = {"adapt_span_enabled": spans is not None, "adapt_span_cache": True}
    learned |= {"adapt_span_init": 0.0, "adapt_span_loss": 2e-6, "adapt_span_ramp": 32}
    plain = {"adapt_io_cutoffs": [20, 40], "adapt_io_divval": 4}
    plain |= {"adapt_io_enabled": False, "adapt_io_tied": False}
    ctor = {"model_params": sizes, "adapt_span_params": learned, "adapt_io_params": plain}
    ctor |= {"pers_mem_params": {"pers_mem_size": persistent}, "vocab_size": 205}
    model = build(adaptive_span.model_config(ctor), 205)
    if spans is not None:
        set_spans(model, spans, limit)
    return model


def set_spans(
    model: LanguageModel, spans: Callable[[int, int], list[float]], limit: int
) -> LanguageModel:
    """Put every head's span where a trained model has it."""
    for layer, block in enumerate(model.layers):
        assert isinstance(block.mixer, Attention) and isinstance(block.mixer.span, LearnedSpan)
        shares = torch.tensor(spans(layer, limit)) / limit
        with torch.no_grad():
            block.mixer.span.share_H.copy_(shares.view_as(block.mixer.span.share_H))
    return model


def initial(layer: int, limit: int) -> list[float]:
    """As before the first step: nothing beyond the ramp."""
    return 8 * [0.0]


def mean_64(layer: int, limit: int) -> list[float]:
    """64 tokens in the mean; with the ramp, the longest head of a layer sees 172."""
    return [10.0, 20.0, 36.0, 48.0, 60.0, 84.0, 114.0, 140.0]


def spread(layer: int, limit: int) -> list[float]:
    """Most heads see 16 to 64 tokens, one of the last layer three quarters of the limit."""
    longest = 0.75 * limit if layer == 3 else 128.0
    return [16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, longest]


def mean_300(layer: int, limit: int) -> list[float]:
    """As the enwik8 model of 38 million parameters: 300 tokens in the mean, one head far beyond."""
    return [16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 120.0, 2000.0]


def enwik8() -> LanguageModel:
    """The 12 layers of arXiv:1905.07799 on enwik8."""
    recipe = load_recipe("span-enwik8-base")
    assert isinstance(recipe, Recipe)
    torch.manual_seed(1)
    return set_spans(recipe.model.build(205), mean_300, 8192)


def awd(kind: str, vocab: int = 10_000) -> LanguageModel:
    """3 layers of 1150 units, embeddings of 400."""
    ctor = {"rnn_type": kind, "ntoken": vocab, "ninp": 400, "nhid": 1150, "nlayers": 3}
    ctor |= {"dropout": 0.4, "dropouth": 0.25, "dropouti": 0.4, "dropoute": 0.1}
    ctor |= {"wdrop": 0.5 if kind == "LSTM" else 0.0, "tie_weights": True, "splits": []}
    penalties = {"activation": 2.0, "temporal": 1.0}
    return build(awd_lstm.model_config(ctor) | {"output_penalties": penalties}, vocab)


WORDS: dict[str, Any] = {"cutoffs": [4000, 12000], "tie_projs": [False, True, True]}
SKIP: dict[str, Any] = {"skip_attn_normalization": True}
A_XL = (128, 8, ADAM, 0.25)
A_SPAN = (128, 8, PER_TENSOR, 0.03)
AN_AWD = (70, 20, SGD, 0.25)
A_FWMS = (256, 8, ADAM, 0.25)
"""segment, streams, optimizer, clipping"""

CONFIGURATIONS = (
    Configuration("TXL char", xl, 205, *A_XL, 485, 7611, target=1.5),
    Configuration(
        "TXL word, div_val 1", partial(xl, 30_000, div_val=1, **WORDS), 30_000, *A_XL, 534, 6451
    ),
    Configuration(
        "TXL word, div_val 2", partial(xl, 30_000, div_val=2, **WORDS), 30_000, *A_XL, 480, 5734
    ),
    Configuration("span 1024, initial", partial(span, 1024, initial), 205, *A_SPAN, 249, 18065),
    Configuration("span 1024, mean 64", partial(span, 1024, mean_64), 205, *A_SPAN, 338, 12685),
    Configuration("span 1024, spread", partial(span, 1024, spread), 205, *A_SPAN, 533, 8029),
    Configuration("span 1024, not learned", partial(span, 1024, None), 205, *A_SPAN, 1466, 4614),
    Configuration(
        "span 4096, spread", partial(span, 4096, spread), 205, *A_SPAN, 1835, 2139, target=3.5
    ),
    Configuration(
        "all-attention 256, mean 64", partial(span, 1024, mean_64, 256), 205, *A_SPAN, 571, 8737
    ),
    Configuration("AWD-LSTM", partial(awd, "LSTM"), 10_000, *AN_AWD, 1205, 4028),
    Configuration("AWD-QRNN", partial(awd, "QRNN"), 10_000, *AN_AWD, 768, 5022, target=1.05),
    Configuration("linear sum (t4)", partial(fwms, 4), 205, *A_FWMS, 534, 16875, "reset"),
    Configuration(
        "DPFP-3 sum (t6)", partial(fwms, 6, n_roll=3), 205, *A_FWMS, 753, 10678, "reset"
    ),
    Configuration(
        "linear delta (t14)", partial(fwms, 24, **SKIP), 205, *A_FWMS, 787, 11103, "reset"
    ),
    Configuration(
        "DPFP-3 delta (t16)", partial(fwms, 26, n_roll=3, **SKIP), 205, *A_FWMS, 3760, 3663,
        "reset", 5.0,
    ),
)  # fmt: skip


ENWIK8 = Configuration("span enwik8, 38M", enwik8, 205, 512, 64, PER_TENSOR, 0.03, 60)
"""on an H200, in bfloat16; not an original's time but the most that is asked for"""


def zipf(vocab: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """Tokens of which the r-th most frequent is drawn with probability about 1 / r."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, vocab + 1, dtype=torch.float64)
    return torch.multinomial(weights, n_tokens, replacement=True, generator=generator)
