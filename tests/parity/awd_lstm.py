"""AWD-LSTM's code (arXiv:1708.02182, 1803.08240): what its files record. Tokens are [time, batch].

Its embedding passes no gradient to the last row of the table (`skip_last_row`): `grad/` is with
that slip, `extra/grad_without_padding_quirk/` without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.golden import Comparison, Golden, Unknown
from parity.phases import RecordedBatches, Subject, compare_gradients, streams, subject
from workbench.carry import Carry, detach
from workbench.config import load
from workbench.data.batches import Batch
from workbench.originals import awd_lstm
from workbench.originals.links import in_their_layout
from workbench.train.config import EvalConfig, TrainConfig
from workbench.train.evaluate import evaluate as measure
from workbench.train.objective import objective, total
from workbench.train.trainer import Trainer

Apply = Callable[..., Tensor]
"""(mask, what it falls on) -> what is left"""
KINDS = {
    "(model.RNNModel + splitcross.SplitCrossEntropyLoss)": "phases",
    ", training mode with injected dropout masks": "masks",
    "(main.py evaluate)": "streams",
    "(pointer.py evaluate)": "pointer",
    "(main.py training loop, SGD then ASGD)": "steps",
}


def awd_subject(golden: Golden, dtype: torch.dtype, *, quirk: bool, dropout: bool) -> Subject:
    """The model with the file's penalties; without its dropout, unless that is asked for."""
    ctor = {**golden.ctor, "splits": golden.meta.get("criterion", {}).get("splits", ())}
    links = awd_lstm.links(ctor)
    if not dropout:
        ctor |= dict.fromkeys(awd_lstm.DROPOUT, 0.0)
    config = awd_lstm.model_config(ctor) | {
        "skip_last_row": quirk,
        "output_penalties": {
            "activation": golden.meta.get("alpha", 0.0),
            "temporal": golden.meta.get("beta", 0.0),
        },
    }
    return subject(golden, config, ctor["ntoken"], links, dtype)


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it (`Unknown`)."""
    place = golden.meta["codebase"].removeprefix("awd-lstm-lm").removesuffix("with pytorch-qrnn")
    kind = KINDS.get(place.strip())
    if kind is None:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    # parameters have their state dict's name in front, aliases have not
    aliases = [f"model/{name}" for name in golden.meta["tied"]]
    golden.meta["buffers"] = [*golden.meta["buffers"], *aliases]
    it = awd_subject(golden, dtype, quirk=True, dropout=kind == "masks")
    runs: dict[str, Callable[[Subject], None]] = {
        "phases": run_phases,
        "masks": run_masks,
        "streams": run_streams,
        "pointer": run_pointer,
        "steps": run_steps,
    }
    runs[kind](it)
    return it.compare


def compare_states(compare: Comparison, at: str, carry: Carry) -> None:
    """`hidden/l/...`: [1, batch, units]. A QRNN's file lacks the inputs it looks back at."""
    for layer, state in enumerate(carry):
        leaves = state._asdict()
        leaves.pop("inputs_BPD", None)
        keys = compare.golden.keys(f"{at}/hidden/{layer}/") or [f"{at}/hidden/{layer}"]
        assert len(keys) == len(leaves), f"{compare.golden.name}: {keys} for {set(leaves)}"
        for key in keys:
            name = key.rpartition("/")[2]
            leaf = leaves.get(f"{name}_BU", next(iter(leaves.values())))
            compare.out(key, leaf[None])


def remember(modules: list[nn.Module]) -> list[Tensor]:
    """The first output of each module in its next calls, in the order of the calls."""
    seen: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    return seen


def run_phases(it: Subject) -> None:
    """Evaluation with all layers' outputs, training without dropout, gradients in two ways."""
    golden, compare = it.golden, it.compare
    raw = remember([block.mixer for block in it.model.layers])
    it.model.eval()
    carry: Carry = ()
    for i, data, target in golden.segments("main"):
        at, tokens_BT = f"out/eval/seg{i}", it.turn(data)
        carry = carry or it.start(len(tokens_BT))
        with torch.no_grad():
            logp_BTC, _ = it.model.log_probs(tokens_BT, carry)
            nll_BT, _ = it.model.nll(tokens_BT, it.turn(target), carry)
            raw.clear()
            hidden_BTD, carry = it.model(tokens_BT, carry)
        compare.also(f"{at}/output", it.turn(hidden_BTD))
        for layer, output_BTD in enumerate(raw):
            compare.also(f"{at}/raw_output/{layer}", it.turn(output_BTD))
        compare.also(f"{at}/logprob", it.turn(logp_BTC))
        compare.also(f"{at}/nll", it.turn(nll_BT))
        compare.also(f"{at}/loss", nll_BT.mean())
        compare_states(compare, at, carry)
    compare_gradients(it, train(it, compared=True), "grad")
    other = awd_subject(golden, it.dtype, quirk=False, dropout=False)
    grads, group = train(other, compared=False), "extra/grad_without_padding_quirk"
    for key in golden.keys(f"{group}/"):
        name = key.removeprefix(f"{group}/")
        compare.grad(group, name, grads[f"model/{name}"])


def train(
    it: Subject, *, compared: bool, before_segment: Callable[[int], None] | None = None
) -> dict[str, Tensor]:
    """Losses with their terms, and the gradients of their mean over the segments."""
    it.model.train()
    it.model.zero_grad(set_to_none=True)
    carry: Carry = ()
    losses = []
    for i, data, target in it.golden.segments("main"):
        if before_segment is not None:
            before_segment(i)
        carry = detach(carry) or it.start(data.shape[1])
        nll_BT, penalties, carry = it.model.losses(it.turn(data), it.turn(target), carry)
        terms = objective(nll_BT, penalties)
        losses.append(total(terms))
        (losses[-1] / it.golden.n_segments()).backward()
        if compared:
            at, zero = f"out/train/seg{i}", torch.tensor(0.0)
            it.compare.also(f"{at}/raw_loss", terms["nll"])
            it.compare.also(f"{at}/ar", terms.get("activation", zero))
            it.compare.also(f"{at}/tar", terms.get("temporal", zero))
            it.compare.out(f"{at}/loss", losses[-1])
            if it.golden.keys(f"{at}/hidden/"):
                compare_states(it.compare, at, carry)
    if compared:
        it.compare.out("out/train/loss", torch.stack(losses).mean())
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in it.model.named_parameters()
    }
    return in_their_layout(grads, it.links, it.golden.shapes())


def run_masks(it: Subject) -> None:
    """Training with the dropout masks that the file recorded, new ones for each segment."""
    model, golden = it.model, it.golden
    outputs = remember([])

    def inject(segment: int) -> None:
        at = f"input/main/seg{segment}/mask"

        def use(name: str, module: nn.Module, apply: Apply, method: str = "forward") -> None:
            # the original draws no mask where a rate is 0; ours then drops nothing either
            if f"{at}/{name}" in golden:
                mask = golden.tensor(f"{at}/{name}", it.dtype)
                replace(module, method, lambda *inputs: apply(mask, *inputs))

        use("embedding_rows", model.drop_symbols, lambda kept, x_BTD, ids: x_BTD * kept[ids])
        use("input", model.drop_embedding, locked)
        use("output", model.drop_output, locked)
        for layer, block in enumerate(model.layers):
            use(f"weight/{layer}", block.mixer, torch.mul, "drop_weight")
            if layer < len(model.layers) - 1:
                use(f"layer_output/{layer}", block.drop, locked)

    model.drop_output.register_forward_hook(lambda *call: outputs.append(call[-1]))
    grads = train(it, compared=True, before_segment=inject)
    for i, hidden_BTD in enumerate(outputs):
        it.compare.out(f"out/train/seg{i}/output", it.turn(hidden_BTD))
    compare_gradients(it, grads, "grad")


def locked(kept_1BD: Tensor, x_BTD: Tensor) -> Tensor:
    """One mask for all tokens."""
    return x_BTD * kept_1BD.transpose(0, 1)


def replace(module: nn.Module, method: str, function: Callable[..., Tensor]) -> None:
    """Another method for this module alone."""
    module.__dict__[method] = function


def run_streams(it: Subject) -> None:
    """Their `evaluate()`, which divides by one token too many in each stream."""
    meta = it.golden.meta
    result = streams(it, meta["bptt"], meta["batch"], average="over_tokens")
    it.compare.out("out/true_mean_nll", float(result.nll_nats.double().mean()))


def run_pointer(it: Subject) -> None:
    """Their continuous cache, which waits until its window is full."""
    meta = it.golden.meta
    cache = {
        "window": meta["window"],
        "theta": meta["theta"],
        "lam": meta["lambdasm"],
        "wait": "for_window",
    }
    plan = {"method": "streams", "segment_len": meta["bptt"], "batch_size": 1}
    plain = measure(it.model, it.golden.tensor("input/stream"), load(EvalConfig, plan))
    it.compare.out("out/nll_without_cache", plain.nll_nats)
    result = streams(it, meta["bptt"], 1, average="over_tokens", cache=cache)
    it.compare.out("out/nll", result.nll_nats)
    it.compare.out("out/true_mean_nll", float(result.nll_nats.double().mean()))


class ScaledBatches(RecordedBatches):
    """With the learning rate's factor of each recorded length."""

    def __init__(self, it: Subject) -> None:
        super().__init__(it)
        meta = it.golden.meta
        scales = [length / meta["bptt"] for length in meta["seq_lens"]]
        self.batches: list[Batch] = [
            batch._replace(lr_scale=scale)
            for batch, scale in zip(self.batches, scales, strict=True)
        ]
        self._left = iter(self.batches)


def run_steps(it: Subject) -> None:
    """Their training loop: some steps of SGD, then averaged SGD."""
    meta = it.golden.meta
    plan: dict[str, Any] = {
        "steps": len(meta["seq_lens"]),
        "optimizer": {
            "kind": "asgd",
            "lr": meta["lr"],
            "weight_decay": meta["weight_decay"],
            "nonmono": 5,
            "convention": "awd",
        },
        "clip_norm": meta["clip"],
    }
    trainer = Trainer(it.model, ScaledBatches(it), load(TrainConfig, plan), it.golden.name)
    for i in range(plan["steps"]):
        if i == meta["n_sgd_steps"]:
            compare_parameters(it, "out/before_asgd")
            trainer.optimizer.begin()
        trainer.update()
        record, at = trainer.record(elapsed_s=0.0), f"out/step{i}"
        it.compare.out(f"{at}/raw_loss", record.loss_nats)
        it.compare.out(f"{at}/loss", record.loss_nats + sum(record.penalties.values()))
        it.compare.out(f"{at}/grad_norm", record.grad_norm)
        it.compare.also(f"{at}/eta_used", record.lr)
    compare_parameters(it, "out/final_param")
    trainer.swap()
    compare_parameters(it, "out/final_average")


def compare_parameters(it: Subject, group: str) -> None:
    """Weights as they are now; the files name the model's without their prefix."""
    values = {name: p.detach() for name, p in it.model.named_parameters()}
    theirs = in_their_layout(values, it.links, it.golden.shapes())
    for key in it.golden.keys(f"{group}/"):
        name = key.removeprefix(f"{group}/")
        known = (n for n in (name, f"model/{name}", f"criterion/{name}") if n in theirs)
        it.compare.out(key, theirs[next(known)])
