"""Generation: text from a model, token by token, its past carried as state.

    for token in workbench.generate("runs/mine", "def ", length=400, temperature=0.8):
        ...

Shapes: B samples, C classes.
"""

from __future__ import annotations

import codecs
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.data.corpus import Corpus
from workbench.data.vocabulary import BYTEWISE, Vocabulary
from workbench.errors import ConfigError, DataError
from workbench.inspect import Taps, capture
from workbench.reading import Reader, Source, State, Subject, Text, open_source, reading, rows

Stop = str | int | Sequence[str | int | Sequence[int]]
MAX_SEED = 2**62


class Token(NamedTuple):
    """One generated token."""

    sample: int
    id: int
    text: str
    """what it adds to the text: "" inside a character of several bytes, or for a bare model"""
    nats: float
    """its cost under the model itself, whatever temperature and truncation it was drawn with"""


class Past(NamedTuple):
    """Where a sample ended, to go on from."""

    state: State
    """one row, after all tokens but the last"""
    last: int
    """the last token, not read yet"""


class Moment(NamedTuple):
    """What was known when a step's tokens were drawn; see `Generation.observe`."""

    tokens: list[Token]
    """the drawn, one for each sample that was not done"""
    logp_BC: Tensor
    """from which they were drawn, a row for each of them"""
    state: State
    """after all tokens but these, of the same rows"""
    taps: Taps
    """inner values of the pass over the newest token, or over its whole window"""


def generate(
    source: Source,
    prompt: Text = "",
    *,
    length: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Stop = (),
    seed: int | None = None,
    samples: int = 1,
    context_len: int | None = None,
    past: Past | None = None,
    vocabulary: Vocabulary | Corpus | None = None,
) -> Generation:
    """Let a model write on from a prompt.

    Nothing is drawn before the result is iterated over, or asked for its text.

    Args:
        source: a run, its folder, or a model.
        prompt: what comes before: text, bytes or ids. Empty, the text begins as after the end of a
            line (or a blank, where a vocabulary has no line ends). At word and BPE level let it
            end with a word: the blank that follows comes with the next token.
        length: tokens to write, unless `stop` comes first.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the likeliest so many only.
        top_p: draw from the likeliest that together reach this probability (arXiv:1904.09751).
        stop: a string, a token id, or a list of strings, ids and sequences of ids; a sample that
            ends with one of them is done. At BPE level the token that completes a string may go on
            beyond it.
        seed: of this generation's own random numbers; sample i is the same whatever `samples`. None
            takes a new one; `Generation.seed` tells which.
        samples: texts to write side by side.
        context_len: past tokens that each attention layer sees; None as in `reading`.
        past: where another generation ended (`Generation.past`); the prompt comes after it.
        vocabulary: for a bare model.

    Raises:
        ConfigError: a parameter is out of range, or text is given to a bare model.
        DataError: symbols or ids that the model does not know.
        DataMissing: text is given, and the run's corpus is not here.
        CheckpointError: see `open_source`.
    """
    drawn = secrets.randbelow(MAX_SEED) if seed is None else seed
    plan = Plan(length, temperature, top_k, top_p, (), drawn)
    plan.check(samples)
    subject = open_source(source, vocabulary)
    ids = _prompt(subject, prompt, past)
    reader = Reader(subject.model, reading(subject, context_len), samples)
    if past is not None:
        reader.state = rows(past.state, [0] * samples)
    plan = plan._replace(stops=_stops(subject, stop))
    return Generation(subject, reader, ids, plan, samples)


class Plan(NamedTuple):
    """How to draw, and when to end; see `generate`."""

    length: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stops: tuple[tuple[int, ...] | bytes, ...]
    """a string at BPE level is bytes: the same characters may come in other tokens"""
    seed: int

    def check(self, samples: int) -> None:
        """Refuse what is out of range."""
        heat, k, p, seed = self.temperature, self.top_k, self.top_p, self.seed
        heated = isinstance(heat, Real) and math.isfinite(heat) and heat >= 0
        rules = {
            "length": (self.length, _counts(self.length), "1 or more tokens"),
            "samples": (samples, _counts(samples), "1 or more"),
            "temperature": (heat, heated, "0 (the likeliest token) or more"),
            "top_k": (k, k is None or _counts(k), "1 or more, or None"),
            "top_p": (
                p,
                p is None or (isinstance(p, Real) and 0 < p <= 1),
                "a probability above 0 and at most 1, or None",
            ),
            "seed": (
                seed,
                isinstance(seed, Integral) and 0 <= seed <= MAX_SEED,
                f"a whole number from 0 to {MAX_SEED}, or None",
            ),
        }
        for name, (value, right, expected) in rules.items():
            if not right:
                raise ConfigError(f"generate: got {name} {value!r}, expected {expected}")


def _counts(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


def _prompt(subject: Subject, prompt: Text, past: Past | None) -> Tensor:
    """The ids to read first, at least one."""
    if unknown := subject.unknown(prompt):
        cure = " Write <unk> in their place." if subject.symbols().level == "word" else ""
        raise DataError(
            f"prompt: the model's vocabulary lacks {', '.join(unknown[:8])}; expected symbols of "
            f"its training text.{cure}"
        )
    before = () if past is None else (past.last,)
    ids = torch.cat([torch.tensor(before, dtype=torch.long), subject.encode(prompt)])
    if len(ids):
        return ids
    for start in ("\n", " "):
        if not subject.unknown(start) and len(found := subject.encode(start)):
            return found
    raise ConfigError(
        "prompt: got none, and the vocabulary has neither line end nor blank; give one"
    )


def _stops(subject: Subject, stop: Stop) -> tuple[tuple[int, ...] | bytes, ...]:
    """Every stop as a sequence of ids, or as bytes."""
    each = [stop] if isinstance(stop, str | int) else stop
    found: list[tuple[int, ...] | bytes] = []
    for one in each:
        if isinstance(one, str) and (unknown := subject.unknown(one)):
            raise DataError(f"stop: {one!r} can never come, the vocabulary lacks {unknown}")
        ids = subject.encode([one] if isinstance(one, int) else one)
        if not len(ids):
            raise ConfigError(f"stop: got {one!r}, expected at least one symbol; leave it out")
        spelt = isinstance(one, str) and subject.symbols().level == "bpe"
        found.append(subject.symbols().raw(ids) if spelt else tuple(ids.tolist()))
    return tuple(found)


def sharpened(
    logp_BC: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """The distribution to draw from: temperature, then `top_k`, then `top_p` of those.

    Args:
        logp_BC: log-probabilities.
        temperature: above 0.
        top_k, top_p: see `generate`.

    Returns:
        (B, C) probabilities in float64 and the class of each, (B, top_k) where that is fewer;
        likeliest first, unless neither `top_k` nor `top_p` asks: sorting many classes takes long.
    """
    logits_BC = logp_BC.double() / temperature
    B, C = logits_BC.shape
    if top_k is not None and top_k < C:
        logits_BC, order_BC = logits_BC.topk(top_k)
    elif top_p is not None:
        logits_BC, order_BC = logits_BC.sort(stable=True, dim=-1, descending=True)
    else:
        order_BC = torch.arange(C).expand(B, C)
    p_BC = logits_BC.softmax(-1)
    if top_p is not None:
        # the first is always kept: nothing comes before it
        p_BC = p_BC * (p_BC.cumsum(-1) - p_BC < top_p)
        p_BC = p_BC / p_BC.sum(-1, keepdim=True)
    return p_BC, order_BC


def draw(p_BC: Tensor, order_BC: Tensor, u_B: Tensor) -> Tensor:
    """(B,) classes: where the cumulated probability passes u, which is uniform in [0, 1)."""
    cdf_BC = p_BC.cumsum(-1)
    at_B1 = torch.searchsorted(cdf_BC, u_B[:, None] * cdf_BC[:, -1:], right=True)
    return order_BC.gather(-1, at_B1.clamp(max=p_BC.shape[1] - 1))[:, 0]


class Generation:
    """Texts being written. Iterate for their tokens as they come; `break` is safe, and iterating
    again goes on where it was left. `text`, `texts`, `ids` and `past` write to the end first.

    Attributes:
        prompt: (n,) ids that were read first.
        seed: with which the same texts are written again.
        settings: how the past is read, such as `carried, context_len 64`.
        recomputes: whether every token cost a pass over its whole window, because the model's
            position codes restart at each segment; otherwise the state is carried.
    """

    def __init__(
        self, subject: Subject, reader: Reader, prompt: Tensor, plan: Plan, samples: int
    ) -> None:
        self.prompt, self.seed, self.recomputes = prompt, plan.seed, reader.recomputes
        self.settings = reader.config.describe()
        self._subject, self._reader, self._plan = subject, reader, plan
        self._unread_BT = prompt.expand(samples, -1)
        self._ids: list[list[int]] = [[] for _ in range(samples)]
        self._pasts: dict[int, Past] = {}
        self._live = list(range(samples))
        self._random = [torch.Generator().manual_seed(plan.seed + i) for i in self._live]
        self._spell = [_speller(subject, prompt) for _ in self._live]
        self._queue: deque[Token] = deque()
        self._see: Callable[[Moment], None] | None = None
        self._taps: tuple[str, ...] = ()

    def observe(self, see: Callable[[Moment], None], *taps: str) -> Generation:
        """Look on while it is written; what is written stays the same, up to rounding.

        Args:
            see: called at each step, before its tokens are given.
            taps: which inner values to record, of `inspect.KNOWN`.
        """
        self._see, self._taps = see, taps
        return self

    def stop(self) -> Generation:
        """Let all samples end where they are: `past` and `text` are of what is written so far.

        Raises:
            ConfigError: nothing is written yet.
        """
        if not all(self._ids):
            raise ConfigError("got a text without any token, expected one to end with; iterate")
        self._end(list(self._live))
        return self

    def __iter__(self) -> Iterator[Token]:
        while self._queue or self._live:
            if not self._queue:
                self._queue.extend(self._step())
            yield self._queue.popleft()

    def finish(self) -> Generation:
        """Write all samples to their end."""
        while self._live:
            self._queue.extend(self._step())
        return self

    @property
    def ids(self) -> list[list[int]]:
        """The generated ids of each sample, a stop at their end included."""
        return [list(ids) for ids in self.finish()._ids]

    @property
    def texts(self) -> list[str]:
        """Each sample as text, without the prompt."""
        self._subject.symbols()
        before = self._subject.decode(self.prompt)
        whole = (self._subject.decode([*self.prompt.tolist(), *ids]) for ids in self.ids)
        return [text[len(before) :] for text in whole]

    @property
    def text(self) -> str:
        """The first sample as text, without the prompt."""
        return self.texts[0]

    def past(self, sample: int = 0) -> Past:
        """Where a sample ended, for `generate(..., past=...)`."""
        return self.finish()._pasts[sample]

    def _step(self) -> list[Token]:
        """One more token for each sample that is not done."""
        if self._see is not None and not self.recomputes and self._unread_BT.shape[1] > 1:
            # of a prompt only its last token is looked at: all maps of a long one fill the memory
            self._reader.read(self._unread_BT[:, :-1])
            self._unread_BT = self._unread_BT[:, -1:]
        looking: AbstractContextManager[Taps] = nullcontext({})
        if self._taps:
            looking = capture(self._subject.model, *self._taps)
        with looking as taps:
            logp_BC = self._reader.read(self._unread_BT).cpu()
        plan, state = self._plan, self._reader.state
        if plan.temperature == 0:
            chosen_B = logp_BC.argmax(-1)
        else:
            u = [torch.rand((), generator=self._random[i], dtype=torch.float64) for i in self._live]
            ranked = sharpened(logp_BC, plan.temperature, plan.top_k, plan.top_p)
            chosen_B = draw(*ranked, torch.stack(u))
        self._unread_BT = chosen_B[:, None]
        nats = (-logp_BC.gather(-1, chosen_B[:, None])[:, 0]).tolist()
        tokens = []
        for i, chosen, cost in zip(self._live, chosen_B.tolist(), nats, strict=True):
            self._ids[i].append(chosen)
            tokens.append(Token(i, chosen, self._spell[i](chosen), cost))
        if self._see is not None:
            self._see(Moment(tokens, logp_BC, state, taps))
        self._end([i for i in self._live if self._is_done(self._ids[i])])
        return tokens

    def _is_done(self, ids: list[int]) -> bool:
        return len(ids) >= self._plan.length or any(map(partial(self._ends, ids), self._plan.stops))

    def _ends(self, ids: list[int], stop: tuple[int, ...] | bytes) -> bool:
        # a token has at least one byte, and what is further back did not end the sample before
        last = ids[-len(stop) :]
        if isinstance(stop, bytes):
            return stop in self._subject.symbols().raw(torch.tensor(last))
        return last == list(stop)

    def _end(self, done: list[int]) -> None:
        """Take samples out of the batch, and keep where they ended."""
        at = {sample: row for row, sample in enumerate(self._live)}
        for i in done:
            self._pasts[i] = Past(rows(self._reader.state, [at[i]]), self._ids[i][-1])
        if done:
            self._live = [i for i in self._live if i not in done]
            kept = [at[i] for i in self._live]
            self._reader.state = rows(self._reader.state, kept)
            self._unread_BT = self._unread_BT[kept]


def _speller(subject: Subject, prompt: Tensor) -> Callable[[int], str]:
    """What each further token adds to a text."""
    vocabulary = subject.vocabulary
    if vocabulary is None:
        return lambda i: ""
    if vocabulary.level in BYTEWISE:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda i: utf8.decode(vocabulary.raw(torch.tensor([i])))
    last = int(prompt[-1])

    def spell(i: int) -> str:
        nonlocal last
        text = subject.decode([last, i])[len(subject.decode([last])) :]
        last = i
        return text

    return spell
