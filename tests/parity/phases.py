"""Run a model through the phases that golden files record: evaluation, training, optimizer steps.

Shapes: B batch, T segment, D model width, C classes. Two of the code bases keep time first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity.golden import Comparison, Golden, Unknown
from workbench.carry import Carry, detach
from workbench.config import load
from workbench.data.batches import Batch
from workbench.data.segments import Segments
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import CONFIGURED, Limits
from workbench.originals.links import Link, in_their_layout, load_parameters
from workbench.train.config import EvalConfig, TrainConfig
from workbench.train.evaluate import Evaluation
from workbench.train.evaluate import evaluate as measure
from workbench.train.objective import objective, total
from workbench.train.trainer import Trainer


def nothing(*_: object) -> None:
    """The default of the hooks below."""


@dataclass
class Subject:
    """A model of ours that holds a file's parameters, and how to compare it."""

    model: LanguageModel
    links: Sequence[Link]
    golden: Golden
    compare: Comparison
    dtype: torch.dtype
    time_first: bool = True
    mean_key: str = "mean_loss"
    """what the file calls a segment's mean loss"""
    limits: Limits = CONFIGURED
    states: Callable[[Comparison, str, Carry], None] = field(default=nothing)
    """compares the carry after a segment of an evaluation: (comparison, place in file, carry)"""
    before_segment: Callable[[LanguageModel, str, int], None] = field(default=nothing)
    """what the file's makers changed in the model: (model, phase, segment)"""

    def turn(self, x: Tensor) -> Tensor:
        """Between our layout (batch first) and the file's."""
        return x.transpose(0, 1) if self.time_first else x

    def start(self, batch_size: int) -> Carry:
        return self.model.initial_carry(batch_size, self.limits)

    def reload(self) -> None:
        load_parameters(self.model, self.links, self.golden.parameters(), self.golden.name)


def subject(
    golden: Golden,
    config: dict[str, object],
    vocab_size: int,
    links: Sequence[Link],
    dtype: torch.dtype,
) -> Subject:
    """Build the model of `config` with the file's parameters, in float32 or float64."""
    model = load(ModelConfig, config, "model").build(vocab_size).to(dtype)
    compare = Comparison(golden, str(dtype).removeprefix("torch."))
    it = Subject(model, links, golden, compare, dtype)
    it.reload()
    return it


def evaluate(it: Subject, tag: str, stream: str, *, carried: bool) -> None:
    """An evaluation phase: whatever the file holds of losses, distributions, hidden states, states.

    Args:
        it: the model and its file.
        tag: the phase's name below `out/`.
        stream: its input's name below `input/`.
        carried: the state runs through all segments; otherwise each starts afresh.
    """
    it.reload()
    it.model.eval()
    carry: Carry | None = None
    for i, data, target in it.golden.segments(stream):
        it.before_segment(it.model, tag, i)
        tokens_BT, targets_BT = it.turn(data), it.turn(target)
        if carry is None or not carried:
            carry = it.start(len(tokens_BT))
        at = f"out/{tag}/seg{i}"
        with torch.no_grad():
            hidden_BTD, _ = it.model(tokens_BT, carry)
            logp_BTC, _ = it.model.log_probs(tokens_BT, carry)
            nll_BT, carry = it.model.nll(tokens_BT, targets_BT, carry)
        scored = slice(-targets_BT.shape[1], None)
        it.compare.also(f"{at}/hidden", it.turn(hidden_BTD[:, scored]))
        it.compare.also(f"{at}/logprob", it.turn(logp_BTC[:, scored]))
        it.compare.also(f"{at}/nll", it.turn(nll_BT))
        if f"{at}/loss_as_returned" in it.golden:
            why = "`nll` again, in the order of the softmax's clusters instead of the tokens'"
            it.compare.leave_out(f"{at}/loss_as_returned", why)
        it.compare.also(f"{at}/mean_nll", nll_BT.mean())
        it.states(it.compare, at, carry)


def refuse_dropout(it: Subject) -> None:
    """What a training with dropout recorded depends on its random numbers (`Unknown`)."""
    if any(m.p for m in it.model.modules() if isinstance(m, torch.nn.Dropout)):
        raise Unknown(f"{it.golden.name}: trained with dropout")


def train(it: Subject, tag: str, stream: str, *, carried: bool) -> dict[str, Tensor]:
    """A training phase: losses per segment and in the mean.

    Returns:
        the gradients of the mean over segments of loss and penalties, by original names. State
        is detached between segments, as the originals do.
    """
    it.reload()
    refuse_dropout(it)
    it.model.train()
    it.model.zero_grad(set_to_none=True)
    n_segments = it.golden.n_segments(stream)
    carry: Carry | None = None
    losses: list[Tensor] = []
    for i, data, target in it.golden.segments(stream):
        it.before_segment(it.model, tag, i)
        tokens_BT, targets_BT = it.turn(data), it.turn(target)
        if carry is None or not carried:
            carry = it.start(len(tokens_BT))
        nll_BT, carry = it.model.nll(tokens_BT, targets_BT, carry)
        terms = objective(nll_BT, it.model.penalties())
        (total(terms) / n_segments).backward()
        carry = detach(carry)
        losses.append(terms["nll"].detach())
        it.compare.out(f"out/{tag}/seg{i}/{it.mean_key}", losses[-1])
        it.compare.also(f"out/{tag}/seg{i}/span_loss", terms.get("span", torch.tensor(0.0)))
    it.compare.out(f"out/{tag}/loss", torch.stack(losses).mean())
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in it.model.named_parameters()
    }
    return in_their_layout(grads, it.links, it.golden.shapes())


def compare_gradients(
    it: Subject, grads: dict[str, Tensor], group: str, kind: str = "grad"
) -> None:
    """Compare every gradient that the file holds below `group`, and expect one per parameter; those
    that the original never touched must be zero here."""
    grads = dict(grads)
    for name in it.golden.meta.get("grad_is_none", []):
        if f"{group}/{name}" in it.golden or name not in grads:
            continue
        assert not grads.pop(name).any(), f"{it.golden.name}: {name} has no gradient there"
    theirs = {key.removeprefix(f"{group}/") for key in it.golden.keys(f"{group}/")}
    odd = sorted(theirs ^ set(grads))
    assert not odd, f"{it.golden.name}: only one side has gradients of {odd} in {group}"
    for name, grad in grads.items():
        it.compare.grad(group, name, grad, kind)


def streams(it: Subject, segment_len: int, batch_size: int, **settings: object) -> Evaluation:
    """Their evaluation loop, by our `evaluate`: mean loss of each batch and the reported one.

    Args:
        it: the model and its file.
        segment_len, batch_size: of the loop.
        settings: more fields of `EvalConfig`.

    Returns:
        ours, for what else the file may hold.
    """
    sizes = {"method": "streams", "segment_len": segment_len, "batch_size": batch_size}
    config = load(EvalConfig, {**sizes, **settings}, "eval")
    stream = it.golden.tensor("input/stream").flatten()
    result = measure(it.model, stream, config)
    for i, nll_BT in enumerate(result.nll_nats.view(batch_size, -1).split(segment_len, dim=1)):
        it.compare.also(f"out/batch{i}/mean_loss", nll_BT.mean())
    it.compare.also("out/evaluate", result.mean_nats)
    return result


class RecordedBatches(Segments):
    """The file's own segments, for the trainer."""

    def __init__(self, it: Subject) -> None:
        pairs = [(it.turn(x), it.turn(y)) for _, x, y in it.golden.segments("main")]
        self.batches = [Batch(x, y, i == 0, 1.0) for i, (x, y) in enumerate(pairs)]
        self.ext_len = it.limits.ext_len
        self._left = iter(self.batches)

    def next(self) -> Batch:
        return next(self._left)


def optimise(it: Subject, plan: TrainConfig, after_step: Callable[[int], None] = nothing) -> None:
    """Our trainer's updates over the main stream, then the final parameters.

    Args:
        it: the model and its file.
        plan: optimizer, schedule and clipping, as a recipe gives them.
        after_step: compares what else the file recorded after a step.
    """
    refuse_dropout(it)
    segments = RecordedBatches(it)
    trainer = Trainer(it.model, segments, plan, it.golden.name)
    for i in range(len(segments.batches)):
        trainer.update()
        record = trainer.record(elapsed_s=0.0)
        it.compare.out(f"out/step{i}/lr", record.lr)
        it.compare.out(f"out/step{i}/loss", record.loss_nats)
        it.compare.also(f"out/step{i}/grad_norm", record.grad_norm)
        after_step(i)
    values = {name: p.detach() for name, p in it.model.named_parameters()}
    for name, value in in_their_layout(values, it.links, it.golden.shapes()).items():
        it.compare.out(f"out/final_param/{name}", value)
