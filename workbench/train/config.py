"""What a recipe says about training (`train:`) and about the final measurement (`eval:`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workbench.config import CarryMode, Config, SameLength, slot
from workbench.train.averaging import non_monotone  # and its kind of optimizer
from workbench.train.optim import OptimizerConfig
from workbench.train.schedule import Constant, ScheduleConfig

Precision = Literal["fp32", "bf16", "fp16"]


class CacheConfig(Config):
    """A continuous cache beside the softmax: what followed similar hidden states a while ago.

    `p(w) = lam * sum_i softmax_i(theta h_i . h_t) [y_i = w] + (1 - lam) * softmax(w)` over the
    newest `window` positions i < t, y_i being the token that followed (arXiv:1612.04426 eq. 2, 3).
    """

    window: int = Field(gt=0)
    """Positions that are looked back at."""
    theta: float = Field(ge=0)
    """How sharply similar states are preferred; 0: all alike."""
    lam: float = Field(ge=0, lt=1)
    """Share of the cache in the mixture."""
    wait: Literal["never", "for_window"] = "never"
    """`never`: used from the second token on. `for_window`: only where more than `window` entries
    are held, counted from what a segment starts with, as the AWD-LSTM code does: not while the
    cache fills, and not at the first token of a segment."""


class EvalConfig(Config):
    """How the text is cut for a measurement; each token but the first (of a stream) counts once."""

    method: Literal["carried", "windows", "streams"] = "carried"
    """`carried`: the state runs along the whole text, each attention layer seeing exactly
    `context_len` tokens back. `windows`: every token is predicted from a fresh state that saw
    exactly the `context_len` tokens before it (arXiv:2102.11174 code). `streams`: as the papers'
    evaluation loops, `batch_size` streams side by side in segments of `segment_len`."""
    context_len: int | None = Field(default=None, gt=0)
    """Past tokens that an attention layer sees (`carried`; null: its own memory_len), or that
    precede a token (`windows`). A carried recurrent state has seen all before: null there."""
    segment_len: int = Field(default=128, gt=0)
    """Tokens per forward pass: changes the result of `streams` where attention has a memory; time
    and memory alone under `carried`."""
    batch_size: int = Field(default=16, gt=0)
    """Streams of `streams`; otherwise rows that run side by side: time and memory alone."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Measure only the first so many tokens; null for all."""
    memory_len: int | None = Field(default=None, ge=0)
    """`streams`: past inputs that an attention layer keeps; null: its own memory_len."""
    same_length: SameLength | None = None
    """`streams`: equally many keys for every query, memory_len of them, the own token counted
    (`including_self`, Transformer-XL's PyTorch code) or not (`beyond_self`, its paper and TF code);
    null: as the model."""
    clamp_len: int | None = Field(default=None, ge=0)
    """Attention: distances beyond it share one position code; 0: never; null: as the model."""
    ext_len: int = Field(default=0, ge=0)
    """`streams`: tokens before each segment that are read again with it, and not scored again."""
    carry: CarryMode = "keep"
    """`streams`: `reset` starts each segment afresh."""
    order: Literal["contiguous", "sentences"] = "contiguous"
    """`streams`: contiguous pieces of the text side by side; or `sentences`, as Transformer-XL's
    code reads lm1b: the first token of the text opens each sentence and closes the one before, and
    row after row takes the next one (see `workbench.data.sentences`); the last, incomplete batch is
    dropped."""
    average: Literal["exact", "of_blocks", "over_tokens"] = "exact"
    """`streams`: `exact`: over the B (n - 1) targets of B streams of n tokens. `of_blocks`: over
    whole segments, the shorter last one dropped, as the adaptive-span code. `over_tokens`: the same
    sum divided by B n, as the AWD-LSTM code, which so reports too little."""
    n_streams: int = Field(default=1, gt=0)
    """`windows`: contiguous streams that the text is cut into first; the remainder is dropped."""
    skip_first: bool = False
    """`windows`: leave out the first window, whose tokens have a shorter context."""
    precision: Precision = "fp32"
    """`bf16` or `fp16`: as `train.precision`; the nats differ from the third digit on."""
    cache: CacheConfig | None = None
    """`carried` or `streams`: mix the softmax with a continuous cache."""

    @model_validator(mode="after")
    def _belongs_to_the_method(self) -> Self:
        if self.method == "windows" and self.context_len is None:
            raise ValueError("method windows needs context_len: the tokens of a window")
        for name, methods in _METHODS.items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default and self.method not in methods:
                cure = "write memory_len" if name == "context_len" else "leave it out"
                raise ValueError(
                    f"{name} is {value}, which says nothing under method {self.method}; {cure}, or "
                    f"set method to {' or '.join(methods)}"
                )
        if self.order == "sentences" and self.average != "exact":
            raise ValueError(
                f"average is {self.average}, but sentences fill whole segments; leave average out"
            )
        return self

    @property
    def streams(self) -> int:
        """Contiguous streams that the text is cut into."""
        return self.batch_size if self.method == "streams" else self.n_streams

    @property
    def least_tokens(self) -> int:
        """The shortest text that can be measured: a target, or a whole block, for each stream."""
        whole = self.average == "of_blocks" or self.order == "sentences"
        return self.streams * (1 + (self.segment_len if whole else 1))

    def describe(self) -> str:
        """The method and all that changes its result: `streams, batch_size 10, segment_len 80`."""
        sizes = ("batch_size", "segment_len") if self.method == "streams" else ()
        fields = type(self).model_fields
        changed = [
            name
            for name, methods in _METHODS.items()
            if self.method in methods and getattr(self, name) != fields[name].default
        ]
        return ", ".join([self.method, *(f"{n} {getattr(self, n)}" for n in (*sizes, *changed))])


_METHODS: dict[str, tuple[str, ...]] = {
    "context_len": ("carried", "windows"),
    "memory_len": ("streams",),
    "same_length": ("streams",),
    "clamp_len": ("carried", "windows", "streams"),
    "ext_len": ("streams",),
    "carry": ("streams",),
    "order": ("streams",),
    "average": ("streams",),
    "n_streams": ("windows",),
    "skip_first": ("windows",),
    "precision": ("carried", "windows", "streams"),
    "cache": ("carried", "streams"),
}
"""which fields of `EvalConfig` change the result of which methods, beside the sizes"""


class StopConfig(Config):
    """Early stopping, decided at validations."""

    loss_nats: float | None = None
    """Stop when a validation is at most this."""
    patience: int | None = Field(default=None, gt=0)
    """Stop when more than so many validations in a row were no better than the best before."""
    nonmono: int | None = Field(default=None, gt=0)
    """Stop when a validation is worse than one from more than so many validations ago, as
    AWD-LSTM's fine-tuning does."""

    @model_validator(mode="after")
    def _stops(self) -> Self:
        if self.loss_nats is None and self.patience is None and self.nonmono is None:
            raise ValueError(
                "neither loss_nats nor patience nor nonmono is given; give one, or stop: null"
            )
        return self

    def reason(self, validations: Sequence[float]) -> str | None:
        """Why to stop now, as a done record says it; None to go on.

        Args:
            validations: the losses of all validations, oldest first.
        """
        if not validations:
            return None
        *before, now = validations
        since_best = len(before) - validations.index(min(validations))
        if self.loss_nats is not None and now <= self.loss_nats:
            return "loss"
        if self.patience is not None and since_best > self.patience:
            return "patience"
        if self.nonmono is not None and non_monotone(before, now, self.nonmono):
            return "nonmono"
        return None


def _scale(value: object) -> object:
    """Refuse what is no scale in one line, where a union would make one for each alternative."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "dynamic" and not (number and 0 < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"got {value!r}, expected dynamic or a number above 0 such as 128")
    return value if value == "dynamic" else float(value)  # type: ignore[arg-type]


class TrainConfig(Config):
    """How long, how fast and how carefully to train."""

    steps: int = Field(gt=0)
    """Updates of the whole run."""
    start_from: str | None = None
    """The folder of another run: begin with the weights of its best checkpoint, to fine-tune them.
    null for weights drawn afresh."""
    start_optimizer: Literal["fresh", "continued"] = "fresh"
    """`continued` takes over the statistics of that run's optimizer too, as the adaptive-span code
    does: Adagrad's sums, whose steps are then small from the start."""
    optimizer: slot(OptimizerConfig)  # type: ignore[valid-type]
    """Such as `{kind: adam, lr: 3.0e-4}`."""
    schedule: slot(ScheduleConfig) = Constant()  # type: ignore[valid-type]
    """Such as `{kind: cosine, warmup_steps: 100}`."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null for no clipping."""
    micro_batches: int = Field(default=1, gt=0)
    """Pieces that a batch's rows are read in, one after another, where it does not fit into memory
    at once: the same update up to rounding."""
    shard: bool = False
    """Several processes: each keeps its part of weights, gradients and optimizer instead of all of
    them, for models that do not fit into one GPU; see `workbench/train/SCALING.md`. Alone: as
    without."""
    carry: CarryMode = "keep"
    """`keep` hands the state from segment to segment, `reset` starts each segment afresh."""
    log_every: int = Field(default=20, gt=0)
    """Updates between two training records; the device is waited for only then."""
    eval_every: int = Field(default=500, gt=0)
    """Updates between two validations; the last update is always followed by one."""
    eval_tokens: int = Field(default=20_000, ge=2)
    """Tokens from the start of the validation split that a validation reads."""
    valid: EvalConfig | None = None
    """How a validation measures, where that is not as the recipe's `eval:`, such as with the
    lengths of training; null: as `eval:`."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Updates between two checkpoints; one is also written at the end and when stopped."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """The newest so many are kept, and besides the one with the best validation loss."""
    keep_every: int | None = Field(default=None, gt=0)
    """Besides, the checkpoint of every so many-th update is kept for good, a multiple of
    checkpoint_every; null for none."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """Of the weights, of dropout and of every other draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is an NVIDIA GPU where PyTorch sees one."""
    stop: StopConfig | None = None
    """When to end before all steps are done; null for never."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop after this time on the clock, between two updates; null for no limit."""
    precision: Precision = "fp32"
    """`bf16`: matrix products in bfloat16, twice as fast or more on a processor or GPU that has
    units for it and slower on one without; weights, optimizer, losses and sums stay in float32.
    `fp16`: in float16, for GPUs before Ampere: three digits more, but nothing above 65504. This
    package's kernels get float32 then, and a CPU without units for it takes ten times as long."""
    loss_scale: Annotated[Literal["dynamic"] | float, BeforeValidator(_scale)] = "dynamic"
    """`fp16`: what the loss is multiplied by, so that small gradients are not 0 in float16; they
    are divided by it again. `dynamic`: from 65536 on, halved when a gradient overflows, whose
    update is left out, and doubled after 2000 updates without. A number: always that one."""
    on_nonfinite: Literal["stop", "skip", "back_off"] = "stop"
    """What follows an update whose loss or gradient is NaN or infinite. `stop`: the run fails at
    the next record. `skip`: the update is left out; more than 10 in a row end the run. `back_off`:
    and the learning rate is halved, until 200 updates were finite for each doubling back. The last
    two look at each update before it is made, for which a GPU is waited for at each. All of them
    save the batch, see `workbench.train.nonfinite`. An overflow of fp16's scaled gradient is the
    affair of `loss_scale`, as long as the scale can become smaller."""
    recompute: bool = False
    """Keep only the inputs of each block for the backward pass, which computes the rest again: the
    same numbers with less memory, for a quarter more time; see `LanguageModel`."""
    deterministic: bool = False
    """Let PyTorch use algorithms alone that give the same bits each time, see
    `workbench.train.deterministic`. On a CPU all do already; on a GPU it costs time, and
    CUBLAS_WORKSPACE_CONFIG must be set."""
    compile: bool = False
    """Compile the model with `torch.compile`: minutes first, faster steps after. Where PyTorch
    cannot, a warning says why and the run goes on without; records say which it was."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.schedule.check(self.optimizer.lr, self.steps)
        if self.start_optimizer == "continued" and self.start_from is None:
            raise ValueError(
                "start_optimizer is continued, but start_from is null: name the run to go on from"
            )
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            near = max(1, round(self.keep_every / self.checkpoint_every)) * self.checkpoint_every
            raise ValueError(
                f"keep_every is {self.keep_every}, but checkpoints are written every "
                f"{self.checkpoint_every} updates (checkpoint_every); write a multiple: {near}"
            )
        if self.optimizer.clips == "per_tensor" and self.clip_norm is None:
            raise ValueError(
                "optimizer.clip is per_tensor, but clip_norm is null: nothing would be clipped; "
                "write clip_norm, or optimizer.clip: global"
            )
        if self.loss_scale != "dynamic" and self.precision != "fp16":
            raise ValueError(
                f"loss_scale is {self.loss_scale:g}, which says nothing under precision "
                f"{self.precision}; leave it out, or write precision: fp16"
            )
        if self.shard:
            self._can_shard()
        if self.recompute and self.compile:
            raise ValueError(
                "recompute and compile are both true, but torch.compile decides by itself what it "
                "computes again; leave one of them out"
            )
        return self

    def _can_shard(self) -> None:
        reasons = {
            "precision is fp16, whose loss scale each process would choose by its own part; write "
            "bf16 or fp32": self.precision == "fp16",
            "compile is true, which is not tested together": self.compile,
            "optimizer.clip is per_tensor, but no process has a whole tensor": (
                self.optimizer.clips == "per_tensor"
            ),
        }
        for reason, is_so in reasons.items():
            if is_so:
                raise ValueError(f"shard is true, but {reason}; or write shard: false")


class RetrievalEvalConfig(Config):
    """How associative retrieval is measured: new sequences at each validation."""

    n_sequences: int = Field(default=20, gt=0)
    """Sequences of `data.n_pairs` pairs."""
    max_queries: int = Field(default=200, gt=0)
    """Every key of a sequence is asked for, in order, at most so many."""
