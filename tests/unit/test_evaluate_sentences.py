"""Streams filled with sentences are scored as each stream on its own would be."""

from itertools import pairwise

import pytest
import torch
from test_evaluate import VOCAB, build
from torch import Tensor

from workbench.config import load
from workbench.errors import ConfigError, DataError
from workbench.models.mixers.base import Limits
from workbench.recipe import load_recipe
from workbench.train.config import EvalConfig
from workbench.train.evaluate import evaluate

MARK, B, T = 3, 3, 4


def text(n: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (n,), generator=draw)
    ids[torch.rand(n, generator=draw) < 0.2] = MARK
    ids[0] = MARK
    return ids.to(torch.uint8)


def config(**more: object) -> EvalConfig:
    sizes = {"method": "streams", "order": "sentences", "batch_size": B, "segment_len": T}
    return load(EvalConfig, {**sizes, **more})


def by_hand(tokens: Tensor) -> list[list[int]]:
    """Positions of the inputs of each stream, whole segments only: a sentence goes to the first
    row that is not full."""
    marks = [i for i, x in enumerate(tokens.tolist()) if x == MARK]
    sentences = [list(range(a, b)) for a, b in pairwise(marks)]
    rows: list[list[int]] = [[] for _ in range(B)]
    size = T
    while True:
        for row in rows:
            while len(row) < size and sentences:
                row += sentences.pop(0)
        if min(len(row) for row in rows) < size:
            return [row[: size - T] for row in rows]
        size += T


@pytest.mark.parametrize("stack", ["xl", "fast"])
@pytest.mark.parametrize("more", [{}, {"carry": "reset"}, {"memory_len": 2}])
def test_every_row_runs_on_its_own(stack: str, more: dict[str, object]) -> None:
    if stack == "fast" and "memory_len" in more:
        more = {}
    model, tokens = build(stack), text(150)
    result = evaluate(model, tokens, config(**more))
    rows = by_hand(tokens)
    assert len(rows[0]) >= 5 * T and len(result.nll_nats) == B * len(rows[0]) == result.divisor
    expected = {}
    limits = Limits(more.get("memory_len"), None, None, 0)  # type: ignore[arg-type]
    model.eval()
    with torch.no_grad():
        for row in rows:
            carry = model.initial_carry(1, limits)
            for start in range(0, len(row), T):
                at = torch.tensor(row[start : start + T])
                if "carry" in more:
                    carry = model.initial_carry(1, limits)
                nll, carry = model.nll(tokens[at].long()[None], tokens[at + 1].long()[None], carry)
                expected |= dict(zip((at + 1).tolist(), nll[0].tolist(), strict=True))
    assert result.positions.tolist() == sorted(expected)
    theirs = torch.tensor([expected[p] for p in sorted(expected)], dtype=torch.float64)
    assert torch.allclose(result.nll_nats, theirs, rtol=1e-12)


def test_context_before_segments_is_that_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build("xl"), text(150)
    read, nll = [], model.nll

    def recorded(x_BT: Tensor, y_BT: Tensor, carry: object) -> object:
        read.append((x_BT, y_BT))
        return nll(x_BT, y_BT, carry)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "nll", recorded)
    evaluate(model, tokens, config(ext_len=3))
    rows = torch.tensor(by_hand(tokens))
    assert len(read) == rows.shape[1] // T
    for i, (x_BT, y_BT) in enumerate(read):
        segment = slice(i * T, (i + 1) * T)
        assert torch.equal(x_BT, tokens[rows[:, max(0, i * T - 3) : segment.stop]].long())
        assert torch.equal(y_BT, tokens[rows[:, segment] + 1].long())


def test_progress_and_settings() -> None:
    said: list[tuple[int, int]] = []
    evaluate(build("xl"), text(150), config(), progress=lambda *x: said.append(x))
    assert [done for done, _ in said] == [B * T * (i + 1) for i in range(len(said))]
    assert config().describe() == "streams, batch_size 3, segment_len 4, order sentences"
    assert config().least_tokens == B * (T + 1)


def test_what_cannot_be_is_refused() -> None:
    model = build("xl")
    with pytest.raises(DataError, match=r"token 3 .* does not come again.*order: contiguous"):
        evaluate(model, torch.tensor([MARK, *[1] * 40]), config())
    with pytest.raises(DataError, match="too few for a segment of 4 in each of 3 streams"):
        # one sentence fills the first row alone
        evaluate(model, torch.tensor([MARK, *[1] * 40, MARK]), config())
    with pytest.raises(ConfigError, match="leave average out"):
        config(average="over_tokens")
    with pytest.raises(ConfigError, match=r"order is sentences, which says nothing"):
        load(EvalConfig, {"method": "carried", "order": "sentences"})


def test_a_recipe_measures_by_sentences_only_what_it_trains_on() -> None:
    recipe = load_recipe("txl-lm1b-base")
    assert recipe.eval.order == recipe.data.order.kind == "sentences"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"eval\.order is sentences, but data\.order is cont"):
        load_recipe("txl-lm1b-base", {"data.order": {"kind": "contiguous"}})
