"""The eight laws of carried state, as functions that try them on a mixer.

    import workbench

    workbench.check_mixer(MyConfig)  # a table of laws and configs, or LawBroken with what is wrong

The package's own mixers are tested by the same functions (`tests/contract/test_laws.py`). They try
small random inputs in double precision: B 3 rows, T 24 tokens, D 8 wide.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench import carry as carry_
from workbench.carry import State
from workbench.config import dump, load, nearest
from workbench.errors import ConfigError, LawBroken
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.mixers.base import Limits, MixerConfig, SequenceMixer

D_MODEL, BATCH, LENGTH = 8, 3, 24
PIECES = ((1,) * LENGTH, (7, 1, 16), (12, 12))
"""ways to cut a segment"""
LAST = (1, 5, 10)
"""how many last outputs may be asked for alone"""


class Buildable(Protocol):
    """What a law needs of a config."""

    def build(self, d_model: int) -> SequenceMixer: ...


class Constant:
    """A config whose mixer is only read with: its state is that of constant weights."""

    def __init__(self, config: MixerConfig):
        self.config = config

    def build(self, d_model: int) -> SequenceMixer:
        mixer: Any = self.config.build(d_model)
        limits = Limits(constant_weights=True)
        mixer.initial_state = functools.partial(mixer.initial_state, limits=limits)
        mixer.forward, mixer.forward_last = map(
            torch.no_grad(), (mixer.forward, mixer.forward_last)
        )
        built: SequenceMixer = mixer
        return built

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def build(config: Buildable, dtype: torch.dtype = torch.float64) -> SequenceMixer:
    """The mixer of a config in evaluation mode, its parameters moved away from zeros and ones."""
    torch.manual_seed(0)
    mixer = config.build(D_MODEL).to(dtype).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():  # zeros would hide a term from the laws
            parameter.add_(0.1 * torch.rand_like(parameter))
    return mixer


def inputs(length: int = LENGTH, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """(B, length, D) random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, D_MODEL, generator=generator, dtype=dtype)


def _require(claim: object, otherwise: str) -> None:
    if not claim:
        raise LawBroken(otherwise)


def _close(got: Tensor, expected: Tensor, what: str, rtol: float, atol: float) -> None:
    try:
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise LawBroken(f"{what}: {error}") from None


def _leaves(state: State) -> list[Tensor]:
    return [x for x in state if isinstance(x, Tensor)]


def _fields(state: State) -> tuple[str, ...]:
    names: tuple[str, ...] | None = getattr(state, "_fields", None)
    if names is None:
        raise LawBroken(f"the state is a {type(state).__name__}, expected a NamedTuple")
    return names


def _same_state(got: State, expected: State, what: str, rtol: float, atol: float) -> None:
    _require(type(got) is type(expected), f"{what}: {type(got)} and {type(expected)}")
    for name, x, y in zip(_fields(got), got, expected, strict=True):
        if isinstance(x, Tensor):
            _close(x, y, f"{what}, {name} of the state", rtol, atol)
        else:
            _require(x == y, f"{what}, {name} of the state: {x} and {y}")


def _run(mixer: SequenceMixer, x: Tensor, pieces: Sequence[int]) -> tuple[Tensor, State]:
    """Feed `x` in segments of the given lengths from the initial state."""
    state, outputs = mixer.initial_state(len(x)), []
    for part in x.split(list(pieces), dim=1):
        y, state = mixer(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def yaml_data(config: MixerConfig) -> None:
    """A config written as plain data and read again is the same."""
    again = load(type(config), dump(config))
    _require(again == config, f"{config!r} becomes {again!r} when it is written and read")


def split(config: Any, pieces: Sequence[int]) -> None:
    """One long segment equals its pieces: outputs and last state."""
    mixer, x = build(config), inputs()
    whole, whole_state = _run(mixer, x, [LENGTH])
    parts, parts_state = _run(mixer, x, pieces)
    if getattr(config, "same_length", "off") == "off" and getattr(config, "limit", None) is None:
        reach = mixer.reach()
        _require(
            reach is None or reach >= LENGTH,
            f"tiny() remembers {reach} tokens; the law needs memory for {LENGTH}",
        )
    what = f"in pieces of {', '.join(map(str, pieces))} tokens and as one segment"
    _close(parts, whole, f"outputs {what}", 1e-10, 1e-10)
    _same_state(parts_state, whole_state, what, 1e-10, 1e-10)


def last_outputs(config: Buildable, n_last: int) -> None:
    """`forward_last` gives the last outputs of `forward`, and its state."""
    mixer, x = build(config), inputs()
    _, state = mixer(x[:, :14], mixer.initial_state(BATCH))
    whole, whole_state = mixer(x[:, 14:], state)
    last, last_state = mixer.forward_last(x[:, 14:], state, n_last)
    what = f"the last {n_last} alone and among all"
    _close(last, whole[:, -n_last:], f"outputs, {what}", 0, 1e-12)
    _same_state(last_state, whole_state, what, 0, 1e-12)


def causal(config: Buildable) -> None:
    """A later token never changes an earlier output, and does change later ones."""
    mixer, x = build(config), inputs()
    for t in (0, 9, LENGTH - 2):
        changed = x.clone()
        changed[:, t + 1] += 1.0
        y, _ = mixer(x, mixer.initial_state(BATCH))
        z, _ = mixer(changed, mixer.initial_state(BATCH))
        what = f"outputs up to token {t} when token {t + 1} changes"
        _close(z[:, : t + 1], y[:, : t + 1], what, 0, 1e-12)
        felt = (z[:, t + 1 :] != y[:, t + 1 :]).any()
        _require(felt, f"a change of token {t + 1} is felt by no output at or after it")


def rows(config: Buildable) -> None:
    """Rows of the carry may be taken apart and joined; each is a text of its own."""
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    more = inputs(5, seed=2)
    whole, whole_state = mixer(more, state)
    for name, leaf in zip(_fields(whole_state), whole_state, strict=True):
        at_front = not isinstance(leaf, Tensor) or (leaf.dim() > 0 and leaf.shape[0] == BATCH)
        _require(at_front, f"{name} of the state: every tensor must have the batch on dim 0")
    cuts = [(0, 1), (1, BATCH)]
    parts = [mixer(more[a:b], carry_.rows((state,), a, b)[0]) for a, b in cuts]
    what = "rows by themselves and together"
    _close(torch.cat([y for y, _ in parts]), whole, f"outputs of {what}", 0, 1e-12)
    joined = carry_.join([(s,) for _, s in parts])[0]
    _same_state(joined, whole_state, what, 0, 1e-12)


def value(config: Buildable) -> None:
    """The same input gives the same output, and the state passed in is untouched."""
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    before, x_before = [leaf.clone() for leaf in _leaves(state)], x.clone()
    first, first_state = mixer(x, state)
    second, second_state = mixer(x, state)
    untouched = all(torch.equal(a, b) for a, b in zip(before, _leaves(state), strict=True))
    _require(untouched, "the state passed in was changed in place; make a new one")
    _require(torch.equal(x, x_before), "the inputs were changed in place")
    _require(torch.equal(first, second), "the same input gave two outputs")
    _same_state(second_state, first_state, "the same input twice", 0, 0)


def boundary(config: Buildable) -> None:
    """Gradients cross segments unless the carry is detached."""
    mixer = build(config)
    x = inputs(4).requires_grad_()
    _, state = mixer(x, mixer.initial_state(BATCH))
    y, _ = mixer(inputs(4, seed=2), state)
    gradient = None
    if y.requires_grad:
        (gradient,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True, allow_unused=True)
    crosses = gradient is not None and gradient.abs().sum() > 0
    _require(crosses, "no gradient crosses from a segment into the one before it")
    y, _ = mixer(inputs(4, seed=2), carry_.detach((state,))[0])
    (gradient,) = torch.autograd.grad(y.square().sum(), x, allow_unused=True)
    _require(gradient is None, "a gradient crosses a detached carry: is a state kept elsewhere?")


def round_trip(config: Buildable) -> None:
    """Weights and state saved as plain tensors and loaded go on as before."""
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    file = io.BytesIO()
    torch.save({"weights": mixer.state_dict(), "carry": carry_.flatten((state,))}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = config.build(D_MODEL).to(torch.float64).eval()
    other.load_state_dict(loaded["weights"])
    restored = carry_.unflatten(loaded["carry"], like=(other.initial_state(BATCH),))[0]
    expected, got = mixer(x, state), other(x, restored)
    same = torch.equal(expected[0], got[0])
    _require(same, "after saving and loading the outputs differ: what is kept is not all")
    _same_state(got[1], expected[1], "after saving and loading", 0, 0)


def compiles(config: Buildable) -> None:
    """The mixer compiles as one graph, with the same results."""
    # two tokens: a loop over tokens is unrolled, and each one takes as long to compile
    mixer, x = build(config, torch.float32), inputs(2, dtype=torch.float32)
    x.requires_grad_()  # as in a model, where it comes from an embedding
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    _, state = mixer(x, mixer.initial_state(BATCH))
    state = carry_.detach((state,))[0]  # as the trainer hands it on
    expected, got = mixer(x, state), compiled(x, state)
    _close(got[0], expected[0], "outputs when compiled", 1e-5, 1e-6)
    _same_state(got[1], expected[1], "when compiled", 1e-5, 1e-6)


def learns(config: MixerConfig) -> None:
    """One layer learns to name the token before the last one, which no token alone tells."""
    # a first loss that is that of a guess, ln 8: tied and scaled embeddings would begin at 14 nats,
    # from where any model falls by more than a mixer can add
    vocabulary = {"kind": "plain", "tie_weights": False, "scale_embedding": False}
    block = {"mixer": config, "channel": {"kind": "feed_forward", "d_ffn": 32}}
    model_config = ModelConfig.model_validate(
        {"d_model": 16, "vocabulary": vocabulary, "stack": [{"block": block}]}
    )
    model = build_model(model_config, vocab_size=8, seed=0).train()
    tokens = torch.randint(8, (8, 33), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for _ in range(60):
        nll, _ = model.nll(tokens[:, 1:], tokens[:, :-1], model.initial_carry(8))
        optimizer.zero_grad()
        nll[:, 1:].mean().backward()
        optimizer.step()
        model.after_step()
        losses.append(nll[:, 1:].mean().item())
    told = f"in 60 updates the loss on one batch went from {losses[0]:.3f} to {losses[-1]:.3f} nats"
    # deaf to the past it ends at 1.93 of 2.20
    _require(losses[-1] < 0.75 * losses[0], f"{told}; expected a quarter less")


def _each(law: Callable[..., None], choices: Sequence[Any]) -> Callable[[Any], None]:
    def tried(config: Any) -> None:
        for choice in choices:
            law(config, choice)

    tried.__doc__ = law.__doc__
    return tried


LAWS: dict[str, Callable[[Any], None]] = {
    "yaml": yaml_data,
    "split": _each(split, PIECES),
    "last outputs": _each(last_outputs, LAST),
    "causal": causal,
    "rows": rows,
    "value": value,
    "boundary": boundary,
    "round trip": round_trip,
    "compile": compiles,
    "learns": learns,
}
"""the eight laws, and two promises beside them"""
READING = {"split", "last outputs", "causal", "rows", "value", "round trip"}
"""what holds for the state of constant weights, too, which is read with and never trained"""


@dataclass(frozen=True)
class Verdict:
    """What `check_mixer` found."""

    kind: str
    configs: tuple[str, ...]
    broken: dict[str, dict[str, str]]
    """law -> config -> what is wrong; every law that was tried has an entry"""

    def __str__(self) -> str:
        good = sum(not found for found in self.broken.values())
        lines = [f"{self.kind}: {good} of {len(self.broken)} laws hold"]
        for law, found in self.broken.items():
            about = (LAWS[law].__doc__ or "").strip().splitlines()[0]
            lines.append(f"  {'ok ' if not found else 'BAD'} {law:<12}  {about}")
            lines += [f"      {config}\n        {why}" for config, why in found.items()]
        return "\n".join([*lines, *(f"tried on {config}" for config in self.configs)])

    __repr__ = __str__


def _cases(config: MixerConfig) -> Iterator[tuple[str, Any]]:
    given = ", ".join(f"{name}={x!r}" for name, x in config if name != "kind")
    name = f"{type(config).__name__}({given})"
    yield name, config
    if config.has_memory:
        yield f"{name}, constant weights", Constant(config)


def check_mixer(
    mixer: type[MixerConfig] | MixerConfig, laws: Sequence[str] | None = None
) -> Verdict:
    """Try the laws on a mixer: those that every mixer of the package obeys.

    Args:
        mixer: its config class, all of whose `tiny()` configs are tried, or one config of it.
        laws: names in `LAWS`; None for all. Seconds in all; `compile` takes most of them.

    Returns:
        what was tried, as a table.

    Raises:
        LawBroken: the same table, with what is wrong.
        ConfigError: no such law.
    """
    names = list(LAWS) if laws is None else list(laws)
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"laws: there is no law '{name}'. {nearest(name, list(LAWS))}")
    configs = [mixer] if isinstance(mixer, MixerConfig) else mixer.tiny()
    cases = [case for config in configs for case in _cases(config)]
    broken: dict[str, dict[str, str]] = {name: {} for name in names}
    # the laws seed what they draw; who tries them goes on with the numbers that were next
    with torch.random.fork_rng(devices=[]), contextlib.ExitStack() as stack:
        stack.callback(torch._dynamo.reset)
        for law in names:
            for name, config in cases:
                if isinstance(config, Constant) and law not in READING:
                    continue
                if why := _fault(LAWS[law], config):
                    broken[law][name] = why
    kind = dump(configs[0])["kind"]
    verdict = Verdict(kind, tuple(name for name, _ in cases), broken)
    if any(broken.values()):
        raise LawBroken(str(verdict))
    return verdict


def _fault(law: Callable[[Any], None], config: Any) -> str:
    try:
        law(config)
    except LawBroken as error:
        return str(error)
    except Exception as error:
        # whatever the code of a user's mixer raises is the finding
        # whole traces of a compiler would hide the other laws
        said = [line for line in str(error).splitlines() if line.strip()][:3]
        return "\n        ".join([f"{type(error).__name__}: {said[0] if said else ''}", *said[1:]])
    return ""
